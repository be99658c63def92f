#pragma once

#include "optim/tiles.h"
#include "optim/update_work.h"

/* The tensors of the unit rest in codecs that are maps. */
bool update_uses_maps(const struct optim_setup *setup, int unit);

/* The work of up to WORK_PARTS tiles of tiles_cut_long. */
void update_work_fill(const struct tile_buffers *buffers, const struct optim_step *step,
                      const struct tile *tiles, size_t n, struct update_work *work);

/* One pass of sums over tiles of tiles_cut_long, given out as works. */
struct sums_work {
    const struct tile_buffers *buffers;
    const struct optim_step *step;
    int pass;
    const struct tile *tiles;
    size_t n_tiles;
    int64_t *limbs; /* of the step */
    size_t next;    /* tile; 0 at first */
};

/* The next work; false: there is none. */
bool sums_work_fill(struct sums_work *sums, struct update_work *work);

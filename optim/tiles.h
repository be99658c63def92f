#pragma once

#include "optim/optim.h"
#include "optim/stats.h"

/*
 * Tiles: how operations go through the tensors of a slice.  A tile is a part of one tensor, worked
 * on by one thread in pieces of OPTIM_PIECE elements that stay in the first-level cache.  Padding
 * between tensors belongs to no tile.
 */

struct tile {
    int32_t tensor; /* in the layout */
    int32_t n;
    int64_t begin;       /* of the tensor's elements */
    int64_t at, grad_at; /* from the start of the buffers of weights, and of gradients */
    size_t codes[OPTIM_MAX_STATES], scales[OPTIM_MAX_STATES]; /* bytes into the kinds' buffers */
};

/* The buffers of a slice from their start. */
struct tile_buffers {
    const struct optim_setup *setup;
    const float *grad;
    const bf16_t *grad_bf16; /* instead of grad; NULL: none */
    char *master;            /* of master->bits / 8 bytes per element */
    bf16_t *param;
    char *kinds[OPTIM_MAX_KINDS];
    char *vectors;
    float *const *own_vectors; /* of the only tensor, each on its own, instead of vectors; NULL */
};

/* Scales of rows and columns: while UPDATE writes codes for new ones, it reads those before. */
enum tile_scales { SCALES_NOW, SCALES_BEFORE };

/* fp32 copies of what rests in another form. */
struct tile_piece {
    _Alignas(64) float states[OPTIM_MAX_STATES][OPTIM_PIECE];
    _Alignas(64) float master[OPTIM_PIECE];
    _Alignas(64) float grad[OPTIM_PIECE];
};

/* What UPDATE and its sums go through. */
struct tile_work {
    const struct optim_step *step;
    struct pool *pool;
    const struct tile *tiles;
    size_t n_tiles;
    struct tile_buffers buffers;
    uint64_t first_tensor; /* what stochastic rounding adds to the index of a tensor */
};

/*
 * Cut the tensors of `unit` that lie in `range` into tiles; returns their number.  `tiles` may be
 * NULL to count only.  Buffers are those of the slice `origin`, gradients of `grad_origin`.
 */
size_t tiles_cut(const struct optim_setup *setup, int unit, struct shard grad_origin,
                 struct shard origin, struct shard range, struct tile *tiles);

/* The same for a device: a tile is what of a tensor lies in the range, up to 2^30 elements. */
size_t tiles_cut_long(const struct optim_setup *setup, int unit, struct shard grad_origin,
                      struct shard origin, struct shard range, struct tile *tiles);

/* refs as addresses; only after the plan is bound. */
void tile_buffers_init(struct tile_buffers *buffers, const struct plan *plan,
                       const struct optim_setup *setup, const struct optim_refs *refs);

/* Nothing of the tensor needs a copy in fp32: a piece may be as long as a tile. */
bool tile_in_place(const struct tile_buffers *buffers, const struct tile *tile);

/*
 * Elements [at, at + n) of a tile as a rule sees them, decoded into `piece` where needed.  (Returned by
 * value, the extent would be copied as soon as written, which waits for all that was decoded.)
 */
void tile_decode(const struct tile_buffers *buffers, const struct tile *tile, size_t at, size_t n,
                 enum tile_scales scales, struct tile_piece *piece,
                 struct optim_extent *extent_out);

/* Put back what tile_decode decoded; `key` is for stochastic rounding. */
void tile_encode(const struct tile_buffers *buffers, const struct tile *tile, size_t at, size_t n,
                 uint64_t key, const struct tile_piece *piece);

/* The vectors of a tensor. */
void tile_vectors(const struct tile_buffers *buffers, int tensor,
                  float *vectors_out[STATS_MAX_VECTORS]);

/* Update all tiles; the step is not one to skip. */
void tiles_update(struct tile_work *work);

/*
 * Limbs [begin, end) of one pass over all tiles, those of all threads joined into the first
 * n_limbs of `limbs`, int64 [threads][n_limbs]; a step to skip leaves zeros.  FINISH makes vectors
 * of them, for those of `n` tensors that have any.
 */
void tiles_sum(const struct tile_work *work, int pass, size_t begin, size_t end, int64_t *limbs);
void tiles_sum_finish(const struct tile_work *work, int first, int n, int pass, int64_t *limbs);

/* The slot of a buffer must exist and hold so many bytes from its offset on. */
shoal_status tile_check_ref(const struct plan *plan, struct slot_ref ref, const char *kind,
                            size_t n_bytes);

#pragma once

#include "optim/optim.h"

/*
 * The optimizer's part of a run without the run: one unit, cut into shards that are updated one
 * after the other, as ranks would.  What all ranks hold, laid end to end, must not depend on how
 * many there are.
 */

enum { WORLD_MAX_RANKS = 8, WORLD_MAX_PASSES = 4 };

struct world {
    struct layout *layout;
    struct optim_setup *setup;
    int n_ranks, n_threads;
    int64_t chunk; /* elements per UPDATE; a multiple of the quantum */
    struct device *device;
    struct plan *plan;
    void *memory;
    struct pool *pool;
    struct schedule *sched;
    struct schedule *sums[WORLD_MAX_PASSES], *finish[WORLD_MAX_PASSES];
    struct optim_step step;
    struct optim_refs refs[WORLD_MAX_RANKS];
    size_t shard; /* elements of a rank */
};

/* Tensors of odd sizes and of every sort; add_group: text of optimizer.groups, NULL: none. */
struct world_params {
    const char *rule, *state, *master, *add_group;
    bool cautious, tensor_clip, scale_parameter;
    int n_ranks, n_threads;
    int64_t chunk;
    struct device *device; /* of UPDATE's refs; the memory is the host's all the same */
};
void world_open(struct world *world, const struct world_params *params);
void world_close(struct world *world);

/* Gradients, which are a function of (update, element), and scalars; then the update itself. */
void world_begin(struct world *world, int64_t update, double lr);
void world_run(struct world *world);
void world_update(struct world *world, int64_t update, double lr); /* both */

/* The limbs of a pass are made: add them up over the ranks and make vectors of them. */
void world_finish(struct world *world, int pass);

/* All bytes of a kind (or of "master", "param") over the ranks; freed by the caller. */
unsigned char *world_bytes(const struct world *world, const char *kind, size_t *n_out);

/* Kinds by name, then "param", "master" and "vectors" (of rank 0): NULL ends. */
const char *world_kind(const struct world *world, int index);

#include "optim/factored_kernel.h"

static void accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                       int pass, const struct optim_extent *tile, int64_t first,
                       const float *const *vectors, int64_t *limbs)
{
    if (pass == 0)
        factored_squares(stats, step, tile, first, limbs);
    else
        factored_update_squares(stats, tile, first, vectors, limbs);
}

OPTIM_INLINE void update(const struct optim_stats *stats, const struct optim_stats_step *step,
                         const struct optim_extent *tile, int64_t first,
                         const float *const *vectors, bool with_param)
{
    const float *values = vectors[FACTORED_STEP];
    float u[QUANTUM];

    (void)step;
    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        factored_update(stats, tile, first, at, n, vectors, u);
        move_weights(tile, at, n, u, values[STEP_DECAY], values[STEP_SIZE], with_param);
    }
}

STATS_KERNELS(optim_adafactor);

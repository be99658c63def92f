#include "optim/factored_kernel.h"

/* m and, in u, the clipped update, of n <= QUANTUM elements. */
OPTIM_INLINE void average_update(const struct optim_stats *stats,
                                 const struct optim_stats_step *step,
                                 const struct optim_extent *tile, int64_t first, size_t at,
                                 size_t n, const float *const *vectors, float *restrict u,
                                 float *restrict m)
{
    const struct optim_scalars of_step = step->scalars;
    const float clip = vectors[FACTORED_STEP][STEP_CLIP];
    const float *restrict exp_avg = tile->states[0] + at;

    factored_update(stats, tile, first, at, n, vectors, u);
    for (size_t i = 0; i < n; i++) {
        u[i] = u[i] * clip;
        m[i] = moved_average(of_step.f, exp_avg[i], u[i]);
    }
}

OPTIM_INLINE void instability(const struct optim_stats *stats, const struct optim_stats_step *step,
                              const struct optim_extent *tile, int64_t first,
                              const float *const *vectors, int64_t *limbs)
{
    const float bits = vectors[FACTORED_STEP][STEP_RESIDUAL_BITS];
    const double scale = isnan(bits) ? 1.0 : ldexp(1.0, (int)bits);
    float u[QUANTUM];
    float m[QUANTUM];

    for (size_t at = 0, n = 0; !isnan(bits) && at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        average_update(stats, step, tile, first, at, n, vectors, u, m);
        for (size_t i = 0; i < n; i++)
            u[i] = u[i] - m[i];
        add_rows_and_columns(stats, first + (int64_t)at, n, u, scale, limbs);
    }
}

static void accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                       int pass, const struct optim_extent *tile, int64_t first,
                       const float *const *vectors, int64_t *limbs)
{
    if (pass == 0) {
        factored_squares(stats, step, tile, first, limbs);
        return;
    }
    if (pass == 2) {
        instability(stats, step, tile, first, vectors, limbs);
        return;
    }
    factored_update_squares(stats, tile, first, vectors, limbs);
    for (size_t at = 0, n = 0; stats->cols > 0 && at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        add_exactly(tile->states[0] + at, n, limbs + EXACT_LIMBS);
    }
}

OPTIM_INLINE void update(const struct optim_stats *stats, const struct optim_stats_step *step,
                         const struct optim_extent *tile, int64_t first,
                         const float *const *vectors, bool with_param)
{
    const float *values = vectors[FACTORED_STEP];
    float u[QUANTUM];
    float m[QUANTUM];

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        float *restrict exp_avg = tile->states[0] + at;

        n = quantum_rest(at, tile->n);
        average_update(stats, step, tile, first, at, n, vectors, u, m);
        for (size_t i = 0; i < n; i++)
            exp_avg[i] = one_nan(m[i]);
        if (stats->cols > 0)
            multiply_factors(stats, first + (int64_t)at, n, vectors[CAME_ROW_FACTOR],
                             vectors[CAME_COL_FACTOR], m);
        move_weights(tile, at, n, m, values[STEP_DECAY], values[STEP_SIZE], with_param);
    }
}

STATS_KERNELS(optim_came);

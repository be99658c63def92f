#include "optim/stats_kernel.h"

OPTIM_INLINE struct optim_scalars tensor_scalars(const struct optim_stats *stats,
                                                 const struct optim_stats_step *step,
                                                 const float *const *vectors)
{
    struct optim_scalars scalars = step->scalars;

    if (stats->n_limbs[ELEMENTS_CLIP] > 0)
        scalars.f[MARS_CLIP] = vectors[ELEMENTS_CLIP][0];
    return scalars;
}

/* u of n <= QUANTUM elements; the rule updates the given states. */
OPTIM_INLINE void rule_step(const struct optim_stats *stats, const struct optim_scalars *scalars,
                            const struct optim_extent *tile, size_t at, size_t n,
                            float *const *states, float *restrict u)
{
    struct optim_extent extent = {
        .n = n,
        .grad = tile->grad + at,
        .grad_scale = tile->grad_scale,
        .master = u,
    };

    for (int k = 0; k < stats->rule->n_states; k++)
        extent.states[k] = states[k];
    memset(u, 0, n * sizeof *u);
    stats->element_kernel(scalars, &extent);
    for (size_t i = 0; i < n; i++)
        u[i] = 0.0f - u[i];
}

OPTIM_INLINE void sum_corrected(const struct optim_stats_step *step,
                                const struct optim_extent *tile, int64_t *limbs)
{
    const float *f = step->scalars.f;
    const float *prev_grad = tile->states[2];
    float c[QUANTUM];

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        for (size_t i = 0; i < n; i++)
            c[i] = mars_corrected(f, tile->grad[at + i] * tile->grad_scale, prev_grad[at + i]);
        add_exactly(c, n, limbs);
    }
}

static void accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                       int pass, const struct optim_extent *tile, int64_t first,
                       const float *const *vectors, int64_t *limbs)
{
    (void)first;
    if (pass == ELEMENTS_CLIP) {
        sum_corrected(step, tile, limbs);
        return;
    }

    const struct optim_scalars scalars = tensor_scalars(stats, step, vectors);
    float scratch[OPTIM_MAX_STATES][QUANTUM];
    float *states[OPTIM_MAX_STATES];
    float u[QUANTUM];

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        int32_t kept = 0;

        n = quantum_rest(at, tile->n);
        for (int k = 0; k < stats->rule->n_states; k++) {
            memcpy(scratch[k], tile->states[k] + at, n * sizeof(float));
            states[k] = scratch[k];
        }
        rule_step(stats, &scalars, tile, at, n, states, u);
        for (size_t i = 0; i < n; i++)
            kept += step_agrees(u[i], tile->grad[at + i]);
        limbs[0] += kept;
    }
}

OPTIM_INLINE void update(const struct optim_stats *stats, const struct optim_stats_step *step,
                         const struct optim_extent *tile, int64_t first,
                         const float *const *vectors, bool with_param)
{
    const struct optim_scalars scalars = tensor_scalars(stats, step, vectors);
    float *states[OPTIM_MAX_STATES];
    float u[QUANTUM];

    (void)first;
    if (stats->n_limbs[ELEMENTS_MASK] == 0) {
        stats->element_kernel(&scalars, tile);
        return;
    }
    const float factor = vectors[ELEMENTS_MASK][0];
    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        for (int k = 0; k < stats->rule->n_states; k++)
            states[k] = tile->states[k] + at;
        rule_step(stats, &scalars, tile, at, n, states, u);
        for (size_t i = 0; i < n; i++)
            u[i] = step_agrees(u[i], tile->grad[at + i]) ? u[i] * factor : 0.0f;
        move_weights(tile, at, n, u, scalars.f[SCALAR_DECAY], 1.0f, with_param);
    }
}

STATS_KERNELS(optim_elements);

#include "optim/element_codecs.h"
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

/* What a step works on in place of a quantum of the tile. */
struct copies {
    float memory[OPTIM_MAX_STATES + 1][QUANTUM];
    float *states[OPTIM_MAX_STATES], *u;
};

OPTIM_INLINE void copy_states(const struct optim_stats *stats, const struct optim_extent *tile,
                              size_t at, size_t n, struct copies *copies)
{
    copies->u = copies->memory[OPTIM_MAX_STATES];
    for (int k = 0; k < stats->rule->n_states; k++) {
        copies->states[k] = copies->memory[k];
        memcpy(copies->states[k], tile->states[k] + at, n * sizeof(float));
    }
}

OPTIM_INLINE void count_agreeing(const struct optim_stats *stats,
                                 const struct optim_scalars *scalars,
                                 const struct optim_extent *tile, int64_t *limbs)
{
    struct copies copies;

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        int32_t kept = 0;

        n = quantum_rest(at, tile->n);
        copy_states(stats, tile, at, n, &copies);
        rule_step(stats, scalars, tile, at, n, copies.states, copies.u);
        for (size_t i = 0; i < n; i++)
            kept += step_agrees(copies.u[i], tile->grad[at + i]);
        limbs[0] += kept;
    }
}

/* Limbs: the largest of each row, then of each column, as bits. */
OPTIM_INLINE void raise_maxima(const float *restrict x, size_t n, int64_t *row,
                               int64_t *restrict cols)
{
    int64_t largest = *row;

    for (size_t i = 0; i < n; i++) {
        const int64_t key = map_key(false, x[i]);

        largest = key > largest ? key : largest;
        cols[i] = key > cols[i] ? key : cols[i];
    }
    *row = largest;
}

/* The second moments that the step will have. */
OPTIM_INLINE void find_maxima(const struct optim_stats *stats, const struct optim_scalars *scalars,
                              const struct optim_extent *tile, int64_t first, int64_t *limbs)
{
    struct copies copies;

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        copy_states(stats, tile, at, n, &copies);
        memcpy(copies.u, tile->master + at, n * sizeof *copies.u);

        struct optim_extent extent = *tile;
        extent.n = n;
        extent.grad += at;
        extent.master = copies.u;
        extent.param = NULL;
        memcpy(extent.states, copies.states, sizeof extent.states);
        stats->element_kernel(scalars, &extent);

        for (size_t i = 0, run = 0; i < n; i += run) {
            const int64_t element = first + (int64_t)(at + i);
            const int64_t col = element % stats->cols;

            run = (size_t)least((int64_t)(n - i), stats->cols - col);
            raise_maxima(copies.states[stats->rank1] + i, run, limbs + element / stats->cols,
                         limbs + stats->rows + col);
        }
    }
}

static void accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                       int pass, const struct optim_extent *tile, int64_t first,
                       const float *const *vectors, int64_t *limbs)
{
    if (pass == ELEMENTS_CLIP) {
        sum_corrected(step, tile, limbs);
        return;
    }

    const struct optim_scalars scalars = tensor_scalars(stats, step, vectors);

    if (pass == ELEMENTS_MASK)
        count_agreeing(stats, &scalars, tile, limbs);
    else
        find_maxima(stats, &scalars, tile, first, limbs);
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

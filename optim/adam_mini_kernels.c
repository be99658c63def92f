#include "optim/stats_kernel.h"

/* The block of element `at`, and how many elements of it follow. */
OPTIM_INLINE int64_t block_at(const struct optim_stats *stats, int64_t at, int64_t *rest_out)
{
    const struct optim_part *part = stats->parts;

    while (at >= part->end)
        part++;
    *rest_out = part->block_elements - (at - part->begin) % part->block_elements;
    return part->first_block + (at - part->begin) / part->block_elements;
}

OPTIM_INLINE void gather_elements(const struct optim_scalars *scalars,
                                  const struct optim_extent *tile, int64_t *restrict limbs)
{
    const float grad_scale = tile->grad_scale;
    const struct optim_scalars of_step = *scalars;
    const float *restrict grad = tile->grad;

    for (size_t i = 0; i < tile->n; i++)
        limbs[i] += (int64_t)bits_of(adam_mini_share(of_step.f, grad[i] * grad_scale));
}

static void accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                       int pass, const struct optim_extent *tile, int64_t first,
                       const float *const *vectors, int64_t *limbs)
{
    const int64_t n_blocks = stats->vector_elements[MINI_AVG_SQ];
    const double scale = stats_grad_scale(step);

    (void)pass;
    (void)vectors;
    if (stats->cols == 0) {
        gather_elements(&step->scalars, tile, limbs + first);
        return;
    }
    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        int64_t rest = 0;
        const int64_t block = block_at(stats, first + (int64_t)at, &rest);
        float g[QUANTUM];
        double squares[QUANTUM];

        n = (size_t)least(rest, (int64_t)quantum_rest(at, tile->n));
        for (size_t i = 0; i < n; i++)
            g[i] = tile->grad[at + i] * tile->grad_scale;
        square_all(g, n, squares);

        const double sum = sum_in_lanes(squares, n);
        add_terms(&sum, 1, scale, limbs + block, n_blocks);
    }
}

/* A run of elements of one block, or of elements with their own denominators (stride 1). */
OPTIM_INLINE void update_run(const struct optim_scalars *scalars, const struct optim_extent *tile,
                             size_t at, size_t n, const float *restrict denom, int stride,
                             bool with_param)
{
    const struct optim_scalars of_step = *scalars;
    const float decay = tile->decay ? of_step.f[SCALAR_DECAY] : 1.0f;
    const float grad_scale = tile->grad_scale;
    const float *restrict grad = tile->grad + at;
    float *restrict master = tile->master + at;
    float *restrict exp_avg = tile->states[0] + at;
    bf16_t *restrict param = with_param ? tile->param + at : NULL;

    for (size_t i = 0; i < n; i++) {
        float m = exp_avg[i];
        const float p = one_nan(adam_mini_step(of_step.f, decay, grad[i] * grad_scale, master[i],
                                               &m, denom[(size_t)stride * i]));

        exp_avg[i] = one_nan(m);
        master[i] = p;
        if (with_param)
            param[i] = bf16_of_one_nan(p);
    }
}

OPTIM_INLINE void update(const struct optim_stats *stats, const struct optim_stats_step *step,
                         const struct optim_extent *tile, int64_t first,
                         const float *const *vectors, bool with_param)
{
    const float *denom = vectors[MINI_DENOMINATOR];

    if (stats->cols == 0) {
        update_run(&step->scalars, tile, 0, tile->n, denom + first, 1, with_param);
        return;
    }
    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        int64_t rest = 0;
        const int64_t block = block_at(stats, first + (int64_t)at, &rest);

        n = (size_t)least(rest, (int64_t)(tile->n - at));
        update_run(&step->scalars, tile, at, n, denom + block, 0, with_param);
    }
}

STATS_KERNELS(optim_adam_mini);

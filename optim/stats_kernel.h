#pragma once

#include "optim/kernel.h"
#include "optim/stats_internal.h"

/*
 * What the tile loops of rules over statistics share.  A kernel file defines accumulate and update
 * as the signatures in STATS_KERNELS say and ends with STATS_KERNELS(optim_<rule>).
 */

enum { LANES = 16 };

/* update is inlined twice, as in kernel.h. */
#define STATS_KERNELS(name)                                                                        \
    static void apply(const struct optim_stats *stats, const struct optim_stats_step *step,        \
                      const struct optim_extent *tile, int64_t first, const float *const *vectors) \
    {                                                                                              \
        if (tile->param != NULL)                                                                   \
            update(stats, step, tile, first, vectors, true);                                       \
        else                                                                                       \
            update(stats, step, tile, first, vectors, false);                                      \
    }                                                                                              \
    const struct optim_stats_kernels ISA_NAME(name) = {.accumulate = accumulate, .apply = apply}

OPTIM_INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* From here to the end of the quantum or of the tile. */
OPTIM_INLINE size_t quantum_rest(size_t at, size_t n)
{
    const size_t rest = QUANTUM - at % QUANTUM;

    return rest < n - at ? rest : n - at;
}

/* squares[i] = x[i]^2, exact; zeros up to the next multiple of LANES. */
OPTIM_INLINE void square_all(const float *restrict x, size_t n, double *restrict squares)
{
    for (size_t i = 0; i < n; i++)
        squares[i] = (double)x[i] * (double)x[i];
    for (size_t i = n; i % LANES != 0; i++)
        squares[i] = 0.0;
}

/* As optim_squares_fn: lane l of 16 adds elements l, l + 16, ...; then lanes l and l + 8, ... */
OPTIM_INLINE double sum_in_lanes(const double *restrict x, size_t n)
{
    double lanes[LANES] = {0};

    for (size_t i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++)
            lanes[l] += x[i + (size_t)l];
    }
    for (int width = LANES / 2; width > 0; width /= 2) {
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    }
    return lanes[0];
}

/* Add terms x[i] to the sums whose limbs are limbs[i], limbs[stride + i], limbs[2 * stride + i]. */
OPTIM_INLINE void add_terms(const double *restrict x, size_t n, double scale,
                            int64_t *restrict limbs, int64_t stride)
{
    int64_t *restrict limb0 = limbs;
    int64_t *restrict limb1 = limbs + stride;
    int64_t *restrict limb2 = limbs + 2 * stride;

    for (size_t i = 0; i < n; i++) {
        const struct limb_term term = limb_term_of(x[i], scale);

        limb0[i] += term.limbs[0];
        limb1[i] += term.limbs[1];
        limb2[i] += term.limbs[2];
    }
}

/* Add the squares of x, one quantum at most, to an exact sum. */
OPTIM_INLINE void add_exactly(const float *x, size_t n, int64_t *limbs)
{
    double squares[QUANTUM];

    square_all(x, n, squares);
    exact_sum_add((struct exact_sum *)(void *)limbs, sum_in_lanes(squares, n));
}

/* p = master * decay - u * size; at most one quantum. */
OPTIM_INLINE void move_weights(const struct optim_extent *tile, size_t at, size_t n,
                               const float *restrict u, float decay, float size, bool with_param)
{
    const float decay_factor = tile->decay ? decay : 1.0f;
    float *restrict master = tile->master + at;
    bf16_t *restrict param = with_param ? tile->param + at : NULL;

    for (size_t i = 0; i < n; i++) {
        const float p = one_nan(moved_weight(master[i], decay_factor, u[i], size));

        master[i] = p;
        if (with_param)
            param[i] = bf16_of_one_nan(p);
    }
}

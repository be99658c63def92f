#pragma once

#include "optim/stats_kernel.h"

/* Loops over a factored second moment, for adafactor and came. */

/* n elements of one row of a matrix. */
struct run {
    int64_t row, col;
    size_t n;
};

OPTIM_INLINE struct run run_at(const struct optim_stats *stats, int64_t element, size_t rest)
{
    const int64_t row = element / stats->cols;
    const int64_t col = element % stats->cols;

    return (struct run){row, col, (size_t)least(stats->cols - col, (int64_t)rest)};
}

/* x = (x * row factor) * column factor, over at most one quantum from `element` on. */
OPTIM_INLINE void multiply_factors(const struct optim_stats *stats, int64_t element, size_t n,
                                   const float *row_factor, const float *col_factor, float *x)
{
    for (size_t at = 0; at < n;) {
        const struct run run = run_at(stats, element + (int64_t)at, n - at);
        const float by_row = row_factor[run.row];
        const float *restrict by_col = col_factor + run.col;
        float *restrict out = x + at;

        for (size_t i = 0; i < run.n; i++)
            out[i] = by_factors(out[i], by_row, by_col[i]);
        at += run.n;
    }
}

/* u of n <= QUANTUM elements of the tile from `at` on. */
OPTIM_INLINE void factored_update(const struct optim_stats *stats, const struct optim_extent *tile,
                                  int64_t first, size_t at, size_t n, const float *const *vectors,
                                  float *restrict u)
{
    const float grad_scale = tile->grad_scale;
    const float *restrict grad = tile->grad + at;
    const int64_t element = first + (int64_t)at;

    for (size_t i = 0; i < n; i++)
        u[i] = grad[i] * grad_scale;
    if (stats->cols > 0) {
        multiply_factors(stats, element, n, vectors[FACTORED_ROW_FACTOR],
                         vectors[FACTORED_COL_FACTOR], u);
    } else {
        const float *restrict v = vectors[FACTORED_ELEMENT] + element;

        for (size_t i = 0; i < n; i++)
            u[i] = by_second_moment(u[i], v[i]);
    }
}

/* Add the squares of x to the limbs of their rows and columns; at most one quantum. */
OPTIM_INLINE void add_rows_and_columns(const struct optim_stats *stats, int64_t element, size_t n,
                                       const float *x, double scale, int64_t *limbs)
{
    double squares[QUANTUM];

    for (size_t at = 0; at < n;) {
        const struct run run = run_at(stats, element + (int64_t)at, n - at);

        square_all(x + at, run.n, squares);
        const double sum = sum_in_lanes(squares, run.n);
        add_terms(&sum, 1, scale, limbs + run.row, stats->rows);
        add_terms(squares, run.n, scale, limbs + LIMBS * stats->rows + run.col, stats->cols);
        at += run.n;
    }
}

/* Pass 0: g^2 of rows and columns or of elements, and the weights' squares where lr needs them. */
OPTIM_INLINE void factored_squares(const struct optim_stats *stats,
                                   const struct optim_stats_step *step,
                                   const struct optim_extent *tile, int64_t first, int64_t *limbs)
{
    const double scale = stats_grad_scale(step);
    float g[QUANTUM];

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        const int64_t element = first + (int64_t)at;

        n = quantum_rest(at, tile->n);
        for (size_t i = 0; i < n; i++)
            g[i] = tile->grad[at + i] * tile->grad_scale;
        if (stats->cols > 0) {
            add_rows_and_columns(stats, element, n, g, scale, limbs);
        } else {
            for (size_t i = 0; i < n; i++)
                limbs[element + (int64_t)i] += (int64_t)bits_of(factored_square(g[i]));
        }
        if (stats->scale_parameter)
            add_exactly(tile->master + at, n, limbs + stats->n_limbs[0] - EXACT_LIMBS);
    }
}

/* Pass 1: u^2 of the tensor. */
OPTIM_INLINE void factored_update_squares(const struct optim_stats *stats,
                                          const struct optim_extent *tile, int64_t first,
                                          const float *const *vectors, int64_t *limbs)
{
    float u[QUANTUM];

    for (size_t at = 0, n = 0; at < tile->n; at += n) {
        n = quantum_rest(at, tile->n);
        factored_update(stats, tile, first, at, n, vectors, u);
        add_exactly(u, n, limbs);
    }
}

#pragma once

#include "optim/element_sums.h"
#include "optim/optim_internal.h"
#include "optim/stats.h"

#include <assert.h>
#include <math.h>

/*
 * Fixed-point sums.  A term x >= 0 of a sum that is known to stay below a power of two B is cut
 * into LIMBS = 3 integers of LIMB_BITS = 40 bits, with scale = 2^40 / B:
 *
 *     y    = x * scale              limb 0 += round(y)
 *     y    = (y - round(y)) * 2^40  limb 1 += round(y)
 *     y    = (y - round(y)) * 2^40  limb 2 += round(y)
 *
 * All of it is exact but the last rounding: the resolution is B / 2^120.  Limb 0 of a sum stays
 * below 2^40 + half the number of terms; limbs 1 and 2 change by at most 2^39 with each term, so
 * STATS_MAX_TERMS = 2^23 terms keep them within 2^62 whatever the order and the cut.  The terms of
 * a block are its pieces in quanta, those of a column its elements: hence the largest block and the
 * largest number of rows below, for tensors of any size.
 *
 * For squares of gradients B is a power of two of at least 8 grad_scale^2 grad_squares: rounding
 * g = grad * grad_scale can double a subnormal g at most, hence 4 g^2, and 2 covers the rounding of
 * the sums.  With the norm clipped to 1 the resolution is then below 2^-116, 1e-35.
 *
 * Sums without such a bound (updates, weights) use the limbs of struct exact_sum, one term per
 * quantum: at most 2^30 terms, hence STATS_MAX_ELEMENTS = 2^38.
 */

enum {
    STATS_MAX_TERMS = 1 << 23,
    STATS_MAX_BLOCK = 1 << 30, /* below 2^22 quanta, 2 more where it begins and ends inside one */
};

static const int64_t STATS_MAX_ELEMENTS = (int64_t)1 << 38;

static_assert(sizeof(struct exact_sum) == EXACT_LIMBS * sizeof(int64_t), "limbs and nonfinite");

/* A rule's loops over a tile; one table per instruction set, see stats_kernel.h. */
struct optim_stats_kernels {
    void (*accumulate)(const struct optim_stats *stats, const struct optim_stats_step *step,
                       int pass, const struct optim_extent *tile, int64_t first,
                       const float *const *vectors, int64_t *limbs);
    void (*apply)(const struct optim_stats *stats, const struct optim_stats_step *step,
                  const struct optim_extent *tile, int64_t first, const float *const *vectors);
};

extern const struct optim_stats_kernels optim_adam_mini_scalar, optim_adam_mini_avx2,
    optim_adam_mini_avx512;
extern const struct optim_stats_kernels optim_adafactor_scalar, optim_adafactor_avx2,
    optim_adafactor_avx512;
extern const struct optim_stats_kernels optim_came_scalar, optim_came_avx2, optim_came_avx512;

/* 2^40 / B for sums that are at most `sum` but for rounding. */
double stats_scale(double sum);

/* The scale for squares of gradients of a step. */
double stats_grad_scale(const struct optim_stats_step *step);

/* The sum in limbs[0], limbs[count], limbs[2 * count]; moves carries between them. */
double stats_sum(int64_t *limbs, int64_t count, double scale);

/* A mean square as a float that still can be averaged: at most 2^126. */
float stats_mean(double sum, int64_t count, double eps);

/* average * kept + x * share, the order of every average here; every NaN is 0x7fc00000. */
static inline float stats_average(float average, float kept, float x, float share)
{
    const float sum = average * kept + x * share;

    return isnan(sum) ? NAN : sum;
}

/* ---- options of element-wise rules, stats_elements.c ---- */

/* tensor_clip is set and the rule heeds it. */
bool stats_clips(const struct optim_rule *rule, const struct optim_hyper *hyper);

extern const struct optim_stats_rule optim_elements_stats;
extern const struct optim_stats_kernels optim_elements_scalar, optim_elements_avx2,
    optim_elements_avx512;

/* ---- adam_mini ---- */

/* Cut a tensor into the blocks of its role: fills cols, parts and n_parts. */
shoal_status stats_partition(const struct tensor *tensor, struct optim_stats *stats);
int64_t stats_blocks(const struct optim_stats *stats);

/* ---- adafactor and came: a second moment of rank one ---- */

/* The first vectors of both: name, and whether checkpoints hold it. */
#define FACTORED_VECTOR_NAMES                                                                      \
    [FACTORED_ROW] = {"avg_sq_row", true}, [FACTORED_COL] = {"avg_sq_col", true},                  \
    [FACTORED_ELEMENT] = {"avg_sq_element", true}, [FACTORED_ROW_FACTOR] = {"row_factor", false},  \
    [FACTORED_COL_FACTOR] = {"col_factor", false}, [FACTORED_STEP] = {"step", false}

/* Fills the shape, vectors 0 .. FACTORED_VECTORS - 1 and passes 0 and 1. */
shoal_status factored_init(const struct optim_hyper *hyper, const struct tensor *tensor,
                           struct optim_stats *stats);

/* Stages of FINISH, of a pass with rows and columns or elements; others have one item of WHOLE. */
enum { FINISH_MEANS, FINISH_WHOLE, FINISH_ROWS };

int64_t factored_finish_items(const struct optim_stats *stats, int pass, int stage);

/* Pass 0: the averages of g^2 and what rows and columns of g are multiplied with. */
void factored_finish_squares(const struct optim_finish *finish, int stage, int64_t begin,
                             int64_t end);

/* Pass 1: the tensor's step from sum(u^2). */
void factored_finish_update(const struct optim_finish *finish);

/* Averages of a factored matrix, then 1 / sqrt(row / mean(rows)) and 1 / sqrt(col). */
struct factored_side {
    float *row, *col;               /* averages */
    float *row_factor, *col_factor; /* out */
    double eps, scale;
    float kept, share;
};
void factored_average(const struct optim_finish *finish, const struct factored_side *side,
                      int stage, int64_t begin, int64_t end);

#include "optim/stats_internal.h"

#include <math.h>

/*
 * CAME (Luo et al. 2023, arXiv 2307.02047, algorithm 2): Adafactor's update, averaged, and divided
 * by how much it disagrees with its average.  Constants are the paper's: eps1 1e-30, eps2 1e-16;
 * its defaults betas 0.9, 0.999, beta3 0.9999 (taken for beta3 = 0) and threshold 1.  State
 * exp_avg; vectors avg_sq_row, avg_sq_col, instability_row, instability_col, or avg_sq_element for
 * tensors of one dimension.  Uses beta3 and clip_threshold.
 *
 *     row, col, u as in adafactor.c with beta2 of the configuration and no bias correction
 *     c   = u * [1 / max(1, rms(u) / threshold)]
 *     m   = m * [beta1] + c * [1 - beta1]
 *     d   = c - m
 *     r   = r * [beta3] + (mean of row of d^2 + eps2) * [1 - beta3]
 *     s   = s * [beta3] + (mean of column of d^2 + eps2) * [1 - beta3]
 *     w   = (m * [sqrt(mean(r) / r)]) * [1 / sqrt(s)]      (w = m with one dimension)
 *     p   = master * [decay ? 1 - lr * weight_decay : 1] - w * [lr]
 *
 * The sums of d^2 are bounded by measured ones: with the stored average m0, m lies between m0 and c
 * but for rounding, hence d^2 <= 4 (c^2 + m0^2), whatever a codec made of m0.  If one of them is
 * not finite, the whole tensor becomes NaN.
 */

static const double EPS2 = 1e-16;

enum { PASS_SQUARES, PASS_UPDATE, PASS_INSTABILITY };

static struct optim_scalars came_scalars(const struct optim_hyper *hyper, int64_t step)
{
    const double beta3 = hyper->beta3 > 0.0 ? hyper->beta3 : 0.9999;
    struct optim_scalars scalars = {0};

    (void)step;
    scalars.f[SCALAR_BETA1] = (float)hyper->beta1;
    scalars.f[SCALAR_ONE_MINUS_BETA1] = (float)(1.0 - hyper->beta1);
    scalars.f[SCALAR_BETA2] = (float)hyper->beta2;
    scalars.f[SCALAR_ONE_MINUS_BETA2] = (float)(1.0 - hyper->beta2);
    scalars.f[CAME_BETA3] = (float)beta3;
    scalars.f[CAME_ONE_MINUS_BETA3] = (float)(1.0 - beta3);
    scalars.f[FACTORED_LR] = (float)hyper->lr;
    scalars.f[FACTORED_WEIGHT_DECAY] = (float)hyper->weight_decay;
    scalars.f[FACTORED_THRESHOLD] =
        hyper->clip_threshold > 0.0 ? (float)hyper->clip_threshold : 1.0f;
    return scalars;
}

static shoal_status came_init(const struct optim_hyper *hyper, const struct tensor *tensor,
                              struct optim_stats *stats)
{
    struct optim_hyper without_scale = *hyper;

    without_scale.scale_parameter = false;
    SHOAL_TRY(factored_init(&without_scale, tensor, stats));
    if (stats->cols == 0)
        return SHOAL_OK;

    stats->vector_elements[CAME_ROW] = stats->vector_elements[CAME_ROW_FACTOR] = stats->rows;
    stats->vector_elements[CAME_COL] = stats->vector_elements[CAME_COL_FACTOR] = stats->cols;
    stats->n_limbs[PASS_UPDATE] = 2 * EXACT_LIMBS;
    stats->reads[PASS_UPDATE] = STATS_READS_STATES;
    stats->n_limbs[PASS_INSTABILITY] = LIMBS * (stats->rows + stats->cols);
    stats->reads[PASS_INSTABILITY] = STATS_READS_STATES;
    return SHOAL_OK;
}

/* log2 of the scale for sums of d^2 from the sums of u^2 and m0^2; NaN if these are not finite. */
static float instability_bits(const int64_t *limbs, float clip)
{
    const struct exact_sum *sums = (const struct exact_sum *)(const void *)limbs;
    const double factor = (double)clip;
    const double sum = exact_sum_value(&sums[0]) * (factor * factor) + exact_sum_value(&sums[1]);
    int exponent = 0;

    if (!isfinite(sum))
        return NAN;
    frexp(stats_scale(sum), &exponent);
    return (float)(exponent - 1);
}

static void finish_instability(const struct optim_finish *finish, int stage, int64_t begin,
                               int64_t end)
{
    const int64_t rows = finish->stats->rows;
    const float *scalars = finish->step->scalars.f;
    float *const *vectors = finish->vectors;
    const float bits = vectors[FACTORED_STEP][STEP_RESIDUAL_BITS];
    const struct factored_side side = {
        .row = vectors[CAME_ROW],
        .col = vectors[CAME_COL],
        .row_factor = vectors[CAME_ROW_FACTOR],
        .col_factor = vectors[CAME_COL_FACTOR],
        .eps = EPS2,
        .scale = isnan(bits) ? 1.0 : ldexp(1.0, (int)bits),
        .kept = scalars[CAME_BETA3],
        .share = scalars[CAME_ONE_MINUS_BETA3],
    };

    for (int64_t i = begin; isnan(bits) && stage == FINISH_MEANS && i < end; i++)
        *(i < rows ? &side.row[i] : &side.col[i - rows]) = NAN;
    factored_average(finish, &side, stage, begin, end);
}

static void came_finish(const struct optim_finish *finish, int stage, int64_t begin, int64_t end)
{
    float *values = finish->vectors[FACTORED_STEP];

    if (finish->pass == PASS_SQUARES) {
        factored_finish_squares(finish, stage, begin, end);
    } else if (finish->pass == PASS_UPDATE) {
        factored_finish_update(finish);
        values[STEP_SIZE] = finish->step->scalars.f[FACTORED_LR];
        if (finish->stats->cols > 0)
            values[STEP_RESIDUAL_BITS] = instability_bits(finish->limbs, values[STEP_CLIP]);
    } else {
        finish_instability(finish, stage, begin, end);
    }
}

static const struct optim_stats_rule came_stats = {
    .n_vectors = CAME_VECTORS,
    .vectors =
        {
            FACTORED_VECTOR_NAMES,
            [CAME_ROW] = {"instability_row", true},
            [CAME_COL] = {"instability_col", true},
            [CAME_ROW_FACTOR] = {"instability_row_factor", false},
            [CAME_COL_FACTOR] = {"instability_col_factor", false},
        },
    .kernels = {&optim_came_scalar, &optim_came_avx2, &optim_came_avx512},
    .init = came_init,
    .finish_items = factored_finish_items,
    .finish = came_finish,
};

struct optim_rule_forms optim_came = {
    .rule =
        {
            .name = "came",
            .needs = OPTIM_NEEDS_BLOCK_SUMS,
            .n_states = 1,
            .state_names = {"exp_avg"},
            .scalars = came_scalars,
            .stats = &came_stats,
        },
};

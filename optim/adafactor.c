#include "optim/stats_internal.h"

#include <math.h>

/*
 * Adafactor (Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5) without momentum: the
 * second moment of a matrix is kept as the averages of its rows and columns.  Constants are the
 * paper's: eps1 1e-30, eps2 1e-3, beta2 = 1 - t^-0.8.  lr is that of the schedule.  No states;
 * vectors avg_sq_row and avg_sq_col, or avg_sq_element for tensors of one dimension.
 * Options: clip_threshold, scale_parameter, relative_step.
 *
 *     g   = grad * grad_scale
 *     row = row * [beta2] + (mean of row of g^2 + eps1) * [1 - beta2]
 *     col = col * [beta2] + (mean of column of g^2 + eps1) * [1 - beta2]
 *     u   = (g * [sqrt(mean(row) / row)]) * [1 / sqrt(col)]
 *     p   = master * [decay ? 1 - a * weight_decay : 1] - u * [a / max(1, rms(u) / threshold)]
 *
 * and with one dimension v = v * [beta2] + (g * g + eps1) * [1 - beta2], g * g and averages at most
 * 2^126, and u = g / sqrt(v).  a is lr, with relative_step min(1e-2, 1 / sqrt(t)) instead, and with
 * scale_parameter times max(eps2, rms(master)).  [x] and means are computed in double and rounded
 * once; decay and steps are those of a tensor.  A fused tensor (QKV, gate and up) is one matrix.
 */

/* t^(1/5) by Newton's iteration from above: pow() would give other bits with another libm. */
static double fifth_root(double t)
{
    double y = 1.0;

    while (y * y * y * y * y < t)
        y *= 2.0;
    for (int i = 0; i < 20; i++)
        y = (4.0 * y + t / (y * y * y * y)) / 5.0;
    return y;
}

static struct optim_scalars adafactor_scalars(const struct optim_hyper *hyper, int64_t step)
{
    const double root = fifth_root((double)step);
    const double share = 1.0 / (root * root * root * root);
    const double relative = fmin(1e-2, 1.0 / sqrt((double)step));
    struct optim_scalars scalars = {0};

    scalars.f[SCALAR_BETA2] = (float)(1.0 - share);
    scalars.f[SCALAR_ONE_MINUS_BETA2] = (float)share;
    scalars.f[FACTORED_LR] = (float)(hyper->relative_step ? relative : hyper->lr);
    scalars.f[FACTORED_WEIGHT_DECAY] = (float)hyper->weight_decay;
    scalars.f[FACTORED_THRESHOLD] =
        hyper->clip_threshold > 0.0 ? (float)hyper->clip_threshold : 1.0f;
    return scalars;
}

static void adafactor_finish(const struct optim_finish *finish, int stage, int64_t begin,
                             int64_t end)
{
    if (finish->pass == 0)
        factored_finish_squares(finish, stage, begin, end);
    else
        factored_finish_update(finish);
}

static const struct optim_stats_rule adafactor_stats = {
    .n_vectors = FACTORED_VECTORS,
    .vectors =
        {
            FACTORED_VECTOR_NAMES,
        },
    .kernels = {&optim_adafactor_scalar, &optim_adafactor_avx2, &optim_adafactor_avx512},
    .init = factored_init,
    .finish_items = factored_finish_items,
    .finish = adafactor_finish,
};

struct optim_rule_forms optim_adafactor = {
    .rule =
        {
            .name = "adafactor",
            .needs = OPTIM_NEEDS_BLOCK_SUMS,
            .scalars = adafactor_scalars,
            .stats = &adafactor_stats,
        },
};

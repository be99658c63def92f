#include "optim/optim_internal.h"

/*
 * Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1): the gradient is taken
 * at y, between a fast point z and the average x of all z; x are the weights to use.  Defaults are
 * betas 0.9, 0.999 and eps 1e-8; the first beta is that of the interpolation,
 * y = (1 - beta1) z + beta1 x, and must be above 0.  Bias correction and weights of the average are
 * those of the authors' code (schedulefree 1.4.1): the paper has sqrt(1 - beta2^t) in the rate, so
 * that it also is in the decay and in c.
 *
 *     g     = grad * grad_scale
 *     v     = v * [beta2] + (g * [1 - beta2]) * g
 *     u     = g / (sqrt(v) * [1 / sqrt(b2)] + [eps]) + master * [decay ? weight_decay : 0]
 *     p     = (master + d * [c]) - u * [lr (1 - beta1 (1 - c))]
 *     d     = (d - u * [lr beta1]) * [1 - c]
 *
 * The weights p that rest are y, and the state d is z - y = beta1 (z - x).  It is 0 at first, as
 * z = y = x then, and has no weights in it that a codec or a rounding could lose a small step
 * against.  With z in its place, y' = y + c (z - y) - lr (1 - beta1 (1 - c)) u and z' = z - lr u.
 *
 * c is what the step weighs in the average: the square of the largest rate so far, over the sum of
 * these squares (average_share).  The average:
 *
 *     x     = y - d * [1 / beta1 - 1]
 */

static struct optim_scalars schedule_free_scalars(const struct optim_hyper *hyper, int64_t step)
{
    const double share = hyper->average_share;
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);

    scalars.f[SCALAR_DECAY] = (float)hyper->weight_decay;
    scalars.f[SCALAR_STEP_SIZE] = (float)(hyper->lr * (1.0 - hyper->beta1 * (1.0 - share)));
    scalars.f[SCHEDULE_FREE_SHARE] = (float)share;
    scalars.f[SCHEDULE_FREE_KEPT] = (float)(1.0 - share);
    scalars.f[SCHEDULE_FREE_DRIFT] = (float)(hyper->lr * hyper->beta1);
    return scalars;
}

static void schedule_free_average(const struct optim_hyper *hyper, size_t n, const float *ahead,
                                  float *weights)
{
    const float back = (float)(1.0 / hyper->beta1 - 1.0);

    for (size_t i = 0; i < n; i++)
        weights[i] = one_nan(weights[i] - ahead[i] * back);
}

double optim_average_add(struct optim_average *average, double lr)
{
    average->lr_max = lr > average->lr_max ? lr : average->lr_max;

    const double weight = average->lr_max * average->lr_max;
    average->weight_sum += weight;
    return average->weight_sum > 0.0 ? weight / average->weight_sum : 0.0;
}

struct optim_rule_forms optim_schedule_free = {
    .rule =
        {
            .name = "schedule_free",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 2,
            .state_names = {"z_minus_y", "exp_avg_sq"},
            .state_unsigned = {false, true},
            .state_slow = {true, false},
            .scalars = schedule_free_scalars,
            .kernel_scalar = optim_schedule_free_scalar,
            .average = schedule_free_average,
        },
    .kernels = {optim_schedule_free_scalar, optim_schedule_free_avx2, optim_schedule_free_avx512},
};

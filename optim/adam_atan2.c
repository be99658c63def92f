#include "optim/optim_internal.h"

/*
 * Adam-atan2 (Everett et al. 2024, arXiv 2407.05872): AdamW whose quotient is an arc tangent.  It
 * has no eps, does not depend on the scale of the gradients and never moves a weight by more than
 * 2 lr.  The factor 1.27, about 4 / pi, makes |m| = sqrt(v) a step of lr, as in AdamW.
 *
 *     g = grad * grad_scale
 *     m = m * [beta1] + g * [1 - beta1]
 *     v = v * [beta2] + (g * [1 - beta2]) * g
 *     y = m * [1 / b1];  x = sqrt(v) * [1 / sqrt(b2)]
 *     p = master * [decay ? 1 - lr * weight_decay : 1] - atan2(y, x) * [1.27 * lr]
 *
 * atan2, for x >= 0 and with atan2(0, 0) = 0, is part of the contract too:
 *
 *     lo, hi = |y| > x ? (x, |y|) : (|y|, x)              angle from the nearer axis
 *     far    = lo > hi * 0.41421357                       tan(pi / 8)
 *     t      = far ? (lo - hi) / (hi + lo) : lo / hi      0 / 0 is taken as 0 / 1
 *     z      = t * t
 *     q      = ((0.08060298 * z - 0.13879846) * z + 0.19977926) * z - 0.33332956
 *     a      = t + (t * z) * q;  a = far ? a + pi/4 : a
 *     a      = |y| > x ? pi/2 - a : a;  a = y < 0 ? -a : a
 */

static struct optim_scalars adam_atan2_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);

    scalars.f[SCALAR_STEP_SIZE] = (float)(1.27 * hyper->lr);
    scalars.f[ADAM_ATAN2_INV_B1] = (float)(1.0 / (1.0 - optim_power(hyper->beta1, step)));
    return scalars;
}

struct optim_rule_forms optim_adam_atan2 = {
    .rule =
        {
            .name = "adam_atan2",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 2,
            .state_names = {"exp_avg", "exp_avg_sq"},
            .state_unsigned = {false, true},
            .scalars = adam_atan2_scalars,
            .kernel_scalar = optim_adam_atan2_scalar,
        },
    .kernels = {optim_adam_atan2_scalar, optim_adam_atan2_avx2, optim_adam_atan2_avx512},
};

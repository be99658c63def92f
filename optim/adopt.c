#include "optim/optim_internal.h"

#include <math.h>

/*
 * ADOPT (Taniguchi et al. 2024, arXiv 2411.02853, with the clipping of its later version): the
 * gradient is divided by the root of the second moment of the steps before, and only then averaged.
 * The paper's defaults are betas 0.9, 0.9999 and eps 1e-6.
 *
 *     g     = grad * grad_scale
 *     r     = sqrt(v);  r = r < [eps] ? [eps] : r
 *     c     = g / r, limited to -[clip] .. [clip] where clip = (t - 1)^(1/4)
 *     m     = m * [beta1] + c * [1 - beta1]
 *     p     = master * [decay ? 1 - lr * weight_decay : 1] - m * [lr]
 *     v     = v * [beta2] + (g * [1 - beta2]) * g
 *
 * The first step only sets v = g * g: its clip is 0, so m stays 0, and its scalars hold 1 in place
 * of 1 - beta2 and of the decay factor.
 */

static struct optim_scalars adopt_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);

    scalars.f[SCALAR_STEP_SIZE] = (float)hyper->lr;
    scalars.f[ADOPT_CLIP] = (float)sqrt(sqrt((double)(step - 1)));
    if (step == 1) {
        scalars.f[SCALAR_ONE_MINUS_BETA2] = 1.0f;
        scalars.f[SCALAR_DECAY] = 1.0f;
    }
    return scalars;
}

struct optim_rule_forms optim_adopt = {
    .rule =
        {
            .name = "adopt",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 2,
            .state_names = {"exp_avg", "exp_avg_sq"},
            .state_unsigned = {false, true},
            .scalars = adopt_scalars,
            .kernel_scalar = optim_adopt_scalar,
        },
    .kernels = {optim_adopt_scalar, optim_adopt_avx2, optim_adopt_avx512},
};

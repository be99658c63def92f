#include "optim/optim_internal.h"

/*
 * Lion (Chen et al. 2023, arXiv 2302.06675): every weight moves by lr or stays.  The paper's
 * defaults are betas 0.9, 0.99, with a learning rate 3 to 10 times smaller and a weight decay as
 * much larger than AdamW's.
 *
 *     g = grad * grad_scale
 *     c = m * [beta1] + g * [1 - beta1]
 *     p = master * [decay ? 1 - lr * weight_decay : 1] - sign(c) * [lr]
 *     m = m * [beta2] + g * [1 - beta2]
 *
 * sign(0) is 0, so that a weight without gradients does not drift; so is the sign of a NaN.
 */

static struct optim_scalars lion_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);

    scalars.f[SCALAR_STEP_SIZE] = (float)hyper->lr;
    return scalars;
}

struct optim_rule_forms optim_lion = {
    .rule =
        {
            .name = "lion",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 1,
            .state_names = {"exp_avg"},
            .scalars = lion_scalars,
            .kernel_scalar = optim_lion_scalar,
        },
    .kernels = {optim_lion_scalar, optim_lion_avx2, optim_lion_avx512},
};

#include "optim/optim_internal.h"

/*
 * Adam with L2 regularization (Kingma and Ba 2014, arXiv 1412.6980), in PyTorch's convention: the
 * decay joins the gradient and so passes through both moments.  The paper's defaults are
 * betas 0.9, 0.999 and eps 1e-8.
 *
 *     g     = grad * grad_scale + master * [decay ? weight_decay : 0]
 *     m     = m * [beta1] + g * [1 - beta1]
 *     v     = v * [beta2] + (g * [1 - beta2]) * g
 *     denom = sqrt(v) * [1 / sqrt(b2)] + [eps]
 *     p     = master - (m / denom) * [lr / b1]
 */

static struct optim_scalars adam_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);

    scalars.f[SCALAR_DECAY] = (float)hyper->weight_decay;
    return scalars;
}

struct optim_rule_forms optim_adam = {
    .rule =
        {
            .name = "adam",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 2,
            .state_names = {"exp_avg", "exp_avg_sq"},
            .state_unsigned = {false, true},
            .scalars = adam_scalars,
            .kernel_scalar = optim_adam_scalar,
            .decay_in_gradient = true,
        },
    .kernels = {optim_adam_scalar, optim_adam_avx2, optim_adam_avx512},
};

#include "optim/optim_internal.h"

/*
 * SGD with momentum (Sutskever et al. 2013) in PyTorch's convention: no dampening, the learning
 * rate outside the buffer, and decay that joins the gradient (L2).  Uses momentum and nesterov.
 *
 *     g = grad * grad_scale + master * [decay ? weight_decay : 0]
 *     m = m * [momentum] + g
 *     u = nesterov ? m * [momentum] + g : m
 *     p = master - u * [lr]
 *
 * The first step, m = g, is the same formula with the buffer's initial zeros.  For every element u
 * is computed as m * [nesterov ? momentum : 1] + g * [nesterov ? 1 : 0].
 */

static struct optim_scalars sgd_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);

    scalars.f[SCALAR_DECAY] = (float)hyper->weight_decay;
    scalars.f[SCALAR_STEP_SIZE] = (float)hyper->lr;
    scalars.f[SGD_MOMENTUM] = (float)hyper->momentum;
    scalars.f[SGD_BUFFER_SHARE] = hyper->nesterov ? (float)hyper->momentum : 1.0f;
    scalars.f[SGD_GRAD_SHARE] = hyper->nesterov ? 1.0f : 0.0f;
    return scalars;
}

struct optim_rule_forms optim_sgd = {
    .rule =
        {
            .name = "sgd",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 1,
            .state_names = {"momentum_buffer"},
            .scalars = sgd_scalars,
            .kernel_scalar = optim_sgd_scalar,
            .decay_in_gradient = true,
        },
    .kernels = {optim_sgd_scalar, optim_sgd_avx2, optim_sgd_avx512},
};

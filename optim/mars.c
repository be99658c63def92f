#include "optim/optim_internal.h"

/*
 * MARS-AdamW (Yuan et al. 2024, arXiv 2411.10438) in its approximate form: AdamW on a gradient
 * whose variance is reduced by the change from the last step's gradient.  The paper's defaults are
 * betas 0.95, 0.99, gamma 0.025 and eps 1e-8.  Uses gamma and
 * tensor_clip (see stats_elements.c).
 *
 *     g     = grad * grad_scale
 *     c     = (g + (g - prev) * [t > 1 ? gamma * beta1 / (1 - beta1) : 0]) * [clip]
 *     m     = m * [beta1] + c * [1 - beta1]
 *     v     = v * [beta2] + (c * [1 - beta2]) * c
 *     denom = sqrt(v) * [1 / sqrt(b2)] + [eps]
 *     p     = master * [decay ? 1 - lr * weight_decay : 1] - (m / denom) * [lr / b1]
 *     prev  = g
 *
 * With tensor_clip clip is 1 / |c| where the norm of a tensor's c before clip exceeds 1, as in the
 * paper; without it 1, and grad_clip bounds the norm of g over all tensors instead.  One difference
 * from the authors' code: that takes the gradient before the first step as 0, which enlarges the
 * first c.
 */

static struct optim_scalars mars_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);
    const double correction = hyper->gamma * hyper->beta1 / (1.0 - hyper->beta1);

    scalars.f[MARS_CORRECTION] = step > 1 ? (float)correction : 0.0f;
    scalars.f[MARS_CLIP] = 1.0f;
    return scalars;
}

struct optim_rule_forms optim_mars = {
    .rule =
        {
            .name = "mars",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 3,
            .state_names = {"exp_avg", "exp_avg_sq", "prev_grad"},
            .state_unsigned = {false, true, false},
            .scalars = mars_scalars,
            .kernel_scalar = optim_mars_scalar,
        },
    .kernels = {optim_mars_scalar, optim_mars_avx2, optim_mars_avx512},
};

#include "optim/optim_internal.h"

/*
 * AdamW as PyTorch's fused CUDA kernel computes it (aten/src/ATen/native/cuda/fused_adam_utils.cuh,
 * its fp32 form): averages as linear interpolations of two fma each, a division by the root of the
 * bias correction, the step size times m before the division.
 *
 *     g     = grad * grad_scale
 *     p     = master - [decay ? lr * weight_decay : 0] * master
 *     m     = fma([beta1], m, fma(-[beta1], g, g))
 *     v     = fma([beta2], v, fma(-[beta2], g * g, g * g))
 *     denom = sqrt(v) / [sqrt(b2)] + [eps]
 *     p     = p - ([lr / b1] * m) / denom
 *
 * Scalars are fp32 throughout: lr, weight_decay and the betas are rounded first, b = 1 - beta^t from
 * the power rounded to fp32, then every operation rounds once more.  That software's power is
 * within some ulps of the nearest fp32; earlier releases of it average in double.
 */

static struct optim_scalars torch_fused_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_compat_scalars(hyper);
    const float lr = (float)hyper->lr;
    const float b1 = 1.0f - optim_compat_power(hyper->beta1, step);
    const float b2 = 1.0f - optim_compat_power(hyper->beta2, step);

    scalars.f[SCALAR_DECAY] = lr * (float)hyper->weight_decay;
    scalars.f[SCALAR_STEP_SIZE] = lr / b1;
    scalars.f[COMPAT_B2] = sqrtf(b2);
    return scalars;
}

OPTIM_COMPAT_RULE(optim_adamw_torch_fused, "adamw_torch_fused", torch_fused_scalars);

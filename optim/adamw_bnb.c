#include "optim/optim_internal.h"

/*
 * AdamW as the 32-bit CUDA kernel of bitsandbytes computes it (csrc/kernels.cu, two states): bias
 * corrections are in the step size and in eps, and the weight decays after its update.
 *
 *     g     = grad * grad_scale
 *     m     = m * [beta1] + [1 - beta1] * g
 *     v     = v * [beta2] + [1 - beta2] * (g * g)
 *     p     = master + [-lr * sqrt(b2) / b1] * (m / (sqrt(v) + [eps * sqrt(b2)]))
 *     p     = p * [decay ? 1 - lr * weight_decay : 1]
 *
 * Scalars are fp32: lr, weight_decay and the betas are rounded first, 1 - beta is a difference in
 * fp32, b = 1 - beta^t from the power rounded to fp32, and every operation rounds once more.  Each
 * operation on elements rounds, as written; that software is compiled with fast arithmetic.
 */

static struct optim_scalars bnb_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_compat_scalars(hyper);
    const float lr = (float)hyper->lr;
    const float b1 = 1.0f - optim_compat_power(hyper->beta1, step);
    const float root_b2 = sqrtf(1.0f - optim_compat_power(hyper->beta2, step));

    scalars.f[SCALAR_EPS] *= root_b2;
    scalars.f[SCALAR_DECAY] = 1.0f - lr * (float)hyper->weight_decay;
    scalars.f[SCALAR_STEP_SIZE] = -lr * root_b2 / b1;
    return scalars;
}

OPTIM_COMPAT_RULE(optim_adamw_bnb, "adamw_bnb", bnb_scalars);

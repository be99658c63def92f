#include "optim/optim_internal.h"

/*
 * AdamW as DeepSpeed's CPUAdam computes it in its vector loops (csrc/includes/cpu_adam.h,
 * adamw_mode): fma wherever a product is added.
 *
 *     g     = grad * grad_scale
 *     m     = fma(g, [1 - beta1], m * [beta1])
 *     v     = fma(g * g, [1 - beta2], v * [beta2])
 *     u     = m / fma(sqrt(v), [1 / sqrt(b2)], [eps])
 *     p     = fma(master, -[decay ? lr * weight_decay : 0], master)
 *     p     = fma(u, -[lr / b1], p)
 *
 * Scalars are fp32: lr, weight_decay and the betas are rounded first, and 1 - beta is a difference
 * in fp32 (off by 1.3e-5 of itself for beta2 = 0.999).  beta^t is the product, in fp32, of t
 * factors one after the other, as in a run from step 1 on; that software takes a power instead at the
 * first step after a resume, and the last elements of a buffer lose their fma there.
 */

/* From 2^-26 on 1 - beta^t is 1. */
static float running_product(double beta, int64_t step)
{
    const float factor = (float)beta;
    float product = 1.0f;

    for (int64_t t = 0; t < step && product > 0x1p-26f; t++)
        product *= factor;
    return product;
}

static struct optim_scalars deepspeed_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_compat_scalars(hyper);
    const float lr = (float)hyper->lr;
    const float b1 = 1.0f - running_product(hyper->beta1, step);
    const float b2 = 1.0f - running_product(hyper->beta2, step);

    scalars.f[SCALAR_DECAY] = -lr * (float)hyper->weight_decay;
    scalars.f[SCALAR_STEP_SIZE] = -lr / b1;
    scalars.f[SCALAR_RSQRT_B2] = (float)(1.0 / sqrt((double)b2));
    return scalars;
}

OPTIM_COMPAT_RULE(optim_adamw_deepspeed, "adamw_deepspeed", deepspeed_scalars);

#include "optim/optim_internal.h"

/*
 * AdamW as the fused kernels of Apex, DeepSpeed's FusedAdam and Transformer Engine compute it
 * (csrc/adam/multi_tensor_adam.cu, mode 1): both moments are divided by their bias corrections, and
 * the decay, of the weight before the update, is part of the step.
 *
 *     g     = grad * grad_scale
 *     m     = [beta1] * m + [1 - beta1] * g
 *     v     = [beta2] * v + ([1 - beta2] * g) * g
 *     u     = (m / [b1]) / (sqrt(v / [b2]) + [eps])
 *     u     = u + [decay ? weight_decay : 0] * master
 *     p     = master - [lr] * u
 *
 * Scalars are fp32: lr, weight_decay and the betas are rounded first, and 1 - beta is a difference
 * in fp32; b = 1 - beta^t is computed in double from the rounded beta, then rounded.  Each operation
 * rounds, as written; compilers for GPUs may contract some of them there.
 */

static struct optim_scalars apex_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_compat_scalars(hyper);

    scalars.f[SCALAR_DECAY] = (float)hyper->weight_decay;
    scalars.f[SCALAR_STEP_SIZE] = (float)hyper->lr;
    scalars.f[COMPAT_B1] = (float)(1.0 - optim_power((double)(float)hyper->beta1, step));
    scalars.f[COMPAT_B2] = (float)(1.0 - optim_power((double)(float)hyper->beta2, step));
    return scalars;
}

OPTIM_COMPAT_RULE(optim_adamw_apex, "adamw_apex", apex_scalars);

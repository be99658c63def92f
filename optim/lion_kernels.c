#include "optim/kernel.h"

OPTIM_INLINE void update(const struct optim_scalars *scalars, const struct optim_extent *extent,
                         bf16_t *restrict param)
{
    const float beta1 = scalars->f[SCALAR_BETA1];
    const float one_minus_beta1 = scalars->f[SCALAR_ONE_MINUS_BETA1];
    const float beta2 = scalars->f[SCALAR_BETA2];
    const float one_minus_beta2 = scalars->f[SCALAR_ONE_MINUS_BETA2];
    const float step_size = scalars->f[SCALAR_STEP_SIZE];
    const float decay_factor = extent->decay ? scalars->f[SCALAR_DECAY] : 1.0f;
    const float grad_scale = extent->grad_scale;
    const size_t n = extent->n;
    const float *restrict grad = extent->grad;
    float *restrict master = extent->master;
    float *restrict exp_avg = extent->states[0];

    for (size_t i = 0; i < n; i++) {
        const float g = grad[i] * grad_scale;
        const float c = exp_avg[i] * beta1 + g * one_minus_beta1;
        const float sign = (float)((c > 0.0f) - (c < 0.0f));
        const float p = one_nan(master[i] * decay_factor - sign * step_size);

        exp_avg[i] = one_nan(exp_avg[i] * beta2 + g * one_minus_beta2);
        master[i] = p;
        if (param != NULL)
            param[i] = bf16_from_f32(p);
    }
}

OPTIM_KERNEL(optim_lion)

#include "optim/kernel.h"

OPTIM_INLINE void update(const struct optim_scalars *scalars, const struct optim_extent *extent,
                         bf16_t *restrict param)
{
    const float beta1 = scalars->f[SCALAR_BETA1];
    const float one_minus_beta1 = scalars->f[SCALAR_ONE_MINUS_BETA1];
    const float beta2 = scalars->f[SCALAR_BETA2];
    const float one_minus_beta2 = scalars->f[SCALAR_ONE_MINUS_BETA2];
    const float rsqrt_b2 = scalars->f[SCALAR_RSQRT_B2];
    const float eps = scalars->f[SCALAR_EPS];
    const float correction = scalars->f[MARS_CORRECTION];
    const float clip = scalars->f[MARS_CLIP];
    const float step_size = scalars->f[SCALAR_STEP_SIZE];
    const float decay_factor = extent->decay ? scalars->f[SCALAR_DECAY] : 1.0f;
    const float grad_scale = extent->grad_scale;
    const size_t n = extent->n;
    const float *restrict grad = extent->grad;
    float *restrict master = extent->master;
    float *restrict exp_avg = extent->states[0];
    float *restrict exp_avg_sq = extent->states[1];
    float *restrict prev_grad = extent->states[2];

    for (size_t i = 0; i < n; i++) {
        const float g = grad[i] * grad_scale;
        const float c = (g + (g - prev_grad[i]) * correction) * clip;
        const float m = exp_avg[i] * beta1 + c * one_minus_beta1;
        const float v = exp_avg_sq[i] * beta2 + (c * one_minus_beta2) * c;
        const float denom = sqrtf(v) * rsqrt_b2 + eps;
        const float p = one_nan(master[i] * decay_factor - (m / denom) * step_size);

        exp_avg[i] = one_nan(m);
        exp_avg_sq[i] = one_nan(v);
        prev_grad[i] = one_nan(g);
        master[i] = p;
        if (param != NULL)
            param[i] = bf16_from_f32(p);
    }
}

OPTIM_KERNEL(optim_mars)

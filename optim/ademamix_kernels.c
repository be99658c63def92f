#include "optim/kernel.h"

OPTIM_INLINE void update(const struct optim_scalars *scalars, const struct optim_extent *extent,
                         bf16_t *restrict param)
{
    const float beta1 = scalars->f[SCALAR_BETA1];
    const float one_minus_beta1 = scalars->f[SCALAR_ONE_MINUS_BETA1];
    const float beta2 = scalars->f[SCALAR_BETA2];
    const float one_minus_beta2 = scalars->f[SCALAR_ONE_MINUS_BETA2];
    const float beta3 = scalars->f[ADEMAMIX_BETA3];
    const float one_minus_beta3 = scalars->f[ADEMAMIX_ONE_MINUS_BETA3];
    const float alpha = scalars->f[ADEMAMIX_ALPHA];
    const float inv_b1 = scalars->f[ADEMAMIX_INV_B1];
    const float rsqrt_b2 = scalars->f[SCALAR_RSQRT_B2];
    const float eps = scalars->f[SCALAR_EPS];
    const float step_size = scalars->f[SCALAR_STEP_SIZE];
    const float decay_factor = extent->decay ? scalars->f[SCALAR_DECAY] : 1.0f;
    const float grad_scale = extent->grad_scale;
    const size_t n = extent->n;
    const float *restrict grad = extent->grad;
    float *restrict master = extent->master;
    float *restrict exp_avg = extent->states[0];
    float *restrict exp_avg_sq = extent->states[1];
    float *restrict exp_avg_slow = extent->states[2];

    for (size_t i = 0; i < n; i++) {
        const float g = grad[i] * grad_scale;
        const float m = exp_avg[i] * beta1 + g * one_minus_beta1;
        const float s = exp_avg_slow[i] * beta3 + g * one_minus_beta3;
        const float v = exp_avg_sq[i] * beta2 + (g * one_minus_beta2) * g;
        const float denom = sqrtf(v) * rsqrt_b2 + eps;
        const float u = (m * inv_b1 + s * alpha) / denom;
        const float p = one_nan(master[i] * decay_factor - u * step_size);

        exp_avg[i] = one_nan(m);
        exp_avg_sq[i] = one_nan(v);
        exp_avg_slow[i] = one_nan(s);
        master[i] = p;
        if (param != NULL)
            param[i] = bf16_from_f32(p);
    }
}

OPTIM_KERNEL(optim_ademamix)

#include "optim/kernel.h"

/* atan2(y, x) for x >= 0.  Selections instead of branches, so that the loop vectorizes. */
OPTIM_INLINE float angle_of(float y, float x)
{
    const float abs_y = fabsf(y);
    const bool steep = abs_y > x;
    const float lo = steep ? x : abs_y;
    const float hi = steep ? abs_y : x;
    const bool far = lo > hi * 0.41421357f;
    const float den = far ? hi + lo : hi;
    const float t = (far ? lo - hi : lo) / (den == 0.0f ? 1.0f : den);
    const float z = t * t;
    const float q = ((0.08060298f * z - 0.13879846f) * z + 0.19977926f) * z - 0.33332956f;
    const float near = t + (t * z) * q;
    const float octant = far ? near + 0.7853982f : near;
    const float quadrant = steep ? 1.5707964f - octant : octant;

    return y < 0.0f ? -quadrant : quadrant;
}

OPTIM_INLINE void update(const struct optim_scalars *scalars, const struct optim_extent *extent,
                         bf16_t *restrict param)
{
    const float beta1 = scalars->f[SCALAR_BETA1];
    const float one_minus_beta1 = scalars->f[SCALAR_ONE_MINUS_BETA1];
    const float beta2 = scalars->f[SCALAR_BETA2];
    const float one_minus_beta2 = scalars->f[SCALAR_ONE_MINUS_BETA2];
    const float rsqrt_b2 = scalars->f[SCALAR_RSQRT_B2];
    const float inv_b1 = scalars->f[ADAM_ATAN2_INV_B1];
    const float step_size = scalars->f[SCALAR_STEP_SIZE];
    const float decay_factor = extent->decay ? scalars->f[SCALAR_DECAY] : 1.0f;
    const float grad_scale = extent->grad_scale;
    const size_t n = extent->n;
    const float *restrict grad = extent->grad;
    float *restrict master = extent->master;
    float *restrict exp_avg = extent->states[0];
    float *restrict exp_avg_sq = extent->states[1];

    for (size_t i = 0; i < n; i++) {
        const float g = grad[i] * grad_scale;
        const float m = exp_avg[i] * beta1 + g * one_minus_beta1;
        const float v = exp_avg_sq[i] * beta2 + (g * one_minus_beta2) * g;
        const float angle = angle_of(m * inv_b1, sqrtf(v) * rsqrt_b2);
        const float p = one_nan(master[i] * decay_factor - angle * step_size);

        exp_avg[i] = one_nan(m);
        exp_avg_sq[i] = one_nan(v);
        master[i] = p;
        if (param != NULL)
            param[i] = bf16_from_f32(p);
    }
}

OPTIM_KERNEL(optim_adam_atan2)

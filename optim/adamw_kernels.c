#include "optim/optim_internal.h"

#include "runtime/base/isa.h"

#include <math.h>
#include <string.h>

/*
 * AdamW over one extent, compiled once per instruction set.  The scalar build is the
 * specification; the others are the same loop, vectorized by the compiler, which may not
 * contract or reorder IEEE operations (launch/cmake/rules.cmake).
 */

/* x, or the one NaN for every NaN.  On the bits, because compilers branch on x != x. */
static inline float one_nan(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Inlined twice, with and without a bf16 copy: a loop with a condition does not vectorize. */
static inline __attribute__((always_inline)) void update(const struct optim_scalars *scalars,
                                                         const struct optim_extent *extent,
                                                         bf16_t *restrict param)
{
    const float beta1 = scalars->f[ADAMW_BETA1];
    const float one_minus_beta1 = scalars->f[ADAMW_ONE_MINUS_BETA1];
    const float beta2 = scalars->f[ADAMW_BETA2];
    const float one_minus_beta2 = scalars->f[ADAMW_ONE_MINUS_BETA2];
    const float rsqrt_b2 = scalars->f[ADAMW_RSQRT_B2];
    const float eps = scalars->f[ADAMW_EPS];
    const float step_size = scalars->f[ADAMW_STEP_SIZE];
    const float decay_factor = extent->decay ? scalars->f[ADAMW_DECAY_FACTOR] : 1.0f;
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
        const float denom = sqrtf(v) * rsqrt_b2 + eps;
        const float p = one_nan(master[i] * decay_factor - (m / denom) * step_size);

        exp_avg[i] = one_nan(m);
        exp_avg_sq[i] = one_nan(v);
        master[i] = p;
        if (param != NULL)
            param[i] = bf16_from_f32(p);
    }
}

void ISA_NAME(optim_adamw)(const struct optim_scalars *scalars, const struct optim_extent *extent)
{
    if (extent->param != NULL)
        update(scalars, extent, extent->param);
    else
        update(scalars, extent, NULL);
}

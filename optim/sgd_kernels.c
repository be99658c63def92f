#include "optim/kernel.h"

OPTIM_INLINE void update(const struct optim_scalars *scalars, const struct optim_extent *extent,
                         bf16_t *restrict param)
{
    const float momentum = scalars->f[SGD_MOMENTUM];
    const float buffer_share = scalars->f[SGD_BUFFER_SHARE];
    const float grad_share = scalars->f[SGD_GRAD_SHARE];
    const float step_size = scalars->f[SCALAR_STEP_SIZE];
    const float weight_decay = extent->decay ? scalars->f[SCALAR_DECAY] : 0.0f;
    const float grad_scale = extent->grad_scale;
    const size_t n = extent->n;
    const float *restrict grad = extent->grad;
    float *restrict master = extent->master;
    float *restrict momentum_buffer = extent->states[0];

    for (size_t i = 0; i < n; i++) {
        const float g = grad[i] * grad_scale + master[i] * weight_decay;
        const float m = momentum_buffer[i] * momentum + g;
        const float p = one_nan(master[i] - (m * buffer_share + g * grad_share) * step_size);

        momentum_buffer[i] = one_nan(m);
        master[i] = p;
        if (param != NULL)
            param[i] = bf16_from_f32(p);
    }
}

OPTIM_KERNEL(optim_sgd)

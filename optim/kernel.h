#pragma once

#include "optim/optim_internal.h"

#include "runtime/base/isa.h"

#include <math.h>
#include <string.h>

/*
 * The element loop of the rules.  A kernel file is OPTIM_KERNEL(<rule>, its states, what leaves a
 * weight alone instead of f[SCALAR_DECAY]); the rule itself is <rule>_step of element_rules.h.  It
 * is compiled once per instruction set: the scalar build is the specification, the others are the
 * same loop vectorized by the compiler, which may not contract or reorder IEEE operations
 * (launch/cmake/rules.cmake).
 */

#define OPTIM_INLINE static inline __attribute__((always_inline))

/* update is inlined twice, with and without a bf16 copy: a loop with a condition does not vectorize. */
#define OPTIM_KERNEL(rule, n_states, no_decay)                                                     \
    OPTIM_INLINE void update(const struct optim_scalars *scalars,                                  \
                             const struct optim_extent *extent, bf16_t *restrict param)            \
    {                                                                                              \
        const struct optim_scalars of_step = *scalars;                                             \
        const float decay = extent->decay ? of_step.f[SCALAR_DECAY] : (no_decay);                  \
        const float grad_scale = extent->grad_scale;                                               \
        const size_t n = extent->n;                                                                \
        const float *restrict grad = extent->grad;                                                 \
        float *restrict master = extent->master;                                                   \
        float *restrict state0 = extent->states[0];                                                \
        float *restrict state1 = extent->states[1];                                                \
        float *restrict state2 = extent->states[2];                                                \
                                                                                                   \
        for (size_t i = 0; i < n; i++) {                                                           \
            float s[ELEMENT_STATES] = {state0[i], (n_states) > 1 ? state1[i] : 0.0f,               \
                                       (n_states) > 2 ? state2[i] : 0.0f};                         \
            const float p =                                                                        \
                one_nan(rule##_step(of_step.f, decay, grad[i] * grad_scale, master[i], s));        \
                                                                                                   \
            state0[i] = one_nan(s[0]);                                                             \
            if ((n_states) > 1)                                                                    \
                state1[i] = one_nan(s[1]);                                                         \
            if ((n_states) > 2)                                                                    \
                state2[i] = one_nan(s[2]);                                                         \
            master[i] = p;                                                                         \
            if (param != NULL)                                                                     \
                param[i] = bf16_of_one_nan(p);                                                     \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    void ISA_NAME(optim_##rule)(const struct optim_scalars *scalars,                               \
                                const struct optim_extent *extent)                                 \
    {                                                                                              \
        if (extent->param != NULL)                                                                 \
            update(scalars, extent, extent->param);                                                \
        else                                                                                       \
            update(scalars, extent, NULL);                                                         \
    }

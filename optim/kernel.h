#pragma once

#include "optim/optim_internal.h"

#include "runtime/base/isa.h"

#include <math.h>
#include <string.h>

/*
 * What the element loops of the rules share.  A kernel file writes its loop as
 *
 *     OPTIM_INLINE void update(const struct optim_scalars *scalars,
 *                              const struct optim_extent *extent, bf16_t *restrict param)
 *
 * and ends with OPTIM_KERNEL(optim_<rule>).  It is compiled once per instruction set: the scalar
 * build is the specification, the others are the same loop vectorized by the compiler, which may
 * not contract or reorder IEEE operations (launch/cmake/rules.cmake).
 */

#define OPTIM_INLINE static inline __attribute__((always_inline))

/* Inlined twice, with and without a bf16 copy: a loop with a condition does not vectorize. */
#define OPTIM_KERNEL(name)                                                                         \
    void ISA_NAME(name)(const struct optim_scalars *scalars, const struct optim_extent *extent)    \
    {                                                                                              \
        if (extent->param != NULL)                                                                 \
            update(scalars, extent, extent->param);                                                \
        else                                                                                       \
            update(scalars, extent, NULL);                                                         \
    }

/* x, or the one NaN for every NaN.  On the bits, because compilers branch on x != x. */
OPTIM_INLINE float one_nan(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
    memcpy(&x, &bits, sizeof x);
    return x;
}

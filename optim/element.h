#pragma once

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/*
 * What is done to one element, for every device: the loops of the CPU and the kernels of CUDA call
 * the same functions (element_rules.h, element_codecs.h), so that they give the same bytes.  C and
 * C++; each operation is one IEEE operation, in the order written.
 */

#if defined(__CUDACC__)
#define OPTIM_ELEMENT  static __device__ __forceinline__
#define OPTIM_TABLE    static __device__ const
#define ELEMENT_UNROLL _Pragma("unroll")
#else
#define OPTIM_ELEMENT  static inline __attribute__((always_inline))
#define OPTIM_TABLE    static const
#define ELEMENT_UNROLL _Pragma("GCC unroll 16")
#endif

enum {
    NAN_BITS = 0x7fc00000,
    INFINITY_BITS = 0x7f800000,
    LEAST_NORMAL_BITS = 0x00800000,
    NEAREST_BITS = 0x4b400000, /* of 0x1.8p23 */
};

OPTIM_ELEMENT uint32_t bits_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

OPTIM_ELEMENT float float_of(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x, or the one NaN for every NaN.  A second look for NaNs in the same loop makes compilers branch. */
OPTIM_ELEMENT float one_nan(float x)
{
    return x == x ? x : float_of(NAN_BITS);
}

/*
 * The integer nearest to x, ties to even, for |x| < 2^22: in the low bits of the sum, which stands
 * NEAREST_BITS above it as a whole.
 */
OPTIM_ELEMENT uint32_t nearest_integer(float x)
{
    return bits_of(x + 0x1.8p23f);
}

OPTIM_ELEMENT uint32_t max_bits(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

OPTIM_ELEMENT int32_t max_signed(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* bf16_from_f32 and bf16_to_f32 of runtime/base/dtype.h, which device code cannot call. */
OPTIM_ELEMENT uint16_t bf16_of(float x)
{
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;

    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

/* The same for numbers and the one NaN. */
OPTIM_ELEMENT uint16_t bf16_of_one_nan(float x)
{
    const uint32_t bits = bits_of(x);

    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

OPTIM_ELEMENT float of_bf16(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

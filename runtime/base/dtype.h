#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * Element types and bfloat16.
 *
 * fp32 -> bf16 rounds to nearest, ties to even; NaN stays NaN (quiet).  Both
 * directions are exact integer arithmetic, hence the same on every machine.
 */

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_I32, DTYPE_I64, DTYPE_U8 };

typedef uint16_t bf16_t;

static inline size_t dtype_bytes(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32:
    case DTYPE_I32:
        return 4;
    case DTYPE_BF16:
        return 2;
    case DTYPE_I64:
        return 8;
    case DTYPE_U8:
        return 1;
    }
    return 0;
}

const char *dtype_name(enum dtype dtype);

static inline float bf16_to_f32(bf16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline bf16_t bf16_from_f32(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t nan = (bits >> 16) | 0x40u;
    return (bf16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

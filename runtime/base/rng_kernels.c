#include "runtime/base/isa.h"
#include "runtime/base/rng_internal.h"

#include <math.h>
#include <string.h>

/*
 * Normals from Philox blocks, compiled once per instruction set.  Every lane runs the same fp32
 * multiplications, additions and square root in the same order, so the widths give the same bits.
 *
 * r = sqrt(-2 ln u) with u in (0, 1] from all 32 bits of a word: the largest normal is
 * sqrt(66 ln 2) = 6.76.  The polynomials are Cephes' logf, sinf and cosf (Moshier, 1992), whose
 * errors of some 1e-7 are far below what a random number can show.
 */

enum { LANES = 16 };

static inline float float_of_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t bits_of_float(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/*
 * (x + 1/2) / 2^32, rounded.  By halves, which are exact in fp32, because vector units before
 * AVX-512 convert only signed integers.
 */
static inline float open_uniform(uint32_t x)
{
    const float high = (float)(int32_t)(x >> 16) * 0x1p-16f;
    const float low = (float)(int32_t)(x & 0xffffu) * 0x1p-32f;

    return high + (low + 0x1p-33f);
}

/* ln u for normal u > 0: u = 2^e * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). */
static inline float log_of(float u)
{
    const uint32_t from_sqrt_half = bits_of_float(u) - 0x3f3504f3u;
    const int32_t exponent = (int32_t)from_sqrt_half >> 23;
    const float f = float_of_bits((from_sqrt_half & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const float e = (float)exponent;
    const float f2 = f * f;
    float p = 7.0376836292e-2f;

    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;

    /* ln 2 in two parts, the first exact when multiplied by e. */
    float y = p * f * f2;
    y = y + e * -2.12194440e-4f;
    y = y - 0.5f * f2;
    return (f + y) + e * 0.693359375f;
}

/* Two normals from two words; the angle is split into a quarter turn and a rest in +-1/8 turn. */
static inline void normal_pair(uint32_t x_radius, uint32_t x_angle, float std, float *a, float *b)
{
    const float radius = std * sqrtf(-2.0f * log_of(open_uniform(x_radius)));
    const uint32_t quarter = (x_angle + 0x20000000u) >> 30;
    const int32_t rest = (int32_t)(x_angle - (quarter << 30));
    const float t = (float)rest * 1.46291807926715968e-9f; /* 2 pi / 2^32 */
    const float t2 = t * t;

    float s = -1.9515295891e-4f;
    s = s * t2 + 8.3321608736e-3f;
    s = s * t2 - 1.6666654611e-1f;
    s = s * t2 * t + t;

    float c = 2.443315711809948e-5f;
    c = c * t2 - 1.388731625493765e-3f;
    c = c * t2 + 4.166664568298827e-2f;
    c = c * t2 * t2 - 0.5f * t2 + 1.0f;

    /* Quarters 1 and 3 exchange sine and cosine; cos < 0 in 1, 2 and sin < 0 in 2, 3. */
    const uint32_t swap = 0u - (quarter & 1);
    const uint32_t cos_bits = (bits_of_float(c) & ~swap) | (bits_of_float(s) & swap);
    const uint32_t sin_bits = (bits_of_float(s) & ~swap) | (bits_of_float(c) & swap);

    *a = radius * float_of_bits(cos_bits ^ ((quarter + 1) >> 1 << 31));
    *b = radius * float_of_bits(sin_bits ^ (quarter >> 1 << 31));
}

/* Philox4x32-10 with the counter's words by name, so that it vectorizes over blocks. */
static inline void block_normals(struct philox_key key, uint64_t sub, uint64_t block, float std,
                                 float out[4])
{
    uint32_t c0 = (uint32_t)block;
    uint32_t c1 = (uint32_t)(block >> 32);
    uint32_t c2 = (uint32_t)sub;
    uint32_t c3 = (uint32_t)(sub >> 32);
    uint32_t k0 = key.k[0];
    uint32_t k1 = key.k[1];

#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;

        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    normal_pair(c0, c1, std, &out[0], &out[1]);
    normal_pair(c2, c3, std, &out[2], &out[3]);
}

void ISA_NAME(rng_normal_blocks)(struct philox_key key, uint64_t sub, uint64_t first_block,
                                 size_t n_blocks, float std, float *out)
{
    for (size_t i = 0; i < n_blocks; i++)
        block_normals(key, sub, first_block + i, std, out + 4 * i);
}

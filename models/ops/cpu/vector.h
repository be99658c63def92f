#pragma once

#include "runtime/base/dtype.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

/*
 * Sixteen fp32 lanes in the compilers' vector extension, for kernel files that are built once per
 * instruction set.  A build lowers them to its own registers, lane by lane the same IEEE
 * operations; sums run over the 16 lanes and end in one fixed tree.  So all builds give the same
 * bits.  No fma is written: the scalar build would have to emulate it.  Where a compiler makes poor
 * code of the extension, the avx512 build names the instruction that does the very same.
 */

#define LANES     16
#define OP_INLINE static inline __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef double f64x16 __attribute__((vector_size(128)));

OP_INLINE f32x16 splat(float x)
{
    return (f32x16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
}

/* x < y ? a : b, lane by lane. */
OP_INLINE f32x16 select_less(f32x16 x, f32x16 y, f32x16 a, f32x16 b)
{
#if defined(__AVX512F__)
    return (f32x16)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_LT_OQ),
                                        (__m512)b, (__m512)a);
#else
    i32x16 mask = x < y;
    return (f32x16)((mask & (i32x16)a) | (~mask & (i32x16)b));
#endif
}

/* x > low ? x : low and x < high ? x : high, except that NaN stays. */
OP_INLINE f32x16 at_least(f32x16 x, float low)
{
#if defined(__AVX512F__)
    return (f32x16)_mm512_max_ps((__m512)splat(low),
                                 (__m512)x); /* of a NaN and a number: the 2nd */
#else
    return select_less(x, splat(low), splat(low), x);
#endif
}

OP_INLINE f32x16 at_most(f32x16 x, float high)
{
#if defined(__AVX512F__)
    return (f32x16)_mm512_min_ps((__m512)splat(high), (__m512)x);
#else
    return select_less(splat(high), x, splat(high), x);
#endif
}

/* a > b ? a : b. */
OP_INLINE f32x16 max16(f32x16 a, f32x16 b)
{
#if defined(__AVX512F__)
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select_less(b, a, a, b);
#endif
}

/* ---- memory: element i of an array of either type ---- */

OP_INLINE const void *at(enum dtype dtype, const void *p, int64_t i)
{
    return (const char *)p + i * (dtype == DTYPE_F32 ? 4 : 2);
}

OP_INLINE void *at_mut(enum dtype dtype, void *p, int64_t i)
{
    return (char *)p + i * (dtype == DTYPE_F32 ? 4 : 2);
}

OP_INLINE f32x16 widen(u16x16 h)
{
#if defined(__AVX512F__)
    return (f32x16)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (f32x16)(__builtin_convertvector(h, u32x16) << 16);
#endif
}

/* As bf16_from_f32. */
OP_INLINE u16x16 narrow(f32x16 x)
{
    u32x16 bits = (u32x16)x;
    u32x16 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    u32x16 nan = (bits >> 16) | 0x40u;
#if defined(__AVX512F__)
    const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    return (u16x16)_mm512_cvtepi32_epi16(
        _mm512_mask_blend_epi32(is_nan, (__m512i)rounded, (__m512i)nan));
#else
    u32x16 is_nan = (u32x16)(x != x);
    return __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), u16x16);
#endif
}

OP_INLINE f32x16 load(enum dtype dtype, const void *p, int64_t i)
{
    if (dtype == DTYPE_F32) {
        f32x16 x;
        memcpy(&x, at(DTYPE_F32, p, i), sizeof x);
        return x;
    }
    u16x16 h;
    memcpy(&h, at(DTYPE_BF16, p, i), sizeof h);
    return widen(h);
}

OP_INLINE void store(enum dtype dtype, void *p, int64_t i, f32x16 x)
{
    if (dtype == DTYPE_F32) {
        memcpy(at_mut(DTYPE_F32, p, i), &x, sizeof x);
        return;
    }
    u16x16 h = narrow(x);
    memcpy(at_mut(DTYPE_BF16, p, i), &h, sizeof h);
}

/* The n < 16 elements at a row's end; the other lanes read as zero and are not written. */
OP_INLINE f32x16 load_tail(enum dtype dtype, const void *p, int64_t i, int64_t n)
{
#if defined(__AVX512F__)
    const __mmask16 lanes = (__mmask16)((1u << n) - 1u);
    if (dtype == DTYPE_F32)
        return (f32x16)_mm512_maskz_loadu_ps(lanes, at(DTYPE_F32, p, i));
    return widen((u16x16)_mm256_maskz_loadu_epi16(lanes, at(DTYPE_BF16, p, i)));
#else
    if (dtype == DTYPE_F32) {
        f32x16 x = {0};
        memcpy(&x, at(DTYPE_F32, p, i), (size_t)n * 4);
        return x;
    }
    u16x16 h = {0};
    memcpy(&h, at(DTYPE_BF16, p, i), (size_t)n * 2);
    return widen(h);
#endif
}

OP_INLINE void store_tail(enum dtype dtype, void *p, int64_t i, int64_t n, f32x16 x)
{
#if defined(__AVX512F__)
    const __mmask16 lanes = (__mmask16)((1u << n) - 1u);
    if (dtype == DTYPE_F32)
        _mm512_mask_storeu_ps(at_mut(DTYPE_F32, p, i), lanes, (__m512)x);
    else
        _mm256_mask_storeu_epi16(at_mut(DTYPE_BF16, p, i), lanes, (__m256i)narrow(x));
#else
    if (dtype == DTYPE_F32) {
        memcpy(at_mut(DTYPE_F32, p, i), &x, (size_t)n * 4);
        return;
    }
    u16x16 h = narrow(x);
    memcpy(at_mut(DTYPE_BF16, p, i), &h, (size_t)n * 2);
#endif
}

/* All 16 lanes of [i, n), or its tail. */
OP_INLINE f32x16 load_some(enum dtype dtype, const void *p, int64_t i, int64_t n)
{
    return i + LANES <= n ? load(dtype, p, i) : load_tail(dtype, p, i, n - i);
}

OP_INLINE void store_some(enum dtype dtype, void *p, int64_t i, int64_t n, f32x16 x)
{
    if (i + LANES <= n)
        store(dtype, p, i, x);
    else
        store_tail(dtype, p, i, n - i, x);
}

/* Lanes [0, n) of x, the others replaced by `rest`. */
OP_INLINE f32x16 keep_lanes(f32x16 x, int64_t n, float rest)
{
    const f32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

    return n < LANES ? select_less(lane, splat((float)n), x, splat(rest)) : x;
}

/* ---- reductions in a fixed tree ---- */

OP_INLINE float sum_lanes(f32x16 x)
{
    float v[LANES];

    memcpy(v, &x, sizeof v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            v[i] += v[i + width];
    return v[0];
}

OP_INLINE float max_lanes(f32x16 x)
{
    float v[LANES];

    memcpy(v, &x, sizeof v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    return v[0];
}

OP_INLINE double sum_lanes64(f64x16 x)
{
    double v[LANES];

    memcpy(v, &x, sizeof v);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            v[i] += v[i + width];
    return v[0];
}

/*
 * ---- functions ----
 *
 * A function is one long chain of dependent operations.  A few of them fill the processor's
 * scheduler and leave its units idle, so vectors are taken GROUP at a time, operation by operation;
 * `n` is GROUP or, at a row's end, 1.
 */
#if defined(__AVX512F__)
#define GROUP 4
#else
#define GROUP 1
#endif

#define EACH(i) for (int i = 0; i < n; i++)

/* Vectors from element at on; single ones may be the tail of an array of `end` elements. */
OP_INLINE void load_group(int n, enum dtype dtype, const void *p, int64_t at, int64_t end,
                          f32x16 x[])
{
    EACH(i)
    {
        x[i] = n > 1 ? load(dtype, p, at + i * LANES) : load_some(dtype, p, at, end);
    }
}

OP_INLINE void store_group(int n, enum dtype dtype, void *p, int64_t at, int64_t end,
                           const f32x16 x[])
{
    EACH(i)
    {
        if (n > 1)
            store(dtype, p, at + i * LANES, x[i]);
        else
            store_some(dtype, p, at, end, x[i]);
    }
}

/* The same place, elements at to at + 15 or the tail, of n rows that are `ld` elements apart. */
OP_INLINE void load_rows(int n, enum dtype dtype, const void *p, int64_t ld, int64_t at,
                         int64_t end, f32x16 x[])
{
    if (at + LANES <= end) {
        EACH(i) x[i] = load(dtype, p, i * ld + at);
    } else {
        EACH(i) x[i] = load_tail(dtype, p, i * ld + at, end - at);
    }
}

OP_INLINE void store_rows(int n, enum dtype dtype, void *p, int64_t ld, int64_t at, int64_t end,
                          const f32x16 x[])
{
    if (at + LANES <= end) {
        EACH(i) store(dtype, p, i * ld + at, x[i]);
    } else {
        EACH(i) store_tail(dtype, p, i * ld + at, end - at, x[i]);
    }
}

/* `piece` over an array of `end` elements: groups of vectors, then single ones. */
#define FOR_GROUPS(end, piece, ...)                                                                \
    do {                                                                                           \
        int64_t at_ = 0;                                                                           \
        for (; at_ + GROUP * LANES <= (end); at_ += GROUP * LANES)                                 \
            piece(GROUP, at_, end, __VA_ARGS__);                                                   \
        for (; at_ < (end); at_ += LANES)                                                          \
            piece(1, at_, end, __VA_ARGS__);                                                       \
    } while (0)

/*
 * e^x for x in [-87.3, 88.3] or NaN: Cody and Waite's reduction x = k ln 2 + r, |r| <= ln2 / 2, a Taylor polynomial of degree 7
 * (remainder r^8 / 8! < 5.3e-9 relative) and 2^k put into the exponent.  The error is below 2 ulp
 * (tests).
 */
OP_INLINE void exp_in_range(int n, f32x16 x[])
{
    const float to_int = 0x1.8p23f; /* adding it rounds to the nearest integer, ties to even */
    const float coefficients[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f};
    f32x16 shifted[GROUP];
    f32x16 k[GROUP];
    f32x16 r[GROUP];
    f32x16 p[GROUP];

    EACH(i) shifted[i] = x[i] * 0x1.715476p+0f + to_int;
    EACH(i) k[i] = shifted[i] - to_int;
    EACH(i) r[i] = x[i] - k[i] * 0x1.63p-1f; /* ln 2 in two parts; the first product is exact */
    EACH(i) r[i] = r[i] - k[i] * -0x1.bd0106p-13f;
    EACH(i) p[i] = splat(1.0f / 5040.0f);
    for (int c = 0; c < 5; c++)
        EACH(i) p[i] = p[i] * r[i] + coefficients[c];
    EACH(i) p[i] = (p[i] * r[i]) * r[i] + r[i] + 1.0f;
    EACH(i)
    {
        i32x16 exponent = ((i32x16)shifted[i] - 0x4b400000 + 127) << 23; /* bits of to_int */
        x[i] = p[i] * (f32x16)exponent;
    }
}

/* e^x for x up to 88.3 or NaN: below -87.3 (where results would be subnormal) 0. */
OP_INLINE void exp_below(int n, f32x16 x[])
{
    const float low = -87.3f;
    f32x16 y[GROUP];

    EACH(i) y[i] = at_least(x[i], low);
    exp_in_range(n, y);
    EACH(i) x[i] = select_less(x[i], splat(low), splat(0.0f), y[i]);
}

/* e^x for all x: above 88.3 infinite. */
OP_INLINE f32x16 exp16(f32x16 x)
{
    const float high = 88.3f;
    f32x16 y = at_most(x, high);

    exp_below(1, &y);
    return select_less(splat(high), x, splat(INFINITY), y);
}

/*
 * x becomes 1 / (1 + e^-x), and complement one minus that without cancellation.  The argument is
 * kept where e^-x and the result are normal numbers.
 */
OP_INLINE void sigmoid(int n, f32x16 x[], f32x16 complement[])
{
    EACH(i) complement[i] = at_least(at_most(-x[i], 87.0f), -87.0f);
    exp_in_range(n, complement);
    EACH(i) x[i] = 1.0f / (1.0f + complement[i]);
    EACH(i) complement[i] = complement[i] * x[i];
}

/*
 * Natural logarithm in double, without libm, whose last bit differs between CPUs:
 * x = m 2^e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s), s = (m - 1) / (m + 1),
 * |s| < 0.1716; the first neglected term is s^25 / 25 < 3e-21.  For positive normal x.
 */
static inline double log_positive(double x)
{
    uint64_t bits;
    uint64_t m_bits;
    double m;

    memcpy(&bits, &x, sizeof bits);
    if (bits >= 0x7ff0000000000000u)
        return x;                                            /* infinity or NaN */
    int64_t e = (int64_t)(bits - 0x3fe6a09e667f3bcdu) >> 52; /* binades above sqrt(1/2) */
    m_bits = bits - ((uint64_t)e << 52);
    memcpy(&m, &m_bits, sizeof m);

    double s = (m - 1.0) / (m + 1.0);
    double s2 = s * s;
    double p = 1.0 / 23.0;
    for (int k = 21; k >= 1; k -= 2)
        p = p * s2 + 1.0 / k;
    return (double)e * 0x1.62e42fefa39efp-1 + 2.0 * s * p;
}

/*
 * The same in fp32, for positive normal numbers; infinity and NaN stay.  The first neglected term is
 * s^11 / 11 < 4e-10.
 */
OP_INLINE f32x16 log16(f32x16 x)
{
    i32x16 e = ((i32x16)x - 0x3f3504f3) >> 23; /* binades above sqrt(1/2) */
    f32x16 m = (f32x16)((i32x16)x - (e << 23));
    f32x16 s = (m - 1.0f) / (m + 1.0f);
    f32x16 s2 = s * s;
    f32x16 p = splat(1.0f / 9.0f);

    p = p * s2 + 1.0f / 7.0f;
    p = p * s2 + 1.0f / 5.0f;
    p = p * s2 + 1.0f / 3.0f;
    p = p * s2 + 1.0f;
    f32x16 y = __builtin_convertvector(e, f32x16) * 0x1.62e430p-1f + 2.0f * s * p;
    return select_less(x, splat(INFINITY), y, x);
}

#include "optim/codec_kernel.h"

/*
 * Format "int4": half a byte per element, the first of two in the low half, one fp32 scale per 128.
 * Half a byte without an element is zero.
 *
 * Signed: A is the block's element of largest magnitude with its sign (above zero if both signs
 * have it), so that this element has code 8 for 1 whatever its sign, and is kept exactly: a map
 * without -1 would pull a block's leading average towards zero at every step.  The values are those
 * of the dynamic map of 4 bits (Dettmers et al., arXiv 2110.02861):
 *
 *     code       0    1      2      3      4      5      6      7      8   9       ...  15
 *     value / A  0   .0055  .0325  .0775  .2125  .4375  .6625  .8875   1  -.8875   ...  -.0055
 *
 *     x = value * [1 / A]        code = that of the nearest, ties away from zero
 *
 * Unsigned: A is the block's largest, values are (code + 1) / 16: none is zero, as m / eps would
 * follow (Li et al., arXiv 2309.01507).  Zeros become A / 16 beside others.
 *
 *     x = value * [1 / A]        code = nearest(x * 16 - 1), ties to even, at least 0
 *
 * The scale is A itself, for the reason given for int8.  A block whose largest magnitude is below
 * 2^-126 becomes zeros, scale included; one with a NaN or infinity becomes NaN: codes 0, scale
 * 0x7fc00000.
 */

enum { BLOCK = 128 };

static const float UNSIGNED_VALUES[16] = {
    0.0625f, 0.125f, 0.1875f, 0.25f, 0.3125f, 0.375f, 0.4375f, 0.5f,
    0.5625f, 0.625f, 0.6875f, 0.75f, 0.8125f, 0.875f, 0.9375f, 1.0f,
};

#if defined(__AVX512BW__)
/*
 * int4_nearest_value from registers.  Quarters of octaves from 2^-8 to 1 number 0 to 31; what is smaller
 * counts as in the first and what is larger as in the last.  Each has the number of the value at
 * its beginning, and at most one place where the next value becomes the nearest.
 */
#define MIDDLE(below, above) (((below) + (above)) * 0.5f)

static const float NEXT_FROM[32] = {
    [0] = MIDDLE(0.0f, 0.0055f),     [8] = MIDDLE(0.0055f, 0.0325f),
    [15] = MIDDLE(0.0325f, 0.0775f), [20] = MIDDLE(0.0775f, 0.2125f),
    [25] = MIDDLE(0.2125f, 0.4375f), [28] = MIDDLE(0.4375f, 0.6625f),
    [30] = MIDDLE(0.6625f, 0.8875f), [31] = MIDDLE(0.8875f, 1.0f),
};

/* Less one where there is no such place: there the comparison with 0 always adds one. */
static const int32_t NUMBER[32] = {
    0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7,
};

OPTIM_INLINE size_t signed_codes_16(const float *restrict x, size_t n, float inverse,
                                    uint32_t *restrict codes)
{
    const __m512i first = _mm512_set1_epi32(0x3b800000 >> 21);
    const __m512 next_low = _mm512_loadu_ps(NEXT_FROM);
    const __m512 next_high = _mm512_loadu_ps(NEXT_FROM + 16);
    const __m512i number_low = _mm512_loadu_si512(NUMBER);
    const __m512i number_high = _mm512_loadu_si512(NUMBER + 16);
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        const __m512 share = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
        const __m512 size = _mm512_abs_ps(share);
        const __m512i quarter = _mm512_min_epu32(
            _mm512_subs_epu16(_mm512_srli_epi32(_mm512_castps_si512(size), 21), first),
            _mm512_set1_epi32(31));
        const __mmask16 next = _mm512_cmp_ps_mask(
            size, _mm512_permutex2var_ps(next_low, quarter, next_high), _CMP_GE_OQ);
        const __m512i below = _mm512_permutex2var_epi32(number_low, quarter, number_high);
        const __m512i number = _mm512_mask_add_epi32(below, next, below, _mm512_set1_epi32(1));
        const __m512i negated = _mm512_sub_epi32(_mm512_setzero_si512(),
                                                 _mm512_min_epu32(number, _mm512_set1_epi32(7)));
        const __m512i code = _mm512_mask_mov_epi32(
            number, _mm512_movepi32_mask(_mm512_castps_si512(share)), negated);

        _mm512_storeu_si512(codes + i, _mm512_and_si512(code, _mm512_set1_epi32(15)));
    }
    return i;
}
#else
OPTIM_INLINE size_t signed_codes_16(const float *restrict x, size_t n, float inverse,
                                    uint32_t *restrict codes)
{
    (void)x;
    (void)n;
    (void)inverse;
    (void)codes;
    return 0;
}
#endif

OPTIM_INLINE void signed_codes(const float *restrict x, size_t n, float inverse,
                               uint32_t *restrict codes)
{
    for (size_t i = signed_codes_16(x, n, inverse, codes); i < n; i++)
        codes[i] = int4_signed_code(x[i], inverse);
}

OPTIM_INLINE void unsigned_codes(const float *restrict x, size_t n, float inverse,
                                 uint32_t *restrict codes)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = int4_unsigned_code(x[i], inverse);
}

/* The bits of A. */
OPTIM_INLINE uint32_t signed_scale(const float *x, size_t n, uint32_t largest)
{
    int32_t above_zero = 0;

    for (size_t i = 0; i < n; i++)
        above_zero = max_signed(above_zero, (int32_t)bits_of(x[i]));
    return (uint32_t)above_zero == largest ? largest : largest | 0x80000000u;
}

OPTIM_INLINE void encode_block(enum codec_sign sign, const float *restrict x, size_t n,
                               uint8_t *restrict codes, float *restrict scale)
{
    const uint32_t largest = sign == CODEC_SIGNED ? largest_magnitude(x, n) : largest_moment(x, n);
    uint32_t words[BLOCK];

    if (largest < LEAST_NORMAL_BITS || largest >= INFINITY_BITS) {
        *scale = float_of(largest < LEAST_NORMAL_BITS ? 0 : NAN_BITS);
        memset(codes, 0, (n + 1) / 2);
        return;
    }
    if (sign == CODEC_SIGNED) {
        *scale = float_of(signed_scale(x, n, largest));
        signed_codes(x, n, 1.0f / *scale, words);
    } else {
        *scale = float_of(largest);
        unsigned_codes(x, n, 1.0f / *scale, words);
    }
    narrow_nibbles(FIRST_LOW, words, n, codes);
}

/* Full blocks go through a copy with a constant count, which unrolls. */
OPTIM_INLINE void encode_all(enum codec_sign sign, const float *x, size_t n, uint8_t *codes,
                             float *scales)
{
    size_t at = 0;

    for (; n - at >= BLOCK; at += BLOCK)
        encode_block(sign, x + at, BLOCK, codes + at / 2, scales + at / BLOCK);
    if (at < n)
        encode_block(sign, x + at, n - at, codes + at / 2, scales + at / BLOCK);
}

OPTIM_INLINE void decode_all(const float *values, const uint8_t *codes, const float *scales,
                             size_t n, float *x)
{
    uint32_t words[BLOCK];
    size_t at = 0;

    for (; n - at >= BLOCK; at += BLOCK) {
        widen_nibbles(FIRST_LOW, codes + at / 2, BLOCK, words);
        look_up_16(values, words, BLOCK, scales[at / BLOCK], x + at);
    }
    if (at < n) {
        widen_nibbles(FIRST_LOW, codes + at / 2, n - at, words);
        look_up_16(values, words, n - at, scales[at / BLOCK], x + at);
    }
}

void ISA_NAME(codec_int4_encode_signed)(const float *x, size_t n, void *codes, void *scales)
{
    encode_all(CODEC_SIGNED, x, n, codes, scales);
}

void ISA_NAME(codec_int4_encode_unsigned)(const float *x, size_t n, void *codes, void *scales)
{
    encode_all(CODEC_UNSIGNED, x, n, codes, scales);
}

void ISA_NAME(codec_int4_decode_signed)(const void *codes, const void *scales, size_t n, float *x)
{
    decode_all(INT4_SIGNED_VALUES, codes, scales, n, x);
}

void ISA_NAME(codec_int4_decode_unsigned)(const void *codes, const void *scales, size_t n, float *x)
{
    decode_all(UNSIGNED_VALUES, codes, scales, n, x);
}

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

OPTIM_INLINE void signed_codes(const float *restrict x, size_t n, float inverse,
                               uint32_t *restrict codes)
{
    for (size_t i = 0; i < n; i++)
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

#if defined(__AVX512BW__)
/*
 * Whole blocks from registers.
 *
 * Quarters of octaves from 2^-8 to 1 hold at most one place, NEXT_FROM, where the next value becomes
 * the nearest.  So what is to be added to the bits of a magnitude, that the number of its nearest
 * value stands from bit 21 up, depends on its quarter alone: the number at the quarter's beginning,
 * and a carry from NEXT_FROM on.  The tables are indexed by the lowest 5 bits of the quarter; that
 * of 2^-7 comes first, that of 2^-8 follows the last below 1.
 */
#define MIDDLE(below, above) (((below) + (above)) * 0.5f)

enum { QUARTER_BITS = 21, FIRST_QUARTER = 0x3b800000 >> QUARTER_BITS, MAX_BLOCKS = 8 };

/* For _mm512_range_ps: without its sign. */
enum { LESSER_MAGNITUDE = 0x0a };

static const float NEXT_FROM[32] = {
    [4] = MIDDLE(0.0055f, 0.0325f),  [11] = MIDDLE(0.0325f, 0.0775f),
    [16] = MIDDLE(0.0775f, 0.2125f), [21] = MIDDLE(0.2125f, 0.4375f),
    [24] = MIDDLE(0.4375f, 0.6625f), [26] = MIDDLE(0.6625f, 0.8875f),
    [27] = MIDDLE(0.8875f, 1.0f),
};

/* Less one where there is no such place: there 0 always gives a carry. */
static const int32_t NUMBER[32] = {
    0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 6, 7, 0, 0, 0, 0,
};

/* By number; from 16 on of what is below zero. */
static const int32_t CODES[32] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, [17] = 15, 14, 13, 12, 11, 10, 9, 9,
};

struct steps {
    __m512i low, high;
};

/* Those with the index `first` to first + 15. */
OPTIM_INLINE __m512i steps_from(int first)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i from_first = _mm512_and_si512(
        _mm512_add_epi32(lane, _mm512_set1_epi32(first - FIRST_QUARTER)), _mm512_set1_epi32(31));
    const __m512i quarter = _mm512_add_epi32(from_first, _mm512_set1_epi32(FIRST_QUARTER - 1));
    const __m512i number = _mm512_sub_epi32(_mm512_loadu_si512(NUMBER + first), quarter);
    const __m512i next = _mm512_and_si512(_mm512_loadu_si512(NEXT_FROM + first),
                                          _mm512_set1_epi32((1 << QUARTER_BITS) - 1));

    return _mm512_sub_epi32(_mm512_slli_epi32(number, QUARTER_BITS), next);
}

OPTIM_INLINE __m512i signed_codes_16(__m512 x, __m512 inverse, struct steps steps)
{
    const __m512 share = _mm512_mul_ps(x, inverse);
    const __m512 size = _mm512_range_ps(share, _mm512_set1_ps(0x1.fffffep-1f), LESSER_MAGNITUDE);
    const __mmask16 some =
        _mm512_cmp_ps_mask(size, _mm512_set1_ps(MIDDLE(0.0f, 0.0055f)), _CMP_GE_OQ);
    const __m512i bits = _mm512_castps_si512(_mm512_max_ps(size, _mm512_set1_ps(0x1p-8f)));
    const __m512i step =
        _mm512_permutex2var_epi32(steps.low, _mm512_srli_epi32(bits, QUARTER_BITS), steps.high);
    const __m512i number = _mm512_srli_epi32(_mm512_add_epi32(bits, step), QUARTER_BITS);
    const __m512i sign =
        _mm512_and_si512(_mm512_srli_epi32(_mm512_castps_si512(share), 27), _mm512_set1_epi32(16));

    return _mm512_maskz_permutex2var_epi32(some, _mm512_loadu_si512(CODES),
                                           _mm512_or_si512(number, sign),
                                           _mm512_loadu_si512(CODES + 16));
}

OPTIM_INLINE __m512i unsigned_codes_16(__m512 x, __m512 inverse)
{
    const __m512 code =
        _mm512_fmadd_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(16.0f), _mm512_set1_ps(-1.0f));

    return _mm512_cvtps_epi32(_mm512_max_ps(code, _mm512_setzero_ps()));
}

/* Four vectors of codes, two to a byte. */
OPTIM_INLINE __m256i join_64(const __m512i *codes)
{
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(codes[0], codes[1]),
                                              _mm512_packus_epi32(codes[2], codes[3]));
    const __m512i first_and_16_second = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x1001));

    return _mm512_cvtepi16_epi8(_mm512_permutexvar_epi32(order, first_and_16_second));
}

/* What largest_magnitude and signed_scale, or largest_moment, find in one pass. */
OPTIM_INLINE uint32_t largest_of_block(enum codec_sign sign, const float *restrict x,
                                       uint32_t *scale_bits)
{
    __m512i above_zero = _mm512_setzero_si512();
    __m512i all = _mm512_setzero_si512();

    for (size_t i = 0; i < BLOCK; i += 16) {
        const __m512i bits = _mm512_loadu_si512(x + i);

        above_zero = _mm512_max_epi32(above_zero, bits);
        all = _mm512_max_epu32(all, bits);
    }

    const __mmask16 has_below = _mm512_movepi32_mask(all);
    if (sign == CODEC_UNSIGNED)
        return *scale_bits =
                   has_below == 0 ? _mm512_reduce_max_epu32(all) : largest_moment(x, BLOCK);

    const __m512i below_zero =
        _mm512_maskz_and_epi32(has_below, all, _mm512_set1_epi32(0x7fffffff));
    const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(above_zero, below_zero));
    const bool is_above = _mm512_cmpeq_epi32_mask(above_zero, _mm512_set1_epi32((int)largest)) != 0;
    *scale_bits = is_above ? largest : largest | 0x80000000u;
    return largest;
}

OPTIM_INLINE void encode_whole_block(enum codec_sign sign, const float *restrict x, float inverse,
                                     uint8_t *restrict codes)
{
    const struct steps steps = {steps_from(0), steps_from(16)};
    const __m512 factor = _mm512_set1_ps(inverse);

    for (size_t i = 0; i < BLOCK; i += 64) {
        __m512i words[4];

        for (size_t k = 0; k < 4; k++) {
            const __m512 value = _mm512_loadu_ps(x + i + 16 * k);

            words[k] = sign == CODEC_SIGNED ? signed_codes_16(value, factor, steps)
                                            : unsigned_codes_16(value, factor);
        }
        _mm256_storeu_si256((__m256i *)(codes + i / 2), join_64(words));
    }
}

/* All scales come first: the codes of one block then do not wait for the search of the next. */
OPTIM_INLINE void encode_some_blocks(enum codec_sign sign, const float *restrict x, size_t n_blocks,
                                     uint8_t *restrict codes, float *restrict scales)
{
    float inverses[MAX_BLOCKS];

    for (size_t b = 0; b < n_blocks; b++) {
        uint32_t scale_bits = 0;
        const uint32_t largest = largest_of_block(sign, x + b * BLOCK, &scale_bits);
        const bool live = largest >= LEAST_NORMAL_BITS && largest < INFINITY_BITS;
        const uint32_t dead = largest < LEAST_NORMAL_BITS ? 0u : NAN_BITS;

        scales[b] = float_of(live ? scale_bits : dead);
        inverses[b] = live ? 1.0f / scales[b] : 0.0f;
    }
    for (size_t b = 0; b < n_blocks; b++, x += BLOCK, codes += BLOCK / 2) {
        if (inverses[b] != 0.0f)
            encode_whole_block(sign, x, inverses[b], codes);
        else
            memset(codes, 0, BLOCK / 2);
    }
}

/* Returns how many elements that were. */
OPTIM_INLINE size_t encode_whole_blocks(enum codec_sign sign, const float *x, size_t n,
                                        uint8_t *codes, float *scales)
{
    size_t at = 0;

    while (n - at >= BLOCK) {
        const size_t whole = (n - at) / BLOCK;
        const size_t n_blocks = whole < MAX_BLOCKS ? whole : MAX_BLOCKS;

        encode_some_blocks(sign, x + at, n_blocks, codes + at / 2, scales + at / BLOCK);
        at += n_blocks * BLOCK;
    }
    return at;
}
#else
OPTIM_INLINE size_t encode_whole_blocks(enum codec_sign sign, const float *x, size_t n,
                                        uint8_t *codes, float *scales)
{
    size_t at = 0;

    for (; n - at >= BLOCK; at += BLOCK)
        encode_block(sign, x + at, BLOCK, codes + at / 2, scales + at / BLOCK);
    return at;
}
#endif

OPTIM_INLINE void encode_all(enum codec_sign sign, const float *x, size_t n, uint8_t *codes,
                             float *scales)
{
    const size_t at = encode_whole_blocks(sign, x, n, codes, scales);

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

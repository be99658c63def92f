#pragma once

#include "optim/codec_internal.h"
#include "optim/element_codecs.h"
#include "optim/kernel.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/*
 * What the loops of the codecs share.  As with rules, the scalar build of a loop is the
 * specification and the others give the same bytes on every input.
 */

/* The largest |x| of a block as bits, in whose order NaN > infinity > every number. */
OPTIM_INLINE uint32_t largest_magnitude(const float *x, size_t n)
{
    uint32_t largest = 0;

    for (size_t i = 0; i < n; i++)
        largest = max_bits(largest, magnitude_key(x[i]));
    return largest;
}

/* The largest of a block of second moments as bits. */
OPTIM_INLINE uint32_t largest_moment(const float *x, size_t n)
{
    int32_t largest = 0;

    for (size_t i = 0; i < n; i++)
        largest = max_signed(largest, moment_key(x[i]));
    return (uint32_t)largest;
}

/*
 * Between bytes and words.  Here alone the compiler needs help: it would narrow 64 words at a time
 * by chains of shuffles.
 */
OPTIM_INLINE void narrow(const uint32_t *restrict words, size_t n, uint8_t *restrict bytes)
{
    size_t i = 0;

#if defined(__AVX512BW__)
    for (; i + 16 <= n; i += 16)
        _mm_storeu_si128((__m128i *)(bytes + i),
                         _mm512_cvtepi32_epi8(_mm512_loadu_si512(words + i)));
#endif
    for (; i < n; i++)
        bytes[i] = (uint8_t)words[i];
}

OPTIM_INLINE void widen(const uint8_t *restrict bytes, size_t n, uint32_t *restrict words)
{
    size_t i = 0;

#if defined(__AVX512BW__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_si512(words + i,
                            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(bytes + i))));
#endif
    for (; i < n; i++)
        words[i] = bytes[i];
}

/* Words of 4 bits, two to a byte; where the first of a pair goes is the format's choice. */
enum nibble_order { FIRST_LOW, FIRST_HIGH };

OPTIM_INLINE void narrow_nibbles(enum nibble_order order, const uint32_t *restrict words, size_t n,
                                 uint8_t *restrict bytes)
{
    const uint32_t first = order == FIRST_LOW ? 0 : 4;
    const uint32_t second = 4 - first;
    size_t i = 0;

#if defined(__AVX512BW__)
    for (; i + 16 <= n; i += 16) {
        const __m512i pairs = _mm512_loadu_si512(words + i);
        const __m512i joined =
            _mm512_or_si512(_mm512_slli_epi64(pairs, first), _mm512_srli_epi64(pairs, 32 - second));

        _mm_storel_epi64((__m128i *)(bytes + i / 2), _mm512_cvtepi64_epi8(joined));
    }
#endif
    for (; i + 2 <= n; i += 2)
        bytes[i / 2] = (uint8_t)(words[i] << first | words[i + 1] << second);
    if (i < n)
        bytes[i / 2] = (uint8_t)(words[i] << first);
}

OPTIM_INLINE void widen_nibbles(enum nibble_order order, const uint8_t *restrict bytes, size_t n,
                                uint32_t *restrict words)
{
    const uint32_t first = order == FIRST_LOW ? 0 : 4;
    const uint32_t second = 4 - first;
    size_t i = 0;

#if defined(__AVX512BW__)
    for (; i + 16 <= n; i += 16) {
        const __m512i pairs =
            _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(bytes + i / 2)));
        const __m512i apart =
            _mm512_or_si512(_mm512_srli_epi64(pairs, first), _mm512_slli_epi64(pairs, 32 - second));

        _mm512_storeu_si512(words + i, _mm512_and_si512(apart, _mm512_set1_epi32(15)));
    }
#endif
    for (; i + 2 <= n; i += 2) {
        words[i] = (uint32_t)bytes[i / 2] >> first & 15u;
        words[i + 1] = (uint32_t)bytes[i / 2] >> second & 15u;
    }
    if (i < n)
        words[i] = (uint32_t)bytes[i / 2] >> first & 15u;
}

/* words[i] = table[words[i]].  The compiler would take every index out of its vector. */
OPTIM_INLINE void look_up(const void *restrict table, uint32_t *restrict words, size_t n)
{
    size_t i = 0;

#if defined(__AVX512BW__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_si512(words + i,
                            _mm512_i32gather_epi32(_mm512_loadu_si512(words + i), table, 4));
#endif
    for (; i < n; i++)
        memcpy(&words[i], (const uint32_t *)table + words[i], sizeof words[i]);
}

/* x[i] = values[words[i]] * scale: from registers where they can hold 16 values. */
OPTIM_INLINE void look_up_16(const float *restrict values, const uint32_t *restrict words, size_t n,
                             float scale, float *restrict x)
{
    size_t i = 0;

#if defined(__AVX512BW__)
    const __m512 table = _mm512_loadu_ps(values);

    for (; i + 16 <= n; i += 16) {
        const __m512 value = _mm512_permutexvar_ps(_mm512_loadu_si512(words + i), table);

        _mm512_storeu_ps(x + i, _mm512_mul_ps(value, _mm512_set1_ps(scale)));
    }
#elif defined(__AVX2__)
    const __m256 low = _mm256_loadu_ps(values);
    const __m256 high = _mm256_loadu_ps(values + 8);

    for (; i + 8 <= n; i += 8) {
        const __m256i word = _mm256_loadu_si256((const __m256i *)(words + i));
        const __m256 upper_half = _mm256_castsi256_ps(_mm256_slli_epi32(word, 28));
        const __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, word),
                                              _mm256_permutevar8x32_ps(high, word), upper_half);

        _mm256_storeu_ps(x + i, _mm256_mul_ps(value, _mm256_set1_ps(scale)));
    }
#endif
    for (; i < n; i++)
        x[i] = values[words[i]] * scale;
}

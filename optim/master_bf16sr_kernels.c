#include "optim/codec_kernel.h"

/*
 * Format "bf16sr" of master weights: the bf16 weight alone, rounded up in magnitude with the
 * probability of what is cut off: hi = (bits + u) >> 16 with u uniform in 0 ... 65535.
 * Infinities stay; every NaN becomes 0x7fc0.
 *
 * u is a function of key and element e of a tensor: element e % 256 of quantum Q = e / 256 takes
 * half-word h = e % 256 / 32 of block 32 Q + e % 32 of Philox4x32-10 (Salmon et al., SC'11): the
 * lower half of word h / 2 if h is even, else the upper.  The generator's key is {key low, key
 * high}, its counter {block low, block high, 0, 0}.  So 32 blocks side by side make a quantum.
 */

enum { SPAN = 256, SPAN_BLOCKS = 32 };

/* The four words of blocks `begin` to SPAN_BLOCKS of a quantum. */
OPTIM_INLINE void fill_words(uint64_t key, uint64_t quantum, uint32_t begin,
                             uint32_t words[4][SPAN_BLOCKS])
{
    for (uint32_t i = begin; i < SPAN_BLOCKS; i++)
        bf16sr_words(key, quantum * SPAN_BLOCKS + i, &words[0][i], &words[1][i], &words[2][i],
                     &words[3][i]);
}

#if defined(__AVX512BW__)
struct wide_product {
    __m512i high, low;
};

/* 16 products of 32 by 32 bits, even and odd ones apart. */
OPTIM_INLINE struct wide_product multiply(__m512i a, uint32_t b)
{
    const __m512i factor = _mm512_set1_epi64(b);
    const __m512i even = _mm512_mul_epu32(a, factor);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);

    return (struct wide_product){
        .high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd),
        .low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32)),
    };
}

/* The same, 16 blocks at a time.  A quantum's blocks have the upper half of the counter in common. */
OPTIM_INLINE uint32_t fill_words_16(uint64_t key, uint64_t quantum, uint32_t words[4][SPAN_BLOCKS])
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    for (uint32_t i = 0; i < SPAN_BLOCKS; i += 16) {
        const uint64_t block = quantum * SPAN_BLOCKS + i;
        __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32((int32_t)block), lanes);
        __m512i c1 = _mm512_set1_epi32((int32_t)(block >> 32));
        __m512i c2 = _mm512_setzero_si512();
        __m512i c3 = _mm512_setzero_si512();
        uint32_t k0 = (uint32_t)key;
        uint32_t k1 = (uint32_t)(key >> 32);

        for (int round = 0; round < 10; round++) {
            const struct wide_product product0 = multiply(c0, 0xD2511F53u);
            const struct wide_product product1 = multiply(c2, 0xCD9E8D57u);
            const __m512i key0 = _mm512_set1_epi32((int32_t)k0);
            const __m512i key1 = _mm512_set1_epi32((int32_t)k1);

            c0 = _mm512_xor_si512(_mm512_xor_si512(product1.high, c1), key0);
            c1 = product1.low;
            c2 = _mm512_xor_si512(_mm512_xor_si512(product0.high, c3), key1);
            c3 = product0.low;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        _mm512_storeu_si512(&words[0][i], c0);
        _mm512_storeu_si512(&words[1][i], c1);
        _mm512_storeu_si512(&words[2][i], c2);
        _mm512_storeu_si512(&words[3][i], c3);
    }
    return SPAN_BLOCKS;
}
#else
OPTIM_INLINE uint32_t fill_words_16(uint64_t key, uint64_t quantum, uint32_t words[4][SPAN_BLOCKS])
{
    (void)key;
    (void)quantum;
    (void)words;
    return 0;
}
#endif

/* The noise of a quantum. */
OPTIM_INLINE void fill_noise(uint64_t key, uint64_t quantum, uint32_t *restrict noise)
{
    uint32_t words[4][SPAN_BLOCKS];

    fill_words(key, quantum, fill_words_16(key, quantum, words), words);
    for (size_t k = 0; k < 4; k++) {
        for (size_t i = 0; i < SPAN_BLOCKS; i++) {
            noise[64 * k + i] = words[k][i] & 0xffffu;
            noise[64 * k + 32 + i] = words[k][i] >> 16;
        }
    }
}

OPTIM_INLINE void round_by_noise(const float *restrict x, const uint32_t *restrict noise, size_t n,
                                 bf16_t *restrict hi)
{
    for (size_t i = 0; i < n; i++)
        hi[i] = bf16sr_hi(x[i], noise[i]);
}

void ISA_NAME(master_bf16sr_encode)(const float *x, size_t n, uint64_t key, uint64_t first_element,
                                    bf16_t *hi, void *low)
{
    uint32_t noise[SPAN];
    size_t skip = (size_t)(first_element % SPAN);

    (void)low;
    for (size_t at = 0; at < n;) {
        const size_t room = SPAN - skip;
        const size_t count = n - at < room ? n - at : room;

        fill_noise(key, (first_element + at) / SPAN, noise);
        round_by_noise(x + at, noise + skip, count, hi + at);
        at += count;
        skip = 0;
    }
}

void ISA_NAME(master_bf16sr_decode)(const bf16_t *hi, const void *low, size_t n, float *x)
{
    const bf16_t *restrict from = hi;
    float *restrict to = x;

    (void)low;
    for (size_t i = 0; i < n; i++)
        to[i] = bf16_to_f32(from[i]);
}

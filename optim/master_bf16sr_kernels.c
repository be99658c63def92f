#include "optim/codec_kernel.h"

/*
 * Format "bf16sr" of master weights: the bf16 weight alone, rounded up in magnitude with the
 * probability of what is cut off: hi = (bits + u) >> 16 with u uniform in 0 ... 65535.
 * Infinities stay; every NaN becomes 0x7fc0.
 *
 * u is a function of key and element: half-word e % 8 of Philox4x32-10 (Salmon et al., SC'11) with
 * key {key low, key high} and counter {e / 8 low, e / 8 high, 0, 0}, the halves of its words 0 to 3
 * taken lower half first.
 */

enum { PER_BLOCK = 8, CHUNK_BLOCKS = 32 };

OPTIM_INLINE void noise_of_block(uint64_t key, uint64_t block, uint32_t *restrict out)
{
    uint32_t c0 = (uint32_t)block;
    uint32_t c1 = (uint32_t)(block >> 32);
    uint32_t c2 = 0;
    uint32_t c3 = 0;
    uint32_t k0 = (uint32_t)key;
    uint32_t k1 = (uint32_t)(key >> 32);

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
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* The noise of CHUNK_BLOCKS blocks, in the order of elements. */
static void fill_noise(uint64_t key, uint64_t first_block, uint16_t *noise)
{
    uint32_t words[4 * CHUNK_BLOCKS];

    for (uint64_t i = 0; i < CHUNK_BLOCKS; i++)
        noise_of_block(key, first_block + i, words + 4 * i);
    for (size_t i = 0; i < 4 * (size_t)CHUNK_BLOCKS; i++) {
        noise[2 * i] = (uint16_t)words[i];
        noise[2 * i + 1] = (uint16_t)(words[i] >> 16);
    }
}

void ISA_NAME(master_bf16sr_encode)(const float *x, size_t n, uint64_t key, uint64_t first_element,
                                    bf16_t *hi, void *low)
{
    uint16_t noise[PER_BLOCK * CHUNK_BLOCKS];
    size_t skip = (size_t)(first_element % PER_BLOCK);

    (void)low;
    for (size_t at = 0; at < n;) {
        const size_t room = sizeof noise / sizeof noise[0] - skip;
        const size_t count = n - at < room ? n - at : room;
        const float *restrict from = x + at;
        bf16_t *restrict to = hi + at;

        fill_noise(key, (first_element + at) / PER_BLOCK, noise);
        for (size_t i = 0; i < count; i++) {
            const uint32_t bits = bits_of(from[i]);
            const uint32_t magnitude = bits & 0x7fffffffu;
            const uint32_t u = magnitude < INFINITY_BITS ? noise[skip + i] : 0u;

            to[i] = (bf16_t)((magnitude > INFINITY_BITS ? NAN_BITS : bits + u) >> 16);
        }
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

#include "optim/codec_kernel.h"

/*
 * Format "int8": one byte per element, one fp32 scale per 32, which is the block's largest
 * magnitude A itself.  It is not shortened: an average that shrinks by less per step than a scale
 * of few bits can show would stay for ever (with bf16 rounded up and beta2 = 0.999 the second
 * moment stands still when gradients become ten times smaller).
 *
 * Signed, two's complement q in -127 ... 127 (softsign companding: FlashOptim, arXiv 2602.23349,
 * whose scale is fp16):
 *
 *     x = value * [1 / A]        q = nearest(x * 254 / (1 + |x|)), ties to even
 *     value = q / (254 - |q|) * A
 *
 * Unsigned, 0 ... 255 (root companding, as above):
 *
 *     x = value * [1 / A]        q = nearest(sqrt(x) * 255), at least 1 if value > 0
 *     value = (q * q) * [1 / 65025] * A
 *
 * [y] is rounded to fp32, and so is each operation in the order written.  So zeros stay zeros and
 * the largest element is kept exactly; and a positive second moment never becomes zero, which
 * would leave m / eps.  A block whose A is below 2^-126 becomes zeros, scale included; one with a
 * NaN or infinity becomes NaN: codes 0, scale 0x7fc00000.
 */

enum { BLOCK = 32, CHUNK_BLOCKS = 8, CHUNK = BLOCK * CHUNK_BLOCKS };

/* What the codes of a block are made with: [1 / A] and all ones, or zeros where codes are zero. */
struct factors {
    float inverse[CHUNK_BLOCKS];
    uint32_t mask[CHUNK_BLOCKS];
};

OPTIM_INLINE void find_scales(const uint32_t *largest, size_t n_blocks, float *restrict scales,
                              struct factors *restrict factors)
{
    for (size_t b = 0; b < n_blocks; b++) {
        const bool live = largest[b] >= LEAST_NORMAL_BITS && largest[b] < INFINITY_BITS;
        const uint32_t dead = largest[b] < LEAST_NORMAL_BITS ? 0u : NAN_BITS;

        scales[b] = float_of(live ? largest[b] : dead);
        factors->inverse[b] = 1.0f / float_of(live ? largest[b] : INFINITY_BITS);
        factors->mask[b] = live ? 0xffu : 0u;
    }
}

OPTIM_INLINE void encode_signed(const float *restrict x, size_t n, float inverse, uint32_t mask,
                                uint8_t *restrict codes)
{
    uint32_t q[BLOCK];

    for (size_t i = 0; i < n; i++)
        q[i] = int8_signed_code(x[i], inverse) & mask;
    narrow(q, n, codes);
}

OPTIM_INLINE void encode_unsigned(const float *restrict x, size_t n, float inverse, uint32_t mask,
                                  uint8_t *restrict codes)
{
    uint32_t q[BLOCK];

    for (size_t i = 0; i < n; i++)
        q[i] = int8_unsigned_code(x[i], inverse) & mask;
    narrow(q, n, codes);
}

/* One chunk of at most CHUNK elements; inlined once with n = CHUNK, which unrolls. */
OPTIM_INLINE void encode_chunk(enum codec_sign sign, const float *restrict x, size_t n,
                               uint8_t *restrict codes, float *restrict scales)
{
    const size_t n_blocks = (n + BLOCK - 1) / BLOCK;
    uint32_t largest[CHUNK_BLOCKS];
    struct factors factors;

    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * BLOCK;
        const size_t count = n - at < BLOCK ? n - at : BLOCK;

        largest[b] =
            sign == CODEC_SIGNED ? largest_magnitude(x + at, count) : largest_moment(x + at, count);
    }
    find_scales(largest, n_blocks, scales, &factors);
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * BLOCK;
        const size_t count = n - at < BLOCK ? n - at : BLOCK;

        if (sign == CODEC_SIGNED)
            encode_signed(x + at, count, factors.inverse[b], factors.mask[b], codes + at);
        else
            encode_unsigned(x + at, count, factors.inverse[b], factors.mask[b], codes + at);
    }
}

OPTIM_INLINE void encode_all(enum codec_sign sign, const float *x, size_t n, uint8_t *codes,
                             float *scales)
{
    size_t at = 0;

    for (; n - at >= CHUNK; at += CHUNK)
        encode_chunk(sign, x + at, CHUNK, codes + at, scales + at / BLOCK);
    if (at < n)
        encode_chunk(sign, x + at, n - at, codes + at, scales + at / BLOCK);
}

void ISA_NAME(codec_int8_encode_signed)(const float *x, size_t n, void *codes, void *scales)
{
    encode_all(CODEC_SIGNED, x, n, codes, scales);
}

void ISA_NAME(codec_int8_encode_unsigned)(const float *x, size_t n, void *codes, void *scales)
{
    encode_all(CODEC_UNSIGNED, x, n, codes, scales);
}

OPTIM_INLINE void decode_signed(const int8_t *restrict codes, float scale, size_t n,
                                float *restrict x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = int8_signed_value(codes[i], scale);
}

OPTIM_INLINE void decode_unsigned(const uint8_t *restrict codes, float scale, size_t n,
                                  float *restrict x)
{
    uint32_t words[BLOCK];

    widen(codes, n, words);
    for (size_t i = 0; i < n; i++)
        x[i] = int8_unsigned_value(words[i], scale);
}

void ISA_NAME(codec_int8_decode_signed)(const void *codes, const void *scales, size_t n, float *x)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        if (n - at >= BLOCK)
            decode_signed((const int8_t *)codes + at, ((const float *)scales)[at / BLOCK], BLOCK,
                          x + at);
        else
            decode_signed((const int8_t *)codes + at, ((const float *)scales)[at / BLOCK], n - at,
                          x + at);
    }
}

void ISA_NAME(codec_int8_decode_unsigned)(const void *codes, const void *scales, size_t n, float *x)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        if (n - at >= BLOCK)
            decode_unsigned((const uint8_t *)codes + at, ((const float *)scales)[at / BLOCK], BLOCK,
                            x + at);
        else
            decode_unsigned((const uint8_t *)codes + at, ((const float *)scales)[at / BLOCK],
                            n - at, x + at);
    }
}

#include "optim/codec_kernel.h"

/*
 * Format "fp8": a byte per element, e4m3fn (OCP 8-bit floating point: 4 exponent bits of bias 7, 3
 * of significand, no infinities, 0x7f and 0xff are NaN, largest 448), and an fp32 scale per block
 * of 256 = [largest magnitude / 448].  Signed = unsigned, as in torchao's AdamWFp8.
 *
 *     code = e4m3fn(value / scale), nearest, ties to even        value = code * scale
 *
 * A block with a NaN or infinity becomes NaN: scale 0x7fc00000, codes 0.  One whose largest
 * magnitude is below 448 * 2^-126 becomes zeros.  Values below 2^-10 * scale become zero: a second
 * moment can vanish beside one 459,000 times larger.
 */

enum { BLOCK = 256 };

OPTIM_INLINE void encode_block(const float *restrict x, size_t n, uint8_t *restrict codes,
                               float *restrict scale_out)
{
    const uint32_t largest = largest_magnitude(x, n);
    const float scale = float_of(largest) / 448.0f;
    uint32_t words[BLOCK];

    if (bits_of(scale) < LEAST_NORMAL_BITS || largest >= INFINITY_BITS) {
        *scale_out = float_of(largest >= INFINITY_BITS ? NAN_BITS : 0);
        memset(codes, 0, n);
        return;
    }
    *scale_out = scale;
    for (size_t i = 0; i < n; i++)
        words[i] = e4m3_of(x[i] / scale);
    narrow(words, n, codes);
}

void ISA_NAME(codec_fp8_encode)(const float *x, size_t n, void *codes, void *scales)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t count = n - at < BLOCK ? n - at : BLOCK;

        encode_block(x + at, count, (uint8_t *)codes + at, (float *)scales + at / BLOCK);
    }
}

void ISA_NAME(codec_fp8_decode)(const void *codes, const void *scales, size_t n, float *x)
{
    const float *restrict scale = scales;
    uint32_t words[BLOCK];

    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t count = n - at < BLOCK ? n - at : BLOCK;

        widen((const uint8_t *)codes + at, count, words);
        for (size_t i = 0; i < count; i++)
            x[at + i] = one_nan(of_e4m3(words[i]) * scale[at / BLOCK]);
    }
}

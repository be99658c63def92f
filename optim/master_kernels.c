#include "optim/codec_kernel.h"

/*
 * Formats of master weights: `hi`, the bf16 weight, and `low`, on the bits of fp32.
 *
 * "fp32": low is the weight, hi the weight rounded to nearest even.
 *
 * "split16" (Apex and Transformer Engine call it parameter remainders): low is the lower half of
 * the bits, hi the upper half plus bit 15: rounded to nearest, ties away from zero.
 *
 *     hi = (bits + 0x8000) >> 16        low = bits & 0xffff
 *     bits = (hi - (low >> 15)) << 16 | low
 *
 * Every weight comes back, NaNs bit by bit.  As there are as many pairs as weights, some NaNs must
 * have a hi that is not one: 0x7f800001 ... 0x7f807fff read as infinity, 0x7fff8000 ... 0x7fffffff
 * as zero (of the other sign), likewise below zero.  The NaN of the rules, 0x7fc00000, reads as
 * NaN.  Nothing but this codec may round the weight to hi: elsewhere ties go to even.
 *
 * "ecc8": the bits rounded to 24, ties to even, and then split as above, with the low byte q
 * signed.  (FlashOptim, arXiv 2602.23349, scales the error to 127 steps of half an ulp; 128 steps
 * are shifts and any weight of 16 significant bits is kept exactly.)  Every NaN becomes hi 0x7fc0,
 * q 0.
 *
 *     r = (bits + 0x7f + (bits >> 8 & 1)) >> 8        hi = (r + 0x80) >> 8        q = r & 0xff
 *     bits = (hi << 16) + (q << 8)
 */

void ISA_NAME(master_fp32_encode)(const float *x, size_t n, uint64_t key, uint64_t first_element,
                                  bf16_t *hi, void *low)
{
    const float *restrict from = x;
    bf16_t *restrict to = hi;
    float *restrict weight = low;

    (void)key;
    (void)first_element;
    for (size_t i = 0; i < n; i++) {
        to[i] = bf16_from_f32(from[i]);
        weight[i] = from[i];
    }
}

void ISA_NAME(master_split16_encode)(const float *x, size_t n, uint64_t key, uint64_t first_element,
                                     bf16_t *hi, void *low)
{
    const float *restrict from = x;
    bf16_t *restrict upper = hi;
    uint16_t *restrict lower = low;

    (void)key;
    (void)first_element;
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = bits_of(from[i]);

        upper[i] = split16_hi(bits);
        lower[i] = (uint16_t)bits;
    }
}

void ISA_NAME(master_split16_decode)(const bf16_t *hi, const void *low, size_t n, float *x)
{
    const bf16_t *restrict upper = hi;
    const uint16_t *restrict lower = low;
    float *restrict to = x;

    for (size_t i = 0; i < n; i++)
        to[i] = split16_value(upper[i], lower[i]);
}

void ISA_NAME(master_ecc8_encode)(const float *x, size_t n, uint64_t key, uint64_t first_element,
                                  bf16_t *hi, void *low)
{
    const float *restrict from = x;
    bf16_t *restrict upper = hi;
    uint8_t *restrict error = low;

    (void)key;
    (void)first_element;
    for (size_t i = 0; i < n; i++) {
        const uint32_t rounded = ecc8_rounded(from[i]);

        upper[i] = ecc8_hi(rounded);
        error[i] = (uint8_t)rounded;
    }
}

void ISA_NAME(master_ecc8_decode)(const bf16_t *hi, const void *low, size_t n, float *x)
{
    const bf16_t *restrict upper = hi;
    const int8_t *restrict error = low;
    float *restrict to = x;

    for (size_t i = 0; i < n; i++)
        to[i] = ecc8_value(upper[i], error[i]);
}

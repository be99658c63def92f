#include "optim/codec_kernel.h"

/* Format "bf16": the upper half of fp32, rounded to nearest, ties to even.  Signed = unsigned. */

void ISA_NAME(codec_bf16_encode)(const float *x, size_t n, void *codes, void *scales)
{
    const float *restrict from = x;
    bf16_t *restrict to = codes;

    (void)scales;
    for (size_t i = 0; i < n; i++)
        to[i] = bf16_from_f32(from[i]);
}

void ISA_NAME(codec_bf16_decode)(const void *codes, const void *scales, size_t n, float *x)
{
    const bf16_t *restrict from = codes;
    float *restrict to = x;

    (void)scales;
    for (size_t i = 0; i < n; i++)
        to[i] = bf16_to_f32(from[i]);
}

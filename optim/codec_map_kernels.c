#include "optim/codec_kernel.h"
#include "optim/codec_map.h"

/*
 * Formats of other libraries: codes number the values of a sorted map (codec_map.c), an fp32 scale
 * per block, value = map[code] * scale, code = search(value / scale).
 *
 * "bnb8" (bitsandbytes, blockwise CUDA kernels): a byte per element, blocks of 256, scale = the
 * largest magnitude, NaNs aside.  Nearest code, ties to the even code.  Codes of state 1 keep the
 * sign of the value: a negative one too small for the map becomes its smallest, -5.5e-7, and so
 * does -0.  As there is no -1, a block's largest magnitude, if negative, shrinks to 0.99297 of
 * itself at each step; an average that it leads is too small by 6 % at beta 0.9 and 41 % at 0.99.
 * x = NaN (0 / 0 in a block of zeros) has code 0, moved by the rule of signs to 255, or to 1 if the
 * value is positive.  The division is IEEE's, of which theirs is an approximation to 2 ulp.
 *
 * "ao8" (torchao): as above in memory, but scale = max(largest magnitude, 1e-12), NaN if there is
 * one, and codes are nearest by x - below >= half the gap, in fp32: ties go up.
 *
 * "ao4" (torchao): the same on 16 values, blocks of 128, the first of two elements in the high half
 * of a byte.
 *
 * "lpmm4" (Li et al., arXiv 2309.01507): 16 values, blocks of 128, the first of two elements in the
 * low half of a byte, scale = largest magnitude, NaNs aside; nearest, ties to the lower code, NaN
 * to code 0.  With "lpmm4_rank1" the second moments of a matrix have a scale for each element, which
 * the largest of its row and column give (codec_rank1_scales), and no blocks.
 *
 * Half a byte without an element is zero.
 */

enum { MAX_BLOCK = 256 };

struct map_form {
    enum map_kind kind;
    enum codec_sign sign;
    int bits;
    size_t block;
    enum nibble_order order;
};

OPTIM_INLINE float find_scale(struct map_form form, const float *restrict x, size_t n)
{
    const bool ao = form.kind == MAP_AO8 || form.kind == MAP_AO4;
    uint32_t largest = 0;

    for (size_t i = 0; i < n; i++)
        largest = max_bits(largest, map_key(ao, x[i]));
    return map_scale(ao, largest);
}

/* The scale of all x, or one for each of them in `scales` unless that is NULL. */
OPTIM_INLINE void find_codes(struct map_form form, const float *restrict x, size_t n, float scale,
                             const float *restrict scales, uint32_t *restrict codes)
{
    const struct map_steps *steps = &codec_maps[form.kind][form.sign].steps;
    const struct map_search search = {
        .least = steps->least,
        .shift = (uint32_t)steps->shift,
        .cells = steps->cells,
        .cell = steps->cell,
        .keeps_sign = form.kind == MAP_BNB8 && form.sign == CODEC_SIGNED,
    };
    uint32_t shares[MAX_BLOCK];
    uint32_t entries[MAX_BLOCK];

    for (size_t i = 0; i < n; i++) {
        shares[i] = bits_of(x[i] / (scales != NULL ? scales[i] : scale));
        entries[i] = map_index(search, shares[i]);
    }
    look_up(steps->cell, entries, n);
    for (size_t i = 0; i < n; i++)
        codes[i] = map_code_in(search, shares[i], entries[i], x[i]);
}

OPTIM_INLINE void encode_blocks(struct map_form form, const float *restrict x, size_t n,
                                uint8_t *restrict codes, float *restrict scales)
{
    uint32_t words[MAX_BLOCK];

    for (size_t at = 0; at < n; at += form.block) {
        const size_t count = n - at < form.block ? n - at : form.block;
        const float scale = find_scale(form, x + at, count);

        scales[at / form.block] = scale;
        find_codes(form, x + at, count, scale, NULL, words);
        if (form.bits == 8)
            narrow(words, count, codes + at);
        else
            narrow_nibbles(form.order, words, count, codes + at / 2);
    }
}

OPTIM_INLINE void decode_blocks(struct map_form form, const uint8_t *restrict codes,
                                const float *restrict scales, size_t n, float *restrict x)
{
    const float *values = codec_maps[form.kind][form.sign].values;
    uint32_t words[MAX_BLOCK];

    for (size_t at = 0; at < n; at += form.block) {
        const size_t count = n - at < form.block ? n - at : form.block;
        const float scale = scales[at / form.block];

        if (form.bits == 8) {
            widen(codes + at, count, words);
            look_up(values, words, count);
            for (size_t i = 0; i < count; i++)
                x[at + i] = float_of(words[i]) * scale;
        } else {
            widen_nibbles(form.order, codes + at / 2, count, words);
            look_up_16(values, words, count, scale, x + at);
        }
        for (size_t i = at; i < at + count; i++)
            x[i] = one_nan(x[i]);
    }
}

#define CODEC_MAP_KERNELS(name, suffix, kind, sign, bits, block, order)                            \
    void ISA_NAME(codec_##name##_encode_##suffix)(const float *x, size_t n, void *codes,           \
                                                  void *scales)                                    \
    {                                                                                              \
        const struct map_form form = {kind, sign, bits, block, order};                             \
                                                                                                   \
        encode_blocks(form, x, n, codes, scales);                                                  \
    }                                                                                              \
                                                                                                   \
    void ISA_NAME(codec_##name##_decode_##suffix)(const void *codes, const void *scales, size_t n, \
                                                  float *x)                                        \
    {                                                                                              \
        const struct map_form form = {kind, sign, bits, block, order};                             \
                                                                                                   \
        decode_blocks(form, codes, scales, n, x);                                                  \
    }

CODEC_MAP_KERNELS(bnb8, signed, MAP_BNB8, CODEC_SIGNED, 8, 256, FIRST_LOW)
CODEC_MAP_KERNELS(bnb8, unsigned, MAP_BNB8, CODEC_UNSIGNED, 8, 256, FIRST_LOW)
CODEC_MAP_KERNELS(ao8, signed, MAP_AO8, CODEC_SIGNED, 8, 256, FIRST_LOW)
CODEC_MAP_KERNELS(ao8, unsigned, MAP_AO8, CODEC_UNSIGNED, 8, 256, FIRST_LOW)
CODEC_MAP_KERNELS(ao4, signed, MAP_AO4, CODEC_SIGNED, 4, 128, FIRST_HIGH)
CODEC_MAP_KERNELS(ao4, unsigned, MAP_AO4, CODEC_UNSIGNED, 4, 128, FIRST_HIGH)
CODEC_MAP_KERNELS(lpmm4, signed, MAP_LPMM4, CODEC_SIGNED, 4, 128, FIRST_LOW)
CODEC_MAP_KERNELS(lpmm4, unsigned, MAP_LPMM4, CODEC_UNSIGNED, 4, 128, FIRST_LOW)

static const struct map_form SCALED = {MAP_LPMM4, CODEC_UNSIGNED, 4, 128, FIRST_LOW};

void ISA_NAME(codec_lpmm4_encode_scaled)(const float *x, const float *scales, size_t n, void *codes)
{
    uint32_t words[MAX_BLOCK];

    for (size_t at = 0; at < n; at += MAX_BLOCK) {
        const size_t count = n - at < MAX_BLOCK ? n - at : MAX_BLOCK;

        find_codes(SCALED, x + at, count, 0.0f, scales + at, words);
        narrow_nibbles(SCALED.order, words, count, (uint8_t *)codes + at / 2);
    }
}

void ISA_NAME(codec_lpmm4_decode_scaled)(const void *codes, const void *scales, size_t n, float *x)
{
    const float *values = codec_maps[SCALED.kind][SCALED.sign].values;
    const float *scale = scales;
    uint32_t words[MAX_BLOCK];

    for (size_t at = 0; at < n; at += MAX_BLOCK) {
        const size_t count = n - at < MAX_BLOCK ? n - at : MAX_BLOCK;

        widen_nibbles(SCALED.order, (const uint8_t *)codes + at / 2, count, words);
        look_up_16(values, words, count, 1.0f, x + at);
        for (size_t i = at; i < at + count; i++)
            x[i] = one_nan(x[i] * scale[i]);
    }
}

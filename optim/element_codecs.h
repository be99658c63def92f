#pragma once

#include "optim/element.h"

/*
 * The codecs for one element, given the scale of its block.  The formats stand at the top of
 * codec_<name>_kernels.c and master_*_kernels.c.  The largest of a block is found on keys,
 * integers in the order of what they stand for, so that the order of the search does not matter.
 */

/* ---- the largest of a block ---- */

/* |x|: NaN > infinity > every number. */
OPTIM_ELEMENT uint32_t magnitude_key(float x)
{
    return bits_of(x) & 0x7fffffffu;
}

/*
 * A second moment.  As integers, floats below zero are below zero; NaNs of that sign too, unless
 * made positive.
 */
OPTIM_ELEMENT int32_t moment_key(float x)
{
    const uint32_t bits = bits_of(x);

    return (int32_t)(bits > 0xff800000u ? (uint32_t)NAN_BITS : bits);
}

/* A second moment's bits: zero for what is below zero. */
OPTIM_ELEMENT int32_t moment_bits(float x)
{
    return max_signed((int32_t)bits_of(x), 0);
}

/* ---- int8, int4: `inverse` is 1 / scale ---- */

OPTIM_ELEMENT uint32_t int8_signed_code(float x, float inverse)
{
    const float share = x * inverse;

    return nearest_integer(share * 254.0f / (1.0f + fabsf(share)));
}

OPTIM_ELEMENT uint32_t int8_unsigned_code(float x, float inverse)
{
    const int32_t bits = moment_bits(x);
    const int32_t least = NEAREST_BITS + (bits < 1 ? bits : 1);
    const float root = sqrtf(float_of((uint32_t)bits) * inverse) * 255.0f;

    return (uint32_t)max_signed((int32_t)nearest_integer(root), least);
}

OPTIM_ELEMENT float int8_signed_value(int8_t code, float scale)
{
    const float q = (float)code;

    return q / (254.0f - fabsf(q)) * scale;
}

OPTIM_ELEMENT float int8_unsigned_value(uint32_t code, float scale)
{
    const float q = (float)(int32_t)code;

    return q * q * (1.0f / 65025.0f) * scale;
}

OPTIM_TABLE float INT4_SIGNED_VALUES[16] = {
    0.0f, 0.0055f,  0.0325f,  0.0775f,  0.2125f,  0.4375f,  0.6625f,  0.8875f,
    1.0f, -0.8875f, -0.6625f, -0.4375f, -0.2125f, -0.0775f, -0.0325f, -0.0055f,
};

/* The number of the value of least distance from |x|. */
OPTIM_ELEMENT uint32_t int4_nearest_value(float x)
{
    const float size = fabsf(x);
    uint32_t number = 0;

    ELEMENT_UNROLL
    for (int k = 0; k < 8; k++)
        number += size >= (INT4_SIGNED_VALUES[k] + INT4_SIGNED_VALUES[k + 1]) * 0.5f ? 1u : 0u;
    return number;
}

OPTIM_ELEMENT uint32_t int4_signed_code(float x, float inverse)
{
    const float share = x * inverse;
    const uint32_t number = int4_nearest_value(share);
    const uint32_t below_one = number < 7u ? number : 7u;

    return (bits_of(share) >> 31 == 0 ? number : 0u - below_one) & 15u;
}

OPTIM_ELEMENT uint32_t int4_unsigned_code(float x, float inverse)
{
    const float share = float_of((uint32_t)moment_bits(x)) * inverse;
    const uint32_t nearest = nearest_integer(share * 16.0f - 1.0f);

    return max_bits(nearest, NEAREST_BITS) & 15u;
}

/* Exact, hence that of the table of the CPU. */
OPTIM_ELEMENT float int4_unsigned_value(uint32_t code, float scale)
{
    return (float)(int32_t)(code + 1) * 0.0625f * scale;
}

/* ---- fp8 ---- */

/* |x| < 2^-6 is a multiple of 2^-9, found by adding 2^14; above, the significand is cut to 3 bits. */
OPTIM_ELEMENT uint32_t e4m3_of(float x)
{
    const uint32_t bits = bits_of(x);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t small = bits_of(float_of(magnitude) + 0x1p14f) - 0x46800000u;
    const uint32_t large = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);

    return (bits >> 24 & 0x80u) | (magnitude < 0x3c800000u ? small : large);
}

OPTIM_ELEMENT float of_e4m3(uint32_t code)
{
    const uint32_t magnitude = code & 0x7fu;
    const uint32_t small = bits_of((float)(int32_t)magnitude * 0x1p-9f);
    const uint32_t large = (magnitude << 20) + (120u << 23);
    const uint32_t number = magnitude < 8u ? small : large;

    return float_of((magnitude == 0x7fu ? (uint32_t)NAN_BITS : number) | (code & 0x80u) << 24);
}

/* ---- maps of other libraries: codec_map.h ---- */

/* ao: ao8 and ao4, which look at NaNs; the others leave them out. */
OPTIM_ELEMENT uint32_t map_key(bool ao, float x)
{
    const uint32_t magnitude = magnitude_key(x);
    const uint32_t number = 0u - ((magnitude - INFINITY_BITS - 1u) >> 31); /* all ones if one */

    return ao ? magnitude : magnitude & number;
}

OPTIM_ELEMENT float map_scale(bool ao, uint32_t largest)
{
    if (largest > INFINITY_BITS)
        return float_of(NAN_BITS);
    return ao && float_of(largest) < 1e-12f ? 1e-12f : float_of(largest);
}

/* The code of what has no place among numbers; keeps_sign: bnb8, signed. */
OPTIM_ELEMENT uint32_t map_code_of_nan(bool keeps_sign, uint32_t value_bits)
{
    if (!keeps_sign)
        return 0;
    return value_bits >> 31 == 1 ? 0u : value_bits == INFINITY_BITS ? 1u : 255u;
}

/* The members of struct map_steps. */
struct map_search {
    uint32_t least, shift, cells;
    const uint32_t *cell;
    bool keeps_sign;
};

/* The bits of a magnitude's place in the table. */
OPTIM_ELEMENT uint32_t map_place(struct map_search map, uint32_t share_bits)
{
    const uint32_t above = max_bits(share_bits & 0x7fffffffu, map.least);

    return above < 0x3f800000u ? above : 0x3f800000u;
}

OPTIM_ELEMENT uint32_t map_index(struct map_search map, uint32_t share_bits)
{
    const uint32_t negative = 0u - (share_bits >> 31);

    return ((map_place(map, share_bits) - map.least) >> map.shift) + (map.cells & negative);
}

/* `entry`: that of map_index. */
OPTIM_ELEMENT uint32_t map_code_in(struct map_search map, uint32_t share_bits, uint32_t entry,
                                   float x)
{
    const uint32_t within = map_place(map, share_bits) & ((1u << map.shift) - 1u);
    const uint32_t negative = 0u - (share_bits >> 31);
    const uint32_t further = within >= (entry & 0xffffffu) ? 1u : 0u;
    const uint32_t code = (entry >> 24) + ((further ^ negative) - negative);

    return (share_bits & 0x7fffffffu) > INFINITY_BITS ? map_code_of_nan(map.keeps_sign, bits_of(x))
                                                      : code;
}

OPTIM_ELEMENT uint32_t map_code(struct map_search map, float x, float scale)
{
    const uint32_t share_bits = bits_of(x / scale);

    return map_code_in(map, share_bits, map.cell[map_index(map, share_bits)], x);
}

/* ---- master weights ---- */

OPTIM_ELEMENT uint16_t split16_hi(uint32_t bits)
{
    return (uint16_t)((bits + 0x8000u) >> 16);
}

OPTIM_ELEMENT float split16_value(uint16_t hi, uint16_t low)
{
    const uint32_t rest = low;

    return float_of((hi - (rest >> 15)) << 16 | rest);
}

/* The bits rounded to 24; the low byte is q. */
OPTIM_ELEMENT uint32_t ecc8_rounded(float x)
{
    const uint32_t bits = bits_of(one_nan(x));

    return (bits + 0x7fu + ((bits >> 8) & 1u)) >> 8;
}

OPTIM_ELEMENT uint16_t ecc8_hi(uint32_t rounded)
{
    return (uint16_t)((rounded + 0x80u) >> 8);
}

OPTIM_ELEMENT float ecc8_value(uint16_t hi, int8_t q)
{
    return float_of(((uint32_t)hi << 16) + ((uint32_t)(int32_t)q << 8));
}

/* Block `block` of Philox4x32-10 with counter {block, 0, 0} and this key. */
OPTIM_ELEMENT void bf16sr_words(uint64_t key, uint64_t block, uint32_t *w0, uint32_t *w1,
                                uint32_t *w2, uint32_t *w3)
{
    uint32_t c0 = (uint32_t)block;
    uint32_t c1 = (uint32_t)(block >> 32);
    uint32_t c2 = 0;
    uint32_t c3 = 0;
    uint32_t k0 = (uint32_t)key;
    uint32_t k1 = (uint32_t)(key >> 32);

    ELEMENT_UNROLL
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
    *w0 = c0;
    *w1 = c1;
    *w2 = c2;
    *w3 = c3;
}

OPTIM_ELEMENT uint16_t bf16sr_hi(float x, uint32_t noise)
{
    const uint32_t bits = bits_of(x);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t number = magnitude < INFINITY_BITS ? bits + noise : bits;

    return (uint16_t)((magnitude > INFINITY_BITS ? (uint32_t)NAN_BITS : number) >> 16);
}

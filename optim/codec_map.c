#include "optim/codec_map.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/*
 * The dynamic map of Dettmers et al. (arXiv 2110.02861): decades 10^-(E-1) ... 1, each of which
 * cuts [0.1, 1] of it into twice as many bins as the one below; a value is the middle of its bin.
 * With 0 and 1 these are 2^bits values.  Here each is the rational number rounded once to fp32,
 * while tables made by torch.linspace differ from it, and among each other, by up to 2 ulp.
 *
 * Maps: 8 bits with E = 7, signed or not; 4 bits with E = 3, signed; and (k + 1) / 16 for second
 * moments in 4 bits (Li et al., arXiv 2309.01507).
 */

struct codec_map codec_maps[N_MAP_KINDS][2];

static int map_bits(enum map_kind kind)
{
    return kind == MAP_AO4 || kind == MAP_LPMM4 ? 4 : 8;
}

static void insert_sorted(float *values, int n, float value)
{
    for (; n > 0 && values[n - 1] > value; n--)
        values[n] = values[n - 1];
    values[n] = value;
}

static void fill_dynamic(int bits, bool both_signs, float *values)
{
    const int decades = bits - 1;
    double divisor = 1.0;
    int n = 0;

    insert_sorted(values, n++, 0.0f);
    insert_sorted(values, n++, 1.0f);
    for (int decade = decades - 1; decade >= 0; decade--) {
        const int bins = (both_signs ? 1 : 2) << decade;

        for (int k = 0; k < bins; k++) {
            /* 0.1 + 0.9 (2k + 1) / (2 bins), of the decade; both sides of the bar are exact. */
            const double numerator = 2 * bins + 9 * (2 * k + 1);
            const float value = (float)(numerator / (20.0 * bins * divisor));

            insert_sorted(values, n++, value);
            if (both_signs)
                insert_sorted(values, n++, -value);
        }
        divisor *= 10.0;
    }
}

static void fill_values(enum map_kind kind, enum codec_sign sign, float *values)
{
    if (map_bits(kind) == 8 || sign == CODEC_SIGNED) {
        fill_dynamic(map_bits(kind), sign == CODEC_SIGNED, values);
        return;
    }
    for (int k = 0; k < 16; k++)
        values[k] = (float)(k + 1) / 16.0f;
}

/* bitsandbytes, quantize_2D: bisect from the middle, then the midpoint to that side's neighbour. */
static int search_bnb(const float *values, enum codec_sign sign, float x)
{
    int pivot = 127;
    int upper = 255;
    int lower = 0;

    for (int step = 64; step > 0; step /= 2) {
        if (x > values[pivot]) {
            lower = pivot;
            pivot += step;
        } else {
            upper = pivot;
            pivot -= step;
        }
    }
    if (x > values[pivot])
        pivot = x > (values[upper] + values[pivot]) * 0.5f ? upper : pivot;
    else
        pivot = x < (values[lower] + values[pivot]) * 0.5f ? lower : pivot;

    /* State 1 keeps its sign. */
    if (sign == CODEC_SIGNED && !signbit(values[pivot]) != !signbit(x))
        pivot = x > 0.0f ? pivot + 1 : pivot - 1;
    return pivot & 255;
}

/* torchao, quantize_8bit_with_qmap and ..._4bit_...: the value below, then up from half the gap. */
static int search_ao(const float *values, int n, float x)
{
    int code = 0;

    for (int step = n / 2; step > 0; step /= 2)
        code += x >= values[code + step] ? step : 0;

    const int up = code + 1 < n ? code + 1 : code;
    return x - values[code] >= (values[up] - values[code]) * 0.5f ? up : code;
}

/* Li et al., q_mapping: the value below, or the one above if beyond the midpoint. */
static int search_lpmm(const float *values, int n, float x)
{
    int above = 1;

    if (!(x > values[0]))
        return 0;
    if (x >= values[n - 1])
        return n - 1;
    while (values[above] <= x)
        above++;
    return (values[above - 1] + values[above]) * 0.5f < x ? above : above - 1;
}

int codec_map_search(enum map_kind kind, enum codec_sign sign, float x)
{
    const float *values = codec_maps[kind][sign].values;

    switch (kind) {
    case MAP_BNB8:
        return search_bnb(values, sign, x);
    case MAP_AO8:
        return search_ao(values, 256, x);
    case MAP_AO4:
        return search_ao(values, 16, x);
    default:
        return search_lpmm(values, 16, x);
    }
}

static int code_at(enum map_kind kind, enum codec_sign sign, uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return codec_map_search(kind, sign, x);
}

/* The cell that begins at `begin`: where its code ends, found by bisection. */
static uint32_t make_cell(enum map_kind kind, enum codec_sign sign, uint32_t begin, int shift)
{
    const int code = code_at(kind, sign, begin);
    uint32_t same = 0; /* this many bits further the code is the same */
    uint32_t other = 1u << shift;

    if (code_at(kind, sign, begin + other - 1) == code)
        return (uint32_t)code << 24 | other;
    while (other - same > 1) {
        const uint32_t middle = (same + other) / 2;

        if (code_at(kind, sign, begin + middle) == code)
            same = middle;
        else
            other = middle;
    }
    return (uint32_t)code << 24 | other;
}

static void fill_steps(enum map_kind kind, enum codec_sign sign, struct map_steps *steps)
{
    const uint32_t one = 0x3f800000u;
    const int octaves = map_bits(kind) == 8 ? 24 : 10;

    /* Cells of an octave: 8 for 4 bits; for 8 bits 64, as the values of both signs are sparser. */
    steps->shift = map_bits(kind) == 4 ? 20 : sign == CODEC_SIGNED ? 17 : 16;
    steps->least = one - ((uint32_t)octaves << 23);
    steps->cells = ((one - steps->least) >> steps->shift) + 1;
    for (uint32_t i = 0; i < steps->cells; i++) {
        const uint32_t begin = steps->least + (i << steps->shift);
        const int shift = begin == one ? 0 : steps->shift;

        steps->cell[i] = make_cell(kind, sign, begin, shift);
        steps->cell[steps->cells + i] = make_cell(kind, sign, 0x80000000u | begin, shift);
    }
}

void codec_maps_prepare(void)
{
    for (int kind = 0; kind < N_MAP_KINDS; kind++) {
        for (int sign = 0; sign < 2; sign++) {
            struct codec_map *map = &codec_maps[kind][sign];

            fill_values((enum map_kind)kind, (enum codec_sign)sign, map->values);
            fill_steps((enum map_kind)kind, (enum codec_sign)sign, &map->steps);
        }
    }
}

#include "runtime/base/exact_sum.h"

#include <math.h>
#include <string.h>

/*
 * Limbs are digits in base 2^32 that are allowed to grow: a term touches three neighbouring limbs
 * by less than 2^32 each, so 2^30 terms stay below 2^62.  Carries are moved only
 * when the value is read.  2^30 terms below 2^1024 end below bit 1074 + 1024 + 30 = 2128,
 * which is limb 66: limb 67 holds nothing but the sign.
 */

static const int64_t BASE = (int64_t)1 << 32;

void exact_sum_clear(struct exact_sum *sum)
{
    memset(sum, 0, sizeof *sum);
}

void exact_sum_add(struct exact_sum *sum, double x)
{
    uint64_t bits;

    memcpy(&bits, &x, sizeof bits);
    const int exponent = (int)(bits >> 52) & 0x7ff;
    uint64_t mantissa = bits & (((uint64_t)1 << 52) - 1);

    if (exponent == 0x7ff) {
        sum->nonfinite++;
        return;
    }
    if (exponent > 0)
        mantissa |= (uint64_t)1 << 52;

    /* |x| = mantissa * 2^(position - 1074); subnormals share the position of exponent 1. */
    const int position = exponent > 0 ? exponent - 1 : 0;
    const int shift = position % 32;
    const uint64_t low = mantissa << shift;
    const uint64_t high = shift > 0 ? mantissa >> (64 - shift) : 0;
    const int64_t sign = bits >> 63 ? -1 : 1;
    int64_t *limb = &sum->limbs[position / 32];

    limb[0] += sign * (int64_t)(low & 0xffffffffu);
    limb[1] += sign * (int64_t)(low >> 32);
    limb[2] += sign * (int64_t)high;
}

void exact_sum_merge(struct exact_sum *sum, const struct exact_sum *other)
{
    for (int i = 0; i < EXACT_SUM_LIMBS; i++)
        sum->limbs[i] += other->limbs[i];
    sum->nonfinite += other->nonfinite;
}

/* Bring every limb but the last into [0, 2^32); the last one keeps the sign of the whole. */
static void move_carries(int64_t limbs[EXACT_SUM_LIMBS])
{
    for (int i = 0; i < EXACT_SUM_LIMBS - 1; i++) {
        const int64_t digit = limbs[i] & (BASE - 1);

        limbs[i + 1] += (limbs[i] - digit) / BASE;
        limbs[i] = digit;
    }
}

/* Bits [first, first + count) of a non-negative, carried number; count <= 53. */
static uint64_t take_bits(const int64_t limbs[EXACT_SUM_LIMBS], int first, int count)
{
    uint64_t bits = 0;

    for (int i = count - 1; i >= 0; i--) {
        const int position = first + i;

        bits = bits << 1 | ((uint64_t)limbs[position / 32] >> (position % 32) & 1);
    }
    return bits;
}

static bool any_bit_below(const int64_t limbs[EXACT_SUM_LIMBS], int position)
{
    for (int i = 0; i < position / 32; i++) {
        if (limbs[i] != 0)
            return true;
    }
    return (limbs[position / 32] & (((int64_t)1 << (position % 32)) - 1)) != 0;
}

/* Position of the highest bit set, -1 for zero. */
static int highest_bit(const int64_t limbs[EXACT_SUM_LIMBS])
{
    for (int i = EXACT_SUM_LIMBS - 1; i >= 0; i--) {
        if (limbs[i] != 0)
            return 32 * i + 63 - __builtin_clzll((unsigned long long)limbs[i]);
    }
    return -1;
}

double exact_sum_value(const struct exact_sum *sum)
{
    int64_t limbs[EXACT_SUM_LIMBS];
    double sign = 1.0;

    if (sum->nonfinite != 0)
        return NAN;

    memcpy(limbs, sum->limbs, sizeof limbs);
    move_carries(limbs);
    if (limbs[EXACT_SUM_LIMBS - 1] < 0) {
        sign = -1.0;
        for (int i = 0; i < EXACT_SUM_LIMBS; i++)
            limbs[i] = -limbs[i];
        move_carries(limbs);
    }

    const int top = highest_bit(limbs);
    const int lowest = top > 52 ? top - 52 : 0; /* last bit that a double can hold */
    uint64_t mantissa = take_bits(limbs, lowest, top - lowest + 1);

    if (lowest > 0 && take_bits(limbs, lowest - 1, 1) == 1 &&
        (any_bit_below(limbs, lowest - 1) || (mantissa & 1) == 1))
        mantissa++;
    return sign * ldexp((double)mantissa, lowest - 1074); /* exact, or infinite if too large */
}

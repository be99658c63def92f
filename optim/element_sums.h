#pragma once

#include "optim/element.h"

/*
 * How one term joins a sum of integers, for every device: fixed point as stats_internal.h has it,
 * and struct exact_sum of runtime/base/exact_sum.h.  C and C++.
 */

enum { LIMB_BITS = 40, LIMBS = 3 };

OPTIM_ELEMENT int64_t bits_of_double(double x)
{
    int64_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^exponent for a normal number. */
OPTIM_ELEMENT double power_of_two(int exponent)
{
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

struct limb_term {
    int64_t limbs[LIMBS];
};

/* The integers next to x * scale and to what is left of it, ties to even; |x * scale| < 2^51. */
OPTIM_ELEMENT struct limb_term limb_term_of(double x, double scale)
{
    const double rounder = 0x1.8p52; /* a sum with it has the integer in its low bits */
    const double next = (double)((int64_t)1 << LIMB_BITS);
    const int64_t zero = bits_of_double(rounder);
    const double y0 = x * scale;
    const double t0 = y0 + rounder;
    const double y1 = (y0 - (t0 - rounder)) * next;
    const double t1 = y1 + rounder;
    const double y2 = (y1 - (t1 - rounder)) * next;
    const double t2 = y2 + rounder;
    const struct limb_term term = {
        {bits_of_double(t0) - zero, bits_of_double(t1) - zero, bits_of_double(t2) - zero}};

    return term;
}

/* A term x >= 0 of a struct exact_sum: limbs[i] joins its limb `first` + i. */
struct exact_term {
    int first; /* -1: x is not finite */
    int64_t limbs[3];
};

/* What exact_sum_add adds. */
OPTIM_ELEMENT struct exact_term exact_term_of(double x)
{
    const uint64_t bits = (uint64_t)bits_of_double(x);
    const int exponent = (int)(bits >> 52) & 0x7ff;
    const uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
    const uint64_t mantissa = exponent > 0 ? fraction | (uint64_t)1 << 52 : fraction;
    const int position = exponent > 0 ? exponent - 1 : 0;
    const int shift = position % 32;
    const uint64_t low = mantissa << shift;
    const uint64_t high = shift > 0 ? mantissa >> (64 - shift) : 0;
    const struct exact_term term = {
        exponent == 0x7ff ? -1 : position / 32,
        {(int64_t)(low & 0xffffffffu), (int64_t)(low >> 32), (int64_t)high}};

    return term;
}

#pragma once

/*
 * Numbers of a running error analysis: a value in double with a bound on what fp32 arithmetic, one
 * rounding per operation, can be off by then.
 */

#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>

struct num {
    double x, e; /* value in double; bound of the error in fp32 */
};

static inline struct num rounded(double x, double e)
{
    return (struct num){x, e + TOL_F32_ROUND * (fabs(x) + e)};
}

static inline struct num scalar(double x)
{
    return rounded(x, 0.0);
}

static inline struct num add(struct num a, struct num b)
{
    return rounded(a.x + b.x, a.e + b.e);
}

static inline struct num mul(struct num a, struct num b)
{
    return rounded(a.x * b.x, fabs(a.x) * b.e + fabs(b.x) * a.e + a.e * b.e);
}

static inline struct num minus(struct num a)
{
    return (struct num){-a.x, a.e};
}

static inline struct num divide(struct num a, struct num b)
{
    const double least = fabs(b.x) - b.e;

    cr_assert_gt(least, 0.0, "the reference divides by %g +- %g", b.x, b.e);
    return rounded(a.x / b.x, (a.e + fabs(a.x / b.x) * b.e) / least);
}

static inline struct num root(struct num a)
{
    return rounded(sqrt(a.x), sqrt(a.x) - sqrt(fmax(0.0, a.x - a.e)));
}

#include "runtime/base/exact_sum.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static double sum_of(const double *x, size_t n)
{
    struct exact_sum sum;

    exact_sum_clear(&sum);
    for (size_t i = 0; i < n; i++)
        exact_sum_add(&sum, x[i]);
    return exact_sum_value(&sum);
}

/* mantissa with all 53 bits random, either sign, times 2^[low, high). */
static double random_term(uint64_t index, int low, int high)
{
    uint32_t bits[4];

    rng_block(5, RNG_STREAM_SAMPLE, 0, index, bits);
    const uint64_t mantissa = ((uint64_t)bits[1] << 32 | bits[0]) >> 11;
    const int exponent = low + (int)(bits[2] % (uint32_t)(high - low));
    return ldexp(bits[3] & 1 ? -(double)mantissa : (double)mantissa, exponent);
}

#define ASSERT_SUM(want, ...)                                                                      \
    do {                                                                                           \
        const double terms_[] = {__VA_ARGS__};                                                     \
        const double got_ = sum_of(terms_, sizeof terms_ / sizeof terms_[0]);                      \
        cr_assert(got_ == (want), "got %a, expected %a", got_, (double)(want));                    \
    } while (0)

Test(exact_sum, is_zero_before_the_first_term)
{
    const double value = sum_of(NULL, 0);

    cr_assert(value == 0.0 && !signbit(value));
}

Test(exact_sum, gives_single_terms_back)
{
    const double terms[] = {1.0,
                            -1.0,
                            0.1,
                            -3.5e-310,
                            5e-324,
                            -5e-324,
                            DBL_MIN,
                            -DBL_MIN,
                            DBL_MAX,
                            -DBL_MAX,
                            0x1p-1022 - 0x1p-1074};

    for (size_t i = 0; i < sizeof terms / sizeof terms[0]; i++)
        cr_assert(sum_of(&terms[i], 1) == terms[i], "%a", terms[i]);
    for (uint64_t i = 0; i < 10000; i++) {
        const double x = random_term(i, -1120, 970);

        cr_assert(sum_of(&x, 1) == x, "%a", x);
    }
}

Test(exact_sum, loses_nothing_to_cancellation)
{
    ASSERT_SUM(1.0, 1e308, 1.0, -1e308);
    ASSERT_SUM(5e-324, DBL_MAX, 5e-324, -DBL_MAX);
    ASSERT_SUM(-5e-324, 1.0, -5e-324, -1.0);
    ASSERT_SUM(0.0, 0.1, 0.2, -0.2, -0.1);
    ASSERT_SUM(DBL_MAX, DBL_MAX, DBL_MAX, -DBL_MAX); /* passes through what double cannot hold */
}

Test(exact_sum, rounds_once_to_nearest_even)
{
    ASSERT_SUM(1.0, 1.0, 0x1p-53);                       /* tie, even below */
    ASSERT_SUM(1.0 + 0x1p-51, 1.0 + 0x1p-52, 0x1p-53);   /* tie, even above */
    ASSERT_SUM(1.0 + 0x1p-52, 1.0, 0x1p-53, 5e-324);     /* just above the tie */
    ASSERT_SUM(1.0, 1.0, 0x1p-53, -5e-324);              /* just below the tie */
    ASSERT_SUM(-1.0 - 0x1p-52, -1.0, -0x1p-53, -5e-324); /* the same below zero */
    ASSERT_SUM(2.0, 2.0 - 0x1p-52, 0x1p-53);             /* the carry reaches the next binade */
    ASSERT_SUM(0x1p-1021, 0x1p-1022, 0x1p-1022);
    ASSERT_SUM(0x1p-1022, 0x1p-1022 - 0x1p-1074, 5e-324); /* subnormal to normal */
}

Test(exact_sum, overflows_to_infinity_only_when_the_total_does)
{
    ASSERT_SUM(INFINITY, DBL_MAX, DBL_MAX);
    ASSERT_SUM(-INFINITY, -DBL_MAX, -DBL_MAX);
    ASSERT_SUM(DBL_MAX, DBL_MAX, 0x1p969);
    ASSERT_SUM(INFINITY, DBL_MAX, 0x1p970);
}

/* 53 bits at 40 positions and 10^5 = 2^16.6 terms: 110 bits, which __float128 adds exactly. */
Test(exact_sum, agrees_with_quadruple_precision_where_that_is_exact)
{
    for (int low = -1000; low <= 800; low += 200) {
        __float128 want = 0;
        struct exact_sum sum;

        exact_sum_clear(&sum);
        for (uint64_t i = 0; i < 100000; i++) {
            const double x = random_term(i, low, low + 40);

            want += x;
            exact_sum_add(&sum, x);
        }
        cr_assert(exact_sum_value(&sum) == (double)want, "exponents from %d", low);
    }
}

Test(exact_sum, does_not_depend_on_order_or_cut)
{
    enum { N = 5000 };
    static double x[N];
    struct exact_sum want;

    exact_sum_clear(&want);
    for (uint64_t i = 0; i < N; i++) {
        x[i] = random_term(i, -1074, 950);
        exact_sum_add(&want, x[i]);
    }
    for (uint64_t round = 0; round < 20; round++) {
        struct exact_sum parts[7];
        struct exact_sum total;

        for (size_t i = N - 1; i > 0; i--) {
            const size_t j = (size_t)(rng_uniform(round, 1, 0, i) * (double)(i + 1));
            const double swapped = x[i];

            x[i] = x[j];
            x[j] = swapped;
        }
        for (int p = 0; p < 7; p++)
            exact_sum_clear(&parts[p]);
        for (size_t i = 0; i < N; i++)
            exact_sum_add(&parts[i * i % 7], x[i]);
        exact_sum_clear(&total);
        for (int p = 6; p >= 0; p--)
            exact_sum_merge(&total, &parts[p]);

        cr_assert_arr_eq(&total, &want, sizeof total, "round %d", (int)round);
        cr_assert(exact_sum_value(&total) == exact_sum_value(&want));
    }
}

/* Limbs hold 2^30 terms; merging a sum into itself reaches that count in 30 steps. */
Test(exact_sum, holds_two_to_the_thirty_terms_of_either_sign)
{
    const double terms[] = {DBL_MAX, -DBL_MAX, 0x1.fffffffffffffp0, -0x1.fffffffffffffp-1040};

    for (size_t i = 0; i < sizeof terms / sizeof terms[0]; i++) {
        struct exact_sum sum;

        exact_sum_clear(&sum);
        exact_sum_add(&sum, terms[i]);
        for (int doubling = 0; doubling < 30; doubling++) {
            const struct exact_sum copy = sum;

            exact_sum_merge(&sum, &copy);
        }
        cr_assert(exact_sum_value(&sum) == terms[i] * 0x1p30, "%a", terms[i]);
    }
}

Test(exact_sum, counts_terms_that_are_not_finite)
{
    struct exact_sum sum;
    struct exact_sum other;

    exact_sum_clear(&sum);
    exact_sum_clear(&other);
    exact_sum_add(&sum, INFINITY);
    exact_sum_add(&sum, 1.0);
    exact_sum_add(&other, -INFINITY);
    exact_sum_add(&other, NAN);
    exact_sum_merge(&sum, &other);
    cr_assert_eq(sum.nonfinite, 3);
    cr_assert(isnan(exact_sum_value(&sum)));
}

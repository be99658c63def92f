#include "models/ops/cpu/kernels.h"
#include "runtime/base/isa.h"
#include "tests/models/ops/array.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/* The table of the widest build this CPU runs. */
static const struct op_kernels *best(void)
{
    switch (isa_best()) {
    case ISA_AVX512:
        return &op_kernels_avx512;
    case ISA_AVX2:
        return &op_kernels_avx2;
    case ISA_SCALAR:
        break;
    }
    return &op_kernels_scalar;
}

/* Distance in units of the last place of the fp32 nearest to `want`. */
static double ulps(float got, double want)
{
    const float nearest = fabsf((float)want);

    return fabs((double)got - want) / ((double)nextafterf(nearest, INFINITY) - (double)nearest);
}

Test(op_kernels, exp_is_within_two_ulp_over_its_range)
{
    double worst = 0.0;

    for (int64_t i = 0; i < 2000000; i++) {
        const float x = (float)(-87.2 + 175.4 * (double)i / 2000000.0);
        worst = fmax(worst, ulps(best()->exp(x), exp((double)x)));
    }
    cr_assert_leq(worst, TOL_OPS_EXP_ULP, "worst error %.3f ulp", worst);
}

Test(op_kernels, exp_treats_the_ends_as_documented)
{
    cr_assert_eq(best()->exp(0.0f), 1.0f);
    cr_assert_eq(best()->exp(-0.0f), 1.0f);
    cr_assert_eq(best()->exp(-88.0f), 0.0f);
    cr_assert_eq(best()->exp(-INFINITY), 0.0f);
    cr_assert_eq(best()->exp(89.0f), INFINITY);
    cr_assert_eq(best()->exp(INFINITY), INFINITY);
    cr_assert(isnan(best()->exp(NAN)));
}

Test(op_kernels, log_is_within_a_few_ulp_of_a_double)
{
    for (int64_t i = 1; i < 200000; i++) {
        const double x = exp(0.001 * (double)(i % 2000) - 0.5) * (double)i;
        cr_assert(fabs(best()->log(x) - log(x)) <= TOL_OPS_LOG * fmax(1.0, fabs(log(x))),
                  "log(%.17g) is %.17g", x, best()->log(x));
    }
    cr_assert_eq(best()->log(1.0), 0.0);
    cr_assert_eq(best()->log(INFINITY), INFINITY);
    cr_assert(isnan(best()->log(NAN)));
}

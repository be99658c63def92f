#include "tests/models/ops/array.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

static const int64_t sizes[] = {1, 7, 33, 40000};

static double tolerance(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT;
}

static void check_gelu(struct ops *ops, int64_t n, enum dtype dtype)
{
    const double h = 1e-5;
    struct array x = array_random(dtype, n, 1, 6.0);
    struct array dy = array_random(dtype, n, 2, 1.0);
    struct array y = array_create(dtype, n);
    struct array dx = array_create(dtype, n);
    double *want = malloc((size_t)n * sizeof *want);

    EXPECT_OK(op_gelu(ops, n, dtype, x.p, y.p));
    for (int64_t i = 0; i < n; i++)
        want[i] = ref_gelu(array_get(x, i));
    array_expect(y, want, tolerance(dtype), "gelu");

    EXPECT_OK(op_gelu_backward(ops, n, dtype, x.p, dy.p, dx.p));
    for (int64_t i = 0; i < n; i++)
        want[i] = array_get(dy, i) *
                  (ref_gelu(array_get(x, i) + h) - ref_gelu(array_get(x, i) - h)) / (2 * h);
    array_expect(dx, want, tolerance(dtype), "gelu backward");

    struct array both_y = array_create(dtype, n);
    struct array both_dx = array_create(dtype, n);
    EXPECT_OK(op_gelu_again(ops, n, dtype, x.p, dy.p, both_y.p, both_dx.p));
    array_expect_same_bits(both_y, y, "gelu of both at once");
    array_expect_same_bits(both_dx, dx, "gelu backward of both at once");
    array_free(&both_y);
    array_free(&both_dx);

    EXPECT_OK(op_gelu_backward(ops, n, dtype, x.p, dy.p, dy.p));
    array_expect_same_bits(dy, dx, "gelu backward in place");
    array_free(&x);
    array_free(&dy);
    array_free(&y);
    array_free(&dx);
    free(want);
}

Test(op_gelu, value_and_gradient_are_those_of_the_definition)
{
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_gelu(rig.ops, sizes[i], DTYPE_F32);
        check_gelu(rig.ops, sizes[i], DTYPE_BF16);
    }
    ops_rig_destroy(&rig);
}

Test(op_gelu, stays_finite_far_from_zero)
{
    struct ops_rig rig = ops_rig_create(1);
    const float x[6] = {-1000.0f, -50.0f, -0.0f, 0.0f, 50.0f, 1000.0f};
    const float dy[6] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    const float slope[6] = {0.0f, 0.0f, 0.5f, 0.5f, 1.0f, 1.0f};
    float y[6];
    float dx[6];

    EXPECT_OK(op_gelu(rig.ops, 6, DTYPE_F32, x, y));
    EXPECT_OK(op_gelu_backward(rig.ops, 6, DTYPE_F32, x, dy, dx));
    for (int i = 0; i < 6; i++) {
        cr_assert_float_eq(y[i], x[i] > 0.0f ? x[i] : 0.0f, 1e-30);
        cr_assert_float_eq(dx[i], slope[i], TOL_OPS_F32);
    }
    ops_rig_destroy(&rig);
}

static void check_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype)
{
    const double h = 1e-5;
    struct array x = array_random(dtype, 2 * N * F, 1, 4.0);
    struct array dy = array_random(dtype, N * F, 2, 1.0);
    struct array y = array_create(dtype, N * F);
    struct array dx = array_create(dtype, 2 * N * F);
    double *want = malloc((size_t)(2 * N * F) * sizeof *want);

    EXPECT_OK(op_swiglu(ops, N, F, dtype, x.p, y.p));
    EXPECT_OK(op_swiglu_backward(ops, N, F, dtype, x.p, dy.p, dx.p));
    for (int64_t i = 0; i < N * F; i++)
        want[i] = ref_swiglu(array_get(x, i / F * 2 * F + i % F),
                             array_get(x, i / F * 2 * F + F + i % F));
    array_expect(y, want, tolerance(dtype), "swiglu");
    for (int64_t i = 0; i < N * F; i++) {
        const int64_t gate = i / F * 2 * F + i % F;
        const double g = array_get(x, gate);
        const double u = array_get(x, gate + F);
        const double d = array_get(dy, i);
        want[gate] = d * (ref_swiglu(g + h, u) - ref_swiglu(g - h, u)) / (2 * h);
        want[gate + F] = d * (ref_swiglu(g, u + h) - ref_swiglu(g, u - h)) / (2 * h);
    }
    array_expect(dx, want, tolerance(dtype), "swiglu backward");
    array_free(&x);
    array_free(&dy);
    array_free(&y);
    array_free(&dx);
    free(want);
}

Test(op_swiglu, value_and_gradient_are_those_of_the_definition)
{
    static const int64_t shapes[][2] = {{1, 1}, {7, 33}, {33, 16}, {5, 5000}};
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_swiglu(rig.ops, shapes[i][0], shapes[i][1], DTYPE_F32);
        check_swiglu(rig.ops, shapes[i][0], shapes[i][1], DTYPE_BF16);
    }
    ops_rig_destroy(&rig);
}

Test(op_cast, rounds_as_the_scalar_conversion_does)
{
    struct ops_rig rig = ops_rig_create(2);
    const int64_t n = 70001;
    struct array x = array_random(DTYPE_F32, n, 1, 1.0);
    struct array y = array_create(DTYPE_BF16, n);
    struct array copy = array_create(DTYPE_F32, n);

    ((float *)x.p)[0] = INFINITY;
    ((float *)x.p)[1] = NAN;
    ((float *)x.p)[2] = 3.4e38f;
    ((float *)x.p)[3] = -0.0f;
    ((float *)x.p)[n - 1] = 1e-41f;
    EXPECT_OK(op_cast(rig.ops, n, DTYPE_BF16, x.p, y.p));
    for (int64_t i = 0; i < n; i++)
        cr_assert_eq(((bf16_t *)y.p)[i], bf16_from_f32(((float *)x.p)[i]), "element %lld",
                     (long long)i);
    array_expect_guard(y, "cast");
    EXPECT_OK(op_cast(rig.ops, n, DTYPE_F32, x.p, copy.p));
    array_expect_same_bits(copy, x, "cast to fp32");
    array_free(&x);
    array_free(&y);
    array_free(&copy);
    ops_rig_destroy(&rig);
}

Test(op_accumulate, adds_and_zero_clears_exactly_the_elements_named)
{
    struct ops_rig rig = ops_rig_create(2);
    const int64_t n = 70001;
    struct array src = array_random(DTYPE_F32, n, 1, 1.0);
    struct array dst = array_random(DTYPE_F32, n, 2, 1.0);
    struct array before = array_copy(dst);

    EXPECT_OK(op_accumulate(rig.ops, n, src.p, dst.p));
    for (int64_t i = 0; i < n; i++)
        cr_assert_eq(((float *)dst.p)[i], ((float *)before.p)[i] + ((float *)src.p)[i]);
    array_expect_guard(dst, "accumulate");
    EXPECT_OK(op_zero(rig.ops, (size_t)n * 4, dst.p));
    for (int64_t i = 0; i < n; i++)
        cr_assert_eq(((float *)dst.p)[i], 0.0f);
    array_expect_guard(dst, "zero");
    array_free(&src);
    array_free(&dst);
    array_free(&before);
    ops_rig_destroy(&rig);
}

#include "tests/models/ops/array.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* One row, odd sizes, several tiles with cut edges. */
static const struct linear_shape shapes[] = {
    {.rows = 1, .in = 5, .out = 3},
    {.rows = 7, .in = 33, .out = 17},
    {.rows = 33, .in = 16, .out = 40},
    {.rows = 1, .in = 64, .out = 777},
    {.rows = 401, .in = 24, .out = 9},
    {.rows = 6, .in = 391, .out = 770},
    /* Sums so long that they are cut, in each of the three products. */
    {.rows = 70, .in = 1300, .out = 45},
    {.rows = 40, .in = 50, .out = 1300},
    {.rows = 1100, .in = 33, .out = 40},
    /* Rows that need no packing, of one part and of several; the last strip is cut. */
    {.rows = 97, .in = 800, .out = 40},
    {.rows = 70, .in = 1120, .out = 45},
    {.rows = 70, .in = 40, .out = 1120},
};

struct linear_case {
    struct linear_shape s;
    struct array x, w, bias, dy;
    double *x64, *w64, *bias64, *dy64;
    void *scratch;
};

static struct linear_case linear_case_create(const struct ops *ops, struct linear_shape s)
{
    struct linear_case c = {
        .s = s,
        .x = array_random(s.dtype, s.rows * s.in, 1, 1.0),
        .w = array_random(s.dtype, s.out * s.in, 2, 1.0),
        .bias = array_random(s.dtype, s.out, 3, 4.0),
        .dy = array_random(s.dtype, s.rows * s.out, 4, 1.0),
        .scratch = scratch_create(op_linear_scratch_bytes(ops, s)),
    };

    c.x64 = array_doubles(c.x);
    c.w64 = array_doubles(c.w);
    c.bias64 = array_doubles(c.bias);
    c.dy64 = array_doubles(c.dy);
    return c;
}

static void linear_case_destroy(struct linear_case *c)
{
    array_free(&c->x);
    array_free(&c->w);
    array_free(&c->bias);
    array_free(&c->dy);
    free(c->x64);
    free(c->w64);
    free(c->bias64);
    free(c->dy64);
    free(c->scratch);
}

static double output_tolerance(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT;
}

static void for_all_shapes(enum dtype dtype, void (*check)(struct ops *, struct linear_case *))
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct ops_rig rig = ops_rig_create(2);
        struct linear_shape s = shapes[i];
        s.dtype = dtype;
        EXPECT_OK(op_linear_prepare(rig.ops, s));
        struct linear_case c = linear_case_create(rig.ops, s);
        check(rig.ops, &c);
        linear_case_destroy(&c);
        ops_rig_destroy(&rig);
    }
}

static void check_forward(struct ops *ops, struct linear_case *c)
{
    double *want = malloc((size_t)(c->s.rows * c->s.out) * sizeof *want);

    for (int with_bias = 0; with_bias < 2; with_bias++) {
        struct array y = array_create(c->s.dtype, c->s.rows * c->s.out);
        EXPECT_OK(
            op_linear(ops, c->s, c->x.p, c->w.p, with_bias ? c->bias.p : NULL, y.p, c->scratch));
        ref_linear(c->s.rows, c->s.in, c->s.out, c->x64, c->w64, with_bias ? c->bias64 : NULL,
                   want);
        array_expect(y, want, output_tolerance(c->s.dtype), "y");
        array_free(&y);
    }
    free(want);
}

Test(op_linear, fp32_output_is_that_of_the_definition)
{
    for_all_shapes(DTYPE_F32, check_forward);
}

Test(op_linear, bf16_output_is_that_of_the_definition_rounded_once)
{
    for_all_shapes(DTYPE_BF16, check_forward);
}

static void check_add(struct ops *ops, struct linear_case *c)
{
    const int64_t n = c->s.rows * c->s.out;
    struct array residual = array_random(DTYPE_F32, n, 5, 1.0);
    struct array kept = array_copy(residual);
    struct array y = array_create(DTYPE_F32, n);
    double *want = malloc((size_t)n * sizeof *want);

    for (int with_bias = 0; with_bias < 2; with_bias++) {
        const void *bias = with_bias ? c->bias.p : NULL;
        ref_linear(c->s.rows, c->s.in, c->s.out, c->x64, c->w64, with_bias ? c->bias64 : NULL,
                   want);
        for (int64_t i = 0; i < n; i++)
            want[i] += array_get(residual, i);
        EXPECT_OK(op_linear_add(ops, c->s, c->x.p, c->w.p, bias, residual.p, y.p, c->scratch));
        array_expect(y, want, TOL_OPS_F32, "residual + linear");
        array_expect_same_bits(residual, kept, "the residual that was only read");

        struct array in_place = array_copy(residual);
        EXPECT_OK(
            op_linear_add(ops, c->s, c->x.p, c->w.p, bias, in_place.p, in_place.p, c->scratch));
        array_expect_same_bits(in_place, y, "in place and elsewhere");
        array_free(&in_place);
    }
    array_free(&residual);
    array_free(&kept);
    array_free(&y);
    free(want);
}

Test(op_linear, add_keeps_the_residual_in_fp32)
{
    for_all_shapes(DTYPE_F32, check_add);
    for_all_shapes(DTYPE_BF16, check_add);
}

static void probe_forward(void *arg, double *out)
{
    struct linear_case *c = arg;

    ref_linear(c->s.rows, c->s.in, c->s.out, c->x64, c->w64, c->bias64, out);
}

static void check_gradients(struct ops *ops, struct linear_case *c)
{
    const struct probe probe = {probe_forward, c, c->s.rows * c->s.out, c->dy64};
    struct array dx = array_create(c->s.dtype, c->s.rows * c->s.in);
    struct array dw = array_create(DTYPE_F32, c->s.out * c->s.in);
    struct array dbias = array_create(DTYPE_F32, c->s.out);
    double *want = malloc((size_t)(c->s.rows + c->s.out) * (size_t)c->s.in * sizeof *want);

    if (c->s.rows * c->s.in * c->s.out > 25000) /* differences of all elements would take long */
        goto out;
    EXPECT_OK(op_linear_backward_input(ops, c->s, c->dy.p, c->w.p, dx.p, c->scratch));
    numeric_gradient(&probe, c->x64, dx.n, want);
    array_expect(dx, want, output_tolerance(c->s.dtype), "dx");

    EXPECT_OK(op_linear_backward_weight(ops, c->s, c->dy.p, c->x.p, dw.p, dbias.p, c->scratch));
    numeric_gradient(&probe, c->w64, dw.n, want);
    array_expect(dw, want, TOL_OPS_F32, "dw");
    numeric_gradient(&probe, c->bias64, dbias.n, want);
    array_expect(dbias, want, TOL_OPS_F32, "dbias");

    struct array alone = array_create(DTYPE_F32, c->s.out * c->s.in);
    EXPECT_OK(op_linear_backward_weight(ops, c->s, c->dy.p, c->x.p, alone.p, NULL, c->scratch));
    array_expect_same_bits(alone, dw, "dw without dbias");
    array_free(&alone);
out:
    array_free(&dx);
    array_free(&dw);
    array_free(&dbias);
    free(want);
}

Test(op_linear, gradients_are_central_differences)
{
    for_all_shapes(DTYPE_F32, check_gradients);
    for_all_shapes(DTYPE_BF16, check_gradients);
}

/* Products too large for differences: the gradients are products themselves. */
static void check_large_gradients(struct ops *ops, struct linear_case *c)
{
    const struct linear_shape s = c->s;
    struct array dx = array_create(s.dtype, s.rows * s.in);
    struct array dw = array_create(DTYPE_F32, s.out * s.in);
    double *want = malloc((size_t)(s.rows + s.out) * (size_t)s.in * sizeof *want);

    EXPECT_OK(op_linear_backward_input(ops, s, c->dy.p, c->w.p, dx.p, c->scratch));
    for (int64_t i = 0; i < s.rows; i++)
        for (int64_t j = 0; j < s.in; j++) {
            want[i * s.in + j] = 0.0;
            for (int64_t o = 0; o < s.out; o++)
                want[i * s.in + j] += c->dy64[i * s.out + o] * c->w64[o * s.in + j];
        }
    array_expect(dx, want, output_tolerance(s.dtype), "dx");

    EXPECT_OK(op_linear_backward_weight(ops, s, c->dy.p, c->x.p, dw.p, NULL, c->scratch));
    for (int64_t o = 0; o < s.out; o++)
        for (int64_t j = 0; j < s.in; j++) {
            want[o * s.in + j] = 0.0;
            for (int64_t i = 0; i < s.rows; i++)
                want[o * s.in + j] += c->dy64[i * s.out + o] * c->x64[i * s.in + j];
        }
    array_expect(dw, want, TOL_OPS_F32, "dw");
    array_free(&dx);
    array_free(&dw);
    free(want);
}

Test(op_linear, gradients_of_several_tiles_are_the_products)
{
    for_all_shapes(DTYPE_F32, check_large_gradients);
    for_all_shapes(DTYPE_BF16, check_large_gradients);
}

static void check_gelu(struct ops *ops, struct linear_case *c)
{
    const struct linear_shape s = c->s;
    struct array up = array_create(s.dtype, s.rows * s.out), want_up = array_create(s.dtype, up.n);
    struct array act = array_create(s.dtype, up.n), want_act = array_create(s.dtype, up.n);
    struct array dup = array_create(s.dtype, s.rows * s.in),
                 want_dup = array_create(s.dtype, dup.n);

    for (int with_bias = 0; with_bias < 2; with_bias++) {
        const void *bias = with_bias ? c->bias.p : NULL;
        EXPECT_OK(op_linear_gelu_prepare(ops, s, with_bias, s));
        EXPECT_OK(op_linear_gelu(ops, s, c->x.p, c->w.p, bias, up.p, act.p, c->scratch));
        EXPECT_OK(op_linear(ops, s, c->x.p, c->w.p, bias, want_up.p, c->scratch));
        EXPECT_OK(op_gelu(ops, up.n, s.dtype, want_up.p, want_act.p));
        array_expect_same_bits(up, want_up, "linear before gelu");
        array_expect_same_bits(act, want_act, "gelu behind linear");
    }

    /* The layer's own x stands for what the GELU before it had. */
    EXPECT_OK(op_linear_backward_input_gelu(ops, s, c->dy.p, c->w.p, c->x.p, dup.p, c->scratch));
    EXPECT_OK(op_linear_backward_input(ops, s, c->dy.p, c->w.p, want_dup.p, c->scratch));
    EXPECT_OK(op_gelu_backward(ops, dup.n, s.dtype, c->x.p, want_dup.p, want_dup.p));
    array_expect_same_bits(dup, want_dup, "gradient through linear and gelu");

    struct array *const arrays[] = {&up, &want_up, &act, &want_act, &dup, &want_dup};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        array_free(arrays[i]);
}

Test(op_linear, gelu_before_and_behind_has_the_bits_of_ops_one_after_the_other)
{
    for_all_shapes(DTYPE_F32, check_gelu);
    for_all_shapes(DTYPE_BF16, check_gelu);
}

Test(op_linear, bf16_shape_that_was_not_prepared_is_an_error_with_its_size)
{
    struct ops_rig rig = ops_rig_create(1);
    struct linear_shape s = {.rows = 4, .in = 48, .out = 32, .dtype = DTYPE_BF16};
    struct linear_case c = linear_case_create(rig.ops, s);
    struct array y = array_create(DTYPE_BF16, s.rows * s.out);

    cr_assert_eq(op_linear(rig.ops, s, c.x.p, c.w.p, NULL, y.p, c.scratch), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "4 x 32 x 48"), "%s", shoal_last_error());
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear(rig.ops, s, c.x.p, c.w.p, NULL, y.p, c.scratch));
    array_free(&y);
    linear_case_destroy(&c);
    ops_rig_destroy(&rig);
}

Test(op_linear, refuses_empty_shapes_and_integer_types)
{
    struct ops_rig rig = ops_rig_create(1);
    struct linear_shape empty = {.rows = 0, .in = 48, .out = 32, .dtype = DTYPE_F32};
    struct linear_shape integers = {.rows = 1, .in = 48, .out = 32, .dtype = DTYPE_I32};

    cr_assert_eq(op_linear_prepare(rig.ops, empty), SHOAL_ERR_INTERNAL);
    cr_assert_eq(op_linear_gelu_prepare(rig.ops, empty, true, integers), SHOAL_ERR_INTERNAL);
    cr_assert_eq(op_linear_prepare(rig.ops, integers), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "expected f32 or bf16"), "%s",
                       shoal_last_error());
    ops_rig_destroy(&rig);
}

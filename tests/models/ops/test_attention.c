#include "tests/models/ops/array.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One token; odd lengths; one and several blocks of queries; grouped heads; odd multiples of 2. */
static const struct attention_shape shapes[] = {
    {.B = 1, .T = 1, .H = 1, .K = 1, .D = 2},   {.B = 2, .T = 7, .H = 4, .K = 2, .D = 6},
    {.B = 1, .T = 33, .H = 3, .K = 1, .D = 16}, {.B = 1, .T = 70, .H = 2, .K = 2, .D = 4},
    {.B = 1, .T = 65, .H = 2, .K = 1, .D = 10},
};

struct attention_case {
    struct attention_shape s;
    struct array qkv, y, lse, dy, dqkv;
    double *qkv64, *lse64, *dy64;
    void *scratch;
};

static int64_t row_width(struct attention_shape s)
{
    return (int64_t)(s.H + 2 * s.K) * s.D;
}

static struct attention_case attention_case_create(const struct ops *ops, struct attention_shape s)
{
    const int64_t rows = s.B * s.T;
    struct attention_case c = {
        .s = s,
        .qkv = array_random(s.dtype, rows * row_width(s), 1, 2.0),
        .y = array_create(s.dtype, rows * s.H * s.D),
        .lse = array_create(DTYPE_F32, rows * s.H),
        .dy = array_random(s.dtype, rows * s.H * s.D, 2, 1.0),
        .dqkv = array_create(s.dtype, rows * row_width(s)),
        .lse64 = malloc((size_t)(rows * s.H) * sizeof(double)),
        .scratch = scratch_create(op_attention_scratch_bytes(ops, s)),
    };

    c.qkv64 = array_doubles(c.qkv);
    c.dy64 = array_doubles(c.dy);
    return c;
}

static void attention_case_destroy(struct attention_case *c)
{
    struct array *arrays[] = {&c->qkv, &c->y, &c->lse, &c->dy, &c->dqkv};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        array_free(arrays[i]);
    free(c->qkv64);
    free(c->lse64);
    free(c->dy64);
    free(c->scratch);
}

static void for_all_shapes(enum dtype dtype, void (*check)(struct ops *, struct attention_case *))
{
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct attention_shape s = shapes[i];
        s.dtype = dtype;
        struct attention_case c = attention_case_create(rig.ops, s);
        check(rig.ops, &c);
        attention_case_destroy(&c);
    }
    ops_rig_destroy(&rig);
}

static void check_forward(struct ops *ops, struct attention_case *c)
{
    double *want = malloc((size_t)c->y.n * sizeof *want);

    EXPECT_OK(op_attention(ops, c->s, c->qkv.p, c->y.p, c->lse.p, c->scratch));
    ref_attention(c->s, c->qkv64, want, c->lse64);
    array_expect(c->y, want, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT, "y");
    array_expect(c->lse, c->lse64, TOL_OPS_F32, "lse");
    free(want);
}

Test(op_attention, output_and_lse_are_those_of_the_definition)
{
    for_all_shapes(DTYPE_F32, check_forward);
    for_all_shapes(DTYPE_BF16, check_forward);
}

static void probe_forward(void *arg, double *out)
{
    struct attention_case *c = arg;

    ref_attention(c->s, c->qkv64, out, c->lse64);
}

static void check_gradient(struct ops *ops, struct attention_case *c)
{
    const struct probe probe = {probe_forward, c, c->y.n, c->dy64};
    double *want = malloc((size_t)c->dqkv.n * sizeof *want);

    EXPECT_OK(op_attention(ops, c->s, c->qkv.p, c->y.p, c->lse.p, c->scratch));
    EXPECT_OK(op_attention_backward(ops, c->s, c->dy.p, c->qkv.p, c->y.p, c->lse.p, c->dqkv.p,
                                    c->scratch));
    numeric_gradient(&probe, c->qkv64, c->dqkv.n, want);
    array_expect(c->dqkv, want, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_ATTENTION_GRAD,
                 "dqkv");
    free(want);
}

Test(op_attention, fp32_gradient_is_the_central_difference)
{
    for_all_shapes(DTYPE_F32, check_gradient);
}

Test(op_attention, bf16_gradient_is_the_central_difference)
{
    for_all_shapes(DTYPE_BF16, check_gradient);
}

/* Against the gradient at the op's own y, rounded or not. */
static double *run_backward(struct ops *ops, struct attention_case *c)
{
    double *want = malloc((size_t)c->dqkv.n * sizeof *want);
    double *y64 = array_doubles(c->y);

    EXPECT_OK(op_attention_backward(ops, c->s, c->dy.p, c->qkv.p, c->y.p, c->lse.p, c->dqkv.p,
                                    c->scratch));
    ref_attention_backward(c->s, c->dy64, c->qkv64, y64, c->lse64, want);
    free(y64);
    return want;
}

static void check_definition(struct ops *ops, struct attention_case *c)
{
    check_forward(ops, c);
    double *want = run_backward(ops, c);
    array_expect(c->dqkv, want, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT, "dqkv");
    free(want);
}

/*
 * Usual head sizes and uneven ones; T below, at and one more than the sizes of blocks, and above
 * 512, where blocks are longer; groups of heads.
 */
Test(op_attention, long_sequences_and_wide_heads_agree_with_the_definition)
{
    const struct attention_shape larger[] = {
        {.B = 1, .T = 600, .H = 2, .K = 1, .D = 24}, {.B = 2, .T = 96, .H = 2, .K = 2, .D = 64},
        {.B = 1, .T = 257, .H = 4, .K = 2, .D = 64}, {.B = 1, .T = 129, .H = 3, .K = 1, .D = 80},
        {.B = 1, .T = 63, .H = 2, .K = 1, .D = 128}, {.B = 1, .T = 31, .H = 1, .K = 1, .D = 256},
        {.B = 1, .T = 50, .H = 3, .K = 3, .D = 34},
    };
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < 2 * (sizeof larger / sizeof *larger); i++) {
        struct attention_shape s = larger[i / 2];
        s.dtype = i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16;
        struct attention_case c = attention_case_create(rig.ops, s);
        check_definition(rig.ops, &c);
        attention_case_destroy(&c);
    }
    ops_rig_destroy(&rig);
}

/* The share of elements that are not the bf16 number nearest to what is wanted. */
static double share_of_others(struct array a, const double *want)
{
    int64_t others = 0;

    for (int64_t i = 0; i < a.n; i++)
        others += array_get(a, i) != (double)bf16_to_f32(bf16_from_f32((float)want[i]));
    return (double)others / (double)a.n;
}

/* Probabilities and their gradients enter their products as if they were fp32. */
Test(op_attention, bf16_results_are_rounded_once)
{
    struct ops_rig rig = ops_rig_create(2);
    struct attention_shape s = {.B = 1, .T = 257, .H = 4, .K = 2, .D = 64, .dtype = DTYPE_BF16};
    struct attention_case c = attention_case_create(rig.ops, s);
    double *y = malloc((size_t)c.y.n * sizeof *y);

    EXPECT_OK(op_attention(rig.ops, s, c.qkv.p, c.y.p, c.lse.p, c.scratch));
    ref_attention(s, c.qkv64, y, c.lse64);
    double *dqkv = run_backward(rig.ops, &c);
    cr_assert_leq(share_of_others(c.y, y), TOL_OPS_BF16_OTHERS, "y: %.4f", share_of_others(c.y, y));
    cr_assert_leq(share_of_others(c.dqkv, dqkv), TOL_OPS_BF16_OTHERS, "dqkv: %.4f",
                  share_of_others(c.dqkv, dqkv));
    free(y);
    free(dqkv);
    attention_case_destroy(&c);
    ops_rig_destroy(&rig);
}

/* A key or value after the query must not matter, whichever number it holds. */
static void check_causality(enum dtype dtype)
{
    struct ops_rig rig = ops_rig_create(1);
    struct attention_shape s = {.B = 1, .T = 40, .H = 2, .K = 1, .D = 8, .dtype = dtype};
    struct attention_case c = attention_case_create(rig.ops, s);
    const size_t row_bytes = (size_t)(s.H * s.D) * dtype_bytes(dtype);

    EXPECT_OK(op_attention(rig.ops, s, c.qkv.p, c.y.p, c.lse.p, c.scratch));
    struct array first = array_copy(c.y);
    for (int64_t i = 21 * row_width(s); i < c.qkv.n; i++)
        array_set(c.qkv, i, 3.0);
    EXPECT_OK(op_attention(rig.ops, s, c.qkv.p, c.y.p, c.lse.p, c.scratch));
    cr_assert_eq(memcmp(first.p, c.y.p, 21 * row_bytes), 0);
    cr_assert_neq(memcmp(first.p, c.y.p, 22 * row_bytes), 0);
    array_free(&first);
    attention_case_destroy(&c);
    ops_rig_destroy(&rig);
}

Test(op_attention, later_tokens_do_not_reach_earlier_ones)
{
    check_causality(DTYPE_F32);
    check_causality(DTYPE_BF16);
}

/* Scores of some thousand: exp would overflow without the maximum. */
static void check_large_scores(enum dtype dtype)
{
    struct ops_rig rig = ops_rig_create(1);
    struct attention_shape s = {.B = 1, .T = 20, .H = 1, .K = 1, .D = 4, .dtype = dtype};
    struct attention_case c = attention_case_create(rig.ops, s);

    for (int64_t i = 0; i < c.qkv.n; i++)
        array_set(c.qkv, i, 100.0 * array_get(c.qkv, i));
    EXPECT_OK(op_attention(rig.ops, s, c.qkv.p, c.y.p, c.lse.p, c.scratch));
    EXPECT_OK(
        op_attention_backward(rig.ops, s, c.dy.p, c.qkv.p, c.y.p, c.lse.p, c.dqkv.p, c.scratch));
    for (int64_t i = 0; i < c.y.n; i++)
        cr_assert(isfinite(array_get(c.y, i)));
    for (int64_t i = 0; i < c.dqkv.n; i++)
        cr_assert(isfinite(array_get(c.dqkv, i)));
    attention_case_destroy(&c);
    ops_rig_destroy(&rig);
}

Test(op_attention, large_scores_stay_finite)
{
    check_large_scores(DTYPE_F32);
    check_large_scores(DTYPE_BF16);
}

static void check_nan(enum dtype dtype)
{
    struct ops_rig rig = ops_rig_create(1);
    struct attention_shape s = {.B = 1, .T = 20, .H = 1, .K = 1, .D = 4, .dtype = dtype};
    struct attention_case c = attention_case_create(rig.ops, s);

    array_set(c.qkv, 10 * row_width(s) + s.D, NAN); /* the key of token 10 */
    EXPECT_OK(op_attention(rig.ops, s, c.qkv.p, c.y.p, c.lse.p, c.scratch));
    for (int64_t t = 0; t < s.T; t++)
        cr_assert_eq(isnan(array_get(c.y, t * s.D)) != 0, t >= 10, "token %lld", (long long)t);
    attention_case_destroy(&c);
    ops_rig_destroy(&rig);
}

Test(op_attention, nan_reaches_the_tokens_that_see_it)
{
    check_nan(DTYPE_F32);
    check_nan(DTYPE_BF16);
}

static void check_decode(struct ops *ops, struct attention_case *c)
{
    const struct attention_shape s = c->s;
    const struct attention_shape one = {
        .B = 1, .T = 1, .H = s.H, .K = s.K, .D = s.D, .dtype = s.dtype};
    const int64_t T_max = s.T + 2;
    const size_t width = dtype_bytes(s.dtype);
    struct array cache = array_create(s.dtype, 2 * T_max * s.K * s.D);
    struct array y = array_create(s.dtype, s.T * s.H * s.D);
    double *want = malloc((size_t)c->y.n * sizeof *want);

    for (int64_t t = 0; t < s.T; t++)
        EXPECT_OK(op_attention_decode(
            ops, one, (char *)c->qkv.p + (size_t)(t * row_width(s)) * width, t, T_max, cache.p,
            (char *)y.p + (size_t)(t * s.H * s.D) * width, c->scratch));
    ref_attention(s, c->qkv64, want, c->lse64); /* the first sequence comes first */
    array_expect(y, want, s.dtype == DTYPE_F32 ? TOL_OPS_F32 : 2 * TOL_OPS_BF16_OUT, "decode");
    array_expect_guard(cache, "cache");
    array_free(&cache);
    array_free(&y);
    free(want);
}

Test(op_attention, decoding_token_by_token_gives_the_same_outputs)
{
    for_all_shapes(DTYPE_F32, check_decode);
    for_all_shapes(DTYPE_BF16, check_decode);
}

Test(op_attention, decode_refuses_a_position_behind_the_cache)
{
    struct ops_rig rig = ops_rig_create(1);
    struct attention_shape s = {.B = 1, .T = 1, .H = 1, .K = 1, .D = 4, .dtype = DTYPE_F32};
    float row[12] = {0};
    float cache[2 * 3 * 4];
    float y[4];

    cr_assert_eq(op_attention_decode(rig.ops, s, row, 3, 3, cache, y, NULL), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "0 .. 2, found 3"), "%s", shoal_last_error());
    ops_rig_destroy(&rig);
}

static void check_rope(struct ops *ops, struct attention_case *c)
{
    const double theta = 10000.0;
    struct array turned = array_copy(c->qkv);
    double *before = array_doubles(c->qkv);

    EXPECT_OK(op_rope_prepare(ops, 5 + c->s.T, c->s.D, theta));
    EXPECT_OK(op_rope(ops, c->s, theta, 5, false, turned.p));
    ref_rope(c->s, theta, 5, c->qkv64);
    array_expect(turned, c->qkv64, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT,
                 "rope");
    EXPECT_OK(op_rope(ops, c->s, theta, 5, true, turned.p));
    array_expect(turned, before, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : 3 * TOL_OPS_BF16_OUT,
                 "rope and back");
    array_free(&turned);
    free(before);
}

/* A rotation's transpose is its inverse: turning back is the gradient. */
Test(op_rope, turns_pairs_and_back)
{
    for_all_shapes(DTYPE_F32, check_rope);
    for_all_shapes(DTYPE_BF16, check_rope);
}

Test(op_rope, leaves_the_values_alone)
{
    struct ops_rig rig = ops_rig_create(1);
    struct attention_shape s = {.B = 1, .T = 3, .H = 2, .K = 1, .D = 4, .dtype = DTYPE_F32};
    struct array qkv = array_random(DTYPE_F32, s.T * row_width(s), 1, 1.0);
    struct array before = array_copy(qkv);

    EXPECT_OK(op_rope_prepare(rig.ops, 3, 4, 500000.0));
    EXPECT_OK(op_rope(rig.ops, s, 500000.0, 0, false, qkv.p));
    for (int64_t t = 0; t < s.T; t++)
        for (int64_t i = 12; i < 16; i++)
            cr_assert_eq(array_get(qkv, t * 16 + i), array_get(before, t * 16 + i));
    array_free(&qkv);
    array_free(&before);
    ops_rig_destroy(&rig);
}

Test(op_rope, refuses_positions_that_were_not_prepared)
{
    struct ops_rig rig = ops_rig_create(1);
    struct attention_shape s = {.B = 1, .T = 3, .H = 1, .K = 1, .D = 4, .dtype = DTYPE_F32};
    float qkv[3 * 12] = {0};

    cr_assert_eq(op_rope(rig.ops, s, 10000.0, 0, false, qkv), SHOAL_ERR_INTERNAL);
    EXPECT_OK(op_rope_prepare(rig.ops, 3, 4, 10000.0));
    EXPECT_OK(op_rope(rig.ops, s, 10000.0, 0, false, qkv));
    cr_assert_eq(op_rope(rig.ops, s, 10000.0, 1, false, qkv), SHOAL_ERR_INTERNAL);
    cr_assert_eq(op_rope(rig.ops, s, 500.0, 0, false, qkv), SHOAL_ERR_INTERNAL);
    ops_rig_destroy(&rig);
}

#include "tests/models/ops/array.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

struct norm_case {
    enum norm_kind kind;
    int64_t N, C;
    enum dtype dtype;
    struct array x, w, b, dy, y, stats;
    double *x64, *w64, *b64, *dy64;
};

static const float eps = 1e-5f;

static struct norm_case norm_case_create(enum norm_kind kind, int64_t N, int64_t C,
                                         enum dtype dtype)
{
    struct norm_case c = {
        .kind = kind,
        .N = N,
        .C = C,
        .dtype = dtype,
        .x = array_random(DTYPE_F32, N * C, 1, 2.0),
        .w = array_random(dtype, C, 2, 1.0),
        .b = array_random(dtype, C, 3, 1.0),
        .dy = array_random(dtype, N * C, 4, 1.0),
        .y = array_create(dtype, N * C),
        .stats = array_create(DTYPE_F32, 2 * N),
    };

    for (int64_t i = 0; i < N * C; i++) /* a mean that is not zero */
        ((float *)c.x.p)[i] += 0.5f;
    c.x64 = array_doubles(c.x);
    c.w64 = array_doubles(c.w);
    c.b64 = kind == NORM_LAYER ? array_doubles(c.b) : NULL;
    c.dy64 = array_doubles(c.dy);
    return c;
}

static void norm_case_destroy(struct norm_case *c)
{
    struct array *arrays[] = {&c->x, &c->w, &c->b, &c->dy, &c->y, &c->stats};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        array_free(arrays[i]);
    free(c->x64);
    free(c->w64);
    free(c->b64);
    free(c->dy64);
}

static void run_forward(struct ops *ops, struct norm_case *c)
{
    EXPECT_OK(op_norm(ops, c->kind, c->N, c->C, eps, c->dtype, c->x.p, c->w.p,
                      c->kind == NORM_LAYER ? c->b.p : NULL, c->y.p, c->stats.p));
}

static void probe_forward(void *arg, double *out)
{
    struct norm_case *c = arg;

    ref_norm(c->kind, c->N, c->C, (double)eps, c->x64, c->w64, c->b64, out);
}

static void check_forward(struct ops *ops, struct norm_case *c)
{
    double *want = malloc((size_t)(c->N * c->C) * sizeof *want);

    run_forward(ops, c);
    probe_forward(c, want);
    array_expect(c->y, want, c->dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT, "y");
    array_expect_guard(c->stats, "stats");
    for (int64_t i = 0; i < c->N && c->kind == NORM_LAYER; i++) {
        double mean = 0.0;
        for (int64_t j = 0; j < c->C; j++)
            mean += c->x64[i * c->C + j] / (double)c->C;
        cr_assert_float_eq(array_get(c->stats, 2 * i), mean, 10 * TOL_OPS_F32);
    }
    free(want);
}

/* dx is added to, dw and db are overwritten. */
static void check_gradients(struct ops *ops, struct norm_case *c)
{
    const struct probe probe = {probe_forward, c, c->N * c->C, c->dy64};
    struct array dx = array_random(DTYPE_F32, c->N * c->C, 5, 1.0);
    struct array rounded = array_create(DTYPE_BF16, c->N * c->C);
    struct array dw = array_create(DTYPE_F32, c->C);
    struct array db = array_create(DTYPE_F32, c->C);
    double *before = array_doubles(dx);
    double *want = malloc((size_t)(c->N * c->C) * sizeof *want);
    void *scratch = scratch_create(op_norm_backward_scratch_bytes(ops, c->N, c->C));

    run_forward(ops, c);
    EXPECT_OK(op_norm_backward(ops, c->kind, c->N, c->C, c->dtype, c->dy.p, c->x.p, c->w.p,
                               c->stats.p, dx.p, c->dtype == DTYPE_F32 ? NULL : rounded.p, dw.p,
                               c->kind == NORM_LAYER ? db.p : NULL, scratch));
    numeric_gradient(&probe, c->x64, dx.n, want);
    for (int64_t i = 0; i < dx.n; i++)
        want[i] += before[i];
    array_expect(dx, want, TOL_OPS_F32, "dx");
    for (int64_t i = 0; i < dx.n && c->dtype != DTYPE_F32; i++)
        cr_assert_eq(((bf16_t *)rounded.p)[i], bf16_from_f32(((float *)dx.p)[i]), "%lld",
                     (long long)i);
    array_expect_guard(rounded, "rounded");
    numeric_gradient(&probe, c->w64, dw.n, want);
    array_expect(dw, want, TOL_OPS_F32, "dw");
    if (c->kind == NORM_LAYER) {
        numeric_gradient(&probe, c->b64, db.n, want);
        array_expect(db, want, TOL_OPS_F32, "db");
    }
    array_free(&dx);
    array_free(&rounded);
    array_free(&dw);
    array_free(&db);
    free(before);
    free(want);
    free(scratch);
}

static void for_all_shapes(enum norm_kind kind, enum dtype dtype,
                           void (*check)(struct ops *, struct norm_case *))
{
    static const int64_t sizes[][2] = {{1, 16}, {7, 33}, {33, 20}, {70, 5}, {3, 64}};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct ops_rig rig = ops_rig_create(2);
        struct norm_case c = norm_case_create(kind, sizes[i][0], sizes[i][1], dtype);
        check(rig.ops, &c);
        norm_case_destroy(&c);
        ops_rig_destroy(&rig);
    }
}

Test(op_norm, layernorm_is_that_of_the_definition)
{
    for_all_shapes(NORM_LAYER, DTYPE_F32, check_forward);
    for_all_shapes(NORM_LAYER, DTYPE_BF16, check_forward);
}

Test(op_norm, rmsnorm_is_that_of_the_definition)
{
    for_all_shapes(NORM_RMS, DTYPE_F32, check_forward);
    for_all_shapes(NORM_RMS, DTYPE_BF16, check_forward);
}

Test(op_norm, layernorm_gradients_are_central_differences)
{
    for_all_shapes(NORM_LAYER, DTYPE_F32, check_gradients);
    for_all_shapes(NORM_LAYER, DTYPE_BF16, check_gradients);
}

Test(op_norm, rmsnorm_gradients_are_central_differences)
{
    for_all_shapes(NORM_RMS, DTYPE_F32, check_gradients);
    for_all_shapes(NORM_RMS, DTYPE_BF16, check_gradients);
}

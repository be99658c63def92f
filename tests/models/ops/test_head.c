#include "tests/models/ops/array.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct head_shape shapes[] = {
    {.N = 1, .C = 5, .V = 3}, {.N = 7, .C = 33, .V = 50}, {.N = 33, .C = 16, .V = 403}};

static const float scale = 0.25f;

struct head_case {
    struct head_shape s;
    struct array x, w, dx, dw;
    double *x64, *w64, *row_loss, *want_loss;
    int32_t *targets;
    void *scratch;
};

static struct head_case head_case_create(struct ops *ops, struct head_shape s)
{
    struct head_case c = {
        .s = s,
        .x = array_random(s.dtype, s.N * s.C, 1, 1.0),
        .w = array_random(s.dtype, s.V * s.C, 2, 1.0),
        .dx = array_create(s.dtype, s.N * s.C),
        .dw = array_create(DTYPE_F32, s.V * s.C),
        .row_loss = malloc((size_t)s.N * sizeof(double)),
        .want_loss = malloc((size_t)s.N * sizeof(double)),
        .targets = malloc((size_t)s.N * sizeof(int32_t)),
        .scratch = scratch_create(op_head_scratch_bytes(ops, s)),
    };

    EXPECT_OK(op_head_prepare(ops, s));
    c.x64 = array_doubles(c.x);
    c.w64 = array_doubles(c.w);
    for (int64_t i = 0; i < s.N; i++)
        c.targets[i] = i % 5 == 3 ? -1 : (int32_t)(i * 7 % s.V);
    return c;
}

static void head_case_destroy(struct head_case *c)
{
    array_free(&c->x);
    array_free(&c->w);
    array_free(&c->dx);
    array_free(&c->dw);
    free(c->x64);
    free(c->w64);
    free(c->row_loss);
    free(c->want_loss);
    free(c->targets);
    free(c->scratch);
}

static void expect_losses(const struct head_case *c)
{
    for (int64_t i = 0; i < c->s.N; i++) {
        if (c->targets[i] < 0)
            cr_assert_eq(c->row_loss[i], 0.0);
        cr_assert(fabs(c->row_loss[i] - c->want_loss[i]) <= TOL_OPS_LOSS,
                  "loss of row %lld is %.9g, expected %.9g", (long long)i, c->row_loss[i],
                  c->want_loss[i]);
    }
}

static void probe_forward(void *arg, double *out)
{
    struct head_case *c = arg;

    ref_head(c->s.N, c->s.C, c->s.V, c->x64, c->w64, c->targets, out);
}

/* Losses, and gradients against central differences. */
static void check_head(struct ops *ops, struct head_case *c)
{
    double *dy = malloc((size_t)c->s.N * sizeof *dy);
    const struct probe probe = {probe_forward, c, c->s.N, dy};
    double *want = malloc((size_t)((c->s.N + c->s.V) * c->s.C) * sizeof *want);

    for (int64_t i = 0; i < c->s.N; i++)
        dy[i] = (double)scale;
    probe_forward(c, c->want_loss);
    EXPECT_OK(op_head_loss(ops, c->s, c->x.p, c->w.p, c->targets, c->row_loss, c->scratch));
    expect_losses(c);
    memset(c->row_loss, 0xff, (size_t)c->s.N * sizeof(double));
    EXPECT_OK(op_head_loss_backward(ops, c->s, c->x.p, c->w.p, c->targets, scale, c->row_loss,
                                    c->dx.p, c->dw.p, c->scratch));
    expect_losses(c);
    numeric_gradient(&probe, c->x64, c->dx.n, want);
    array_expect(c->dx, want, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_HEAD_GRAD, "dx");
    for (int64_t i = 0; i < c->s.N; i++)
        for (int64_t j = 0; j < c->s.C && c->targets[i] < 0; j++)
            cr_assert_eq(array_get(c->dx, i * c->s.C + j), 0.0, "an ignored row has a gradient");
    numeric_gradient(&probe, c->w64, c->dw.n, want);
    array_expect(c->dw, want, c->s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_HEAD_GRAD, "dw");
    free(dy);
    free(want);
}

static void for_all_shapes(enum dtype dtype)
{
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct head_shape s = shapes[i];
        s.dtype = dtype;
        struct head_case c = head_case_create(rig.ops, s);
        check_head(rig.ops, &c);
        head_case_destroy(&c);
    }
    ops_rig_destroy(&rig);
}

Test(op_head, fp32_losses_and_gradients_are_those_of_the_definition)
{
    for_all_shapes(DTYPE_F32);
}

Test(op_head, bf16_losses_and_gradients_are_those_of_the_definition)
{
    for_all_shapes(DTYPE_BF16);
}

/* softmax - onehot, by the definition, where differences would take too long. */
static void ref_head_gradients(const struct head_case *c, double *dx, double *dw)
{
    const struct head_shape s = c->s;
    double *logits = malloc((size_t)s.V * sizeof *logits);

    memset(dx, 0, (size_t)(s.N * s.C) * sizeof *dx);
    memset(dw, 0, (size_t)(s.V * s.C) * sizeof *dw);
    for (int64_t i = 0; i < s.N; i++) {
        double sum = 0.0;
        ref_linear(1, s.C, s.V, c->x64 + i * s.C, c->w64, NULL, logits);
        for (int64_t v = 0; v < s.V; v++)
            sum += exp(logits[v]);
        for (int64_t v = 0; v < s.V && c->targets[i] >= 0; v++) {
            const double d = (exp(logits[v]) / sum - (v == c->targets[i])) * (double)scale;
            for (int64_t j = 0; j < s.C; j++) {
                dx[i * s.C + j] += d * c->w64[v * s.C + j];
                dw[v * s.C + j] += d * c->x64[i * s.C + j];
            }
        }
    }
    free(logits);
}

/* A vocabulary so large that the rows come in three chunks, the last one shorter. */
static void check_chunks(enum dtype dtype)
{
    struct ops_rig rig = ops_rig_create(2);
    struct head_shape s = {.N = 330, .C = 2, .V = 400009, .dtype = dtype};
    struct head_case c = head_case_create(rig.ops, s);
    double *dx = malloc((size_t)(s.N * s.C) * sizeof *dx);
    double *dw = malloc((size_t)(s.V * s.C) * sizeof *dw);

    cr_assert_lt(op_head_scratch_bytes(rig.ops, s), (size_t)(s.N * s.V) * 4 / 2);
    probe_forward(&c, c.want_loss);
    ref_head_gradients(&c, dx, dw);
    EXPECT_OK(op_head_loss_backward(rig.ops, s, c.x.p, c.w.p, c.targets, scale, c.row_loss, c.dx.p,
                                    c.dw.p, c.scratch));
    expect_losses(&c);
    array_expect(c.dx, dx, dtype == DTYPE_F32 ? TOL_OPS_F32_HEAD_LONG : TOL_OPS_BF16_HEAD_GRAD,
                 "dx");
    array_expect(c.dw, dw, dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_HEAD_GRAD, "dw");
    free(dx);
    free(dw);
    head_case_destroy(&c);
    ops_rig_destroy(&rig);
}

Test(op_head, chunks_of_rows_add_up)
{
    check_chunks(DTYPE_F32);
    check_chunks(DTYPE_BF16);
}

Test(op_head, large_logits_stay_finite)
{
    struct ops_rig rig = ops_rig_create(1);
    struct head_shape s = {.N = 1, .C = 1, .V = 3, .dtype = DTYPE_F32};
    const float x = 1.0f;
    const float w[3] = {1000.0f, 0.0f, -1000.0f};
    const int32_t target = 1;
    double loss = 0.0;
    float dx = 0.0f;
    float dw[3];
    void *scratch = scratch_create(op_head_scratch_bytes(rig.ops, s));

    EXPECT_OK(op_head_loss_backward(rig.ops, s, &x, w, &target, 1.0f, &loss, &dx, dw, scratch));
    cr_assert_eq(loss, 1000.0);
    cr_assert_eq(dx, 1000.0f);
    cr_assert_eq(dw[0], 1.0f);
    cr_assert_eq(dw[1], -1.0f);
    cr_assert_eq(dw[2], 0.0f);
    free(scratch);
    ops_rig_destroy(&rig);
}

/* The trainer looks at the loss to see that something went wrong. */
Test(op_head, nan_in_one_row_reaches_its_loss_and_no_other)
{
    struct ops_rig rig = ops_rig_create(1);
    struct head_shape s = {.N = 3, .C = 4, .V = 40, .dtype = DTYPE_F32};
    struct head_case c = head_case_create(rig.ops, s);

    array_set(c.x, 4, NAN);
    EXPECT_OK(op_head_loss(rig.ops, s, c.x.p, c.w.p, c.targets, c.row_loss, c.scratch));
    cr_assert(isfinite(c.row_loss[0]));
    cr_assert(isnan(c.row_loss[1]));
    cr_assert(isfinite(c.row_loss[2]));
    head_case_destroy(&c);
    ops_rig_destroy(&rig);
}

Test(op_head, refuses_a_target_outside_the_vocabulary)
{
    struct ops_rig rig = ops_rig_create(1);
    struct head_shape s = {.N = 1, .C = 1, .V = 3, .dtype = DTYPE_F32};
    const float x = 1.0f;
    const float w[3] = {0};
    const int32_t target = 3;
    double loss = 7.0;
    void *scratch = scratch_create(op_head_scratch_bytes(rig.ops, s));

    cr_assert_eq(op_head_loss(rig.ops, s, &x, w, &target, &loss, scratch), SHOAL_ERR_DATA);
    cr_assert_not_null(strstr(shoal_last_error(), "target 0 is 3"), "%s", shoal_last_error());
    cr_assert_eq(loss, 7.0);
    free(scratch);
    ops_rig_destroy(&rig);
}

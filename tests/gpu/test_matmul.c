/* Products of the cuda back end against double: linear layers and the head. */
#include "tests/gpu/cuda_rig.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Aligned ones, one that fits no alignment, a single row, more rows than a block has. */
static const struct linear_shape shapes[] = {{.rows = 64, .in = 32, .out = 48},
                                             {.rows = 5, .in = 7, .out = 3},
                                             {.rows = 1, .in = 64, .out = 24},
                                             {.rows = 33, .in = 65, .out = 17},
                                             {.rows = 129, .in = 96, .out = 72}};

struct linear_case {
    struct linear_shape s;
    struct array x, w, bias, residual, dy;
    struct gpu gpu;
    void *scratch;
};

static struct linear_case linear_case_create(struct ops *ops, struct linear_shape s)
{
    struct linear_case c = {.s = s,
                            .x = array_random(s.dtype, s.rows * s.in, 1, 1.0),
                            .w = array_random(s.dtype, s.out * s.in, 2, 1.0),
                            .bias = array_random(s.dtype, s.out, 3, 1.0),
                            .residual = array_random(DTYPE_F32, s.rows * s.out, 4, 1.0),
                            .dy = array_random(s.dtype, s.rows * s.out, 5, 1.0)};

    EXPECT_OK(op_linear_prepare(ops, s));
    c.scratch = gpu_scratch(&c.gpu, op_linear_scratch_bytes(ops, s) + 1);
    return c;
}

static void linear_case_destroy(struct linear_case *c)
{
    struct array *arrays[] = {&c->x, &c->w, &c->bias, &c->residual, &c->dy};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        array_free(arrays[i]);
    gpu_free_all(&c->gpu);
}

static void for_all_shapes(enum dtype dtype, void (*check)(struct ops *, struct linear_case *))
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct linear_shape s = shapes[i];
        s.dtype = dtype;
        struct linear_case c = linear_case_create(rig.ops, s);
        check(rig.ops, &c);
        linear_case_destroy(&c);
    }
    cuda_rig_destroy(&rig);
}

static double tolerance_of(enum dtype out)
{
    return out == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_OUT;
}

static void expect_device(struct gpu *gpu, const void *p, const double *want, double tolerance,
                          const char *what)
{
    struct array got = gpu_take(gpu, p);

    array_expect(got, want, tolerance, what);
    array_free(&got);
}

/* x wᵀ (+ bias) in double. */
static double *want_linear(const struct linear_case *c, bool bias)
{
    double *x = array_doubles(c->x), *w = array_doubles(c->w), *b = array_doubles(c->bias);
    double *y = malloc((size_t)(c->s.rows * c->s.out) * sizeof *y);

    ref_linear(c->s.rows, c->s.in, c->s.out, x, w, bias ? b : NULL, y);
    free(x);
    free(w);
    free(b);
    return y;
}

static void check_forward(struct ops *ops, struct linear_case *c)
{
    const void *x = gpu_put(&c->gpu, c->x), *w = gpu_put(&c->gpu, c->w);
    const void *bias = gpu_put(&c->gpu, c->bias);

    for (int with_bias = 0; with_bias <= 1; with_bias++) {
        double *want = want_linear(c, with_bias);
        void *y = gpu_new(&c->gpu, c->s.dtype, c->s.rows * c->s.out);
        EXPECT_OK(op_linear(ops, c->s, x, w, with_bias ? bias : NULL, y, c->scratch));
        expect_device(&c->gpu, y, want, tolerance_of(c->s.dtype), "y");
        free(want);
    }
}

Test(cuda_linear, forward_is_a_product_with_the_transposed_weights)
{
    for_all_shapes(DTYPE_F32, check_forward);
    for_all_shapes(DTYPE_BF16, check_forward);
}

static void check_add(struct ops *ops, struct linear_case *c)
{
    const void *x = gpu_put(&c->gpu, c->x), *w = gpu_put(&c->gpu, c->w);
    const void *bias = gpu_put(&c->gpu, c->bias);

    for (int mode = 0; mode < 4; mode++) {
        const bool with_bias = mode & 1, in_place = mode & 2;
        double *want = want_linear(c, with_bias);
        float *residual = gpu_put(&c->gpu, c->residual);
        float *y = in_place ? residual : gpu_new(&c->gpu, DTYPE_F32, c->s.rows * c->s.out);
        for (int64_t i = 0; i < c->s.rows * c->s.out; i++)
            want[i] += array_get(c->residual, i);
        EXPECT_OK(op_linear_add(ops, c->s, x, w, with_bias ? bias : NULL, residual, y, c->scratch));
        expect_device(&c->gpu, y, want, TOL_OPS_F32, "y");
        free(want);
    }
}

Test(cuda_linear, add_keeps_the_residual_in_fp32)
{
    for_all_shapes(DTYPE_F32, check_add);
    for_all_shapes(DTYPE_BF16, check_add);
}

static void check_backward(struct ops *ops, struct linear_case *c)
{
    const struct linear_shape s = c->s;
    double *dx64 = calloc((size_t)(s.rows * s.in), sizeof *dx64);
    double *dw64 = calloc((size_t)(s.out * s.in), sizeof *dw64);
    double *db64 = calloc((size_t)s.out, sizeof *db64);

    for (int64_t row = 0; row < s.rows; row++) {
        for (int64_t o = 0; o < s.out; o++) {
            const double dy = array_get(c->dy, row * s.out + o);
            db64[o] += dy;
            for (int64_t i = 0; i < s.in; i++) {
                dx64[row * s.in + i] += dy * array_get(c->w, o * s.in + i);
                dw64[o * s.in + i] += dy * array_get(c->x, row * s.in + i);
            }
        }
    }
    const void *x = gpu_put(&c->gpu, c->x), *w = gpu_put(&c->gpu, c->w);
    const void *dy = gpu_put(&c->gpu, c->dy);
    void *dx = gpu_new(&c->gpu, s.dtype, s.rows * s.in);
    float *dw = gpu_new(&c->gpu, DTYPE_F32, s.out * s.in);
    float *db = gpu_new(&c->gpu, DTYPE_F32, s.out);
    EXPECT_OK(op_linear_backward_input(ops, s, dy, w, dx, c->scratch));
    EXPECT_OK(op_linear_backward_weight(ops, s, dy, x, dw, db, c->scratch));
    expect_device(&c->gpu, dx, dx64, tolerance_of(s.dtype), "dx");
    expect_device(&c->gpu, dw, dw64, TOL_OPS_F32, "dw");
    expect_device(&c->gpu, db, db64, TOL_OPS_F32, "dbias");
    free(dx64);
    free(dw64);
    free(db64);
}

Test(cuda_linear, backward_gives_all_three_gradients)
{
    for_all_shapes(DTYPE_F32, check_backward);
    for_all_shapes(DTYPE_BF16, check_backward);
}

static void check_bits(struct ops *ops, struct linear_case *c)
{
    const void *x = gpu_put(&c->gpu, c->x), *dy = gpu_put(&c->gpu, c->dy);
    struct array got[2];

    for (int run = 0; run < 2; run++) {
        float *dw = gpu_new(&c->gpu, DTYPE_F32, c->s.out * c->s.in);
        EXPECT_OK(op_linear_backward_weight(ops, c->s, dy, x, dw, NULL, c->scratch));
        got[run] = gpu_take(&c->gpu, dw);
    }
    array_expect_same_bits(got[0], got[1], "dw");
    array_free(&got[0]);
    array_free(&got[1]);
}

/* Few outputs and a long sum: where the library splits k. */
Test(cuda_linear, gives_the_same_bits_twice)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});

    for (int type = 0; type < 2; type++) {
        const struct linear_shape s = {
            .rows = 2048, .in = 64, .out = 64, .dtype = type == 0 ? DTYPE_F32 : DTYPE_BF16};
        struct linear_case c = linear_case_create(rig.ops, s);
        check_bits(rig.ops, &c);
        linear_case_destroy(&c);
    }
    cuda_rig_destroy(&rig);
}

Test(cuda_linear, refuses_shapes_that_were_not_prepared)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const struct linear_shape s = {.rows = 4, .in = 4, .out = 4, .dtype = DTYPE_F32};
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 64);

    cr_assert_eq(op_linear(rig.ops, s, p, p, NULL, p, NULL), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(),
                              "m 4 n 4 k 4, rows of 4 4 4, fp32 -> fp32: the shape "
                              "was not prepared"));
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear(rig.ops, s, p, p + 16, NULL, p + 32, NULL));
    cr_assert_eq(op_linear(rig.ops, s, p + 1, p, NULL, p, NULL), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "aligned to 16 bytes"));
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

static void count_line(void *arg, enum op_class op_class, const char *line)
{
    cr_assert_eq(op_class, OP_CLASS_LINEAR);
    cr_assert_not_null(strstr(line, "algorithm "), "%s", line);
    ++*(int *)arg;
}

Test(cuda_linear, describes_what_was_chosen)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    int lines = 0;

    EXPECT_OK(op_linear_prepare(
        rig.ops, (struct linear_shape){.rows = 64, .in = 32, .out = 16, .dtype = DTYPE_BF16}));
    ops_describe_choices(rig.ops, count_line, &lines);
    cr_assert_eq(lines, 6);
    cuda_rig_destroy(&rig);
}

Test(cuda_linear, has_a_yardstick_and_warms_up)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const struct linear_shape s = {.rows = 64, .in = 48, .out = 16, .dtype = DTYPE_BF16};
    double seconds[3] = {0};
    size_t own = 1;

    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(ops_warm_up(rig.ops, &own));
    cr_assert_eq(own, 0);
    EXPECT_OK(ops_library_linear_seconds(rig.ops, s, seconds));
    for (int i = 0; i < 3; i++)
        cr_assert(seconds[i] > 0.0 && seconds[i] < 1.0);
    cuda_rig_destroy(&rig);
}

/* ---- head ---- */

struct head_case {
    struct head_shape s;
    int64_t chunk_rows;
};

/* One chunk, padded rows; several even chunks; a last one that is shorter. */
static const struct head_case heads[] = {{{.N = 5, .C = 8, .V = 11}, 64},
                                         {{.N = 130, .C = 24, .V = 128}, 64},
                                         {{.N = 200, .C = 16, .V = 67}, 64},
                                         {{.N = 129, .C = 40, .V = 300}, 1024}};

struct head_want {
    double *loss, *dx, *dw;
    double largest_logit;
};

/* Losses and gradients of logits = x wᵀ, in double. */
static struct head_want head_reference(struct head_shape s, struct array x, struct array w,
                                       const int32_t *targets, double scale)
{
    struct head_want want = {.loss = calloc((size_t)s.N, sizeof(double)),
                             .dx = calloc((size_t)(s.N * s.C), sizeof(double)),
                             .dw = calloc((size_t)(s.V * s.C), sizeof(double))};
    double *logits = malloc((size_t)s.V * sizeof *logits);

    for (int64_t i = 0; i < s.N; i++) {
        double sum = 0.0;
        if (targets[i] < 0)
            continue;
        for (int64_t v = 0; v < s.V; v++) {
            logits[v] = 0.0;
            for (int64_t c = 0; c < s.C; c++)
                logits[v] += array_get(x, i * s.C + c) * array_get(w, v * s.C + c);
            want.largest_logit = fmax(want.largest_logit, fabs(logits[v]));
            sum += exp(logits[v]);
        }
        want.loss[i] = log(sum) - logits[targets[i]];
        for (int64_t v = 0; v < s.V; v++) {
            const double d = (exp(logits[v]) / sum - (v == targets[i] ? 1.0 : 0.0)) * scale;
            for (int64_t c = 0; c < s.C; c++) {
                want.dx[i * s.C + c] += d * array_get(w, v * s.C + c);
                want.dw[v * s.C + c] += d * array_get(x, i * s.C + c);
            }
        }
    }
    free(logits);
    return want;
}

static void check_losses(struct gpu *gpu, const double *row_loss, int64_t n, const double *want,
                         double tolerance)
{
    /* Doubles travel as pairs of words. */
    struct array words = gpu_take(gpu, row_loss);
    double *got = words.p;

    for (int64_t i = 0; i < n; i++)
        cr_assert_leq(fabs(got[i] - want[i]), tolerance, "row %lld: loss %.9g, expected %.9g",
                      (long long)i, got[i], want[i]);
    array_free(&words);
}

static void check_head(struct ops *ops, struct head_shape s)
{
    struct array x = array_random(s.dtype, s.N * s.C, 1, 1.0);
    struct array w = array_random(s.dtype, s.V * s.C, 2, 1.0);
    struct array targets = array_create(DTYPE_I32, s.N);
    struct gpu gpu = {0};
    const float scale = 0.125f;

    for (int64_t i = 0; i < s.N; i++)
        ((int32_t *)targets.p)[i] = i % 7 == 3 ? -1 : (int32_t)(i * 31 % s.V);
    struct head_want want = head_reference(s, x, w, targets.p, (double)scale);
    const double logit = s.dtype == DTYPE_F32 ? 0.0 : want.largest_logit;

    EXPECT_OK(op_head_prepare(ops, s));
    void *scratch = gpu_scratch(&gpu, op_head_scratch_bytes(ops, s));
    const void *gx = gpu_put(&gpu, x), *gw = gpu_put(&gpu, w), *gt = gpu_put(&gpu, targets);
    double *loss = gpu_new(&gpu, DTYPE_I64, s.N);
    void *dx = gpu_new(&gpu, s.dtype, s.N * s.C);
    float *dw = gpu_new(&gpu, DTYPE_F32, s.V * s.C);

    EXPECT_OK(op_head_loss(ops, s, gx, gw, gt, loss, scratch));
    check_losses(&gpu, loss, s.N, want.loss, TOL_OPS_LOSS + TOL_GPU_BF16_LOSS(logit));
    EXPECT_OK(op_head_loss_backward(ops, s, gx, gw, gt, scale, loss, dx, dw, scratch));
    check_losses(&gpu, loss, s.N, want.loss, TOL_OPS_LOSS + TOL_GPU_BF16_LOSS(logit));
    const double tolerance =
        s.dtype == DTYPE_F32 ? TOL_OPS_F32 : TOL_OPS_BF16_HEAD_GRAD + TOL_GPU_BF16_LOSS(logit);
    expect_device(&gpu, dx, want.dx, tolerance, "dx");
    expect_device(&gpu, dw, want.dw, tolerance, "dw");

    free(want.loss);
    free(want.dx);
    free(want.dw);
    gpu_free_all(&gpu);
    array_free(&x);
    array_free(&w);
    array_free(&targets);
}

static void check_heads(enum dtype dtype)
{
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        struct head_shape s = heads[i].s;
        s.dtype = dtype;
        const size_t row_bytes = (size_t)((s.V + 63) / 64 * 64) * dtype_bytes(dtype);
        struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){
            .head_chunk_bytes = (size_t)heads[i].chunk_rows * row_bytes});
        check_head(rig.ops, s);
        cuda_rig_destroy(&rig);
    }
}

Test(cuda_head, gives_losses_and_gradients_in_chunks)
{
    check_heads(DTYPE_F32);
}

Test(cuda_head, gives_them_in_bf16)
{
    check_heads(DTYPE_BF16);
}

Test(cuda_head, takes_scratch_for_one_chunk_only)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){.head_chunk_bytes = 1 << 20});
    const struct head_shape s = {.N = 4096, .C = 8, .V = 1000, .dtype = DTYPE_BF16};

    cr_assert_leq(op_head_scratch_bytes(rig.ops, s), (size_t)1 << 20);
    cr_assert_geq(op_head_scratch_bytes(rig.ops, s), (size_t)1 << 19);
    cuda_rig_destroy(&rig);
}

/* GELU, its gradient and bias gradients inside products, or behind them where the library cannot. */
#include "tests/gpu/cuda_rig.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static const struct ops_cuda_options full = {.epilogue = OPS_CUDA_EPILOGUE_FULL};

/* Widths that the library takes, with rows that fit no tile; and widths that it does not. */
static const struct linear_shape shapes[] = {
    {.rows = 64, .in = 32, .out = 48}, {.rows = 7, .in = 24, .out = 40},
    {.rows = 1, .in = 64, .out = 24},  {.rows = 129, .in = 96, .out = 72},
    {.rows = 16, .in = 24, .out = 20}, {.rows = 24, .in = 20, .out = 16},
    {.rows = 33, .in = 65, .out = 17}, {.rows = 5, .in = 7, .out = 3}};

/* A layer before a GELU and behind one: `x` stands for what the GELU before it took, too. */
struct layer {
    struct linear_shape s;
    struct array x, w, bias, dy;
    struct gpu gpu;
    const void *gx, *gw, *gbias, *gdy;
    void *scratch;
};

static struct layer layer_create(struct ops *ops, struct linear_shape s)
{
    struct layer l = {.s = s,
                      .x = array_random(s.dtype, s.rows * s.in, 1, 2.0),
                      .w = array_random(s.dtype, s.out * s.in, 2, 1.0),
                      .bias = array_random(s.dtype, s.out, 3, 1.0),
                      .dy = array_random(s.dtype, s.rows * s.out, 4, 1.0)};

    EXPECT_OK(op_linear_prepare(ops, s));
    EXPECT_OK(op_linear_gelu_prepare(ops, s, true, s));
    EXPECT_OK(op_linear_gelu_prepare(ops, s, false, s));
    l.gx = gpu_put(&l.gpu, l.x);
    l.gw = gpu_put(&l.gpu, l.w);
    l.gbias = gpu_put(&l.gpu, l.bias);
    l.gdy = gpu_put(&l.gpu, l.dy);
    l.scratch = gpu_scratch(&l.gpu, op_linear_scratch_bytes(ops, s) + 1);
    return l;
}

static void layer_destroy(struct layer *l)
{
    array_free(&l->x);
    array_free(&l->w);
    array_free(&l->bias);
    array_free(&l->dy);
    gpu_free_all(&l->gpu);
}

static void for_all_shapes(void (*check)(struct ops *, struct layer *))
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    struct cuda_rig rig = cuda_rig_create(&full);

    for (int d = 0; d < 2; d++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            struct linear_shape s = shapes[i];
            s.dtype = dtypes[d];
            struct layer l = layer_create(rig.ops, s);
            check(rig.ops, &l);
            layer_destroy(&l);
        }
    cuda_rig_destroy(&rig);
}

static double tolerance(enum dtype dtype, double bf16)
{
    return dtype == DTYPE_F32 ? TOL_OPS_F32 : bf16;
}

static void expect_device(struct layer *l, const void *p, const double *want, double within,
                          const char *what)
{
    struct array got = gpu_take(&l->gpu, p);

    array_expect(got, want, within, what);
    array_free(&got);
}

static void expect_same(struct layer *l, const void *a, const void *b, const char *what)
{
    struct array first = gpu_take(&l->gpu, a), second = gpu_take(&l->gpu, b);

    array_expect_same_bits(first, second, what);
    array_free(&first);
    array_free(&second);
}

/* ---- against double ---- */

static void check_gelu(struct ops *ops, struct layer *l)
{
    const struct linear_shape s = l->s;
    const int64_t n = s.rows * s.out;
    double *x = array_doubles(l->x), *w = array_doubles(l->w), *bias = array_doubles(l->bias);
    double *want = malloc((size_t)n * sizeof *want);

    for (int with_bias = 0; with_bias < 2; with_bias++) {
        void *up = gpu_new(&l->gpu, s.dtype, n), *act = gpu_new(&l->gpu, s.dtype, n);
        EXPECT_OK(
            op_linear_gelu(ops, s, l->gx, l->gw, with_bias ? l->gbias : NULL, up, act, l->scratch));
        ref_linear(s.rows, s.in, s.out, x, w, with_bias ? bias : NULL, want);
        expect_device(l, up, want, tolerance(s.dtype, TOL_OPS_BF16_OUT), "up");
        for (int64_t i = 0; i < n; i++)
            want[i] = ref_gelu(want[i]);
        expect_device(l, act, want, tolerance(s.dtype, TOL_GPU_BF16_GELU), "act");
    }
    free(x);
    free(w);
    free(bias);
    free(want);
}

Test(cuda_epilogue, makes_gelu_of_a_product_and_keeps_what_it_took)
{
    for_all_shapes(check_gelu);
}

static double gelu_slope(double x)
{
    const double h = 1e-5;

    return (ref_gelu(x + h) - ref_gelu(x - h)) / (2.0 * h);
}

static void check_gelu_gradient(struct ops *ops, struct layer *l)
{
    const struct linear_shape s = l->s;
    double *want = calloc((size_t)(s.rows * s.in), sizeof *want);
    void *dup = gpu_new(&l->gpu, s.dtype, s.rows * s.in);

    for (int64_t i = 0; i < s.rows * s.in; i++) {
        for (int64_t o = 0; o < s.out; o++)
            want[i] +=
                array_get(l->dy, i / s.in * s.out + o) * array_get(l->w, o * s.in + i % s.in);
        want[i] *= gelu_slope(array_get(l->x, i));
    }
    EXPECT_OK(op_linear_backward_input_gelu(ops, s, l->gdy, l->gw, l->gx, dup, l->scratch));
    expect_device(l, dup, want, tolerance(s.dtype, TOL_GPU_BF16_GELU_GRADIENT), "dup");
    free(want);
}

Test(cuda_epilogue, multiplies_a_product_by_the_slope_of_gelu)
{
    for_all_shapes(check_gelu_gradient);
}

static void check_bias_gradient(struct ops *ops, struct layer *l)
{
    const struct linear_shape s = l->s;
    double *dw64 = calloc((size_t)(s.out * s.in), sizeof *dw64);
    double *db64 = calloc((size_t)s.out, sizeof *db64);
    float *dw = gpu_new(&l->gpu, DTYPE_F32, s.out * s.in);
    float *db = gpu_new(&l->gpu, DTYPE_F32, s.out),
          *alone = gpu_new(&l->gpu, DTYPE_F32, s.out * s.in);

    for (int64_t row = 0; row < s.rows; row++)
        for (int64_t o = 0; o < s.out; o++) {
            const double dy = array_get(l->dy, row * s.out + o);
            db64[o] += dy;
            for (int64_t i = 0; i < s.in; i++)
                dw64[o * s.in + i] += dy * array_get(l->x, row * s.in + i);
        }
    EXPECT_OK(op_linear_backward_weight(ops, s, l->gdy, l->gx, dw, db, l->scratch));
    EXPECT_OK(op_linear_backward_weight(ops, s, l->gdy, l->gx, alone, NULL, l->scratch));
    expect_device(l, dw, dw64, TOL_OPS_F32, "dw");
    expect_device(l, db, db64, TOL_OPS_F32, "dbias");
    expect_device(l, alone, dw64, TOL_OPS_F32, "dw without dbias");
    free(dw64);
    free(db64);
}

Test(cuda_epilogue, sums_the_bias_gradient_beside_that_of_the_weights)
{
    for_all_shapes(check_bias_gradient);
}

/* ---- bits ---- */

/* Where nothing more than a bias is inside the product: fp32, and rows that the library refuses. */
static void check_separate(struct ops *ops, struct layer *l)
{
    const struct linear_shape s = l->s;
    const int64_t n_out = s.rows * s.out, n_in = s.rows * s.in;
    void *up = gpu_new(&l->gpu, s.dtype, n_out), *act = gpu_new(&l->gpu, s.dtype, n_out);
    void *want_up = gpu_new(&l->gpu, s.dtype, n_out), *want_act = gpu_new(&l->gpu, s.dtype, n_out);
    void *dup = gpu_new(&l->gpu, s.dtype, n_in), *want_dup = gpu_new(&l->gpu, s.dtype, n_in);

    EXPECT_OK(op_linear_gelu(ops, s, l->gx, l->gw, l->gbias, up, act, l->scratch));
    EXPECT_OK(op_linear(ops, s, l->gx, l->gw, l->gbias, want_up, l->scratch));
    EXPECT_OK(op_gelu(ops, n_out, s.dtype, want_up, want_act));
    EXPECT_OK(op_linear_backward_input_gelu(ops, s, l->gdy, l->gw, l->gx, dup, l->scratch));
    EXPECT_OK(op_linear_backward_input(ops, s, l->gdy, l->gw, want_dup, l->scratch));
    EXPECT_OK(op_gelu_backward(ops, n_in, s.dtype, l->gx, want_dup, want_dup));
    if (s.dtype == DTYPE_F32 || s.out % 8 != 0) {
        expect_same(l, up, want_up, "up");
        expect_same(l, act, want_act, "act");
    }
    if (s.dtype == DTYPE_F32 || s.in % 8 != 0)
        expect_same(l, dup, want_dup, "dup");
}

Test(cuda_epilogue, has_the_bits_of_separate_ops_where_nothing_is_joined)
{
    for_all_shapes(check_separate);
}

/* Few outputs and a long sum: where the library splits k. */
Test(cuda_epilogue, gives_the_same_bits_twice)
{
    struct cuda_rig rig = cuda_rig_create(&full);
    const struct linear_shape s = {.rows = 2048, .in = 64, .out = 64, .dtype = DTYPE_BF16};
    struct layer l = layer_create(rig.ops, s);
    void *up[2], *act[2], *dup[2];
    float *dw[2], *db[2];

    for (int run = 0; run < 2; run++) {
        up[run] = gpu_new(&l.gpu, s.dtype, s.rows * s.out);
        act[run] = gpu_new(&l.gpu, s.dtype, s.rows * s.out);
        dup[run] = gpu_new(&l.gpu, s.dtype, s.rows * s.in);
        dw[run] = gpu_new(&l.gpu, DTYPE_F32, s.out * s.in);
        db[run] = gpu_new(&l.gpu, DTYPE_F32, s.out);
        EXPECT_OK(op_linear_gelu(rig.ops, s, l.gx, l.gw, l.gbias, up[run], act[run], l.scratch));
        EXPECT_OK(
            op_linear_backward_input_gelu(rig.ops, s, l.gdy, l.gw, l.gx, dup[run], l.scratch));
        EXPECT_OK(op_linear_backward_weight(rig.ops, s, l.gdy, l.gx, dw[run], db[run], l.scratch));
    }
    expect_same(&l, up[0], up[1], "up");
    expect_same(&l, act[0], act[1], "act");
    expect_same(&l, dup[0], dup[1], "dup");
    expect_same(&l, dw[0], dw[1], "dw");
    expect_same(&l, db[0], db[1], "dbias");
    layer_destroy(&l);
    cuda_rig_destroy(&rig);
}

/* ---- plans ---- */

struct lines {
    int n;
    char text[8192];
};

static void keep_line(void *arg, enum op_class op_class, const char *line)
{
    struct lines *lines = arg;

    (void)op_class;
    lines->n++;
    strncat(lines->text, line, 1000);
    strncat(lines->text, "\n", 2);
}

static struct lines prepared(const struct ops_cuda_options *options, struct linear_shape s)
{
    struct cuda_rig rig = cuda_rig_create(options);
    struct lines lines = {0};
    size_t own = 0;

    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear_gelu_prepare(rig.ops, s, true, s));
    EXPECT_OK(op_linear_gelu_prepare(rig.ops, s, true, s));
    ops_describe_choices(rig.ops, keep_line, &lines);
    EXPECT_OK(ops_warm_up(rig.ops, &own));
    cuda_rig_destroy(&rig);
    return lines;
}

Test(cuda_epilogue, prepares_more_only_where_it_is_used_and_says_what)
{
    const struct linear_shape bf16 = {.rows = 16, .in = 24, .out = 32, .dtype = DTYPE_BF16};
    const struct linear_shape odd = {.rows = 16, .in = 20, .out = 12, .dtype = DTYPE_BF16};
    const struct linear_shape fp32 = {.rows = 16, .in = 24, .out = 32, .dtype = DTYPE_F32};

    cr_assert_eq(prepared(&(struct ops_cuda_options){0}, bf16).n, 6);
    cr_assert_eq(prepared(&full, fp32).n, 6);
    struct lines lines = prepared(&full, bf16);
    cr_assert_eq(lines.n, 9, "%s", lines.text);
    cr_assert_not_null(strstr(lines.text, "bf16 -> bf16 bias gelu"), "%s", lines.text);
    cr_assert_not_null(strstr(lines.text, "bf16 -> bf16 gelu gradient"), "%s", lines.text);
    cr_assert_not_null(strstr(lines.text, "bf16 -> fp32 bias gradient"), "%s", lines.text);
    lines = prepared(&full, odd);
    cr_assert_not_null(strstr(lines.text, " gelu after: algorithm "), "%s", lines.text);
    cr_assert_not_null(strstr(lines.text, " gelu gradient after: algorithm "), "%s", lines.text);
}

Test(cuda_epilogue, refuses_what_was_not_prepared)
{
    struct cuda_rig rig = cuda_rig_create(&full);
    const struct linear_shape s = {.rows = 8, .in = 8, .out = 8, .dtype = DTYPE_BF16};
    struct gpu gpu = {0};
    bf16_t *p = gpu_new(&gpu, DTYPE_BF16, 1024);

    EXPECT_OK(op_linear_prepare(rig.ops, s));
    cr_assert_eq(op_linear_gelu(rig.ops, s, p, p, NULL, p, p, NULL), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(
        strstr(shoal_last_error(), "rows of 8 8 8, bf16 -> bf16 gelu: the shape was not "));
    EXPECT_OK(op_linear_gelu_prepare(rig.ops, s, false, s));
    EXPECT_OK(op_linear_gelu(rig.ops, s, p, p + 64, NULL, p + 128, p + 192, NULL));
    cr_assert_eq(op_linear_gelu(rig.ops, s, p, p + 64, NULL, p + 129, p + 192, NULL),
                 SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "aligned to 16 bytes"));
    cr_assert_eq(op_linear_backward_input_gelu(rig.ops, s, p, p + 64, NULL, p + 192, NULL),
                 SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "aligned to 16 bytes"));
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

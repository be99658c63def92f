#include "models/ops/cuda/kernels.h"
#include "tests/gpu/gpu.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct attention_case {
    struct attention_shape s;
    struct array qkv, dy;
    struct array y, lse; /* of the cpu in fp32; y rounded to the type is the backward's input */
};

static int64_t row_width(struct attention_shape s)
{
    return (int64_t)(s.H + 2 * s.K) * s.D;
}

static bool on_tensor_cores(struct attention_shape s)
{
    return s.dtype == DTYPE_BF16 && (s.D == 64 || s.D == 128);
}

static struct attention_shape in_fp32(struct attention_shape s)
{
    s.dtype = DTYPE_F32;
    return s;
}

static void cpu_forward(struct attention_case *c)
{
    struct ops_rig rig = ops_rig_create(2);
    const struct attention_shape s = in_fp32(c->s);
    struct array qkv = array_widen(c->qkv);
    void *scratch = scratch_create(op_attention_scratch_bytes(rig.ops, s));

    EXPECT_OK(op_attention(rig.ops, s, qkv.p, c->y.p, c->lse.p, scratch));
    array_free(&qkv);
    free(scratch);
    ops_rig_destroy(&rig);
}

static struct attention_case attention_case_create(struct attention_shape s, double size)
{
    const int64_t rows = s.B * s.T;
    struct attention_case c = {
        .s = s,
        .qkv = array_random(s.dtype, rows * row_width(s), 1, size),
        .dy = array_random(s.dtype, rows * s.H * s.D, 2, 1.0),
        .y = array_create(DTYPE_F32, rows * s.H * s.D),
        .lse = array_create(DTYPE_F32, rows * s.H),
    };

    cpu_forward(&c);
    return c;
}

static void attention_case_destroy(struct attention_case *c)
{
    array_free(&c->qkv);
    array_free(&c->dy);
    array_free(&c->y);
    array_free(&c->lse);
}

/* y, lse, and dqkv from the cpu's y and lse. */
static void run_attention(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct attention_case *c = arg;
    const struct attention_shape s = c->s;
    struct array rounded = array_round(c->y, s.dtype);
    const void *qkv = gpu_put(gpu, c->qkv);
    const void *dy = gpu_put(gpu, c->dy);
    const void *cpu_y = gpu_put(gpu, rounded);
    const float *cpu_lse = gpu_put(gpu, c->lse);
    void *y = gpu_new(gpu, s.dtype, c->y.n);
    float *lse = gpu_new(gpu, DTYPE_F32, c->lse.n);
    void *dqkv = gpu_new(gpu, s.dtype, c->qkv.n);
    void *scratch = gpu_scratch(gpu, cuda_attention_plain_backward_scratch_bytes(s));

    EXPECT_OK(cuda_attention_plain(NULL, s, qkv, y, lse));
    EXPECT_OK(cuda_attention_plain_backward(NULL, s, dy, qkv, cpu_y, cpu_lse, dqkv, scratch));
    outputs_take(out, gpu, y);
    outputs_take(out, gpu, lse);
    outputs_take(out, gpu, dqkv);
    array_free(&rounded);
}

/* dq, dk and dv differ in size: each is held against its own largest element. */
static void expect_part(const struct attention_case *c, struct array got, struct array want,
                        int64_t first, int64_t width, double tolerance, const char *what)
{
    const int64_t rows = c->s.B * c->s.T;
    struct array part = array_create(got.dtype, rows * width);
    double *values = malloc((size_t)part.n * sizeof *values);

    for (int64_t i = 0; i < part.n; i++) {
        const int64_t from = i / width * row_width(c->s) + first + i % width;
        array_set(part, i, array_get(got, from));
        values[i] = array_get(want, from);
    }
    array_expect(part, values, tolerance, what);
    array_free(&part);
    free(values);
}

static void expect_gradient(const struct attention_case *c, struct array got)
{
    const double tolerance = c->s.dtype == DTYPE_F32 ? TOL_GPU_F32
                             : on_tensor_cores(c->s) ? TOL_GPU_ATTENTION_GRAD
                                                     : TOL_GPU_BF16_OUT;
    const struct attention_shape s = in_fp32(c->s);
    struct ops_rig rig = ops_rig_create(2);
    struct array rounded = array_round(c->y, c->s.dtype);
    struct array y = array_widen(rounded);
    struct array qkv = array_widen(c->qkv);
    struct array dy = array_widen(c->dy);
    struct array want = array_create(DTYPE_F32, qkv.n);
    void *scratch = scratch_create(op_attention_scratch_bytes(rig.ops, s));

    EXPECT_OK(op_attention_backward(rig.ops, s, dy.p, qkv.p, y.p, c->lse.p, want.p, scratch));
    expect_part(c, got, want, 0, (int64_t)s.H * s.D, tolerance, "dq");
    expect_part(c, got, want, (int64_t)s.H * s.D, (int64_t)s.K * s.D, tolerance, "dk");
    expect_part(c, got, want, (int64_t)(s.H + s.K) * s.D, (int64_t)s.K * s.D, tolerance, "dv");
    array_free(&rounded);
    array_free(&y);
    array_free(&qkv);
    array_free(&dy);
    array_free(&want);
    free(scratch);
    ops_rig_destroy(&rig);
}

static void check_attention(struct attention_shape s)
{
    struct attention_case c = attention_case_create(s, 2.0);
    struct outputs out = run_repeatedly(run_attention, &c, !on_tensor_cores(s));

    outputs_expect(&out, 0, c.y,
                   s.dtype == DTYPE_F32 ? TOL_GPU_F32
                   : on_tensor_cores(s) ? TOL_GPU_ATTENTION
                                        : TOL_GPU_BF16_OUT,
                   "y");
    outputs_expect(&out, 1, c.lse, TOL_GPU_F32, "lse");
    expect_gradient(&c, out.arrays[2]);
    outputs_free(&out);
    attention_case_destroy(&c);
}

/*
 * One token; odd lengths; grouped heads; each of the three widths of the kernels, and their ends;
 * 80 and 176: only with the kernels' static arrays, backward's or forward's, are there more than
 * 48 KiB of shared memory.
 */
Test(cuda_attention, forward_and_backward_are_the_cpus)
{
    static const struct attention_shape shapes[] = {
        {.B = 1, .T = 1, .H = 1, .K = 1, .D = 2},    {.B = 2, .T = 7, .H = 4, .K = 2, .D = 6},
        {.B = 1, .T = 32, .H = 3, .K = 1, .D = 16},  {.B = 2, .T = 65, .H = 2, .K = 1, .D = 64},
        {.B = 1, .T = 70, .H = 2, .K = 2, .D = 66},  {.B = 1, .T = 33, .H = 2, .K = 1, .D = 130},
        {.B = 1, .T = 97, .H = 1, .K = 1, .D = 128}, {.B = 1, .T = 40, .H = 2, .K = 1, .D = 256},
        {.B = 1, .T = 33, .H = 1, .K = 1, .D = 80},  {.B = 1, .T = 33, .H = 1, .K = 1, .D = 176}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct attention_shape s = shapes[i];
            s.dtype = dtype;
            check_attention(s);
        }
}

/* Lengths around tiles of 64, both head sizes, groups of one, two and four. */
Test(cuda_attention, tensor_cores_agree_with_fp32)
{
    static const struct attention_shape shapes[] = {{.B = 1, .T = 2, .H = 1, .K = 1, .D = 64},
                                                    {.B = 1, .T = 63, .H = 2, .K = 1, .D = 64},
                                                    {.B = 2, .T = 64, .H = 2, .K = 2, .D = 128},
                                                    {.B = 1, .T = 129, .H = 4, .K = 1, .D = 64},
                                                    {.B = 1, .T = 200, .H = 2, .K = 1, .D = 128}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct attention_shape s = shapes[i];
        s.dtype = DTYPE_BF16;
        check_attention(s);
    }
}

static struct outputs attend(struct attention_case *c)
{
    return run_repeatedly(run_attention, c, false);
}

/* Every kernel: fp32, bf16 without and with tensor cores. */
static const struct attention_shape kernels[] = {
    {.B = 1, .T = 80, .H = 2, .K = 1, .D = 16, .dtype = DTYPE_F32},
    {.B = 1, .T = 80, .H = 2, .K = 1, .D = 16, .dtype = DTYPE_BF16},
    {.B = 1, .T = 80, .H = 2, .K = 1, .D = 64, .dtype = DTYPE_BF16},
    {.B = 1, .T = 80, .H = 2, .K = 1, .D = 128, .dtype = DTYPE_BF16}};

enum { KERNELS = sizeof kernels / sizeof *kernels };

Test(cuda_attention, later_tokens_do_not_reach_earlier_ones)
{
    gpu_require();
    for (int k = 0; k < KERNELS; k++) {
        struct attention_case c = attention_case_create(kernels[k], 2.0);
        const size_t row_bytes = (size_t)(c.s.H * c.s.D) * dtype_bytes(c.s.dtype);
        struct outputs before = attend(&c);
        for (int64_t i = 41 * row_width(c.s); i < c.qkv.n; i++)
            array_set(c.qkv, i, 3.0);
        struct outputs after = attend(&c);
        cr_assert_eq(memcmp(before.arrays[0].p, after.arrays[0].p, 41 * row_bytes), 0);
        cr_assert_neq(memcmp(before.arrays[0].p, after.arrays[0].p, 42 * row_bytes), 0);
        outputs_free(&before);
        outputs_free(&after);
        attention_case_destroy(&c);
    }
}

/* Scores of some thousand: exp would overflow without the maximum. */
Test(cuda_attention, large_scores_stay_finite)
{
    gpu_require();
    for (int k = 0; k < KERNELS; k++) {
        struct attention_case c = attention_case_create(kernels[k], 50.0);
        struct outputs out = attend(&c);
        for (int i = 0; i < out.n; i++)
            for (int64_t j = 0; j < out.arrays[i].n; j++)
                cr_assert(isfinite(array_get(out.arrays[i], j)), "output %d of kernel %d", i, k);
        outputs_free(&out);
        attention_case_destroy(&c);
    }
}

Test(cuda_attention, nan_in_a_key_reaches_the_tokens_that_see_it)
{
    gpu_require();
    for (int k = 0; k < KERNELS; k++) {
        struct attention_case c = attention_case_create(kernels[k], 2.0);
        array_set(c.qkv, 40 * row_width(c.s) + c.s.H * c.s.D, NAN);
        struct outputs out = attend(&c);
        for (int64_t t = 0; t < c.s.T; t++)
            cr_assert_eq(isnan(array_get(out.arrays[0], t * c.s.H * c.s.D)) != 0, t >= 40,
                         "token %lld of kernel %d", (long long)t, k);
        outputs_free(&out);
        attention_case_destroy(&c);
    }
}

Test(cuda_attention, refuses_shapes_that_no_kernel_serves)
{
    const struct attention_shape bad[] = {
        {.B = 1, .T = 4, .H = 3, .K = 2, .D = 8, .dtype = DTYPE_F32},
        {.B = 1, .T = 4, .H = 2, .K = 2, .D = 258, .dtype = DTYPE_F32},
        {.B = 1, .T = 4, .H = 2, .K = 2, .D = 7, .dtype = DTYPE_F32},
        {.B = 70000, .T = 1, .H = 2, .K = 2, .D = 8, .dtype = DTYPE_F32},
        {.B = 1, .T = 4, .H = 2, .K = 2, .D = 8, .dtype = DTYPE_I32}};

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert_eq(cuda_attention_plain(NULL, bad[i], NULL, NULL, NULL), SHOAL_ERR_INTERNAL);
}

/* ---- one token at a time ---- */

/* The outputs of all tokens of the first sequence, and the cache. */
static void run_decode(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct attention_case *c = arg;
    const struct attention_shape s = c->s;
    const struct attention_shape one = {
        .B = 1, .T = 1, .H = s.H, .K = s.K, .D = s.D, .dtype = s.dtype};
    const int64_t T_max = s.T + 2;
    const size_t width = dtype_bytes(s.dtype);
    const char *qkv = gpu_put(gpu, c->qkv);
    char *y = gpu_new(gpu, s.dtype, s.T * s.H * s.D);
    void *cache = gpu_new(gpu, s.dtype, 2 * T_max * s.K * s.D);

    for (int64_t t = 0; t < s.T; t++)
        EXPECT_OK(cuda_attention_decode(NULL, one, qkv + (size_t)(t * row_width(s)) * width, t,
                                        T_max, cache, y + (size_t)(t * s.H * s.D) * width));
    outputs_take(out, gpu, y);
    outputs_take(out, gpu, cache);
}

Test(cuda_attention, decoding_token_by_token_gives_the_same_outputs)
{
    static const struct attention_shape shapes[] = {{.B = 1, .T = 1, .H = 1, .K = 1, .D = 2},
                                                    {.B = 1, .T = 19, .H = 4, .K = 2, .D = 6},
                                                    {.B = 1, .T = 40, .H = 2, .K = 1, .D = 64},
                                                    {.B = 1, .T = 12, .H = 2, .K = 2, .D = 256}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct attention_shape s = shapes[i];
            s.dtype = dtype;
            struct attention_case c = attention_case_create(s, 2.0);
            struct outputs out = run_repeatedly(run_decode, &c, true);
            outputs_expect(&out, 0, c.y, dtype == DTYPE_F32 ? TOL_GPU_F32 : TOL_GPU_BF16_OUT,
                           "decode");
            outputs_free(&out);
            attention_case_destroy(&c);
        }
}

/* ---- rotary positions ---- */

enum { FIRST_POSITION = 5 };

static const double theta = 10000.0;

static void run_rope(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct attention_case *c = arg;
    const struct attention_shape s = c->s;
    const int half = s.D / 2;
    struct array cosines = array_create(DTYPE_F32, (FIRST_POSITION + s.T) * half);
    struct array sines = array_create(DTYPE_F32, (FIRST_POSITION + s.T) * half);
    void *turned = gpu_put(gpu, c->qkv);
    void *back = gpu_put(gpu, c->qkv);

    for (int64_t i = 0; i < cosines.n; i++) {
        const double angle = (double)(i / half) * pow(theta, -2.0 * (double)(i % half) / s.D);
        array_set(cosines, i, cos(angle));
        array_set(sines, i, sin(angle));
    }
    const float *c_table = gpu_put(gpu, cosines);
    const float *s_table = gpu_put(gpu, sines);
    EXPECT_OK(cuda_rope(NULL, s, c_table, s_table, FIRST_POSITION, false, turned));
    EXPECT_OK(cuda_rope(NULL, s, c_table, s_table, FIRST_POSITION, true, back));
    outputs_take(out, gpu, turned);
    outputs_take(out, gpu, back);
    array_free(&cosines);
    array_free(&sines);
}

Test(cuda_rope, turns_and_turns_back_with_the_cpus_bits)
{
    static const struct attention_shape shapes[] = {{.B = 1, .T = 1, .H = 1, .K = 1, .D = 2},
                                                    {.B = 2, .T = 7, .H = 4, .K = 2, .D = 6},
                                                    {.B = 2, .T = 9, .H = 6, .K = 2, .D = 128},
                                                    {.B = 1, .T = 3, .H = 40, .K = 40, .D = 34}};

    gpu_require();
    struct ops_rig rig = ops_rig_create(1);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct attention_shape s = shapes[i];
            s.dtype = dtype;
            struct attention_case c = attention_case_create(s, 2.0);
            struct outputs out = run_repeatedly(run_rope, &c, true);
            EXPECT_OK(op_rope_prepare(rig.ops, FIRST_POSITION + s.T, s.D, theta));
            for (int inverse = 0; inverse < 2; inverse++) {
                struct array want = array_copy(c.qkv);
                EXPECT_OK(op_rope(rig.ops, s, theta, FIRST_POSITION, inverse == 1, want.p));
                array_expect_same_bits(out.arrays[inverse], want, "rope");
                array_free(&want);
            }
            outputs_free(&out);
            attention_case_destroy(&c);
        }
    ops_rig_destroy(&rig);
}

/* Attention of the cuda back end against double: by cuDNN, by our own kernels, and cut in parts. */
#include "tests/gpu/cuda_rig.h"
#include "tests/models/ops/reference.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Around the tiles' edges, one tile and several, all ways to share heads, both head sizes. */
static const struct attention_shape shapes[] = {
    {.B = 1, .T = 2, .H = 1, .K = 1, .D = 64},   {.B = 2, .T = 63, .H = 2, .K = 2, .D = 64},
    {.B = 1, .T = 64, .H = 4, .K = 1, .D = 64},  {.B = 1, .T = 65, .H = 4, .K = 2, .D = 128},
    {.B = 2, .T = 127, .H = 2, .K = 1, .D = 64}, {.B = 1, .T = 129, .H = 2, .K = 2, .D = 128},
    {.B = 1, .T = 40, .H = 2, .K = 1, .D = 72},
};

struct want {
    double *y, *lse, *dqkv;
};

static int64_t row_width(struct attention_shape s)
{
    return (int64_t)(s.H + 2 * s.K) * s.D;
}

/* Gradients of one query of one head, added to dqkv; p is room for T numbers. */
static void reference_query(struct attention_shape s, int64_t b, int h, int64_t t,
                            const double *qkv, const double *dy, const double *lse, double *p,
                            double *dqkv)
{
    const int64_t width = row_width(s), first = b * s.T * width;
    const int64_t q = first + t * width + h * s.D;
    const int64_t k = first + (s.H + h / (s.H / s.K)) * (int64_t)s.D, v = k + (int64_t)s.K * s.D;
    const double *grad = dy + ((b * s.T + t) * s.H + h) * s.D;
    const double scale = 1.0 / sqrt((double)s.D);
    double row_sum = 0.0;

    for (int64_t j = 0; j <= t; j++) {
        double score = 0.0, dp = 0.0;
        for (int i = 0; i < s.D; i++) {
            score += qkv[q + i] * qkv[k + j * width + i];
            dp += grad[i] * qkv[v + j * width + i];
        }
        p[j] = exp(score * scale - lse[(b * s.H + h) * s.T + t]);
        row_sum += p[j] * dp;
    }
    for (int64_t j = 0; j <= t; j++) {
        double dp = 0.0;
        for (int i = 0; i < s.D; i++)
            dp += grad[i] * qkv[v + j * width + i];
        const double ds = p[j] * (dp - row_sum) * scale;
        for (int i = 0; i < s.D; i++) {
            dqkv[q + i] += ds * qkv[k + j * width + i];
            dqkv[k + j * width + i] += ds * qkv[q + i];
            dqkv[v + j * width + i] += p[j] * grad[i];
        }
    }
}

static struct want reference(struct attention_shape s, struct array qkv, struct array dy)
{
    double *qkv64 = array_doubles(qkv), *dy64 = array_doubles(dy);
    double *p = malloc((size_t)s.T * sizeof *p);
    struct want want = {.y = malloc((size_t)dy.n * sizeof(double)),
                        .lse = malloc((size_t)(s.B * s.H * s.T) * sizeof(double)),
                        .dqkv = calloc((size_t)qkv.n, sizeof(double))};

    ref_attention(s, qkv64, want.y, want.lse);
    for (int64_t b = 0; b < s.B; b++)
        for (int h = 0; h < s.H; h++)
            for (int64_t t = 0; t < s.T; t++)
                reference_query(s, b, h, t, qkv64, dy64, want.lse, p, want.dqkv);
    free(p);
    free(qkv64);
    free(dy64);
    return want;
}

/* What one forward and backward on the device made. */
struct made {
    struct array y, lse, dqkv;
};

static struct made run(struct ops *ops, struct attention_shape s, struct array qkv, struct array dy)
{
    struct gpu gpu = {0};
    void *scratch = gpu_scratch(&gpu, op_attention_scratch_bytes(ops, s) + 1);
    const void *gqkv = gpu_put(&gpu, qkv), *gdy = gpu_put(&gpu, dy);
    void *y = gpu_new(&gpu, s.dtype, dy.n), *dqkv = gpu_new(&gpu, s.dtype, qkv.n);
    float *lse = gpu_new(&gpu, DTYPE_F32, s.B * s.H * s.T);

    EXPECT_OK(op_attention(ops, s, gqkv, y, lse, scratch));
    EXPECT_OK(op_attention_backward(ops, s, gdy, gqkv, y, lse, dqkv, scratch));
    struct made made = {gpu_take(&gpu, y), gpu_take(&gpu, lse), gpu_take(&gpu, dqkv)};
    gpu_free_all(&gpu);
    return made;
}

static void made_free(struct made *made)
{
    array_free(&made->y);
    array_free(&made->lse);
    array_free(&made->dqkv);
}

static void check_shape(struct ops *ops, struct attention_shape s)
{
    struct array qkv = array_random(s.dtype, s.B * s.T * row_width(s), 1, 2.0);
    struct array dy = array_random(s.dtype, s.B * s.T * s.H * s.D, 2, 1.0);
    struct want want = reference(s, qkv, dy);
    struct made made = run(ops, s, qkv, dy);
    struct made again = run(ops, s, qkv, dy);
    const bool wide = s.dtype == DTYPE_F32;

    array_expect(made.y, want.y, wide ? TOL_OPS_F32 : TOL_GPU_ATTENTION, "y");
    array_expect(made.lse, want.lse, TOL_OPS_F32, "lse");
    array_expect(made.dqkv, want.dqkv, wide ? TOL_OPS_F32 : TOL_GPU_CUDNN_ATTENTION_GRAD, "dqkv");
    array_expect_same_bits(made.y, again.y, "y");
    array_expect_same_bits(made.lse, again.lse, "lse");
    array_expect_same_bits(made.dqkv, again.dqkv, "dqkv");
    made_free(&made);
    made_free(&again);
    free(want.y);
    free(want.lse);
    free(want.dqkv);
    array_free(&qkv);
    array_free(&dy);
}

static void check_shapes(enum dtype dtype, const struct ops_cuda_options *options)
{
    struct cuda_rig rig = cuda_rig_create(options);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct attention_shape s = shapes[i];
        s.dtype = dtype;
        check_shape(rig.ops, s);
    }
    cuda_rig_destroy(&rig);
}

Test(cuda_attention, by_cudnn_is_that_of_the_definition, .timeout = 120)
{
    check_shapes(DTYPE_BF16, &(struct ops_cuda_options){.attention = OPS_CUDA_ATTENTION_CUDNN});
}

Test(cuda_attention, by_own_kernels_is_that_of_the_definition, .timeout = 120)
{
    check_shapes(DTYPE_BF16, &(struct ops_cuda_options){.attention = OPS_CUDA_ATTENTION_PLAIN});
    check_shapes(DTYPE_F32, &(struct ops_cuda_options){.attention = OPS_CUDA_ATTENTION_AUTO});
}

static struct ops_cuda_attention_cost cost_of(struct ops *ops, struct attention_shape s)
{
    struct ops_cuda_attention_cost cost;

    EXPECT_OK(ops_cuda_attention_cost(ops, s, &cost));
    cr_assert_eq(op_attention_scratch_bytes(ops, s), cost.backward_bytes > cost.forward_bytes
                                                         ? cost.backward_bytes
                                                         : cost.forward_bytes);
    return cost;
}

/* 128 tokens: dS of a head is 32 KiB. */
static const struct attention_shape cut = {
    .B = 4, .T = 128, .H = 8, .K = 4, .D = 64, .dtype = DTYPE_BF16};

/* Check the shape under a limit that lets `heads` query heads run at a time. */
static void check_cut(int heads, int calls)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const size_t undivided = cost_of(rig.ops, cut).undivided_bytes;
    cr_assert_eq(cost_of(rig.ops, cut).backward_calls, 1);
    cuda_rig_destroy(&rig);

    const size_t limit = undivided / (size_t)(cut.B * cut.H) * (size_t)heads + 4096;
    rig = cuda_rig_create(&(struct ops_cuda_options){.attention_limit_bytes = limit});
    const struct ops_cuda_attention_cost cost = cost_of(rig.ops, cut);
    cr_assert(cost.cudnn_forward && cost.cudnn_backward);
    cr_assert_eq(cost.backward_calls, calls, "%d calls", cost.backward_calls);
    cr_assert_leq(cost.backward_bytes, limit + 4096);
    cr_assert_eq(cost.undivided_bytes, undivided);
    check_shape(rig.ops, cut);
    cuda_rig_destroy(&rig);
}

Test(cuda_attention, is_cut_by_batches_to_stay_under_the_limit, .timeout = 120)
{
    check_cut(17, 2);
}

Test(cuda_attention, is_cut_by_heads_when_one_batch_is_too_much, .timeout = 120)
{
    check_cut(5, 8);
}

Test(cuda_attention, falls_back_to_own_kernels_under_a_tiny_limit, .timeout = 120)
{
    struct cuda_rig rig =
        cuda_rig_create(&(struct ops_cuda_options){.attention_limit_bytes = 1 << 12});
    const struct ops_cuda_attention_cost cost = cost_of(rig.ops, cut);

    cr_assert(cost.cudnn_forward);
    cr_assert(!cost.cudnn_backward);
    check_shape(rig.ops, cut);
    cuda_rig_destroy(&rig);
}

Test(cuda_attention, refuses_what_cudnn_does_not_take_when_it_was_asked_for)
{
    struct cuda_rig rig =
        cuda_rig_create(&(struct ops_cuda_options){.attention = OPS_CUDA_ATTENTION_CUDNN});
    const struct attention_shape s = {.B = 1, .T = 4, .H = 1, .K = 1, .D = 64};
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 4 * 4 * 64);

    cr_assert_eq(op_attention_prepare(rig.ops, s), SHOAL_ERR_UNAVAILABLE);
    cr_assert_eq(op_attention(rig.ops, s, p, p, p, p), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "cuDNN takes bf16, not fp32"), "%s",
                       shoal_last_error());
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

Test(cuda_attention, refuses_shapes_whose_scratch_was_not_asked_for)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const struct attention_shape s = {.B = 1, .T = 5, .H = 1, .K = 1, .D = 64};
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 4 * 4 * 64);

    cr_assert_eq(op_attention(rig.ops, s, p, p, p, p), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "T 5 H 1 K 1 D 64"));
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

Test(cuda_rope, is_the_cpu_back_ends)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    struct ops_rig cpu = ops_rig_create(1);
    const struct attention_shape s = {.B = 2, .T = 9, .H = 3, .K = 1, .D = 16, .dtype = DTYPE_F32};
    struct array qkv = array_random(DTYPE_F32, s.B * s.T * row_width(s), 1, 1.0);
    struct gpu gpu = {0};
    void *gqkv = gpu_put(&gpu, qkv);

    cr_assert_eq(op_rope(rig.ops, s, 1e4, 3, false, gqkv), SHOAL_ERR_INTERNAL);
    EXPECT_OK(op_rope_prepare(rig.ops, 20, 8, 1e4));
    EXPECT_OK(op_rope_prepare(rig.ops, 12, 16, 1e4));
    EXPECT_OK(op_rope_prepare(rig.ops, 12, 16, 1e4));
    EXPECT_OK(op_rope_prepare(cpu.ops, 12, 16, 1e4));
    EXPECT_OK(op_rope(rig.ops, s, 1e4, 3, false, gqkv));
    EXPECT_OK(op_rope(cpu.ops, s, 1e4, 3, false, qkv.p));
    struct array got = gpu_take(&gpu, gqkv);
    array_expect_same_bits(got, qkv, "qkv");
    cr_assert_eq(op_rope(rig.ops, s, 1e4, 4, false, gqkv), SHOAL_ERR_INTERNAL);
    array_free(&got);
    array_free(&qkv);
    gpu_free_all(&gpu);
    ops_rig_destroy(&cpu);
    cuda_rig_destroy(&rig);
}

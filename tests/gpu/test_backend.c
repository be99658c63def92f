/* The rest of the cuda back end's table through ops.h, against the cpu back end. */
#include "tests/gpu/cuda_rig.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* The same call on both back ends: arrays on the host, and their twins on the device. */
struct both {
    struct cuda_rig cuda;
    struct ops_rig cpu;
    struct gpu gpu;
};

static struct both both_create(void)
{
    return (struct both){.cuda = cuda_rig_create(&(struct ops_cuda_options){0}),
                         .cpu = ops_rig_create(1)};
}

static void both_destroy(struct both *b)
{
    gpu_free_all(&b->gpu);
    ops_rig_destroy(&b->cpu);
    cuda_rig_destroy(&b->cuda);
}

/* The device's array against the host's, which is freed. */
static void expect(struct both *b, const void *p, struct array *want, double tolerance,
                   const char *what)
{
    struct array got = gpu_take(&b->gpu, p);
    double *values = array_doubles(*want);

    array_expect(got, values, tolerance, what);
    free(values);
    array_free(&got);
    array_free(want);
}

static void check_norm(enum norm_kind kind)
{
    enum { N = 37, C = 48 };
    struct both b = both_create();
    struct array x = array_random(DTYPE_F32, N * C, 1, 1.0), w = array_random(DTYPE_F32, C, 2, 1.0);
    struct array bias = array_random(DTYPE_F32, C, 3, 1.0);
    struct array dy = array_random(DTYPE_F32, N * C, 4, 1.0);
    struct array dx = array_random(DTYPE_F32, N * C, 5, 1.0);
    struct array y = array_create(DTYPE_F32, N * C), stats = array_random(DTYPE_F32, 2 * N, 6, 1.0);
    struct array dw = array_create(DTYPE_F32, C), db = array_random(DTYPE_F32, C, 7, 1.0);
    void *scratch = scratch_create(op_norm_backward_scratch_bytes(b.cpu.ops, N, C));
    void *gx = gpu_put(&b.gpu, x), *gw = gpu_put(&b.gpu, w), *gb = gpu_put(&b.gpu, bias);
    void *gdy = gpu_put(&b.gpu, dy), *gdx = gpu_put(&b.gpu, dx), *gy = gpu_put(&b.gpu, y);
    void *gstats = gpu_put(&b.gpu, stats), *gdw = gpu_put(&b.gpu, dw), *gdb = gpu_put(&b.gpu, db);
    void *gs = gpu_scratch(&b.gpu, op_norm_backward_scratch_bytes(b.cuda.ops, N, C) + 1);
    const bool layer = kind == NORM_LAYER;

    EXPECT_OK(op_norm(b.cpu.ops, kind, N, C, 1e-5f, DTYPE_F32, x.p, w.p, layer ? bias.p : NULL, y.p,
                      stats.p));
    EXPECT_OK(op_norm_backward(b.cpu.ops, kind, N, C, DTYPE_F32, dy.p, x.p, w.p, stats.p, dx.p,
                               NULL, dw.p, layer ? db.p : NULL, scratch));
    EXPECT_OK(
        op_norm(b.cuda.ops, kind, N, C, 1e-5f, DTYPE_F32, gx, gw, layer ? gb : NULL, gy, gstats));
    EXPECT_OK(op_norm_backward(b.cuda.ops, kind, N, C, DTYPE_F32, gdy, gx, gw, gstats, gdx, NULL,
                               gdw, layer ? gdb : NULL, gs));
    expect(&b, gy, &y, TOL_GPU_F32, "y");
    expect(&b, gdx, &dx, TOL_GPU_F32, "dx");
    expect(&b, gdw, &dw, TOL_GPU_F32, "dw");
    expect(&b, gdb, &db, TOL_GPU_F32, "db");
    struct array *rest[] = {&x, &w, &bias, &dy, &stats};
    for (size_t i = 0; i < sizeof rest / sizeof *rest; i++)
        array_free(rest[i]);
    free(scratch);
    both_destroy(&b);
}

Test(cuda_backend, norms)
{
    check_norm(NORM_LAYER);
    check_norm(NORM_RMS);
}

Test(cuda_backend, activations)
{
    enum { N = 5, F = 40 };
    struct both b = both_create();
    struct array x = array_random(DTYPE_F32, 2 * N * F, 1, 3.0);
    struct array dy = array_random(DTYPE_F32, 2 * N * F, 2, 1.0);
    struct array y[4];
    void *gy[4], *gx = gpu_put(&b.gpu, x), *gdy = gpu_put(&b.gpu, dy);

    for (int i = 0; i < 4; i++) {
        y[i] = array_create(DTYPE_F32, i == 2 ? N * F : 2 * N * F);
        gy[i] = gpu_put(&b.gpu, y[i]);
    }
    EXPECT_OK(op_gelu(b.cpu.ops, x.n, DTYPE_F32, x.p, y[0].p));
    EXPECT_OK(op_gelu(b.cuda.ops, x.n, DTYPE_F32, gx, gy[0]));
    EXPECT_OK(op_gelu_backward(b.cpu.ops, x.n, DTYPE_F32, x.p, dy.p, y[1].p));
    EXPECT_OK(op_gelu_backward(b.cuda.ops, x.n, DTYPE_F32, gx, gdy, gy[1]));
    EXPECT_OK(op_swiglu(b.cpu.ops, N, F, DTYPE_F32, x.p, y[2].p));
    EXPECT_OK(op_swiglu(b.cuda.ops, N, F, DTYPE_F32, gx, gy[2]));
    EXPECT_OK(op_swiglu_backward(b.cpu.ops, N, F, DTYPE_F32, x.p, dy.p, y[3].p));
    EXPECT_OK(op_swiglu_backward(b.cuda.ops, N, F, DTYPE_F32, gx, gdy, gy[3]));
    for (int i = 0; i < 4; i++)
        expect(&b, gy[i], &y[i], TOL_GPU_F32, "activation");
    array_free(&x);
    array_free(&dy);
    both_destroy(&b);
}

Test(cuda_backend, embedding)
{
    enum { B = 2, T = 9, C = 24, V = 31, T_MAX = 12, FIRST = 2 };
    struct both b = both_create();
    struct array wte = array_random(DTYPE_F32, V * C, 1, 1.0);
    struct array wpe = array_random(DTYPE_F32, T_MAX * C, 2, 1.0);
    struct array tokens = array_create(DTYPE_I32, B * T);
    struct array x = array_create(DTYPE_F32, B * T * C);
    struct array dwte = array_create(DTYPE_F32, V * C), dwpe = array_create(DTYPE_F32, T_MAX * C);

    for (int i = 0; i < B * T; i++)
        ((int32_t *)tokens.p)[i] = i * i % V;
    void *gt = gpu_put(&b.gpu, tokens), *gwte = gpu_put(&b.gpu, wte), *gwpe = gpu_put(&b.gpu, wpe);
    void *gx = gpu_put(&b.gpu, x), *gdwte = gpu_put(&b.gpu, dwte), *gdwpe = gpu_put(&b.gpu, dwpe);
    EXPECT_OK(op_embedding(b.cpu.ops, B, T, C, DTYPE_F32, tokens.p, wte.p, wpe.p, FIRST, x.p));
    EXPECT_OK(op_embedding(b.cuda.ops, B, T, C, DTYPE_F32, gt, gwte, gwpe, FIRST, gx));
    EXPECT_OK(op_embedding_backward(b.cpu.ops, B, T, C, V, T_MAX, tokens.p, x.p, dwte.p, dwpe.p));
    EXPECT_OK(op_embedding_backward(b.cuda.ops, B, T, C, V, T_MAX, gt, gx, gdwte, gdwpe));
    expect(&b, gx, &x, 0.0, "x");
    expect(&b, gdwte, &dwte, 0.0, "dwte");
    expect(&b, gdwpe, &dwpe, 0.0, "dwpe");
    array_free(&wte);
    array_free(&wpe);
    array_free(&tokens);
    both_destroy(&b);
}

Test(cuda_backend, refuses_more_tokens_than_the_workspace_sorts)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 64);

    cr_assert_eq(op_embedding_backward(rig.ops, 1 << 14, 1 << 14, 4, 100, 1 << 14,
                                       (const int32_t *)(const void *)p, p, p, NULL),
                 SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "bytes of scratch, there are 33554432"), "%s",
                       shoal_last_error());
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

Test(cuda_backend, elementwise)
{
    enum { N = 1001 };
    struct both b = both_create();
    struct array x = array_random(DTYPE_F32, N, 1, 3.0), sum = array_random(DTYPE_F32, N, 2, 1.0);
    struct array y = array_create(DTYPE_BF16, N), zeros = array_random(DTYPE_F32, N, 3, 1.0);
    void *gx = gpu_put(&b.gpu, x), *gsum = gpu_put(&b.gpu, sum), *gy = gpu_put(&b.gpu, y);
    void *gzeros = gpu_put(&b.gpu, zeros);

    EXPECT_OK(op_cast(b.cpu.ops, N, DTYPE_BF16, x.p, y.p));
    EXPECT_OK(op_cast(b.cuda.ops, N, DTYPE_BF16, gx, gy));
    EXPECT_OK(op_accumulate(b.cpu.ops, N, x.p, sum.p));
    EXPECT_OK(op_accumulate(b.cuda.ops, N, gx, gsum));
    EXPECT_OK(op_zero(b.cpu.ops, (N - 1) * sizeof(float), zeros.p));
    EXPECT_OK(op_zero(b.cuda.ops, (N - 1) * sizeof(float), gzeros));
    expect(&b, gy, &y, 0.0, "cast");
    expect(&b, gsum, &sum, 0.0, "accumulate");
    expect(&b, gzeros, &zeros, 0.0, "zero");
    array_free(&x);
    both_destroy(&b);
}

Test(cuda_backend, decodes_as_attention_attends)
{
    enum { T = 11, T_MAX = 16 };
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const struct attention_shape one = {.B = 1, .T = 1, .H = 4, .K = 2, .D = 16};
    struct attention_shape all = one;
    struct gpu gpu = {0};
    all.T = T;
    struct array qkv = array_random(DTYPE_F32, T * 128, 1, 2.0);
    const char *gqkv = gpu_put(&gpu, qkv);
    char *y = gpu_new(&gpu, DTYPE_F32, T * 64), *step = gpu_new(&gpu, DTYPE_F32, T * 64);
    void *cache = gpu_new(&gpu, DTYPE_F32, 2 * T_MAX * 32);
    float *lse = gpu_new(&gpu, DTYPE_F32, 4 * T);
    void *scratch = gpu_scratch(&gpu, op_attention_scratch_bytes(rig.ops, all) + 1);

    EXPECT_OK(op_attention(rig.ops, all, gqkv, y, lse, scratch));
    for (int t = 0; t < T; t++)
        EXPECT_OK(op_attention_decode(rig.ops, one, gqkv + t * 512, t, T_MAX, cache, step + t * 256,
                                      scratch));
    struct array got = gpu_take(&gpu, step), want = gpu_take(&gpu, y);
    double *values = array_doubles(want);
    array_expect(got, values, TOL_GPU_F32, "decode");
    free(values);
    array_free(&got);
    array_free(&want);
    array_free(&qkv);
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

Test(cuda_backend, tells_what_it_is)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){.tf32 = true});

    cr_assert_not_null(strstr(ops_describe(rig.ops), "cuBLASLt "));
    cr_assert_not_null(strstr(ops_describe(rig.ops), " (tf32), attention cuDNN "), "%s",
                       ops_describe(rig.ops));
    cr_assert_eq(ops_threads(rig.ops), 1);
    cuda_rig_destroy(&rig);
}

Test(cuda_backend, needs_a_cuda_device)
{
    struct device *device = NULL;
    struct ops *ops = NULL;

    EXPECT_OK(device_open("cpu", 0, &device));
    cr_assert_eq(ops_create_cuda(device, &ops), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "expected a cuda device, found cpu"));
    device_close(device);
}

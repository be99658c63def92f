#include "models/ops/cuda/kernels.h"
#include "tests/gpu/gpu.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

struct embedding_case {
    int64_t B, T, C, V, T_max;
    enum dtype dtype;
    struct array tokens, wte, wpe, dx;
};

/* Half of the tokens are one of three: long runs, as in text. */
static struct embedding_case embedding_case_create(int64_t B, int64_t T, int64_t C, int64_t V,
                                                   enum dtype dtype)
{
    struct embedding_case c = {
        .B = B,
        .T = T,
        .C = C,
        .V = V,
        .T_max = T + 3,
        .dtype = dtype,
        .tokens = array_create(DTYPE_I32, B * T),
        .wte = array_random(dtype, V * C, 1, 1.0),
        .wpe = array_random(dtype, (T + 3) * C, 2, 1.0),
        .dx = array_random(DTYPE_F32, B * T * C, 3, 1.0),
    };

    for (int64_t i = 0; i < B * T; i++) {
        const double u = random_value(4, (uint64_t)i);
        ((int32_t *)c.tokens.p)[i] =
            (int32_t)(u < 0.0 ? fmod(-u * 1000.0, fmin(3.0, (double)V)) : u * (double)V);
    }
    return c;
}

static void embedding_case_destroy(struct embedding_case *c)
{
    array_free(&c->tokens);
    array_free(&c->wte);
    array_free(&c->wpe);
    array_free(&c->dx);
}

static void run_embedding(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct embedding_case *c = arg;
    const int32_t *tokens = gpu_put(gpu, c->tokens);
    const void *wte = gpu_put(gpu, c->wte);
    const void *wpe = gpu_put(gpu, c->wpe);
    const float *dx = gpu_put(gpu, c->dx);
    float *x = gpu_new(gpu, DTYPE_F32, c->B * c->T * c->C);
    float *bare = gpu_new(gpu, DTYPE_F32, c->B * c->T * c->C);
    float *dwte = gpu_new(gpu, DTYPE_F32, c->V * c->C);
    float *dwpe = gpu_new(gpu, DTYPE_F32, c->T_max * c->C);
    void *scratch = gpu_scratch(gpu, cuda_embedding_backward_scratch_bytes(c->B, c->T, c->V));

    EXPECT_OK(cuda_embedding(NULL, c->B, c->T, c->C, c->dtype, tokens, wte, wpe, 2, x));
    EXPECT_OK(cuda_embedding(NULL, c->B, c->T, c->C, c->dtype, tokens, wte, NULL, 0, bare));
    EXPECT_OK(cuda_embedding_backward(NULL, c->B, c->T, c->C, c->V, c->T_max, tokens, dx, dwte,
                                      dwpe, scratch));
    outputs_take(out, gpu, x);
    outputs_take(out, gpu, bare);
    outputs_take(out, gpu, dwte);
    outputs_take(out, gpu, dwpe);
}

static void expect_cpus_bits(const struct embedding_case *c, const struct outputs *out)
{
    struct ops_rig rig = ops_rig_create(1);
    struct array x = array_create(DTYPE_F32, c->B * c->T * c->C);
    struct array dwte = array_create(DTYPE_F32, c->V * c->C);
    struct array dwpe = array_create(DTYPE_F32, c->T_max * c->C);

    EXPECT_OK(
        op_embedding(rig.ops, c->B, c->T, c->C, c->dtype, c->tokens.p, c->wte.p, c->wpe.p, 2, x.p));
    array_expect_same_bits(out->arrays[0], x, "x");
    EXPECT_OK(
        op_embedding(rig.ops, c->B, c->T, c->C, c->dtype, c->tokens.p, c->wte.p, NULL, 0, x.p));
    array_expect_same_bits(out->arrays[1], x, "x without positions");
    EXPECT_OK(op_embedding_backward(rig.ops, c->B, c->T, c->C, c->V, c->T_max, c->tokens.p, c->dx.p,
                                    dwte.p, dwpe.p));
    array_expect_same_bits(out->arrays[2], dwte, "dwte");
    array_expect_same_bits(out->arrays[3], dwpe, "dwpe");
    array_free(&x);
    array_free(&dwte);
    array_free(&dwpe);
    ops_rig_destroy(&rig);
}

/* One token; several blocks of tokens; several passes of the scan; wide and odd rows. */
Test(cuda_embedding, forward_and_backward_have_the_cpus_bits)
{
    static const int64_t shapes[][4] = {{1, 1, 1, 1},      {3, 7, 5, 11},    {2, 300, 8, 40},
                                        {4, 200, 3, 9000}, {2, 9, 2056, 20}, {1, 513, 6, 8192}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct embedding_case c = embedding_case_create(shapes[i][0], shapes[i][1],
                                                            shapes[i][2], shapes[i][3], dtype);
            struct outputs out = run_repeatedly(run_embedding, &c, true);
            expect_cpus_bits(&c, &out);
            outputs_free(&out);
            embedding_case_destroy(&c);
        }
}

Test(cuda_embedding, backward_skips_tokens_outside_the_vocabulary)
{
    const int32_t ids[] = {1, -1, 2, 3, 1};
    const double want[] = {0.0, 0.0, 1.0 + 5.0, 0.0, 3.0, 0.0};
    struct array tokens = array_create(DTYPE_I32, 5);
    struct array dx = array_create(DTYPE_F32, 10);
    struct gpu gpu = {0};

    gpu_require();
    memcpy(tokens.p, ids, sizeof ids);
    for (int i = 0; i < 10; i++)
        array_set(dx, i, i % 2 == 0 ? i / 2 + 1 : 0);
    float *dwte = gpu_new(&gpu, DTYPE_F32, 6);
    EXPECT_OK(cuda_embedding_backward(
        NULL, 1, 5, 2, 3, 0, gpu_put(&gpu, tokens), gpu_put(&gpu, dx), dwte, NULL,
        gpu_scratch(&gpu, cuda_embedding_backward_scratch_bytes(1, 5, 3))));
    struct array got = gpu_take(&gpu, dwte);
    array_expect(got, want, 0.0, "dwte");
    array_free(&got);
    array_free(&tokens);
    array_free(&dx);
    gpu_free_all(&gpu);
}

#include "models/ops/cuda/kernels.h"
#include "tests/gpu/gpu.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <stdlib.h>

struct norm_case {
    enum norm_kind kind;
    enum dtype dtype;
    int64_t N, C;
    struct array x, w, b, dy, dx, stats;
};

static struct norm_case norm_case_create(enum norm_kind kind, enum dtype dtype, int64_t N,
                                         int64_t C)
{
    return (struct norm_case){
        .kind = kind,
        .dtype = dtype,
        .N = N,
        .C = C,
        .x = array_random(DTYPE_F32, N * C, 1, 2.0),
        .w = array_random(dtype, C, 2, 1.0),
        .b = array_random(dtype, C, 3, 1.0),
        .dy = array_random(dtype, N * C, 4, 1.0),
        .dx = array_random(DTYPE_F32, N * C, 5, 1.0),
        .stats = array_create(DTYPE_F32, 2 * N),
    };
}

static void norm_case_destroy(struct norm_case *c)
{
    struct array *arrays[] = {&c->x, &c->w, &c->b, &c->dy, &c->dx, &c->stats};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        array_free(arrays[i]);
}

/* y, stats, dx, dw, db with LayerNorm, dx rounded with bf16 */
static void run_norm(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct norm_case *c = arg;
    const bool layer = c->kind == NORM_LAYER;
    const float *x = gpu_put(gpu, c->x);
    const void *w = gpu_put(gpu, c->w);
    const void *b = layer ? gpu_put(gpu, c->b) : NULL;
    const void *dy = gpu_put(gpu, c->dy);
    void *y = gpu_new(gpu, c->dtype, c->N * c->C);
    float *stats = gpu_new(gpu, DTYPE_F32, 2 * c->N);
    float *dx = gpu_put(gpu, c->dx);
    void *rounded = c->dtype == DTYPE_F32 ? NULL : gpu_new(gpu, c->dtype, c->N * c->C);
    float *dw = gpu_new(gpu, DTYPE_F32, c->C);
    float *db = layer ? gpu_new(gpu, DTYPE_F32, c->C) : NULL;
    void *scratch = gpu_scratch(gpu, cuda_norm_backward_scratch_bytes(c->N, c->C));

    EXPECT_OK(cuda_norm(NULL, c->kind, c->N, c->C, 1e-5f, c->dtype, x, w, b, y, stats));
    EXPECT_OK(cuda_norm_backward(NULL, c->kind, c->N, c->C, c->dtype, dy, x, w, stats, dx, rounded,
                                 dw, db, scratch));
    outputs_take(out, gpu, y);
    outputs_take(out, gpu, stats);
    outputs_take(out, gpu, dx);
    outputs_take(out, gpu, dw);
    if (layer)
        outputs_take(out, gpu, db);
    if (rounded != NULL)
        outputs_take(out, gpu, rounded);
}

/* The cpu's results in fp32, in the same order. */
static void expect_cpu(struct norm_case *c, const struct outputs *out)
{
    struct ops_rig rig = ops_rig_create(1);
    const bool layer = c->kind == NORM_LAYER;
    struct array w = array_widen(c->w);
    struct array b = array_widen(c->b);
    struct array dy = array_widen(c->dy);
    struct array y = array_create(DTYPE_F32, c->N * c->C);
    struct array dw = array_create(DTYPE_F32, c->C);
    struct array db = array_create(DTYPE_F32, c->C);
    void *scratch = scratch_create(op_norm_backward_scratch_bytes(rig.ops, c->N, c->C));

    EXPECT_OK(op_norm(rig.ops, c->kind, c->N, c->C, 1e-5f, DTYPE_F32, c->x.p, w.p,
                      layer ? b.p : NULL, y.p, c->stats.p));
    EXPECT_OK(op_norm_backward(rig.ops, c->kind, c->N, c->C, DTYPE_F32, dy.p, c->x.p, w.p,
                               c->stats.p, c->dx.p, NULL, dw.p, layer ? db.p : NULL, scratch));
    outputs_expect(out, 0, y, c->dtype == DTYPE_F32 ? TOL_GPU_F32 : TOL_GPU_BF16_OUT, "y");
    outputs_expect(out, 1, c->stats, TOL_GPU_F32, "stats");
    outputs_expect(out, 2, c->dx, TOL_GPU_F32, "dx");
    outputs_expect(out, 3, dw, TOL_GPU_F32, "dw");
    if (layer)
        outputs_expect(out, 4, db, TOL_GPU_F32, "db");
    for (int64_t i = 0; i < c->N * c->C && c->dtype == DTYPE_BF16; i++)
        cr_assert_eq(((const bf16_t *)out->arrays[layer ? 5 : 4].p)[i],
                     bf16_from_f32(((const float *)out->arrays[2].p)[i]), "rounded %lld",
                     (long long)i);
    array_free(&w);
    array_free(&b);
    array_free(&dy);
    array_free(&y);
    array_free(&dw);
    array_free(&db);
    free(scratch);
    ops_rig_destroy(&rig);
}

static void check_norm(enum norm_kind kind, enum dtype dtype)
{
    /*
     * One element; no multiple of a group; several groups per thread; more rows than 512 blocks of
     * eight; sums of columns that do not fit into shared memory; 48 KiB of them, to which the
     * kernel's static arrays are added, with LayerNorm and with RMSNorm.
     */
    static const int64_t shapes[][2] = {{1, 1},     {3, 7},     {5, 64},    {33, 203}, {9, 768},
                                        {17, 2056}, {4200, 24}, {2, 24584}, {2, 6144}, {2, 12288}};

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct norm_case c = norm_case_create(kind, dtype, shapes[i][0], shapes[i][1]);
        struct outputs out = run_repeatedly(run_norm, &c, true);
        expect_cpu(&c, &out);
        outputs_free(&out);
        norm_case_destroy(&c);
    }
}

Test(cuda_norm, forward_and_backward_are_the_cpus)
{
    gpu_require();
    check_norm(NORM_LAYER, DTYPE_F32);
    check_norm(NORM_LAYER, DTYPE_BF16);
    check_norm(NORM_RMS, DTYPE_F32);
    check_norm(NORM_RMS, DTYPE_BF16);
}

Test(cuda_norm, refuses_other_types_and_empty_rows)
{
    cr_assert_eq(cuda_norm(NULL, NORM_RMS, 1, 1, 0.0f, DTYPE_I32, NULL, NULL, NULL, NULL, NULL),
                 SHOAL_ERR_INTERNAL);
    cr_assert_eq(cuda_norm(NULL, NORM_RMS, 1, 0, 0.0f, DTYPE_F32, NULL, NULL, NULL, NULL, NULL),
                 SHOAL_ERR_INTERNAL);
}

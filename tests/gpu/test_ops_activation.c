#include "models/ops/cuda/kernels.h"
#include "tests/gpu/gpu.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>

struct activation_case {
    enum dtype dtype;
    int64_t N, F;
    struct array x, dy; /* x [N, 2F], of which GELU uses the first N * F */
};

static struct activation_case activation_case_create(enum dtype dtype, int64_t N, int64_t F)
{
    return (struct activation_case){
        .dtype = dtype,
        .N = N,
        .F = F,
        .x = array_random(dtype, 2 * N * F, 1, 12.0),
        .dy = array_random(dtype, N * F, 2, 1.0),
    };
}

static void activation_case_destroy(struct activation_case *c)
{
    array_free(&c->x);
    array_free(&c->dy);
}

/* gelu, its dx in place of dy, swiglu, its dx, and the first two in one */
static void run_activations(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct activation_case *c = arg;
    const int64_t n = c->N * c->F;
    const void *x = gpu_put(gpu, c->x);
    const void *dy = gpu_put(gpu, c->dy);
    void *y = gpu_new(gpu, c->dtype, n);
    void *dx = gpu_put(gpu, c->dy);
    void *z = gpu_new(gpu, c->dtype, n);
    void *dz = gpu_new(gpu, c->dtype, 2 * n);
    void *same_y = gpu_new(gpu, c->dtype, n);
    void *same_dx = gpu_put(gpu, c->dy);

    EXPECT_OK(cuda_gelu(NULL, n, c->dtype, x, y));
    EXPECT_OK(cuda_gelu_backward(NULL, n, c->dtype, x, dx, dx));
    EXPECT_OK(cuda_swiglu(NULL, c->N, c->F, c->dtype, x, z));
    EXPECT_OK(cuda_swiglu_backward(NULL, c->N, c->F, c->dtype, x, dy, dz));
    EXPECT_OK(cuda_gelu_again(NULL, n, c->dtype, x, same_dx, same_y, same_dx));
    outputs_take(out, gpu, y);
    outputs_take(out, gpu, dx);
    outputs_take(out, gpu, z);
    outputs_take(out, gpu, dz);
    outputs_take(out, gpu, same_y);
    outputs_take(out, gpu, same_dx);
}

static void expect_cpu(const struct activation_case *c, const struct outputs *out)
{
    const double tolerance = c->dtype == DTYPE_F32 ? TOL_GPU_F32 : TOL_GPU_BF16_OUT;
    const int64_t n = c->N * c->F;
    struct ops_rig rig = ops_rig_create(1);
    struct array x = array_widen(c->x);
    struct array dy = array_widen(c->dy);
    struct array half = array_create(DTYPE_F32, n);
    struct array whole = array_create(DTYPE_F32, 2 * n);

    EXPECT_OK(op_gelu(rig.ops, n, DTYPE_F32, x.p, half.p));
    outputs_expect(out, 0, half, tolerance, "gelu");
    EXPECT_OK(op_gelu_backward(rig.ops, n, DTYPE_F32, x.p, dy.p, half.p));
    outputs_expect(out, 1, half, tolerance, "gelu dx");
    EXPECT_OK(op_swiglu(rig.ops, c->N, c->F, DTYPE_F32, x.p, half.p));
    outputs_expect(out, 2, half, tolerance, "swiglu");
    EXPECT_OK(op_swiglu_backward(rig.ops, c->N, c->F, DTYPE_F32, x.p, dy.p, whole.p));
    outputs_expect(out, 3, whole, tolerance, "swiglu dx");
    array_expect_same_bits(out->arrays[4], out->arrays[0], "gelu again");
    array_expect_same_bits(out->arrays[5], out->arrays[1], "gelu again: dx");
    array_free(&x);
    array_free(&dy);
    array_free(&half);
    array_free(&whole);
    ops_rig_destroy(&rig);
}

Test(cuda_activation, forward_and_backward_are_the_cpus)
{
    static const int64_t shapes[][2] = {{1, 1}, {3, 5}, {7, 64}, {2, 2056}, {5, 4099}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct activation_case c = activation_case_create(dtype, shapes[i][0], shapes[i][1]);
            struct outputs out = run_repeatedly(run_activations, &c, true);
            expect_cpu(&c, &out);
            outputs_free(&out);
            activation_case_destroy(&c);
        }
}

Test(cuda_activation, far_arguments_give_zero_or_themselves)
{
    const float values[] = {-1e30f, -200.0f, 200.0f, 1e30f};
    const float want[] = {0.0f, 0.0f, 200.0f, 1e30f};
    struct array x = array_create(DTYPE_F32, 4);
    struct gpu gpu = {0};

    gpu_require();
    for (int i = 0; i < 4; i++)
        array_set(x, i, (double)values[i]);
    void *y = gpu_new(&gpu, DTYPE_F32, 4);
    EXPECT_OK(cuda_gelu(NULL, 4, DTYPE_F32, gpu_put(&gpu, x), y));
    struct array got = gpu_take(&gpu, y);
    for (int i = 0; i < 4; i++)
        cr_assert_float_eq(array_get(got, i), (double)want[i], 1e-7, "gelu of %g is %g",
                           (double)values[i], array_get(got, i));
    array_free(&got);
    array_free(&x);
    gpu_free_all(&gpu);
}

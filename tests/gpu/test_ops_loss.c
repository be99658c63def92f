#include "models/ops/cuda/kernels.h"
#include "tests/gpu/gpu.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct loss_case {
    enum dtype dtype;
    int64_t rows, V;
    struct array logits, targets;
};

static const float scale = 0.25f;

/* Every seventh target is ignored; logits up to 20 as in TOL_OPS_LOSS. */
static struct loss_case loss_case_create(enum dtype dtype, int64_t rows, int64_t V)
{
    struct loss_case c = {
        .dtype = dtype,
        .rows = rows,
        .V = V,
        .logits = array_random(dtype, rows * V, 1, 20.0),
        .targets = array_create(DTYPE_I32, rows),
    };

    for (int64_t i = 0; i < rows; i++)
        ((int32_t *)c.targets.p)[i] =
            i % 7 == 6 ? -1 : (int32_t)(fabs(random_value(2, (uint64_t)i)) * (double)V);
    return c;
}

static void loss_case_destroy(struct loss_case *c)
{
    array_free(&c->logits);
    array_free(&c->targets);
}

/* The losses of both calls and the gradient; losses are doubles, kept as I64. */
static void run_loss(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct loss_case *c = arg;
    const int32_t *targets = gpu_put(gpu, c->targets);
    void *logits = gpu_put(gpu, c->logits);
    double *loss = gpu_new(gpu, DTYPE_I64, c->rows);
    double *same_loss = gpu_new(gpu, DTYPE_I64, c->rows);

    EXPECT_OK(
        cuda_cross_entropy(NULL, c->rows, c->V, logits, c->dtype, targets, scale, false, loss));
    EXPECT_OK(
        cuda_cross_entropy(NULL, c->rows, c->V, logits, c->dtype, targets, scale, true, same_loss));
    outputs_take(out, gpu, loss);
    outputs_take(out, gpu, same_loss);
    outputs_take(out, gpu, logits);
}

/* The definition, in double. */
static double reference_row(const struct loss_case *c, int64_t row, double *dlogits)
{
    const int32_t target = ((int32_t *)c->targets.p)[row];
    double max = -INFINITY;
    double sum = 0.0;

    for (int64_t i = 0; i < c->V; i++)
        max = fmax(max, array_get(c->logits, row * c->V + i));
    for (int64_t i = 0; i < c->V; i++)
        sum += exp(array_get(c->logits, row * c->V + i) - max);
    for (int64_t i = 0; i < c->V; i++)
        dlogits[i] = target < 0
                         ? 0.0
                         : (double)scale * (exp(array_get(c->logits, row * c->V + i) - max) / sum -
                                            (i == target ? 1.0 : 0.0));
    return target < 0 ? 0.0 : log(sum) + max - array_get(c->logits, row * c->V + target);
}

static void expect_reference(const struct loss_case *c, const struct outputs *out)
{
    double *dlogits = malloc((size_t)(c->rows * c->V) * sizeof *dlogits);

    for (int64_t row = 0; row < c->rows; row++) {
        const double want = reference_row(c, row, dlogits + row * c->V);
        const double got = ((double *)out->arrays[0].p)[row];
        cr_assert_leq(fabs(got - want), TOL_OPS_LOSS, "row %lld: loss %.12g, expected %.12g",
                      (long long)row, got, want);
    }
    cr_assert_eq(memcmp(out->arrays[0].p, out->arrays[1].p, (size_t)c->rows * sizeof(double)), 0);
    array_expect(out->arrays[2], dlogits, c->dtype == DTYPE_F32 ? TOL_GPU_F32 : TOL_GPU_BF16_OUT,
                 "dlogits");
    free(dlogits);
}

Test(cuda_loss, losses_and_gradient_are_those_of_the_definition)
{
    static const int64_t shapes[][2] = {{1, 1}, {9, 7}, {3, 4096}, {8, 4099}, {2, 50257}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            struct loss_case c = loss_case_create(dtype, shapes[i][0], shapes[i][1]);
            struct outputs out = run_repeatedly(run_loss, &c, true);
            expect_reference(&c, &out);
            outputs_free(&out);
            loss_case_destroy(&c);
        }
}

static double loss_of(struct loss_case *c)
{
    struct gpu gpu = {0};
    double *loss = gpu_new(&gpu, DTYPE_I64, c->rows);

    EXPECT_OK(cuda_cross_entropy(NULL, c->rows, c->V, gpu_put(&gpu, c->logits), c->dtype,
                                 gpu_put(&gpu, c->targets), scale, false, loss));
    struct array got = gpu_take(&gpu, loss);
    const double first = *(double *)got.p;
    array_free(&got);
    gpu_free_all(&gpu);
    return first;
}

/* Words that are forbidden by -inf lie first: no thread may make NaN of them. */
Test(cuda_loss, minus_infinity_is_probability_zero_and_nan_stays)
{
    struct loss_case c = loss_case_create(DTYPE_F32, 1, 5000);

    gpu_require();
    for (int64_t i = 0; i < 4990; i++)
        array_set(c.logits, i, -INFINITY);
    for (int64_t i = 4990; i < 5000; i++)
        array_set(c.logits, i, 1.0);
    *(int32_t *)c.targets.p = 4995;
    cr_assert_leq(fabs(loss_of(&c) - log(10.0)), TOL_OPS_LOSS);
    array_set(c.logits, 100, NAN);
    cr_assert(isnan(loss_of(&c)));
    loss_case_destroy(&c);
}

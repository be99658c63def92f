#include "models/ops/cuda/kernels.h"
#include "runtime/base/rng.h"
#include "tests/gpu/gpu.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int64_t sizes[] = {1, 7, 64, 2048, 2049, 30001};

enum { SIZES = sizeof sizes / sizeof *sizes };

/* Beside ordinary numbers: ties, NaN, infinities, subnormal numbers, the largest. */
static struct array numbers(int64_t n)
{
    static const uint32_t special[] = {0x3f808000, 0x3f818000, 0x7fc00001, 0xff800001, 0x7f800000,
                                       0xff800000, 0x00000001, 0x80008000, 0x7f7fffff, 0x80000000};
    struct array x = array_random(DTYPE_F32, n, 1, 3.0);

    for (size_t i = 0; i < sizeof special / sizeof *special && (int64_t)(3 * i) < n; i++)
        memcpy((float *)x.p + 3 * i, &special[i], sizeof(float));
    return x;
}

/* Both casts, and dst += src. */
static void run_flat(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct array *x = arg;
    struct array dst = array_random(DTYPE_F32, x->n, 2, 1.0);
    const float *src = gpu_put(gpu, *x);
    void *narrow = gpu_new(gpu, DTYPE_BF16, x->n);
    void *same = gpu_new(gpu, DTYPE_F32, x->n);
    float *sum = gpu_put(gpu, dst);
    void *zero = gpu_new(gpu, DTYPE_U8, 2 * x->n + 1);

    EXPECT_OK(cuda_cast(NULL, x->n, DTYPE_BF16, src, narrow));
    EXPECT_OK(cuda_cast(NULL, x->n, DTYPE_F32, src, same));
    EXPECT_OK(cuda_accumulate(NULL, x->n, src, sum));
    EXPECT_OK(cuda_zero(NULL, (size_t)(2 * x->n + 1), zero));
    outputs_take(out, gpu, narrow);
    outputs_take(out, gpu, same);
    outputs_take(out, gpu, sum);
    outputs_take(out, gpu, zero);
    array_free(&dst);
}

/* NaN's payload after a sum is the machine's choice: they are compared as NaN. */
static void expect_same_sums(struct array got, struct array want)
{
    for (int64_t i = 0; i < got.n; i++)
        cr_assert(array_get(got, i) == array_get(want, i) ||
                      (isnan(array_get(got, i)) && isnan(array_get(want, i))),
                  "sum %lld is %g, expected %g", (long long)i, array_get(got, i),
                  array_get(want, i));
}

Test(cuda_elementwise, casts_and_sums_have_the_cpus_bits)
{
    gpu_require();
    struct ops_rig rig = ops_rig_create(1);
    for (int i = 0; i < SIZES; i++) {
        struct array x = numbers(sizes[i]);
        struct array narrow = array_create(DTYPE_BF16, x.n);
        struct array sum = array_random(DTYPE_F32, x.n, 2, 1.0);
        struct outputs out = run_repeatedly(run_flat, &x, true);

        EXPECT_OK(op_cast(rig.ops, x.n, DTYPE_BF16, x.p, narrow.p));
        EXPECT_OK(op_accumulate(rig.ops, x.n, x.p, sum.p));
        array_expect_same_bits(out.arrays[0], narrow, "cast to bf16");
        array_expect_same_bits(out.arrays[1], x, "cast to fp32");
        expect_same_sums(out.arrays[2], sum);
        for (int64_t j = 0; j < out.arrays[3].n; j++)
            cr_assert_eq(((unsigned char *)out.arrays[3].p)[j], 0);
        outputs_free(&out);
        array_free(&x);
        array_free(&narrow);
        array_free(&sum);
    }
    ops_rig_destroy(&rig);
}

/* ---- stochastic rounding ---- */

struct stochastic_case {
    struct array x;
    uint64_t begin;
};

enum { SEED = 42, SUB = 7 };

static void run_stochastic(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct stochastic_case *c = arg;
    void *y = gpu_new(gpu, DTYPE_BF16, c->x.n);

    EXPECT_OK(cuda_cast_stochastic(NULL, c->x.n, SEED, SUB, c->begin, gpu_put(gpu, c->x), y));
    outputs_take(out, gpu, y);
}

static bf16_t stochastic_of(float x, uint64_t index)
{
    uint32_t words[4];
    uint32_t bits;

    rng_block(SEED, RNG_STREAM_ROUNDING, SUB, index / 4, words);
    memcpy(&bits, &x, sizeof bits);
    if (!isfinite(x))
        return bf16_from_f32(x);
    return (bf16_t)((bits + (words[index % 4] & 0xffff)) >> 16);
}

Test(cuda_elementwise, stochastic_rounding_is_a_function_of_the_element_index)
{
    gpu_require();
    for (int i = 0; i < SIZES; i++)
        for (uint64_t begin = 0; begin < 4; begin++) {
            struct stochastic_case c = {numbers(sizes[i]), begin + (UINT64_C(1) << 33)};
            struct outputs out = run_repeatedly(run_stochastic, &c, true);
            for (int64_t j = 0; j < c.x.n; j++)
                cr_assert_eq(((bf16_t *)out.arrays[0].p)[j],
                             stochastic_of(((float *)c.x.p)[j], c.begin + (uint64_t)j),
                             "element %lld from %llu", (long long)j, (unsigned long long)begin);
            outputs_free(&out);
            array_free(&c.x);
        }
}

/* 1 + 2^-9 lies a quarter of the way from 1 to the next number: the mean must be it. */
Test(cuda_elementwise, stochastic_rounding_keeps_the_mean)
{
    enum { N = 1 << 16 };
    struct stochastic_case c = {array_create(DTYPE_F32, N), 0};
    double sum = 0.0;

    gpu_require();
    for (int i = 0; i < N; i++)
        array_set(c.x, i, 1.0 + 0x1p-9);
    struct outputs out = run_repeatedly(run_stochastic, &c, false);
    for (int i = 0; i < N; i++)
        sum += array_get(out.arrays[0], i);
    /* Standard deviation of the mean: 2^-7 sqrt(3/16) / 2^8; six of them. */
    cr_assert_leq(fabs(sum / N - (1.0 + 0x1p-9)), 6.0 * 0x1p-7 * sqrt(3.0) / 4.0 / 256.0);
    outputs_free(&out);
    array_free(&c.x);
}

/* ---- biases ---- */

struct bias_case {
    enum dtype dtype;
    int64_t rows, n;
    struct array y, y32, bias;
};

/* y + bias in both types, and the column sums of y. */
static void run_bias(void *arg, struct gpu *gpu, struct outputs *out)
{
    const struct bias_case *c = arg;
    const void *bias = gpu_put(gpu, c->bias);
    const void *dy = gpu_put(gpu, c->y);
    void *y = gpu_put(gpu, c->y);
    float *y32 = gpu_put(gpu, c->y32);
    float *dbias = gpu_new(gpu, DTYPE_F32, c->n);
    void *scratch = gpu_scratch(gpu, cuda_bias_gradient_scratch_bytes(c->rows, c->n));

    EXPECT_OK(cuda_add_bias(NULL, c->rows, c->n, c->dtype, bias, y));
    EXPECT_OK(cuda_add_bias_f32(NULL, c->rows, c->n, c->dtype, bias, y32));
    EXPECT_OK(cuda_bias_gradient(NULL, c->rows, c->n, c->dtype, dy, dbias, scratch));
    outputs_take(out, gpu, y);
    outputs_take(out, gpu, y32);
    outputs_take(out, gpu, dbias);
}

static void expect_bias(const struct bias_case *c, const struct outputs *out)
{
    double *sums = calloc((size_t)c->n, sizeof *sums);
    double *magnitudes = calloc((size_t)c->n, sizeof *magnitudes);

    for (int64_t i = 0; i < c->rows * c->n; i++) {
        const double bias = array_get(c->bias, i % c->n);
        const float sum = (float)(array_get(c->y, i) + bias);
        struct array one = {c->dtype, 1, &(uint32_t){0}};
        array_set(one, 0, (double)sum);
        cr_assert_eq(array_get(out->arrays[0], i), array_get(one, 0), "y %lld", (long long)i);
        cr_assert_eq(array_get(out->arrays[1], i), (double)(float)(array_get(c->y32, i) + bias),
                     "y32 %lld", (long long)i);
        sums[i % c->n] += array_get(c->y, i);
        magnitudes[i % c->n] += fabs(array_get(c->y, i));
    }
    for (int64_t j = 0; j < c->n; j++)
        cr_assert_leq(fabs(array_get(out->arrays[2], j) - sums[j]),
                      TOL_F32_SUM_ORDER((double)c->rows + 1) * magnitudes[j], "dbias %lld",
                      (long long)j);
    free(sums);
    free(magnitudes);
}

/* One row; several blocks of rows; blocks longer than 64 rows. */
Test(cuda_elementwise, biases_are_added_and_their_gradients_are_column_sums)
{
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {65, 264}, {200, 1001}, {16500, 9}};

    gpu_require();
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum dtype dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype++) {
            const int64_t rows = shapes[i][0];
            const int64_t n = shapes[i][1];
            struct bias_case c = {dtype,
                                  rows,
                                  n,
                                  array_random(dtype, rows * n, 1, 1.0),
                                  array_random(DTYPE_F32, rows * n, 2, 1.0),
                                  array_random(dtype, n, 3, 1.0)};
            struct outputs out = run_repeatedly(run_bias, &c, true);
            expect_bias(&c, &out);
            outputs_free(&out);
            array_free(&c.y);
            array_free(&c.y32);
            array_free(&c.bias);
        }
}

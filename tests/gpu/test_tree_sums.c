/* The reduction tree on a device against the host's: the same bits. */
#include "comm/comm_internal.h"
#include "comm/nccl/tree_sum.h"
#include "tests/gpu/gpu.h"

#include <criterion/criterion.h>

#include <stdlib.h>
#include <string.h>

enum { MAX_COUNT = 70, N_MAX = 2100 };

/* Where inputs begin and how far apart they lie, in elements. */
struct layout {
    size_t begin, stride;
};

static void fill(float *values, size_t n)
{
    uint64_t x = 1;

    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        values[i] = ((float)(x >> 40) - 0x1p23f) * (float)(1 << (x >> 60));
    }
}

/* Input `own_index` comes from `own`, which lies behind the others here. */
static void check_sum(float *device, const float *values, struct layout at, int count,
                      int own_index, size_t n)
{
    static float got[N_MAX], want[N_MAX];
    const float *inputs[MAX_COUNT];
    float *out = device + (size_t)(MAX_COUNT + 1) * N_MAX + at.begin;
    struct tree_inputs in = {.blocks = device + at.begin,
                             .own = device + (size_t)(count - 1) * at.stride + at.begin,
                             .stride = at.stride,
                             .own_index = own_index,
                             .count = count};

    for (int k = 0; k < count; k++) {
        int place = k == own_index ? count - 1 : k < own_index ? k : k - 1;

        inputs[k] = values + (size_t)place * at.stride + at.begin;
    }
    comm_tree_sum_scalar(inputs, count, 0, n, want);
    memset(got, 0xff, sizeof got);
    cr_assert_eq(cudaMemcpy(out, got, (n + 1) * sizeof *out, cudaMemcpyHostToDevice), cudaSuccess);
    cr_assert_eq(comm_tree_sum_launch(0, &in, n, out), SHOAL_OK);
    cr_assert_eq(cudaMemcpy(got, out, (n + 1) * sizeof *got, cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; i < n; i++)
        cr_assert(memcmp(&got[i], &want[i], sizeof want[i]) == 0,
                  "%d inputs, own %d: element %zu is %a, not %a", count, own_index, i,
                  (double)got[i], (double)want[i]);
    cr_assert(got[n] != got[n], "%d inputs: wrote behind its %zu elements", count, n);
}

Test(tree_sums, give_the_bits_of_the_host, .timeout = 300)
{
    /* By fours; by ones; by fours as long as inputs are that near. */
    const struct layout layouts[] = {{0, N_MAX}, {3, N_MAX - 5}, {4, N_MAX - 5}};
    const size_t n = (size_t)(MAX_COUNT + 1) * N_MAX;
    float *values = malloc(n * sizeof *values), *device = NULL;

    gpu_require();
    cr_assert(values != NULL);
    cr_assert_eq(cudaMalloc((void **)&device, (n + 2 * N_MAX) * sizeof *device), cudaSuccess);
    fill(values, n);
    cr_assert_eq(cudaMemcpy(device, values, n * sizeof *values, cudaMemcpyHostToDevice),
                 cudaSuccess);
    for (size_t l = 0; l < sizeof layouts / sizeof layouts[0]; l++)
        for (int count = 1; count <= MAX_COUNT; count++) {
            check_sum(device, values, layouts[l], count, 0, 1);
            check_sum(device, values, layouts[l], count, count / 2, 1023);
            check_sum(device, values, layouts[l], count, count - 1, N_MAX - 10);
        }
    cudaFree(device);
    free(values);
}

Test(tree_sums, refuse_what_is_no_sum)
{
    float x = 0;
    struct tree_inputs in = {.own = &x, .count = 0};

    gpu_require();
    cr_assert_eq(comm_tree_sum_launch(0, &in, 1, &x), SHOAL_ERR_INTERNAL);
    in = (struct tree_inputs){.own = &x, .count = 2, .own_index = 2, .blocks = &x};
    cr_assert_eq(comm_tree_sum_launch(0, &in, 1, &x), SHOAL_ERR_INTERNAL);
    in = (struct tree_inputs){.own = &x, .count = 2};
    cr_assert_eq(comm_tree_sum_launch(0, &in, 1, &x), SHOAL_ERR_INTERNAL);
    cr_assert_eq(comm_tree_sum_launch(0, &in, 0, &x), SHOAL_OK);
}

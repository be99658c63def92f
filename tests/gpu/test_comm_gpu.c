#include "comm/comm_internal.h"
#include "comm/nccl/tree_sum.h"
#include "tests/world/run.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bulk on real GPUs.  Skips where there is none. */

enum { MAX_COUNT = 40, STRIDE = 100003, BEGIN = 3 };

static char output[16384];

static int count_gpus(void)
{
    int n = 0;

    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

#define NEED_GPU()                                                                                 \
    do {                                                                                           \
        if (count_gpus() == 0)                                                                     \
            cr_skip_test("no CUDA device");                                                        \
    } while (0)

/* ---- the sum ---- */

static void fill(float *values, size_t n)
{
    uint64_t x = 1;

    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        values[i] = ((float)(x >> 40) - 0x1p23f) * (float)(1 << (x >> 60));
    }
}

/* Input `own_index` comes from `own`, which lies behind the others here. */
static void check_sum(float *device, const float *values, int count, int own_index, size_t n)
{
    static float got[STRIDE], want[STRIDE];
    const float *inputs[MAX_COUNT];
    float *out = device + (size_t)MAX_COUNT * STRIDE;
    struct tree_inputs in = {.blocks = device + BEGIN,
                             .own = device + (size_t)(count - 1) * STRIDE + BEGIN,
                             .stride = STRIDE,
                             .own_index = own_index,
                             .count = count};

    for (int k = 0; k < count; k++) {
        int place = k == own_index ? count - 1 : k < own_index ? k : k - 1;

        inputs[k] = values + (size_t)place * STRIDE + BEGIN;
    }
    comm_tree_sum_scalar(inputs, count, 0, n, want);
    cr_assert_eq(cudaMemset(out, 0xff, STRIDE * sizeof *out), cudaSuccess);
    cr_assert_eq(comm_tree_sum_launch(0, &in, n, out), cudaSuccess);
    cr_assert_eq(cudaMemcpy(got, out, STRIDE * sizeof *got, cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t i = 0; i < n; i++)
        cr_assert(memcmp(&got[i], &want[i], sizeof want[i]) == 0,
                  "%d inputs, own %d: element %zu is %a, not %a", count, own_index, i,
                  (double)got[i], (double)want[i]);
    cr_assert(got[n] != got[n], "%d inputs: wrote behind its %zu elements", count, n);
}

Test(comm_gpu, tree_sum_gives_the_bits_of_the_host, .timeout = 120)
{
    size_t n = (size_t)MAX_COUNT * STRIDE;
    float *values = malloc(n * sizeof *values), *device = NULL;

    NEED_GPU();
    cr_assert(values != NULL);
    cr_assert_eq(cudaMalloc((void **)&device, (n + STRIDE) * sizeof *device), cudaSuccess);
    fill(values, n);
    cr_assert_eq(cudaMemcpy(device, values, n * sizeof *values, cudaMemcpyHostToDevice),
                 cudaSuccess);
    for (int count = 1; count <= MAX_COUNT; count++) {
        check_sum(device, values, count, 0, 1);
        check_sum(device, values, count, count / 2, 1000);
        check_sum(device, values, count, count - 1, STRIDE - BEGIN - 1);
    }
    cudaFree(device);
    free(values);
}

Test(comm_gpu, tree_sum_refuses_what_is_no_sum)
{
    float x = 0;
    struct tree_inputs in = {.own = &x, .count = 0};

    cr_assert_eq(comm_tree_sum_launch(0, &in, 1, &x), cudaErrorInvalidValue);
    in = (struct tree_inputs){.own = &x, .count = 2, .own_index = 2, .blocks = &x};
    cr_assert_eq(comm_tree_sum_launch(0, &in, 1, &x), cudaErrorInvalidValue);
    in = (struct tree_inputs){.own = &x, .count = 2};
    cr_assert_eq(comm_tree_sum_launch(0, &in, 1, &x), cudaErrorInvalidValue);
    cr_assert_eq(comm_tree_sum_launch(0, &in, 0, &x), cudaSuccess);
}

/* ---- ranks ---- */

static void check_ranks(int ranks, const char *reduction, const char *transport, const char *chosen)
{
    char n[16], part[32];
    const char *const argv[] = {"mpirun", "-n",      n,         SHOAL_BUILD_DIR "/world/comm_cuda",
                                "0",      reduction, transport, "cuda",
                                NULL};

    snprintf(n, sizeof n, "%d", ranks);
    snprintf(part, sizeof part, "transport %s\n", chosen);
    int code = run_command(argv, 120, output, sizeof output, NULL);

    cr_assert_eq(code, 0, "%d ranks, %s: exit %d\n%s", ranks, transport, code, output);
    cr_assert(strstr(output, part) != NULL, "\"%s\" is missing in:\n%s", part, output);
}

Test(comm_gpu, one_rank_goes_through_every_transport, .timeout = 300)
{
    NEED_GPU();
    check_ranks(1, "tree", "auto", "self");
    check_ranks(1, "tree", "nccl", "nccl");
    check_ranks(1, "ring", "nccl", "nccl");
    check_ranks(1, "tree", "staged", "staged");
}

Test(comm_gpu, ranks_that_share_gpus_are_staged, .timeout = 300)
{
    int gpus = count_gpus();

    NEED_GPU();
    check_ranks(gpus + 1, "tree", "auto", "staged");
    check_ranks(4, "tree", "staged", "staged");
}

Test(comm_gpu, a_rank_per_gpu_goes_by_nccl, .timeout = 300)
{
    int gpus = count_gpus();

    if (gpus < 2)
        cr_skip_test("needs two GPUs, there are %d", gpus);
    check_ranks(gpus, "tree", "auto", "nccl");
    check_ranks(gpus, "ring", "nccl", "nccl");
}

#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <cuda_runtime_api.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bulk on real GPUs.  Skips where there is none. */

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

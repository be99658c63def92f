#include "comm/nccl/nccl_internal.h"
#include "tests/world/fake_device.h"
#include "tests/world/fake_nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* What the NCCL transport needs of CUDA, on the fake device. */

enum { MAX_INPUTS = 8 };

struct sum {
    const float *in[MAX_INPUTS];
    int count;
    size_t n;
    float *out;
};

static void run_sum(void *arg)
{
    struct sum *sum = arg;

    comm_tree_sum_scalar(sum->in, sum->count, 0, sum->n, sum->out);
    free(sum);
}

static shoal_status fake_tree_sum(cudaStream_t stream, const struct tree_inputs *in, size_t n,
                                  float *out)
{
    struct sum *sum = calloc(1, sizeof *sum);

    if (sum == NULL || in->count > MAX_INPUTS)
        return fail(SHOAL_ERR_INTERNAL, "fake tree sum of %d", in->count);
    for (int k = 0; k < in->count; k++)
        sum->in[k] =
            k == in->own_index
                ? fake_host(in->own)
                : fake_host(in->blocks + (size_t)(k < in->own_index ? k : k - 1) * in->stride);
    sum->count = in->count;
    sum->n = n;
    sum->out = fake_host(out);
    fake_enqueue((struct device *)(void *)stream, run_sum, sum);
    return SHOAL_OK;
}

static shoal_status fake_use(struct device *device)
{
    (void)device;
    return SHOAL_OK;
}

static shoal_status fake_identify(struct device *device, char *id_out, size_t n_bytes)
{
    (void)device;
    /* With FAKE_GPU all ranks are on that one. */
    const char *shared = getenv("FAKE_GPU");

    if (shared != NULL)
        snprintf(id_out, n_bytes, "%s", shared);
    else
        snprintf(id_out, n_bytes, "gpu-of-%d", (int)getpid());
    return SHOAL_OK;
}

static cudaStream_t fake_stream(const struct device *device)
{
    return (cudaStream_t)(void *)(uintptr_t)device;
}

static const struct nccl_platform fake_platform = {.name = "fake",
                                                   .use = fake_use,
                                                   .identify = fake_identify,
                                                   .stream = fake_stream,
                                                   .is_done = fake_event_is_done,
                                                   .tree_sum = fake_tree_sum};

void fake_nccl_install(void)
{
    comm_nccl_set_platform(&fake_platform);
}

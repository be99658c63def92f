#include "comm/nccl/nccl_internal.h"
#include "runtime/device/cuda.h"

#include <string.h>

static shoal_status cuda_use(struct device *device)
{
    return device_cuda_use(device);
}

static shoal_status cuda_identify(struct device *device, char *id_out, size_t n_bytes)
{
    return cuda_check(cudaDeviceGetPCIBusId(id_out, (int)n_bytes, device_cuda_ordinal(device)),
                      "ask for the bus address of a GPU");
}

static cudaStream_t cuda_stream(const struct device *device)
{
    return device_cuda_stream(device, QUEUE_COMM);
}

static shoal_status cuda_is_done(struct device *device, struct device_event *event,
                                 bool *is_done_out)
{
    /* Events of the cuda device are the runtime's own. */
    cudaError_t error = cudaEventQuery((cudaEvent_t)(void *)event);

    (void)device;
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError();
        *is_done_out = false;
        return SHOAL_OK;
    }
    SHOAL_TRY(cuda_check(error, "ask for an event"));
    *is_done_out = true;
    return SHOAL_OK;
}

const struct nccl_platform comm_nccl_cuda = {.name = "cuda",
                                             .use = cuda_use,
                                             .identify = cuda_identify,
                                             .stream = cuda_stream,
                                             .is_done = cuda_is_done,
                                             .tree_sum = comm_tree_sum_launch};

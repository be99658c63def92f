#pragma once

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "runtime/device/device.h"

/*
 * What CUDA code needs of the device: its streams, and the one conversion of the runtime's
 * results.  Only in builds with CUDA (SHOAL_WITH_CUDA); included by CUDA back ends alone.
 */

/* SHOAL_OK, or a failure that names `what` and the runtime's text.  No memory is NOMEM. */
shoal_status cuda_check(cudaError_t error, const char *what);

/* The stream of a queue of a device whose name is "cuda". */
cudaStream_t device_cuda_stream(const struct device *device, enum device_queue queue);

/* Make the device current for the calling thread: kernels are launched from it. */
shoal_status device_cuda_use(const struct device *device);

int device_cuda_ordinal(const struct device *device);
int device_cuda_sm_count(const struct device *device);
int device_cuda_capability(const struct device *device);      /* 90 for 9.0 */
size_t device_cuda_shared_bytes(const struct device *device); /* that a block may take */

/* ---- loading (cuda_load.c) ---- */

/* The kernels of one .cu file.  launch.cuh makes them known before main. */
struct device_cuda_module {
    const void *anchor; /* any of them */
    struct device_cuda_module *next;
};

void device_cuda_add_module(struct device_cuda_module *module);

/*
 * Load every kernel of this program on the device, so that none is loaded, which may wait for all that
 * runs there, while ranks wait for each other.  Idempotent.
 */
shoal_status device_cuda_load_modules(const struct device *device);

#ifdef __cplusplus
}
#endif

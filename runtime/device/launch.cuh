#pragma once

/*
 * How kernels are launched.  tests/gpu/emulate has a file of this name that runs them on the CPU,
 * by which they are tested without a GPU.
 */
#include <cuda_runtime.h>
#include <stddef.h>

extern "C" {
#include "runtime/device/cuda.h"
}

/* By this kernel the others of the file that includes this are found, to be loaded early. */
static __global__ void launch_anchor()
{
}

__attribute__((constructor)) static void launch_add_module()
{
    static device_cuda_module module = {(const void *)launch_anchor, nullptr};

    device_cuda_add_module(&module);
}

/* Issue `kernel`; `what` names it in errors. */
template <typename... Parameters, typename... Arguments>
static inline shoal_status launch(const char *what, void (*kernel)(Parameters...), dim3 grid,
                                  int threads, size_t shared_bytes, cudaStream_t stream,
                                  Arguments... arguments)
{
    /* Beyond 48 KiB it must be asked for, and the kernel's static arrays count. */
    if (shared_bytes > 0)
        SHOAL_TRY(cuda_check(cudaFuncSetAttribute((const void *)kernel,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)shared_bytes),
                             what));
    kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
    return cuda_check(cudaGetLastError(), what);
}

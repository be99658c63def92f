#pragma once

/* runtime/device/launch.cuh on the CPU. */
#include <cuda_runtime.h>
#include <stddef.h>

extern "C" {
#include "runtime/device/cuda.h"
}

/* Of the file that includes this. */
static emulate_module launch_module;

__attribute__((constructor)) static void launch_add_module()
{
    static device_cuda_module module = {&launch_module, nullptr};

    emulate_add_module(&launch_module);
    device_cuda_add_module(&module);
}

template <typename... Parameters, typename... Arguments>
static inline shoal_status launch(const char *what, void (*kernel)(Parameters...), dim3 grid,
                                  int threads, size_t shared_bytes, cudaStream_t,
                                  Arguments... arguments)
{
    const auto call = [=]() { kernel(arguments...); };

    emulate_expect_loaded(&launch_module, what);
    emulate_launch(
        what, grid, (unsigned)threads, shared_bytes,
        [](const void *arg) { (*(const decltype(call) *)arg)(); }, &call,
        sizeof call);
    return cuda_check(cudaGetLastError(), what);
}

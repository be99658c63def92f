#pragma once

/* runtime/device/launch.cuh on the CPU. */
#include <cuda_runtime.h>
#include <stddef.h>

extern "C" {
#include "runtime/base/status.h"

shoal_status cuda_check(cudaError_t error, const char *what);
}

template <typename... Parameters, typename... Arguments>
static inline shoal_status launch(const char *what, void (*kernel)(Parameters...), dim3 grid,
                                  int threads, size_t shared_bytes, cudaStream_t,
                                  Arguments... arguments)
{
    const auto call = [=]() { kernel(arguments...); };

    emulate_launch(
        what, grid, (unsigned)threads, shared_bytes,
        [](const void *arg) { (*(const decltype(call) *)arg)(); }, &call,
        sizeof call);
    return SHOAL_OK;
}

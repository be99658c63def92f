#pragma once

#include "tests/gpu/gpu.h"
#include "tests/optim/world.h"

/* The optimizer's kernels against the CPU, bytes and padding, beside the operations of schedules. */

enum optim_rig_corners {
    WITHOUT_CORNERS,
    WITH_CORNERS,        /* gradients from where arithmetic has them */
    WITH_FINITE_CORNERS, /* those of them that a step with sums may have */
};

/* Some updates of a world by the CPU and by the kernels; their bytes must be the same. */
void optim_rig_check(const struct world_params *params, enum optim_rig_corners corners);

#define EXPECT_CUDA(call)                                                                          \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        cr_assert_eq(error_, cudaSuccess, "%s: %s", #call, cudaGetErrorString(error_));            \
    } while (0)

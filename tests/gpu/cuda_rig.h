#pragma once

#include "models/ops/cuda/ops_cuda.h"
#include "tests/gpu/gpu.h"

/* The cuda back end on the first device.  Ends the test as skipped where there is none. */
struct cuda_rig {
    struct device *device;
    struct ops *ops;
};

struct cuda_rig cuda_rig_create(const struct ops_cuda_options *options);
void cuda_rig_destroy(struct cuda_rig *rig);

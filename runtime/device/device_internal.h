#pragma once

#include "runtime/device/device.h"

/* The host's own memory and cores. */
shoal_status device_cpu_open(struct device **device_out);

/* The test device: host memory that faults outside of copies and operations. */
shoal_status device_remote_open(struct device **device_out);

#ifdef SHOAL_WITH_CUDA
/* Number of usable GPUs; 0 also without a driver. */
int device_cuda_count(void);
shoal_status device_cuda_open(int ordinal, struct device **device_out);
#endif

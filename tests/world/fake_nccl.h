#pragma once

#include "runtime/device/device.h"

/*
 * A device for tests of the NCCL transport: host memory that faults at the device's addresses, a
 * queue that a thread works off, and, in builds with CUDA, an NCCL that works on it.  One per
 * process.
 */
shoal_status fake_device_open(struct device **device_out);

/* Let the NCCL transport take the fake device for CUDA's; nothing with fake_none.c. */
void fake_nccl_install(void);

/*
 * Let the device's side of this rank's next operation never end, while the communicator
 * reports a remote error.
 */
void fake_nccl_fail_next(void);

/* From now on two ranks that have not spoken on a communicator may not: memory is taken for that. */
void fake_nccl_seal(void);

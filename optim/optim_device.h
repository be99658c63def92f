#pragma once

#include "optim/optim.h"
#include "runtime/device/device.h"

/*
 * The gradient norm where gradients lie on a device whose memory the host cannot read: the device
 * adds up what optim_sum_squares does, to the same bits, and the host takes the sum.  The copy
 * between the two is the caller's.
 */

/* A struct exact_sum, = or with `add` += the squares of n gradient elements; both in the device's memory. */
shoal_status optim_op_device_squares(struct schedule *sched, struct device *device,
                                     struct pool *pool, int unit, struct slot_ref grad, size_t n,
                                     bool add, struct slot_ref sum);

/* Add such a sum, copied to host memory, to *sum. */
shoal_status optim_op_take_squares(struct schedule *sched, struct slot_ref taken,
                                   struct exact_sum *sum);

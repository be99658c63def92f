#pragma once

#include "optim/optim.h"
#include "runtime/device/device.h"

/*
 * The gradient norm where gradients lie on a device whose memory the host cannot read: the device
 * makes one double per quantum, the same bits as optim_sum_squares makes inside, and the host adds
 * those exactly.  The copy between the two is the caller's.
 */

/* sums[q] = sum of squares of quantum q of n gradient elements; both in the device's memory. */
shoal_status optim_op_quantum_squares(struct schedule *sched, struct device *device,
                                      struct pool *pool, int unit, struct slot_ref grad, size_t n,
                                      struct slot_ref sums);

/* Add n_quanta such sums in host memory to *sum.  A sum that is not finite counts as one term. */
shoal_status optim_op_add_squares(struct schedule *sched, struct pool *pool, int unit,
                                  struct slot_ref sums, size_t n_quanta, struct exact_sum *sum);

#pragma once

#include "runtime/base/exact_sum.h"
#include "runtime/device/cuda.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* *sum, in the device's memory, = or with `add` += the squares of whole quanta: the CPU's
 * optim_sum_squares, bit for bit. */
shoal_status cuda_sum_squares(cudaStream_t stream, const float *grad, size_t n_quanta, bool add,
                              struct exact_sum *sum);

#ifdef __cplusplus
}
#endif

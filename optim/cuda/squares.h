#pragma once

#include "runtime/device/cuda.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* sums[q] = sum of squares of quantum q: the bits of the CPU's optim_squares. */
shoal_status cuda_quantum_squares(cudaStream_t stream, const float *grad, size_t n_quanta,
                                  double *sums);

#ifdef __cplusplus
}
#endif

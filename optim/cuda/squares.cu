#include "optim/cuda/squares.h"

#include "runtime/device/launch.cuh"

/*
 * Sums of squares per quantum in the order of the CPU (optim_internal.h): 16 threads are the 16
 * lanes.  Widths 8 down to 1: lane l adds the sum of lane l ^ width, which gives lane 0 what the CPU
 * has there, as a + b is b + a.
 */

enum { LANES = 16, BLOCK_THREADS = 256, QUANTUM_ELEMENTS = 256 };

/* ---- kernel ---- */

__global__ static void quantum_squares(const float *__restrict__ grad, size_t n_quanta,
                                       double *__restrict__ sums)
{
    const size_t quantum = (size_t)blockIdx.x * (BLOCK_THREADS / LANES) + threadIdx.x / LANES;
    const int lane = (int)threadIdx.x % LANES;
    double sum = 0.0;

    /* All threads of a warp stay: the shuffles need them. */
    if (quantum < n_quanta) {
        const float *x = grad + quantum * QUANTUM_ELEMENTS + lane;

        for (int i = 0; i < QUANTUM_ELEMENTS; i += LANES) {
            const double value = (double)x[i];

            sum += value * value;
        }
    }
    for (int width = LANES / 2; width > 0; width /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, width);
    if (quantum < n_quanta && lane == 0)
        sums[quantum] = sum;
}

/* ---- launcher ---- */

extern "C" shoal_status cuda_quantum_squares(cudaStream_t stream, const float *grad,
                                             size_t n_quanta, double *sums)
{
    const size_t per_block = BLOCK_THREADS / LANES;
    const size_t blocks = (n_quanta + per_block - 1) / per_block;

    if (n_quanta == 0)
        return SHOAL_OK;
    if (grad == nullptr || sums == nullptr || blocks > 0x7fffffffu)
        return fail(SHOAL_ERR_INTERNAL, "cuda: squares of %zu quanta: bad arguments", n_quanta);
    return launch("squares of gradients", quantum_squares, dim3((unsigned)blocks), BLOCK_THREADS, 0,
                  stream, grad, n_quanta, sums);
}

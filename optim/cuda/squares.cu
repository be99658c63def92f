#include "optim/cuda/squares.h"

#include "runtime/device/launch.cuh"
/* After CUDA's own. */
#include "optim/cuda/limbs.cuh"

/*
 * Sums of squares per quantum in the order of the CPU (optim_internal.h): 16 threads are the 16
 * lanes.  Widths 8 down to 1: lane l adds the sum of lane l ^ width, which gives all lanes what lane
 * 0 has on the CPU, as a + b is b + a.
 */

enum {
    LANES = 16,
    BLOCK_THREADS = 256,
    QUANTUM_ELEMENTS = 256,
    GROUPS = BLOCK_THREADS / LANES,
    BLOCK_QUANTA = 8 * GROUPS
};

/* ---- kernel ---- */

/* All threads of a warp must call it. */
static __device__ __forceinline__ double quantum_sum(const float *x, bool live)
{
    double sum = 0.0;

    for (int i = 0; live && i < QUANTUM_ELEMENTS; i += LANES) {
        const double value = (double)x[i];

        sum += value * value;
    }
    for (int width = LANES / 2; width > 0; width /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, width);
    return sum;
}

/* The lane's elements that are not finite; squares of others do not overflow in double. */
static __device__ int64_t count_nonfinite(const float *x)
{
    int64_t n = 0;

    for (int i = 0; i < QUANTUM_ELEMENTS; i += LANES)
        n += !isfinite(x[i]);
    return n;
}

__global__ static void __launch_bounds__(BLOCK_THREADS)
    sum_squares(const float *__restrict__ grad, size_t n_quanta, int64_t *__restrict__ sum)
{
    __shared__ int64_t limbs[EXACT_LIMBS];
    const int lane = (int)threadIdx.x % LANES;
    const size_t first = (size_t)blockIdx.x * BLOCK_QUANTA + threadIdx.x / LANES;

    clear_limbs(limbs);
    for (size_t q = first; q < first + BLOCK_QUANTA; q += GROUPS) {
        const bool live = q < n_quanta;
        const float *x = grad + q * QUANTUM_ELEMENTS + lane;
        const exact_term term = exact_term_of(quantum_sum(x, live));

        if (live && term.first < 0)
            add_to(&limbs[EXACT_SUM_LIMBS], count_nonfinite(x));
        else if (live && lane == 0)
            add_exactly(limbs, term);
    }
    give_limbs(limbs, sum);
}

/* ---- launcher ---- */

extern "C" shoal_status cuda_sum_squares(cudaStream_t stream, const float *grad, size_t n_quanta,
                                         bool add, struct exact_sum *sum)
{
    const size_t blocks = (n_quanta + BLOCK_QUANTA - 1) / BLOCK_QUANTA;

    if (grad == nullptr || sum == nullptr || blocks > 0x7fffffffu)
        return fail(SHOAL_ERR_INTERNAL, "cuda: squares of %zu quanta: bad arguments", n_quanta);
    if (!add)
        SHOAL_TRY(cuda_check(cudaMemsetAsync(sum, 0, sizeof *sum, stream), "clear a sum"));
    if (n_quanta == 0)
        return SHOAL_OK;
    return launch("squares of gradients", sum_squares, dim3((unsigned)blocks), BLOCK_THREADS, 0,
                  stream, grad, n_quanta, sum->limbs);
}

#include "comm/nccl/tree_sum.h"
#include "runtime/device/launch.cuh" /* makes its kernels known */

/*
 * The reduction tree on the device.  A thread adds all inputs of one element, so that no order
 * depends on the grid; neighbouring threads read neighbouring elements.  Additions are __fadd_rn,
 * which the compiler neither contracts nor reorders.
 */

/* ---- kernels ---- */

enum { THREADS = 256, MAX_BLOCKS = 65535, MAX_DEPTH = 17 };

static __device__ __forceinline__ float input(const tree_inputs &in, int k, size_t i)
{
    if (k == in.own_index)
        return in.own[i];
    return in.blocks[(size_t)(k < in.own_index ? k : k - 1) * in.stride + i];
}

static constexpr __host__ __device__ int largest_power_below(int count)
{
    int power = 1;

    while (power * 2 < count)
        power *= 2;
    return power;
}

template <int BEGIN, int COUNT>
static __device__ __forceinline__ float tree(const tree_inputs &in, size_t i)
{
    if constexpr (COUNT == 1) {
        return input(in, BEGIN, i);
    } else {
        constexpr int half = largest_power_below(COUNT);
        float left = tree<BEGIN, half>(in, i);
        float right = tree<BEGIN + half, COUNT - half>(in, i);

        return __fadd_rn(left, right);
    }
}

template <int COUNT>
static __global__ void sum_few(tree_inputs in, size_t n, float *out)
{
    size_t step = (size_t)gridDim.x * THREADS;

    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step)
        out[i] = tree<0, COUNT>(in, i);
}

/*
 * Any count, as a binary counter: input k closes one finished subtree per trailing zero of k + 1.
 * What is left at the end are subtrees of falling size, which the tree joins from the right.
 */
static __global__ void sum_many(tree_inputs in, size_t n, float *out)
{
    size_t step = (size_t)gridDim.x * THREADS;

    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        float stack[MAX_DEPTH];
        int depth = 0;

        for (int k = 0; k < in.count; k++) {
            stack[depth++] = input(in, k, i);
            for (int rest = k + 1; (rest & 1) == 0; rest >>= 1) {
                depth--;
                stack[depth - 1] = __fadd_rn(stack[depth - 1], stack[depth]);
            }
        }
        while (depth > 1) {
            depth--;
            stack[depth - 1] = __fadd_rn(stack[depth - 1], stack[depth]);
        }
        out[i] = stack[0];
    }
}

/* ---- launcher ---- */

extern "C" cudaError_t comm_tree_sum_launch(cudaStream_t stream, const tree_inputs *in, size_t n,
                                            float *out)
{
    size_t wanted = (n + THREADS - 1) / THREADS;
    unsigned blocks = wanted < MAX_BLOCKS ? (unsigned)wanted : (unsigned)MAX_BLOCKS;

    if (n == 0)
        return cudaSuccess;
    if (in->count < 1 || in->count > 65536 || in->own_index < 0 || in->own_index >= in->count ||
        in->own == nullptr || out == nullptr || (in->count > 1 && in->blocks == nullptr))
        return cudaErrorInvalidValue;
    switch (in->count) {
    case 1: sum_few<1><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 2: sum_few<2><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 3: sum_few<3><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 4: sum_few<4><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 5: sum_few<5><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 6: sum_few<6><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 7: sum_few<7><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    case 8: sum_few<8><<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    default: sum_many<<<blocks, THREADS, 0, stream>>>(*in, n, out); break;
    }
    return cudaGetLastError();
}

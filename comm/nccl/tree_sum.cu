#include "comm/nccl/tree_sum.h"
#include "runtime/device/launch.cuh" /* makes its kernels known */

#include "runtime/device/launch.cuh"

#include <stdint.h>

/*
 * The reduction tree on the device.  A thread adds all inputs of an element, or of four neighbours,
 * so that no order depends on the grid.  Additions are __fadd_rn, which the compiler neither
 * contracts nor reorders.
 */

/* ---- kernels ---- */

enum { THREADS = 256, MAX_BLOCKS = 65535, WIDE = 4, FEW = 8, MAX_DEPTH = 14 };

/* V: float, or float4 where all addresses are multiples of 16 bytes. */
template <typename V>
static __device__ __forceinline__ V input(const tree_inputs &in, int k, size_t i)
{
    const float *from =
        k == in.own_index ? in.own : in.blocks + (k < in.own_index ? k : k - 1) * in.stride;

    return ((const V *)from)[i];
}

static __device__ __forceinline__ float add(float a, float b)
{
    return __fadd_rn(a, b);
}

static __device__ __forceinline__ float4 add(float4 a, float4 b)
{
    return make_float4(add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w));
}

static __device__ constexpr int largest_power_below(int count)
{
    int power = 1;

    while (power * 2 < count)
        power *= 2;
    return power;
}

/* Inputs [begin, begin + COUNT), all loaded before any is added. */
template <typename V, int COUNT>
static __device__ __forceinline__ V tree(const tree_inputs &in, int begin, size_t i)
{
    if constexpr (COUNT == 1) {
        return input<V>(in, begin, i);
    } else {
        constexpr int half = largest_power_below(COUNT);
        V left = tree<V, half>(in, begin, i);
        V right = tree<V, COUNT - half>(in, begin + half, i);

        return add(left, right);
    }
}

/* Up to FEW inputs. */
template <typename V>
static __device__ __forceinline__ V small_tree(const tree_inputs &in, int begin, int count,
                                               size_t i)
{
    switch (count) {
    case 1: return tree<V, 1>(in, begin, i);
    case 2: return tree<V, 2>(in, begin, i);
    case 3: return tree<V, 3>(in, begin, i);
    case 4: return tree<V, 4>(in, begin, i);
    case 5: return tree<V, 5>(in, begin, i);
    case 6: return tree<V, 6>(in, begin, i);
    case 7: return tree<V, 7>(in, begin, i);
    default: return tree<V, FEW>(in, begin, i);
    }
}

/*
 * Any count, as a binary counter of whole trees of FEW inputs: number k closes one finished subtree
 * per trailing zero of k + 1.  What is left at the end, and inputs too few for a whole tree, are
 * subtrees of falling size, which the tree joins from the right.
 */
template <typename V>
static __device__ __forceinline__ V large_tree(const tree_inputs &in, size_t i)
{
    V stack[MAX_DEPTH];
    int depth = 0;

    for (int k = 0; k < in.count / FEW; k++) {
        stack[depth++] = tree<V, FEW>(in, k * FEW, i);
        for (int rest = k + 1; (rest & 1) == 0; rest >>= 1) {
            depth--;
            stack[depth - 1] = add(stack[depth - 1], stack[depth]);
        }
    }
    if (in.count % FEW > 0)
        stack[depth++] = small_tree<V>(in, in.count / FEW * FEW, in.count % FEW, i);
    while (depth > 1) {
        depth--;
        stack[depth - 1] = add(stack[depth - 1], stack[depth]);
    }
    return stack[0];
}

/* COUNT: of the inputs; 0: more than FEW. */
template <typename V, int COUNT>
static __device__ __forceinline__ void sum_range(const tree_inputs &in, size_t begin, size_t end,
                                                 float *out)
{
    const size_t step = (size_t)gridDim.x * THREADS;

    for (size_t i = begin + (size_t)blockIdx.x * THREADS + threadIdx.x; i < end; i += step) {
        if constexpr (COUNT > 0)
            ((V *)out)[i] = tree<V, COUNT>(in, 0, i);
        else
            ((V *)out)[i] = large_tree<V>(in, i);
    }
}

template <int COUNT>
static __global__ void __launch_bounds__(THREADS)
    sum(tree_inputs in, size_t n, float *out, bool vector)
{
    const size_t wide = vector ? n / WIDE : 0;

    sum_range<float4, COUNT>(in, 0, wide, out);
    sum_range<float, COUNT>(in, wide * WIDE, n, out);
}

/* ---- launcher ---- */

/* The addresses of all inputs and of `out` are multiples of 16 bytes. */
static bool is_aligned(const tree_inputs *in, const float *out)
{
    const uintptr_t bits = (uintptr_t)in->own | (uintptr_t)in->blocks | (uintptr_t)out |
                           (in->count > 2 ? in->stride * sizeof(float) : 0);

    return bits % sizeof(float4) == 0;
}

template <int COUNT>
static shoal_status launch_sum(cudaStream_t stream, const tree_inputs *in, size_t n, float *out)
{
    const bool vector = is_aligned(in, out);
    const size_t wanted = ((vector ? n / WIDE : n) + THREADS - 1) / THREADS;
    const unsigned blocks = wanted > MAX_BLOCKS ? (unsigned)MAX_BLOCKS : (unsigned)wanted;

    return launch("tree sum", sum<COUNT>, dim3(blocks > 0 ? blocks : 1), THREADS, 0, stream, *in, n,
                  out, vector);
}

extern "C" shoal_status comm_tree_sum_launch(cudaStream_t stream, const tree_inputs *in, size_t n,
                                             float *out)
{
    if (n == 0)
        return SHOAL_OK;
    if (in->count < 1 || in->count > 65536 || in->own_index < 0 || in->own_index >= in->count ||
        in->own == nullptr || out == nullptr || (in->count > 1 && in->blocks == nullptr))
        return fail(SHOAL_ERR_INTERNAL, "cuda: tree sum of %d inputs: bad arguments", in->count);
    switch (in->count) {
    case 1: return launch_sum<1>(stream, in, n, out);
    case 2: return launch_sum<2>(stream, in, n, out);
    case 3: return launch_sum<3>(stream, in, n, out);
    case 4: return launch_sum<4>(stream, in, n, out);
    case 5: return launch_sum<5>(stream, in, n, out);
    case 6: return launch_sum<6>(stream, in, n, out);
    case 7: return launch_sum<7>(stream, in, n, out);
    case FEW: return launch_sum<FEW>(stream, in, n, out);
    default: return launch_sum<0>(stream, in, n, out);
    }
}

#pragma once

#include "tests/gpu/emulate/emulate.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* The language of kernels, for a C++ compiler: see emulate.h. */

#define __global__
#define __device__
#define __shared__      static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

/* As aligned as on a GPU, which faults where they are not: sanitizers see it. */
struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) float2 {
    float x, y;
};

struct alignas(8) uint2 {
    uint32_t x, y;
};

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

struct dim3 : emulate_index {
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : emulate_index{x_, y_, z_}
    {
    }
};

#define threadIdx emulate_thread
#define blockIdx  emulate_block
#define blockDim  emulate_block_size
#define gridDim   emulate_grid

static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}

static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return {x, y};
}

static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}

static inline float __fadd_rn(float x, float y)
{
    return x + y;
}

static inline float __uint_as_float(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t __float_as_uint(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

#ifdef EMULATE_RACES
/* In races.c: accesses that the compiler would not report, or not as atomic. */
extern "C" void *__tsan_memcpy(void *to, const void *from, size_t n_bytes);
extern "C" void *emulate_atomic_copy(void *to, const void *from, size_t n_bytes);
#define memcpy __tsan_memcpy
#else
#define emulate_atomic_copy memcpy
#endif

/* Fibers change places only where they wait: nothing comes between. */
template <typename T, typename F> static inline T emulate_atomic(T *p, F what)
{
    T before, after;

    emulate_atomic_copy(&before, p, sizeof before);
    after = what(before);
    emulate_atomic_copy(p, &after, sizeof after);
    return before;
}

template <typename T> static inline T atomicAdd(T *p, T x)
{
    return emulate_atomic(p, [=](T before) { return before + x; });
}

template <typename T> static inline T atomicMax(T *p, T x)
{
    return emulate_atomic(p, [=](T before) { return x > before ? x : before; });
}

template <typename T>
static inline cudaError_t cudaMemcpyToSymbol(T &symbol, const void *src, size_t n_bytes)
{
    memcpy(&symbol, src, n_bytes);
    return cudaSuccess;
}

static inline void __syncthreads()
{
    emulate_sync_block();
}

static inline void __syncwarp()
{
    emulate_sync_warp();
}

/* What the lanes of a warp give to a shuffle, and what each gets. */
template <typename V> struct emulate_shuffle {
    V value, result;
    int distance;
};

template <typename V> static inline V __shfl_xor_sync(unsigned, V value, int distance)
{
    emulate_shuffle<V> mine = {value, value, distance};

    emulate_warp(
        [](void *const *lanes) {
            for (int i = 0; i < EMULATE_WARP; i++) {
                emulate_shuffle<V> *to = (emulate_shuffle<V> *)lanes[i];
                to->result = ((emulate_shuffle<V> *)lanes[i ^ to->distance])->value;
            }
        },
        &mine);
    return mine.result;
}

/* Lanes without a lane below keep their own. */
template <typename V> static inline V __shfl_up_sync(unsigned, V value, int distance)
{
    emulate_shuffle<V> mine = {value, value, distance};

    emulate_warp(
        [](void *const *lanes) {
            for (int i = 0; i < EMULATE_WARP; i++) {
                emulate_shuffle<V> *to = (emulate_shuffle<V> *)lanes[i];
                if (i >= to->distance)
                    to->result = ((emulate_shuffle<V> *)lanes[i - to->distance])->value;
            }
        },
        &mine);
    return mine.result;
}

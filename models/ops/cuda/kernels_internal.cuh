#pragma once

#include "models/ops/cuda/machine.cuh"

/*
 * Shared by the kernels: element types, groups of eight elements, sums over a block, and the
 * checks of launchers.  A kernel's template parameter T is float or bf16_t.
 */

enum { WARP = 32, GROUP = 8 };

static inline int64_t ceil_div(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

static inline int64_t round_up(int64_t n, int64_t to)
{
    return ceil_div(n, to) * to;
}

/* ---- elements ---- */

static __device__ __forceinline__ float to_float(float x)
{
    return x;
}

static __device__ __forceinline__ float to_float(bf16_t x)
{
    return __uint_as_float((uint32_t)x << 16);
}

template <typename T> static __device__ __forceinline__ T from_float(float x);

template <> __device__ __forceinline__ float from_float<float>(float x)
{
    return x;
}

/* As bf16_from_f32, NaN included. */
template <> __device__ __forceinline__ bf16_t from_float<bf16_t>(float x)
{
    const uint32_t bits = __float_as_uint(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;

    return (bf16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

struct group {
    float v[GROUP];
};

static __device__ __forceinline__ struct group load_aligned(const float *p)
{
    const float4 low = *(const float4 *)p;
    const float4 high = *(const float4 *)(p + 4);

    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

static __device__ __forceinline__ struct group load_aligned(const bf16_t *p)
{
    const uint4 w = *(const uint4 *)p;

    return {{__uint_as_float(w.x << 16), __uint_as_float(w.x & 0xffff0000u),
             __uint_as_float(w.y << 16), __uint_as_float(w.y & 0xffff0000u),
             __uint_as_float(w.z << 16), __uint_as_float(w.z & 0xffff0000u),
             __uint_as_float(w.w << 16), __uint_as_float(w.w & 0xffff0000u)}};
}

static __device__ __forceinline__ void store_aligned(float *p, const struct group &x)
{
    *(float4 *)p = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    *(float4 *)(p + 4) = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

static __device__ __forceinline__ uint32_t two_bf16(float low, float high)
{
    return (uint32_t)from_float<bf16_t>(low) | (uint32_t)from_float<bf16_t>(high) << 16;
}

static __device__ __forceinline__ void store_aligned(bf16_t *p, const struct group &x)
{
    *(uint4 *)p = make_uint4(two_bf16(x.v[0], x.v[1]), two_bf16(x.v[2], x.v[3]),
                             two_bf16(x.v[4], x.v[5]), two_bf16(x.v[6], x.v[7]));
}

/* Elements [i, i + 8) of p [n]; those behind n read as zero.  `vector`: addresses of groups are
 * multiples of 16 bytes. */
template <typename T>
static __device__ __forceinline__ struct group load_group(const T *p, int64_t i, int64_t n,
                                                          bool vector)
{
    struct group x = {};

    if (vector && i + GROUP <= n)
        return load_aligned(p + i);
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        if (i + j < n)
            x.v[j] = to_float(p[i + j]);
    return x;
}

template <typename T>
static __device__ __forceinline__ void store_group(T *p, int64_t i, int64_t n, bool vector,
                                                   const struct group &x)
{
    if (vector && i + GROUP <= n) {
        store_aligned(p + i, x);
        return;
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        if (i + j < n)
            p[i + j] = from_float<T>(x.v[j]);
}

/* ---- sums: fixed trees, all threads get the result ---- */

template <typename V> static __device__ __forceinline__ V warp_sum(V x)
{
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* Over a block of whole warps; every thread calls it. */
template <typename V> static __device__ __forceinline__ V block_sum(V x)
{
    __shared__ V partial[WARP];
    const int warps = (int)blockDim.x / WARP;
    V total = 0;

    x = warp_sum(x);
    if (threadIdx.x % WARP == 0)
        partial[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int i = 0; i < warps; i++)
        total += partial[i];
    __syncthreads();
    return total;
}

static __device__ __forceinline__ float block_max(float x)
{
    __shared__ float partial[WARP];
    const int warps = (int)blockDim.x / WARP;

    x = warp_max(x);
    if (threadIdx.x % WARP == 0)
        partial[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int i = 0; i < warps; i++)
        x = fmaxf(x, partial[i]);
    __syncthreads();
    return x;
}

/* ---- launchers ---- */

/* The address allows 16-byte accesses; NULL does. */
static inline bool is_aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* Threads of a block that covers n elements by groups, whole warps, at most `most`. */
static inline int threads_for(int64_t n, int most)
{
    const int64_t wanted = round_up(ceil_div(n, GROUP), WARP);

    return wanted < most ? (int)wanted : most;
}

static inline shoal_status check_dtype(const char *op, enum dtype dtype)
{
    if (dtype == DTYPE_F32 || dtype == DTYPE_BF16)
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "cuda %s: expected f32 or bf16, found type %d", op, (int)dtype);
}

/* `n` lies in [low, high]. */
static inline shoal_status check_range(const char *op, const char *what, int64_t n, int64_t low,
                                       int64_t high)
{
    if (n >= low && n <= high)
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "cuda %s: expected a %s of %lld to %lld, found %lld", op, what,
                (long long)low, (long long)high, (long long)n);
}

enum : int64_t { GRID_X_MAX = 2147483647, GRID_YZ_MAX = 65535, ELEMENTS_MAX = (int64_t)1 << 42 };

/* A row per block. */
static inline shoal_status check_rows(const char *op, int64_t rows, int64_t width)
{
    SHOAL_TRY(check_range(op, "number of rows", rows, 1, GRID_X_MAX));
    return check_range(op, "row length", width, 1, GRID_X_MAX);
}

static inline shoal_status check_attention(const char *op, const struct attention_shape *s)
{
    SHOAL_TRY(check_dtype(op, s->dtype));
    SHOAL_TRY(check_range(op, "batch", s->B, 1, GRID_YZ_MAX));
    SHOAL_TRY(check_range(op, "length", s->T, 1, GRID_X_MAX / s->B));
    SHOAL_TRY(check_range(op, "number of heads", s->H, 1, GRID_YZ_MAX));
    SHOAL_TRY(check_range(op, "number of key/value heads", s->K, 1, s->H));
    SHOAL_TRY(check_range(op, "head size", s->D, 2, ATTENTION_HEAD_MAX));
    if (s->H % s->K != 0 || s->D % 2 != 0)
        return fail(SHOAL_ERR_INTERNAL,
                    "cuda %s: expected a multiple of %d heads of even size, found %d of %d", op,
                    s->K, s->H, s->D);
    return SHOAL_OK;
}

/*
 * sums [n] = column sums of x [rows, n] fp32: eight interleaved sums in order, then their sum in
 * order (elementwise.cu).
 */
shoal_status column_sums(cudaStream_t stream, const char *what, int64_t rows, int64_t n,
                         const float *x, float *sums);

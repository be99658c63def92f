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

/*
 * A group as memory holds it.  A thread waits for memory where it unpacks, so a kernel that needs
 * several groups loads them all before it unpacks any.
 */
template <typename T> struct packed {
    uint32_t w[GROUP * sizeof(T) / sizeof(uint32_t)];
};

static __device__ __forceinline__ struct group unpack(const packed<float> &x)
{
    struct group y;

#pragma unroll
    for (int j = 0; j < GROUP; j++)
        y.v[j] = __uint_as_float(x.w[j]);
    return y;
}

static __device__ __forceinline__ struct group unpack(const packed<bf16_t> &x)
{
    struct group y;

#pragma unroll
    for (int j = 0; j < GROUP; j += 2) {
        y.v[j] = __uint_as_float(x.w[j / 2] << 16);
        y.v[j + 1] = __uint_as_float(x.w[j / 2] & 0xffff0000u);
    }
    return y;
}

static __device__ __forceinline__ void put_element(packed<float> &x, int j, float value)
{
    x.w[j] = __float_as_uint(value);
}

static __device__ __forceinline__ void put_element(packed<bf16_t> &x, int j, bf16_t value)
{
    x.w[j / 2] |= (uint32_t)value << (j % 2 * 16);
}

/* Elements [i, i + 8) of p [n]; those behind n read as zero.  `vector`: addresses of groups are
 * multiples of 16 bytes. */
template <typename T>
static __device__ __forceinline__ packed<T> load_packed(const T *p, int64_t i, int64_t n,
                                                        bool vector)
{
    packed<T> x = {};

    if (vector && i + GROUP <= n) {
#pragma unroll
        for (size_t k = 0; k < sizeof x.w / sizeof x.w[0]; k += 4) {
            const uint4 four = ((const uint4 *)(p + i))[k / 4];
            x.w[k] = four.x;
            x.w[k + 1] = four.y;
            x.w[k + 2] = four.z;
            x.w[k + 3] = four.w;
        }
        return x;
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        if (i + j < n)
            put_element(x, j, p[i + j]);
    return x;
}

/* The groups at i and at i + step; the second reads as zero where it begins behind n. */
template <typename T>
static __device__ __forceinline__ void load_two(packed<T> (&x)[2], const T *p, int64_t i,
                                                int64_t step, int64_t n, bool vector)
{
    x[0] = load_packed(p, i, n, vector);
    x[1] = {};
    if (i + step < n)
        x[1] = load_packed(p, i + step, n, vector);
}

template <typename T>
static __device__ __forceinline__ struct group load_group(const T *p, int64_t i, int64_t n,
                                                          bool vector)
{
    return unpack(load_packed(p, i, n, vector));
}

template <typename T> static __device__ __forceinline__ packed<T> pack(const struct group &x);

template <> __device__ __forceinline__ packed<float> pack<float>(const struct group &x)
{
    packed<float> y;

#pragma unroll
    for (int j = 0; j < GROUP; j++)
        put_element(y, j, x.v[j]);
    return y;
}

template <> __device__ __forceinline__ packed<bf16_t> pack<bf16_t>(const struct group &x)
{
    bool nan = false;
    packed<bf16_t> y = {};

#pragma unroll
    for (int j = 0; j < GROUP; j++)
        nan = nan || x.v[j] != x.v[j];
    if (nan) { /* the instruction would not keep what they hold */
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            put_element(y, j, from_float<bf16_t>(x.v[j]));
    } else {
#pragma unroll
        for (int j = 0; j < GROUP; j += 2)
            y.w[j / 2] = pack_bf16(x.v[j], x.v[j + 1]);
    }
    return y;
}

/* Every 16 bytes as one number: of a vector of four the compiler at times makes four stores. */
template <typename T>
static __device__ __forceinline__ void store_packed(T *p, const packed<T> &x)
{
    unsigned __int128 *to = (unsigned __int128 *)p;

#pragma unroll
    for (size_t k = 0; k < sizeof x.w / sizeof x.w[0]; k += 4) {
        const uint64_t low = x.w[k] | (uint64_t)x.w[k + 1] << 32;
        const uint64_t high = x.w[k + 2] | (uint64_t)x.w[k + 3] << 32;
        to[k / 4] = (unsigned __int128)high << 64 | low;
    }
}

template <typename T>
static __device__ __forceinline__ void store_group(T *p, int64_t i, int64_t n, bool vector,
                                                   const struct group &x)
{
    if (vector && i + GROUP <= n) {
        store_packed(p + i, pack<T>(x));
        return;
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        if (i + j < n)
            p[i + j] = from_float<T>(x.v[j]);
}

/* How many elements of the group at i lie before n. */
static __device__ __forceinline__ int in_group(int64_t i, int64_t n)
{
    return i + GROUP <= n ? GROUP : i < n ? (int)(n - i) : 0;
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

/* Casts, sums of arrays, biases and sums of columns. */
#include "models/ops/cuda/kernels_internal.cuh"

extern "C" {
#include "runtime/base/rng.h"
}

enum { FLAT_THREADS = 256, SUM_LANES = 32, SUM_STREAMS = 8, AHEAD = 4 };

/* ---- kernels ---- */

static __device__ __forceinline__ int64_t flat_group()
{
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * GROUP;
}

template <typename T>
static __global__ void __launch_bounds__(FLAT_THREADS)
    cast_kernel(int64_t n, const float *x, T *y, bool vector)
{
    const int64_t i = flat_group();

    if (i < n)
        store_group(y, i, n, vector, load_group(x, i, n, vector));
}

/* Philox4x32-10 as in runtime/base/rng.c: its key is made on the host. */
static __device__ __forceinline__ uint4 philox(uint32_t k0, uint32_t k1, uint64_t sub,
                                               uint64_t index)
{
    uint32_t c0 = (uint32_t)index;
    uint32_t c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)sub;
    uint32_t c3 = (uint32_t)(sub >> 32);

    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

static __device__ __forceinline__ bf16_t round_stochastic(float x, uint32_t random)
{
    const uint32_t bits = __float_as_uint(x);

    if ((bits & 0x7f800000u) == 0x7f800000u) /* infinite or NaN */
        return from_float<bf16_t>(x);
    return (bf16_t)((bits + (random & 0xffffu)) >> 16);
}

/* A thread takes the up to four elements of one block of random numbers: blocks start at `begin`,
 * which is a multiple of four if `vector`. */
static __global__ void __launch_bounds__(FLAT_THREADS)
    cast_stochastic_kernel(int64_t n, uint32_t k0, uint32_t k1, uint64_t sub, uint64_t begin,
                           const float *x, bf16_t *y, bool vector)
{
    const uint64_t index = begin / 4 + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t first = (int64_t)(index * 4 - begin);
    const uint4 random = philox(k0, k1, sub, index);
    const uint32_t words[4] = {random.x, random.y, random.z, random.w};

    if (vector && first + 4 <= n) {
        const float4 v = *(const float4 *)(x + first);
        const uint32_t low = round_stochastic(v.x, words[0]);
        const uint32_t high = round_stochastic(v.z, words[2]);
        *(uint2 *)(y + first) =
            make_uint2(low | (uint32_t)round_stochastic(v.y, words[1]) << 16,
                       high | (uint32_t)round_stochastic(v.w, words[3]) << 16);
        return;
    }
    for (int j = 0; j < 4; j++)
        if (first + j >= 0 && first + j < n)
            y[first + j] = round_stochastic(x[first + j], words[j]);
}

static __global__ void __launch_bounds__(FLAT_THREADS)
    accumulate_kernel(int64_t n, const float *src, float *dst, bool vector)
{
    const int64_t i = flat_group();

    if (i >= n)
        return;
    const packed<float> src_loaded = load_packed(src, i, n, vector);
    const packed<float> dst_loaded = load_packed(dst, i, n, vector);
    const struct group a = unpack(src_loaded);
    struct group b = unpack(dst_loaded);
    for (int j = 0; j < GROUP; j++)
        b.v[j] += a.v[j];
    store_group(dst, i, n, vector, b);
}

/* blockIdx.x: row */
template <typename T, typename Y>
static __global__ void __launch_bounds__(FLAT_THREADS)
    add_bias_kernel(int64_t n, const T *bias, Y *y, bool vector)
{
    y += (int64_t)blockIdx.x * n;
    for (int64_t i = (int64_t)threadIdx.x * GROUP; i < n; i += (int64_t)blockDim.x * GROUP) {
        const packed<T> bias_loaded = load_packed(bias, i, n, vector);
        const packed<Y> y_loaded = load_packed(y, i, n, vector);
        const struct group b = unpack(bias_loaded);
        struct group v = unpack(y_loaded);
        for (int j = 0; j < GROUP; j++)
            v.v[j] += b.v[j];
        store_group(y, i, n, vector, v);
    }
}

/* Every eighth row of [begin, end) of x [rows, n], in order: of one column, and of eight, of which
 * AHEAD rows are loaded before any is added. */
template <typename T>
static __device__ __forceinline__ void add_rows(float (&sum)[1], const T *x, int64_t begin,
                                                int64_t end, int64_t n, int64_t column, bool)
{
#pragma unroll 16
    for (int64_t row = begin; row < end; row += SUM_STREAMS)
        sum[0] += to_float(x[row * n + column]);
}

template <typename T>
static __device__ __forceinline__ void add_rows(float (&sum)[GROUP], const T *x, int64_t begin,
                                                int64_t end, int64_t n, int64_t column, bool vector)
{
    for (int64_t row = begin; row < end; row += AHEAD * SUM_STREAMS) {
        packed<T> loaded[AHEAD] = {};
#pragma unroll
        for (int k = 0; k < AHEAD; k++)
            if (row + k * SUM_STREAMS < end)
                loaded[k] = load_packed(x + (row + k * SUM_STREAMS) * n, column, n, vector);
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const struct group v = unpack(loaded[k]);
            for (int j = 0; j < GROUP; j++)
                sum[j] += v.v[j];
        }
    }
}

/*
 * Row blockIdx.y of sums = column sums of a block of rows of x [rows, n].  A lane owns `WIDTH`
 * neighbouring columns (8 or 1); SUM_STREAMS streams take every eighth row, and their sums are
 * added in order.
 */
template <typename T, int WIDTH>
static __global__ void __launch_bounds__(SUM_LANES *SUM_STREAMS)
    column_sums_kernel(int64_t rows, int64_t n, int64_t block_rows, const T *x, float *sums,
                       bool vector)
{
    __shared__ float partial[SUM_STREAMS][SUM_LANES * WIDTH];
    const int lane = (int)threadIdx.x % SUM_LANES;
    const int stream = (int)threadIdx.x / SUM_LANES;
    const int64_t column = ((int64_t)blockIdx.x * SUM_LANES + lane) * WIDTH;
    const int64_t begin = (int64_t)blockIdx.y * block_rows;
    const int64_t end = begin + block_rows < rows ? begin + block_rows : rows;
    float sum[WIDTH] = {};

    if (column < n)
        add_rows(sum, x, begin + stream, end, n, column, vector);
    for (int j = 0; j < WIDTH; j++)
        partial[stream][lane * WIDTH + j] = sum[j];
    __syncthreads();
    for (int i = (int)threadIdx.x; i < SUM_LANES * WIDTH; i += SUM_LANES * SUM_STREAMS) {
        const int64_t c = (int64_t)blockIdx.x * SUM_LANES * WIDTH + i;
        float total = partial[0][i];
        for (int k = 1; k < SUM_STREAMS; k++)
            total += partial[k][i];
        if (c < n)
            sums[blockIdx.y * n + c] = total;
    }
}

/* ---- launchers ---- */

static dim3 flat_grid(int64_t n)
{
    return dim3((unsigned)ceil_div(n, (int64_t)FLAT_THREADS * GROUP));
}

shoal_status cuda_cast(cudaStream_t stream, int64_t n, enum dtype dtype, const float *x, void *y)
{
    const bool vector = is_aligned(x) && is_aligned(y);

    SHOAL_TRY(check_dtype("cast", dtype));
    SHOAL_TRY(check_range("cast", "number of elements", n, 0, ELEMENTS_MAX));
    if (n == 0)
        return SHOAL_OK;
    if (dtype == DTYPE_F32)
        return launch("cast", cast_kernel<float>, flat_grid(n), FLAT_THREADS, 0, stream, n, x,
                      (float *)y, vector);
    return launch("cast", cast_kernel<bf16_t>, flat_grid(n), FLAT_THREADS, 0, stream, n, x,
                  (bf16_t *)y, vector);
}

shoal_status cuda_cast_stochastic(cudaStream_t stream, int64_t n, uint64_t seed, uint64_t sub,
                                  uint64_t begin, const float *x, void *y)
{
    uint32_t key[2];

    SHOAL_TRY(check_range("stochastic cast", "number of elements", n, 0, ELEMENTS_MAX));
    if (n == 0)
        return SHOAL_OK;
    rng_key(seed, RNG_STREAM_ROUNDING, key);
    const int64_t blocks = (int64_t)((begin + (uint64_t)n + 3) / 4 - begin / 4);
    return launch("stochastic cast", cast_stochastic_kernel,
                  dim3((unsigned)ceil_div(blocks, FLAT_THREADS)), FLAT_THREADS, 0, stream, n,
                  key[0], key[1], sub, begin, x, (bf16_t *)y,
                  begin % 4 == 0 && is_aligned(x) && (uintptr_t)y % sizeof(uint2) == 0);
}

shoal_status cuda_accumulate(cudaStream_t stream, int64_t n, const float *src, float *dst)
{
    SHOAL_TRY(check_range("accumulate", "number of elements", n, 0, ELEMENTS_MAX));
    if (n == 0)
        return SHOAL_OK;
    return launch("accumulate", accumulate_kernel, flat_grid(n), FLAT_THREADS, 0, stream, n, src,
                  dst, is_aligned(src) && is_aligned(dst));
}

shoal_status cuda_zero(cudaStream_t stream, size_t n_bytes, void *dst)
{
    if (n_bytes == 0)
        return SHOAL_OK;
    return cuda_check(cudaMemsetAsync(dst, 0, n_bytes, stream), "zero");
}

template <typename T, typename Y>
static shoal_status add_bias(cudaStream_t stream, int64_t rows, int64_t n, const void *bias, Y *y)
{
    return launch("add bias", add_bias_kernel<T, Y>, dim3((unsigned)rows),
                  threads_for(n, FLAT_THREADS), 0, stream, n, (const T *)bias, y,
                  n % GROUP == 0 && is_aligned(bias) && is_aligned(y));
}

shoal_status cuda_add_bias(cudaStream_t stream, int64_t rows, int64_t n, enum dtype dtype,
                           const void *bias, void *y)
{
    SHOAL_TRY(check_dtype("add bias", dtype));
    SHOAL_TRY(check_rows("add bias", rows, n));
    return dtype == DTYPE_F32 ? add_bias<float>(stream, rows, n, bias, (float *)y)
                              : add_bias<bf16_t>(stream, rows, n, bias, (bf16_t *)y);
}

shoal_status cuda_add_bias_f32(cudaStream_t stream, int64_t rows, int64_t n, enum dtype dtype,
                               const void *bias, float *y)
{
    SHOAL_TRY(check_dtype("add bias", dtype));
    SHOAL_TRY(check_rows("add bias", rows, n));
    return dtype == DTYPE_F32 ? add_bias<float>(stream, rows, n, bias, y)
                              : add_bias<bf16_t>(stream, rows, n, bias, y);
}

shoal_status column_sums(cudaStream_t stream, const char *what, int64_t rows, int64_t n,
                         const float *x, float *sums)
{
    return launch(what, column_sums_kernel<float, 1>, dim3((unsigned)ceil_div(n, SUM_LANES)),
                  SUM_LANES * SUM_STREAMS, 0, stream, rows, n, rows, x, sums, false);
}

static int64_t bias_block_rows(int64_t rows)
{
    const int64_t block = ceil_div(rows, 256);

    return block > 64 ? block : 64;
}

size_t cuda_bias_gradient_scratch_bytes(int64_t rows, int64_t n)
{
    return (size_t)(ceil_div(rows, bias_block_rows(rows)) * n) * sizeof(float);
}

template <typename T>
static shoal_status bias_partial(cudaStream_t stream, int64_t rows, int64_t n, const void *dy,
                                 float *partial)
{
    const int64_t block_rows = bias_block_rows(rows);
    const dim3 grid((unsigned)ceil_div(n, SUM_LANES * GROUP), (unsigned)ceil_div(rows, block_rows));

    return launch("bias gradient", column_sums_kernel<T, GROUP>, grid, SUM_LANES * SUM_STREAMS, 0,
                  stream, rows, n, block_rows, (const T *)dy, partial,
                  n % GROUP == 0 && is_aligned(dy));
}

shoal_status cuda_bias_gradient(cudaStream_t stream, int64_t rows, int64_t n, enum dtype dtype,
                                const void *dy, float *dbias, void *scratch)
{
    float *partial = (float *)scratch;

    SHOAL_TRY(check_dtype("bias gradient", dtype));
    SHOAL_TRY(check_rows("bias gradient", rows, n));
    SHOAL_TRY((dtype == DTYPE_F32 ? bias_partial<float> : bias_partial<bf16_t>)(stream, rows, n, dy,
                                                                                partial));
    return column_sums(stream, "bias gradient", ceil_div(rows, bias_block_rows(rows)), n, partial,
                       dbias);
}

/* GELU (tanh form) and SwiGLU, forward and backward; a thread per group of eight elements. */
#include "models/ops/cuda/kernels_internal.cuh"

enum { ACTIVATION_THREADS = 256 };

/* ---- kernels ---- */

/* 1 / (1 + e^-x), and one minus that without cancellation; the bounds are the cpu's. */
static __device__ __forceinline__ float sigmoid(float x, float *complement_out)
{
    const float bounded = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    const float e = expf(-bounded);
    const float y = 1.0f / (1.0f + e);

    *complement_out = e * y;
    return y;
}

#define TWO_ROOT 1.5957691216057308f /* 2 sqrt(2/pi): gelu(x) = x sigmoid(2u), see the cpu's */
#define CUBIC    0.044715f

static __device__ __forceinline__ float gelu_of(float x)
{
    float rest;

    return x * sigmoid(TWO_ROOT * x * (1.0f + CUBIC * x * x), &rest);
}

/* gelu_of and its derivative. */
static __device__ __forceinline__ float gelu_and_slope(float x, float *slope_out)
{
    float rest;
    const float s = sigmoid(TWO_ROOT * x * (1.0f + CUBIC * x * x), &rest);

    *slope_out = s + x * s * rest * (TWO_ROOT * (1.0f + 3.0f * CUBIC * x * x));
    return x * s;
}

static __device__ __forceinline__ int64_t flat_group()
{
    return ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * GROUP;
}

template <typename T>
static __global__ void __launch_bounds__(ACTIVATION_THREADS)
    gelu_kernel(int64_t n, const T *x, T *y, bool vector)
{
    const int64_t i = flat_group();

    if (i >= n)
        return;
    struct group v = load_group(x, i, n, vector);
    for (int j = 0; j < GROUP; j++)
        v.v[j] = gelu_of(v.v[j]);
    store_group(y, i, n, vector, v);
}

/* dx, and y unless it is NULL.  dx may be dy: a group is read before it is written. */
template <typename T>
static __global__ void __launch_bounds__(ACTIVATION_THREADS)
    gelu_backward_kernel(int64_t n, const T *x, const T *dy, T *y, T *dx, bool vector)
{
    const int64_t i = flat_group();

    if (i >= n)
        return;
    const packed<T> x_loaded = load_packed(x, i, n, vector);
    const packed<T> dy_loaded = load_packed(dy, i, n, vector);
    struct group v = unpack(x_loaded);
    struct group d = unpack(dy_loaded);
    for (int j = 0; j < GROUP; j++) {
        float slope;
        v.v[j] = gelu_and_slope(v.v[j], &slope);
        d.v[j] = d.v[j] * slope;
    }
    if (y != NULL)
        store_group(y, i, n, vector, v);
    store_group(dx, i, n, vector, d);
}

/* blockIdx.x: row, blockIdx.y: part of the row. */
template <typename T>
static __global__ void __launch_bounds__(ACTIVATION_THREADS)
    swiglu_kernel(int64_t F, const T *gate_up, T *y, bool vector)
{
    const T *gate = gate_up + (int64_t)blockIdx.x * 2 * F;
    const int64_t step = (int64_t)gridDim.y * blockDim.x * GROUP;

    y += (int64_t)blockIdx.x * F;
    for (int64_t i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * GROUP; i < F; i += step) {
        const packed<T> gate_loaded = load_packed(gate, i, F, vector);
        const packed<T> up_loaded = load_packed(gate + F, i, F, vector);
        struct group g = unpack(gate_loaded);
        const struct group u = unpack(up_loaded);
        float rest;
        for (int j = 0; j < GROUP; j++)
            g.v[j] = g.v[j] * sigmoid(g.v[j], &rest) * u.v[j];
        store_group(y, i, F, vector, g);
    }
}

template <typename T>
static __global__ void __launch_bounds__(ACTIVATION_THREADS)
    swiglu_backward_kernel(int64_t F, const T *gate_up, const T *dy, T *dgate_up, bool vector)
{
    const T *gate = gate_up + (int64_t)blockIdx.x * 2 * F;
    T *dgate = dgate_up + (int64_t)blockIdx.x * 2 * F;
    const int64_t step = (int64_t)gridDim.y * blockDim.x * GROUP;

    dy += (int64_t)blockIdx.x * F;
    for (int64_t i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * GROUP; i < F; i += step) {
        const packed<T> gate_loaded = load_packed(gate, i, F, vector);
        const packed<T> up_loaded = load_packed(gate + F, i, F, vector);
        const packed<T> dy_loaded = load_packed(dy, i, F, vector);
        struct group g = unpack(gate_loaded);
        struct group u = unpack(up_loaded);
        const struct group d = unpack(dy_loaded);
        for (int j = 0; j < GROUP; j++) {
            float rest;
            const float s = sigmoid(g.v[j], &rest);
            const float dup = d.v[j] * (g.v[j] * s);
            g.v[j] = d.v[j] * u.v[j] * (s * (1.0f + g.v[j] * rest));
            u.v[j] = dup;
        }
        store_group(dgate, i, F, vector, g);
        store_group(dgate + F, i, F, vector, u);
    }
}

/* ---- launchers ---- */

static dim3 flat_grid(int64_t n)
{
    return dim3((unsigned)ceil_div(n, (int64_t)ACTIVATION_THREADS * GROUP));
}

template <typename T>
static shoal_status gelu(cudaStream_t stream, int64_t n, const void *x, void *y)
{
    return launch("gelu", gelu_kernel<T>, flat_grid(n), ACTIVATION_THREADS, 0, stream, n,
                  (const T *)x, (T *)y, is_aligned(x) && is_aligned(y));
}

shoal_status cuda_gelu(cudaStream_t stream, int64_t n, enum dtype dtype, const void *x, void *y)
{
    SHOAL_TRY(check_dtype("gelu", dtype));
    SHOAL_TRY(check_range("gelu", "number of elements", n, 0, ELEMENTS_MAX));
    if (n == 0)
        return SHOAL_OK;
    return (dtype == DTYPE_F32 ? gelu<float> : gelu<bf16_t>)(stream, n, x, y);
}

template <typename T>
static shoal_status gelu_backward(cudaStream_t stream, int64_t n, const void *x, const void *dy,
                                  void *y, void *dx)
{
    return launch("gelu backward", gelu_backward_kernel<T>, flat_grid(n), ACTIVATION_THREADS, 0,
                  stream, n, (const T *)x, (const T *)dy, (T *)y, (T *)dx,
                  is_aligned(x) && is_aligned(dy) && is_aligned(y) && is_aligned(dx));
}

shoal_status cuda_gelu_again(cudaStream_t stream, int64_t n, enum dtype dtype, const void *x,
                             const void *dy, void *y, void *dx)
{
    SHOAL_TRY(check_dtype("gelu backward", dtype));
    SHOAL_TRY(check_range("gelu backward", "number of elements", n, 0, ELEMENTS_MAX));
    if (n == 0)
        return SHOAL_OK;
    return (dtype == DTYPE_F32 ? gelu_backward<float> : gelu_backward<bf16_t>)(stream, n, x, dy, y,
                                                                               dx);
}

shoal_status cuda_gelu_backward(cudaStream_t stream, int64_t n, enum dtype dtype, const void *x,
                                const void *dy, void *dx)
{
    return cuda_gelu_again(stream, n, dtype, x, dy, NULL, dx);
}

/* Long rows are shared by several blocks. */
static dim3 row_grid(int64_t N, int64_t F)
{
    const int64_t parts = ceil_div(F, (int64_t)ACTIVATION_THREADS * GROUP);

    return dim3((unsigned)N, (unsigned)(parts < 64 ? parts : 64));
}

template <typename T>
static shoal_status swiglu(cudaStream_t stream, int64_t N, int64_t F, const void *gate_up, void *y)
{
    return launch("swiglu", swiglu_kernel<T>, row_grid(N, F), threads_for(F, ACTIVATION_THREADS), 0,
                  stream, F, (const T *)gate_up, (T *)y,
                  F % GROUP == 0 && is_aligned(gate_up) && is_aligned(y));
}

shoal_status cuda_swiglu(cudaStream_t stream, int64_t N, int64_t F, enum dtype dtype,
                         const void *gate_up, void *y)
{
    SHOAL_TRY(check_dtype("swiglu", dtype));
    SHOAL_TRY(check_rows("swiglu", N, F));
    return (dtype == DTYPE_F32 ? swiglu<float> : swiglu<bf16_t>)(stream, N, F, gate_up, y);
}

template <typename T>
static shoal_status swiglu_backward(cudaStream_t stream, int64_t N, int64_t F, const void *gate_up,
                                    const void *dy, void *dgate_up)
{
    return launch("swiglu backward", swiglu_backward_kernel<T>, row_grid(N, F),
                  threads_for(F, ACTIVATION_THREADS), 0, stream, F, (const T *)gate_up,
                  (const T *)dy, (T *)dgate_up,
                  F % GROUP == 0 && is_aligned(gate_up) && is_aligned(dy) && is_aligned(dgate_up));
}

shoal_status cuda_swiglu_backward(cudaStream_t stream, int64_t N, int64_t F, enum dtype dtype,
                                  const void *gate_up, const void *dy, void *dgate_up)
{
    SHOAL_TRY(check_dtype("swiglu backward", dtype));
    SHOAL_TRY(check_rows("swiglu backward", N, F));
    return (dtype == DTYPE_F32 ? swiglu_backward<float>
                               : swiglu_backward<bf16_t>)(stream, N, F, gate_up, dy, dgate_up);
}

/*
 * Embedding.  Backward without float atomics: tokens are counted, their ranks among equal tokens
 * found by comparing all pairs (integers only: cheap beside the rows up to some 100,000 tokens),
 * and each row of the vocabulary then sums its rows of dx in token order, as the cpu does.
 */
#include "models/ops/cuda/kernels_internal.cuh"

enum { EMBEDDING_THREADS = 256, SCAN_THREADS = 1024, SCAN_ITEMS = 8, AHEAD = 8 };

/* ---- kernels ---- */

template <typename T>
static __global__ void __launch_bounds__(EMBEDDING_THREADS)
    embedding_kernel(int64_t T_length, int64_t C, const int32_t *tokens, const T *wte, const T *wpe,
                     int64_t first_position, float *x, bool vector)
{
    const int64_t row = blockIdx.x;
    const T *token = wte + tokens[row] * C;
    const int64_t at = first_position + blockIdx.x % (unsigned)T_length;
    const T *position = wpe == NULL ? NULL : wpe + at * C;

    x += row * C;
    for (int64_t c = (int64_t)threadIdx.x * GROUP; c < C; c += (int64_t)blockDim.x * GROUP) {
        const packed<T> token_loaded = load_packed(token, c, C, vector);
        packed<T> position_loaded = {};
        if (position != NULL)
            position_loaded = load_packed(position, c, C, vector);
        struct group v = unpack(token_loaded);
        if (position != NULL) {
            const struct group p = unpack(position_loaded);
            for (int j = 0; j < GROUP; j++)
                v.v[j] += p.v[j];
        }
        store_group(x, c, C, vector, v);
    }
}

/* offsets [V + 1] is zero before; after: offsets[v + 1] = how often v occurs. */
static __global__ void __launch_bounds__(EMBEDDING_THREADS)
    count_kernel(int64_t n, int64_t V, const int32_t *tokens, int32_t *offsets)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i < n && tokens[i] >= 0 && tokens[i] < V)
        atomicAdd(&offsets[tokens[i] + 1], 1);
}

/* Inclusive prefix sums of a [n] in place, by one block; a thread owns SCAN_ITEMS neighbours. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan_kernel(int64_t n, int32_t *a)
{
    __shared__ int32_t warp_totals[SCAN_THREADS / WARP];
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    int32_t before = 0; /* sum of all earlier passes */

    for (int64_t base = 0; base < n; base += SCAN_THREADS * SCAN_ITEMS) {
        const int64_t first = base + (int64_t)threadIdx.x * SCAN_ITEMS;
        int32_t items[SCAN_ITEMS];
        int32_t sum = 0;
        for (int j = 0; j < SCAN_ITEMS; j++) {
            sum += first + j < n ? a[first + j] : 0;
            items[j] = sum;
        }
        int32_t scanned = sum; /* becomes the warp's inclusive scan */
        for (int step = 1; step < WARP; step *= 2) {
            const int32_t other = __shfl_up_sync(0xffffffffu, scanned, step);
            if (lane >= step)
                scanned += other;
        }
        if (lane == WARP - 1)
            warp_totals[warp] = scanned;
        __syncthreads();
        int32_t start = before + scanned - sum;
        for (int i = 0; i < SCAN_THREADS / WARP; i++) {
            if (i < warp)
                start += warp_totals[i];
            before += warp_totals[i];
        }
        for (int j = 0; j < SCAN_ITEMS; j++)
            if (first + j < n)
                a[first + j] = start + items[j];
        __syncthreads();
    }
}

/* order[offsets[v] + r] = the r-th position that holds v. */
static __global__ void __launch_bounds__(EMBEDDING_THREADS)
    order_kernel(int64_t n, int64_t V, const int32_t *tokens, const int32_t *offsets,
                 int32_t *order)
{
    __shared__ __align__(16) int32_t tile[EMBEDDING_THREADS]; /* read by fours */
    const int64_t i = (int64_t)blockIdx.x * EMBEDDING_THREADS + threadIdx.x;
    const int32_t mine = i < n ? tokens[i] : -1;
    int32_t rank = 0;

    for (int64_t base = 0; base <= (int64_t)blockIdx.x * EMBEDDING_THREADS;
         base += EMBEDDING_THREADS) {
        const int64_t j = base + threadIdx.x;
        const int64_t earlier = i - base;
        __syncthreads();
        tile[threadIdx.x] = j < n ? tokens[j] : -1;
        __syncthreads();
        if (earlier >= EMBEDDING_THREADS) {
#pragma unroll 16
            for (int k = 0; k < EMBEDDING_THREADS; k++)
                rank += tile[k] == mine;
        } else {
            for (int k = 0; k < (int)earlier; k++)
                rank += tile[k] == mine;
        }
    }
    if (mine >= 0 && mine < V)
        order[offsets[mine] + rank] = (int32_t)i;
}

static __device__ __forceinline__ void add_to(float &sum, float x)
{
    sum += x;
}

static __device__ __forceinline__ void add_to(float4 &sum, float4 x)
{
    sum.x += x.x;
    sum.y += x.y;
    sum.z += x.z;
    sum.w += x.w;
}

/* blockIdx.x: row of the vocabulary, blockIdx.y: part of the channels; a thread owns 4 or 1. */
template <typename P>
static __global__ void __launch_bounds__(EMBEDDING_THREADS)
    token_sums_kernel(int64_t pieces, const int32_t *offsets, const int32_t *order, const P *dx,
                      P *dwte)
{
    const int64_t c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    const int32_t end = offsets[blockIdx.x + 1];
    int32_t i = offsets[blockIdx.x];
    P sum = {};

    if (c >= pieces)
        return;
    for (; i + AHEAD <= end; i += AHEAD) {
        P rows[AHEAD];
        for (int j = 0; j < AHEAD; j++)
            rows[j] = dx[order[i + j] * pieces + c];
        for (int j = 0; j < AHEAD; j++)
            add_to(sum, rows[j]);
    }
    for (; i < end; i++)
        add_to(sum, dx[order[i] * pieces + c]);
    dwte[blockIdx.x * pieces + c] = sum;
}

/* blockIdx.x: position, summed over the sequences in order; zero behind T. */
template <typename P>
static __global__ void __launch_bounds__(EMBEDDING_THREADS)
    position_sums_kernel(int64_t B, int64_t T_length, int64_t pieces, const P *dx, P *dwpe)
{
    const int64_t position = blockIdx.x;
    const int64_t c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    P sum = {};
    int64_t b = position < T_length ? 0 : B;

    if (c >= pieces)
        return;
    for (; b + AHEAD <= B; b += AHEAD) {
        P rows[AHEAD];
        for (int j = 0; j < AHEAD; j++)
            rows[j] = dx[((b + j) * T_length + position) * pieces + c];
        for (int j = 0; j < AHEAD; j++)
            add_to(sum, rows[j]);
    }
    for (; b < B; b++)
        add_to(sum, dx[(b * T_length + position) * pieces + c]);
    dwpe[position * pieces + c] = sum;
}

/* ---- launchers ---- */

template <typename T>
static shoal_status embedding(cudaStream_t stream, int64_t rows, int64_t T_length, int64_t C,
                              const int32_t *tokens, const void *wte, const void *wpe,
                              int64_t first_position, float *x)
{
    const bool vector = C % GROUP == 0 && is_aligned(wte) && is_aligned(wpe) && is_aligned(x);

    return launch("embedding", embedding_kernel<T>, dim3((unsigned)rows),
                  threads_for(C, EMBEDDING_THREADS), 0, stream, T_length, C, tokens, (const T *)wte,
                  (const T *)wpe, first_position, x, vector);
}

shoal_status cuda_embedding(cudaStream_t stream, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                            const int32_t *tokens, const void *wte, const void *wpe,
                            int64_t first_position, float *x)
{
    SHOAL_TRY(check_dtype("embedding", dtype));
    SHOAL_TRY(check_range("embedding", "length", T, 1, GRID_X_MAX));
    SHOAL_TRY(check_range("embedding", "batch", B, 1, GRID_X_MAX / T));
    SHOAL_TRY(check_rows("embedding", B * T, C));
    return (dtype == DTYPE_F32 ? embedding<float> : embedding<bf16_t>)(stream, B * T, T, C, tokens,
                                                                       wte, wpe, first_position, x);
}

/* offsets [V + 1], order [B * T] */
size_t cuda_embedding_backward_scratch_bytes(int64_t B, int64_t T, int64_t V)
{
    return (size_t)(V + 1 + B * T) * sizeof(int32_t);
}

static shoal_status sort_tokens(cudaStream_t stream, int64_t n, int64_t V, const int32_t *tokens,
                                int32_t *offsets, int32_t *order)
{
    const dim3 grid((unsigned)ceil_div(n, EMBEDDING_THREADS));

    SHOAL_TRY(cuda_zero(stream, (size_t)(V + 1) * sizeof *offsets, offsets));
    SHOAL_TRY(launch("embedding backward: count", count_kernel, grid, EMBEDDING_THREADS, 0, stream,
                     n, V, tokens, offsets));
    SHOAL_TRY(launch("embedding backward: scan", scan_kernel, dim3(1), SCAN_THREADS, 0, stream,
                     V + 1, offsets));
    return launch("embedding backward: order", order_kernel, grid, EMBEDDING_THREADS, 0, stream, n,
                  V, tokens, (const int32_t *)offsets, order);
}

template <typename P>
static shoal_status sum_rows(cudaStream_t stream, int64_t B, int64_t T, int64_t pieces, int64_t V,
                             int64_t T_max, const int32_t *offsets, const int32_t *order,
                             const float *dx, float *dwte, float *dwpe)
{
    const int64_t parts = ceil_div(pieces, EMBEDDING_THREADS);

    SHOAL_TRY(check_range("embedding backward", "number of parts of a row", parts, 1, GRID_YZ_MAX));
    const int64_t covered = round_up(ceil_div(pieces, parts), WARP);
    SHOAL_TRY(launch("embedding backward: tokens", token_sums_kernel<P>,
                     dim3((unsigned)V, (unsigned)parts), (int)covered, 0, stream, pieces, offsets,
                     order, (const P *)dx, (P *)dwte));
    if (dwpe == NULL)
        return SHOAL_OK;
    return launch("embedding backward: positions", position_sums_kernel<P>,
                  dim3((unsigned)T_max, (unsigned)parts), (int)covered, 0, stream, B, T, pieces,
                  (const P *)dx, (P *)dwpe);
}

shoal_status cuda_embedding_backward(cudaStream_t stream, int64_t B, int64_t T, int64_t C,
                                     int64_t V, int64_t T_max, const int32_t *tokens,
                                     const float *dx, float *dwte, float *dwpe, void *scratch)
{
    int32_t *offsets = (int32_t *)scratch;
    int32_t *order = offsets + V + 1;

    SHOAL_TRY(check_range("embedding backward", "length", T, 1, GRID_X_MAX));
    SHOAL_TRY(check_range("embedding backward", "batch", B, 1, GRID_X_MAX / T));
    SHOAL_TRY(check_range("embedding backward", "vocabulary", V, 1, GRID_X_MAX - 1));
    SHOAL_TRY(check_rows("embedding backward", B * T, C));
    if (dwpe != NULL)
        SHOAL_TRY(check_range("embedding backward", "number of positions", T_max, T, GRID_X_MAX));
    SHOAL_TRY(sort_tokens(stream, B * T, V, tokens, offsets, order));
    const bool vector = C % 4 == 0 && is_aligned(dx) && is_aligned(dwte) && is_aligned(dwpe);
    return (vector ? sum_rows<float4> : sum_rows<float>)(stream, B, T, vector ? C / 4 : C, V, T_max,
                                                         offsets, order, dx, dwte, dwpe);
}

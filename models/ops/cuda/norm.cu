/* LayerNorm and RMSNorm: a block per row forward, a block per block of rows backward. */
#include "models/ops/cuda/kernels_internal.cuh"

enum { NORM_THREADS_MAX = 256 };

/* ---- kernels ---- */

/* The row is read from memory once; the second and third pass find it in the cache. */
template <typename T>
static __global__ void __launch_bounds__(NORM_THREADS_MAX)
    norm_kernel(bool layer, int64_t C, float eps, const float *x, const T *w, const T *b, T *y,
                float *stats, bool vector)
{
    const int64_t row = blockIdx.x;
    const int64_t first = (int64_t)threadIdx.x * GROUP;
    const int64_t step = (int64_t)blockDim.x * GROUP;
    float mean = 0.0f;
    float squares = 0.0f;

    x += row * C;
    y += row * C;
    if (layer) {
        float sum = 0.0f;
        for (int64_t c = first; c < C; c += step) {
            const struct group v = load_group(x, c, C, vector);
            for (int j = 0; j < GROUP; j++)
                sum += v.v[j];
        }
        mean = block_sum(sum) / (float)C;
    }
    for (int64_t c = first; c < C; c += step) {
        const struct group v = load_group(x, c, C, vector);
        for (int j = 0; j < GROUP; j++)
            if (c + j < C)
                squares += (v.v[j] - mean) * (v.v[j] - mean);
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares) / (float)C + eps);

    for (int64_t c = first; c < C; c += step) {
        struct group v = load_group(x, c, C, vector);
        const struct group scale = load_group(w, c, C, vector);
        for (int j = 0; j < GROUP; j++)
            v.v[j] = (v.v[j] - mean) * rstd * scale.v[j];
        if (b != NULL) {
            const struct group shift = load_group(b, c, C, vector);
            for (int j = 0; j < GROUP; j++)
                v.v[j] += shift.v[j];
        }
        store_group(y, c, C, vector, v);
    }
    if (threadIdx.x == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

/*
 * The formulas of the cpu's norm_backward.  A thread owns columns: it alone adds to their dw and
 * db, which lie in shared memory if they fit (`sums_shared`), else in their place in `partial`
 * [blocks, C], then the same for db.
 */
template <typename T>
static __global__ void __launch_bounds__(NORM_THREADS_MAX)
    norm_backward_kernel(bool layer, int64_t N, int64_t C, int64_t block_rows, const T *dy,
                         const float *x, const T *w, const float *stats, float *dx,
                         float *partial_dw, float *partial_db, bool vector, bool sums_shared)
{
    const int64_t first = (int64_t)threadIdx.x * GROUP;
    const int64_t step = (int64_t)blockDim.x * GROUP;
    const int64_t begin = (int64_t)blockIdx.x * block_rows;
    const int64_t end = begin + block_rows < N ? begin + block_rows : N;
    float *out_dw = partial_dw + blockIdx.x * C;
    float *out_db = partial_db == NULL ? NULL : partial_db + blockIdx.x * C;
    float *dw = sums_shared ? (float *)dynamic_shared() : out_dw;
    float *db = sums_shared && out_db != NULL ? dw + C : out_db;
    const struct group zero = {};

    for (int64_t c = first; c < C; c += step) {
        store_group(dw, c, C, vector, zero);
        if (db != NULL)
            store_group(db, c, C, vector, zero);
    }
    for (int64_t row = begin; row < end; row++) {
        const float mean = layer ? stats[2 * row] : 0.0f;
        const float rstd = stats[2 * row + 1];
        const float *row_x = x + row * C;
        const T *row_dy = dy + row * C;
        float *row_dx = dx + row * C;
        float g_sum = 0.0f;
        float gx_sum = 0.0f;

        for (int64_t c = first; c < C; c += step) {
            const struct group v = load_group(row_x, c, C, vector);
            const struct group d = load_group(row_dy, c, C, vector);
            const struct group scale = load_group(w, c, C, vector);
            struct group sum = load_group(dw, c, C, vector);
            for (int j = 0; j < GROUP; j++) {
                const float normed = (v.v[j] - mean) * rstd;
                const float g = d.v[j] * scale.v[j];
                g_sum += g;
                gx_sum += g * normed;
                sum.v[j] += d.v[j] * normed;
            }
            store_group(dw, c, C, vector, sum);
            if (db != NULL) {
                sum = load_group(db, c, C, vector);
                for (int j = 0; j < GROUP; j++)
                    sum.v[j] += d.v[j];
                store_group(db, c, C, vector, sum);
            }
        }
        const float g_mean = layer ? block_sum(g_sum) / (float)C : 0.0f;
        const float gx_mean = block_sum(gx_sum) / (float)C;
        for (int64_t c = first; c < C; c += step) {
            const struct group v = load_group(row_x, c, C, vector);
            const struct group d = load_group(row_dy, c, C, vector);
            const struct group scale = load_group(w, c, C, vector);
            struct group change = load_group(row_dx, c, C, vector);
            for (int j = 0; j < GROUP; j++) {
                const float normed = (v.v[j] - mean) * rstd;
                change.v[j] += (d.v[j] * scale.v[j] - g_mean - normed * gx_mean) * rstd;
            }
            store_group(row_dx, c, C, vector, change);
        }
    }
    if (!sums_shared)
        return;
    for (int64_t c = first; c < C; c += step) {
        store_group(out_dw, c, C, vector, load_group(dw, c, C, vector));
        if (db != NULL)
            store_group(out_db, c, C, vector, load_group(db, c, C, vector));
    }
}

/* ---- launchers ---- */

template <typename T>
static shoal_status norm(cudaStream_t stream, bool layer, int64_t N, int64_t C, float eps,
                         const float *x, const void *w, const void *b, void *y, float *stats)
{
    const bool vector =
        C % GROUP == 0 && is_aligned(x) && is_aligned(w) && is_aligned(b) && is_aligned(y);

    return launch("norm", norm_kernel<T>, dim3((unsigned)N), threads_for(C, NORM_THREADS_MAX), 0,
                  stream, layer, C, eps, x, (const T *)w, (const T *)b, (T *)y, stats, vector);
}

shoal_status cuda_norm(cudaStream_t stream, enum norm_kind kind, int64_t N, int64_t C, float eps,
                       enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                       float *stats)
{
    SHOAL_TRY(check_dtype("norm", dtype));
    SHOAL_TRY(check_rows("norm", N, C));
    return (dtype == DTYPE_F32 ? norm<float> : norm<bf16_t>)(stream, kind == NORM_LAYER, N, C, eps,
                                                             x, w, b, y, stats);
}

/* Enough blocks for a large GPU, few enough that their sums are small beside the rows. */
static int64_t backward_block_rows(int64_t N)
{
    const int64_t rows = ceil_div(N, 512);

    return rows > 8 ? rows : 8;
}

size_t cuda_norm_backward_scratch_bytes(int64_t N, int64_t C)
{
    return (size_t)(2 * ceil_div(N, backward_block_rows(N)) * C) * sizeof(float);
}

template <typename T>
static shoal_status norm_backward(cudaStream_t stream, bool layer, int64_t N, int64_t C,
                                  const void *dy, const float *x, const void *w, const float *stats,
                                  float *dx, float *partial_dw, float *partial_db)
{
    const size_t shared_max = 96 << 10; /* two blocks on a multiprocessor of 228 KiB */
    const size_t sums_bytes = (size_t)C * (partial_db == NULL ? 1 : 2) * sizeof(float);
    const bool sums_shared = sums_bytes <= shared_max;
    const bool vector = C % GROUP == 0 && is_aligned(dy) && is_aligned(x) && is_aligned(w) &&
                        is_aligned(dx) && is_aligned(partial_dw);
    const int64_t block_rows = backward_block_rows(N);

    return launch("norm backward", norm_backward_kernel<T>, dim3((unsigned)ceil_div(N, block_rows)),
                  threads_for(C, NORM_THREADS_MAX), sums_shared ? sums_bytes : 0, stream, layer, N,
                  C, block_rows, (const T *)dy, x, (const T *)w, stats, dx, partial_dw, partial_db,
                  vector, sums_shared);
}

shoal_status cuda_norm_backward(cudaStream_t stream, enum norm_kind kind, int64_t N, int64_t C,
                                enum dtype dtype, const void *dy, const float *x, const void *w,
                                const float *stats, float *dx, float *dw, float *db, void *scratch)
{
    const int64_t blocks = ceil_div(N, backward_block_rows(N));
    float *partial_dw = (float *)scratch;
    float *partial_db = db == NULL ? NULL : partial_dw + blocks * C;

    SHOAL_TRY(check_dtype("norm backward", dtype));
    SHOAL_TRY(check_rows("norm backward", N, C));
    SHOAL_TRY((dtype == DTYPE_F32 ? norm_backward<float>
                                  : norm_backward<bf16_t>)(stream, kind == NORM_LAYER, N, C, dy, x,
                                                           w, stats, dx, partial_dw, partial_db));
    SHOAL_TRY(column_sums(stream, "norm dw", blocks, C, partial_dw, dw));
    return db == NULL ? SHOAL_OK : column_sums(stream, "norm db", blocks, C, partial_db, db);
}

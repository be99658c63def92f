/* LayerNorm and RMSNorm: a block per row forward, a block per block of rows backward. */
#include "models/ops/cuda/kernels_internal.cuh"

enum { NORM_THREADS_MAX = 256, BACKWARD_THREADS_MAX = 512 };

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
        for (int64_t c = first; c < C; c += 2 * step) {
            packed<float> two[2];
            load_two(two, x, c, step, C, vector);
            for (int k = 0; k < 2; k++)
                for (int j = 0; j < GROUP; j++)
                    sum += unpack(two[k]).v[j];
        }
        mean = block_sum(sum) / (float)C;
    }
    for (int64_t c = first; c < C; c += 2 * step) {
        packed<float> two[2];
        load_two(two, x, c, step, C, vector);
        for (int k = 0; k < 2; k++) {
            const struct group v = unpack(two[k]);
            const int in_row = in_group(c + k * step, C);
            for (int j = 0; j < GROUP; j++)
                if (j < in_row)
                    squares += (v.v[j] - mean) * (v.v[j] - mean);
        }
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares) / (float)C + eps);

    for (int64_t c = first; c < C; c += step) {
        const packed<float> x_loaded = load_packed(x, c, C, vector);
        const packed<T> w_loaded = load_packed(w, c, C, vector);
        packed<T> b_loaded = {};
        if (b != NULL)
            b_loaded = load_packed(b, c, C, vector);
        struct group v = unpack(x_loaded);
        const struct group scale = unpack(w_loaded);
        for (int j = 0; j < GROUP; j++)
            v.v[j] = (v.v[j] - mean) * rstd * scale.v[j];
        if (b != NULL) {
            const struct group shift = unpack(b_loaded);
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
 * Both sums over the thread's team of `warps` warps; every thread of the block calls it.  Calls take
 * the two halves of `partial` in turns: who writes one half again has seen all leave it.
 */
static __device__ __forceinline__ float2 team_sums(float a, float b, int warps, int turn)
{
    __shared__ float2 partial[2][BACKWARD_THREADS_MAX / WARP];
    const int warp = (int)threadIdx.x / WARP;
    const float2 *team = &partial[turn & 1][warp / warps * warps];

    a = warp_sum(a);
    b = warp_sum(b);
    if (threadIdx.x % WARP == 0)
        partial[turn & 1][warp] = make_float2(a, b);
    __syncthreads();
    float2 total = team[0];
    for (int i = 1; i < warps; i++) {
        total.x += team[i].x;
        total.y += team[i].y;
    }
    return total;
}

template <typename T> struct backward_task {
    bool layer, vector;
    int team; /* threads on a row, whole warps */
    int64_t N, C, block_rows;
    const T *dy;
    const float *x;
    const T *w;
    const float *stats;
    float *dx;
    T *dx_rounded;                  /* or NULL */
    float *partial_dw, *partial_db; /* [blocks, C]; db: or NULL */
};

/* Adds columns of a row to the thread's dw and db, and to the two sums over the row. */
template <typename T>
static __device__ __forceinline__ void add_row(const backward_task<T> &t, int64_t row, float mean,
                                               float rstd, float *dw, float *db, float *g_sum,
                                               float *gx_sum)
{
    const int64_t step = (int64_t)t.team * GROUP;

    for (int64_t c = (int64_t)(threadIdx.x % t.team) * GROUP; c < t.C; c += step) {
        const packed<float> x_loaded = load_packed(t.x + row * t.C, c, t.C, t.vector);
        const packed<T> dy_loaded = load_packed(t.dy + row * t.C, c, t.C, t.vector);
        const packed<T> w_loaded = load_packed(t.w, c, t.C, t.vector);
        const struct group v = unpack(x_loaded);
        const struct group d = unpack(dy_loaded);
        const struct group scale = unpack(w_loaded);
        struct group sum = load_group(dw, c, t.C, t.vector);
        for (int j = 0; j < GROUP; j++) {
            const float normed = (v.v[j] - mean) * rstd;
            const float g = d.v[j] * scale.v[j];
            *g_sum += g;
            *gx_sum += g * normed;
            sum.v[j] += d.v[j] * normed;
        }
        store_group(dw, c, t.C, t.vector, sum);
        if (db == NULL)
            continue;
        sum = load_group(db, c, t.C, t.vector);
        for (int j = 0; j < GROUP; j++)
            sum.v[j] += d.v[j];
        store_group(db, c, t.C, t.vector, sum);
    }
}

template <typename T>
static __device__ __forceinline__ void change_row(const backward_task<T> &t, int64_t row,
                                                  float mean, float rstd, float g_mean,
                                                  float gx_mean)
{
    const int64_t step = (int64_t)t.team * GROUP;

    for (int64_t c = (int64_t)(threadIdx.x % t.team) * GROUP; c < t.C; c += step) {
        const packed<float> x_loaded = load_packed(t.x + row * t.C, c, t.C, t.vector);
        const packed<T> dy_loaded = load_packed(t.dy + row * t.C, c, t.C, t.vector);
        const packed<T> w_loaded = load_packed(t.w, c, t.C, t.vector);
        const packed<float> dx_loaded = load_packed(t.dx + row * t.C, c, t.C, t.vector);
        const struct group v = unpack(x_loaded);
        const struct group d = unpack(dy_loaded);
        const struct group scale = unpack(w_loaded);
        struct group change = unpack(dx_loaded);
        for (int j = 0; j < GROUP; j++) {
            const float normed = (v.v[j] - mean) * rstd;
            change.v[j] += (d.v[j] * scale.v[j] - g_mean - normed * gx_mean) * rstd;
        }
        store_group(t.dx + row * t.C, c, t.C, t.vector, change);
        if (t.dx_rounded != NULL)
            store_group(t.dx_rounded + row * t.C, c, t.C, t.vector, change);
    }
}

/* out [C] = the sums of `n` arrays [C] that lie `stride` apart, in their order. */
static __device__ __forceinline__ void add_teams(int n, int64_t stride, int64_t C,
                                                 const float *sums, float *out, bool vector)
{
    for (int64_t c = (int64_t)threadIdx.x * GROUP; c < C; c += (int64_t)blockDim.x * GROUP) {
        struct group total = load_group(sums, c, C, vector);
        for (int i = 1; i < n; i++) {
            const struct group more = load_group(sums + i * stride, c, C, vector);
            for (int j = 0; j < GROUP; j++)
                total.v[j] += more.v[j];
        }
        store_group(out, c, C, vector, total);
    }
}

/*
 * The formulas of the cpu's norm_backward.  Teams of threads take rows in turns, so that some rows
 * are fetched while others are summed.  A thread owns columns of its team's dw and db, which lie in
 * shared memory if they fit (`sums_shared`), else, for a single team, in their place in `partial`.
 */
template <typename T>
static __global__ void __launch_bounds__(BACKWARD_THREADS_MAX)
    norm_backward_kernel(const backward_task<T> t, bool sums_shared)
{
    const int teams = (int)blockDim.x / t.team;
    const int team = (int)threadIdx.x / t.team;
    const int64_t begin = (int64_t)blockIdx.x * t.block_rows;
    const int64_t end = begin + t.block_rows < t.N ? begin + t.block_rows : t.N;
    const int64_t stride = t.partial_db == NULL ? t.C : 2 * t.C; /* of a team's sums */
    float *out_dw = t.partial_dw + blockIdx.x * t.C;
    float *out_db = t.partial_db == NULL ? NULL : t.partial_db + blockIdx.x * t.C;
    float *shared = (float *)dynamic_shared();
    float *dw = sums_shared ? shared + team * stride : out_dw;
    float *db = sums_shared && out_db != NULL ? dw + t.C : out_db;
    int turn = 0;

    for (int64_t c = (int64_t)(threadIdx.x % t.team) * GROUP; c < t.C; c += t.team * GROUP) {
        store_group(dw, c, t.C, t.vector, group{});
        if (db != NULL)
            store_group(db, c, t.C, t.vector, group{});
    }
    for (int64_t row = begin + team; row - team < end; row += teams) {
        const bool live = row < end;
        const float mean = live && t.layer ? t.stats[2 * row] : 0.0f;
        const float rstd = live ? t.stats[2 * row + 1] : 0.0f;
        float g_sum = 0.0f;
        float gx_sum = 0.0f;

        if (live)
            add_row(t, row, mean, rstd, dw, db, &g_sum, &gx_sum);
        const float2 sums = team_sums(g_sum, gx_sum, t.team / WARP, turn++);
        if (live)
            change_row(t, row, mean, rstd, t.layer ? sums.x / (float)t.C : 0.0f,
                       sums.y / (float)t.C);
    }
    if (!sums_shared)
        return;
    __syncthreads();
    add_teams(teams, stride, t.C, shared, out_dw, t.vector);
    if (out_db != NULL)
        add_teams(teams, stride, t.C, shared + t.C, out_db, t.vector);
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

template <typename T> static shoal_status norm_backward(cudaStream_t stream, backward_task<T> t)
{
    const size_t shared_max = 96 << 10; /* two blocks on a multiprocessor of 228 KiB */
    const size_t team_bytes = (size_t)t.C * (t.partial_db == NULL ? 1 : 2) * sizeof(float);
    const int most = BACKWARD_THREADS_MAX / t.team;
    const int fitting = (int)(shared_max / team_bytes < 8 ? shared_max / team_bytes : 8);
    const bool sums_shared = fitting > 0;
    const int teams = !sums_shared ? 1 : fitting < most ? fitting : most;

    return launch("norm backward", norm_backward_kernel<T>,
                  dim3((unsigned)ceil_div(t.N, t.block_rows)), teams * t.team,
                  sums_shared ? teams * team_bytes : 0, stream, t, sums_shared);
}

shoal_status cuda_norm_backward(cudaStream_t stream, enum norm_kind kind, int64_t N, int64_t C,
                                enum dtype dtype, const void *dy, const float *x, const void *w,
                                const float *stats, float *dx, void *dx_rounded, float *dw,
                                float *db, void *scratch)
{
    SHOAL_TRY(check_dtype("norm backward", dtype));
    SHOAL_TRY(check_rows("norm backward", N, C));
    const int64_t block_rows = backward_block_rows(N), blocks = ceil_div(N, block_rows);
    float *partial_dw = (float *)scratch;
    float *partial_db = db == NULL ? NULL : partial_dw + blocks * C;
    const int team = threads_for(C, NORM_THREADS_MAX);
    const bool vector = C % GROUP == 0 && is_aligned(dy) && is_aligned(x) && is_aligned(w) &&
                        is_aligned(dx) && is_aligned(dx_rounded) && is_aligned(partial_dw);

    if (dtype == DTYPE_F32)
        SHOAL_TRY(norm_backward<float>(stream, {kind == NORM_LAYER, vector, team, N, C, block_rows,
                                                (const float *)dy, x, (const float *)w, stats, dx,
                                                NULL, partial_dw, partial_db}));
    else
        SHOAL_TRY(norm_backward<bf16_t>(
            stream, {kind == NORM_LAYER, vector, team, N, C, block_rows, (const bf16_t *)dy, x,
                     (const bf16_t *)w, stats, dx, (bf16_t *)dx_rounded, partial_dw, partial_db}));
    SHOAL_TRY(column_sums(stream, "norm dw", blocks, C, partial_dw, dw));
    return db == NULL ? SHOAL_OK : column_sums(stream, "norm db", blocks, C, partial_db, db);
}

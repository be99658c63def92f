/*
 * Causal attention in fp32 arithmetic, backward; see attention_simt.cuh and the formulas in
 * cpu/attention_backward.c.  One kernel goes over queries for a tile of keys, which owns its dK and
 * dV, one over keys for a tile of queries, which owns its dQ.
 */
#include "models/ops/cuda/attention_simt.cuh"

#include <math.h>

/* ---- kernels ---- */

struct gradient_scores {
    float p[TILE * SCORES_LD];
    float ds[TILE * SCORES_LD];
    float lse[TILE], delta[TILE];
};

/* lse and delta of queries [q0, q0 + TILE); behind the end p becomes exp(-inf) = 0. */
static __device__ __forceinline__ void load_rows(struct gradient_scores *g,
                                                 const struct attention &a, const float *lse,
                                                 const float *delta, int64_t q0)
{
    const int64_t row = q0 + threadIdx.x;

    if (threadIdx.x >= TILE)
        return;
    g->lse[threadIdx.x] = row < a.T ? lse[row] : INFINITY;
    g->delta[threadIdx.x] = row < a.T ? delta[row] : 0.0f;
}

/* P = exp(S - lse) and dS = P (dP - delta) of queries from q0 and keys from k0. */
static __device__ __forceinline__ void make_scores(struct gradient_scores *g,
                                                   const struct attention &a, const float *q,
                                                   const float *k, const float *dy, const float *v,
                                                   int64_t q0, int64_t k0)
{
    float s[2][2];
    float dp[2][2];

    dot_tiles(s, q, k, a.D);
    dot_tiles(dp, dy, v, a.D);
    for (int i = 0; i < 4; i++) {
        const int row = (int)threadIdx.x / 16 + 16 * (i / 2);
        const int column = (int)threadIdx.x % 16 + 16 * (i % 2);
        const float p =
            k0 + column <= q0 + row ? expf(s[i / 2][i % 2] * a.scale - g->lse[row]) : 0.0f;
        g->p[row * SCORES_LD + column] = p;
        g->ds[row * SCORES_LD + column] = p * (dp[i / 2][i % 2] - g->delta[row]);
    }
}

/* A block per tile of keys, key/value head and sequence; queries of the group's heads in order. */
template <typename T, int COLUMNS>
static __global__ void __launch_bounds__(SIMT_THREADS)
    simt_keys_kernel(struct attention a, const T *dy, const T *qkv, const float *lse,
                     const float *delta, T *dqkv)
{
    __shared__ struct gradient_scores g;
    const int tile = TILE * (a.D + 1);
    float *k = (float *)dynamic_shared();
    float *v = k + tile;
    float *q = v + tile;
    float *d = q + tile;
    const int kv_head = (int)blockIdx.y;
    const int64_t b = blockIdx.z;
    const int group = a.H / a.K;
    const int64_t k0 = (int64_t)blockIdx.x * TILE;
    const int r = (int)threadIdx.x / PER_ROW;
    float dk[COLUMNS] = {};
    float dv[COLUMNS] = {};

    load_tile(k, qkv + key_offset(a, b, kv_head), a.width, k0, a.T, a.D);
    load_tile(v, qkv + value_offset(a, b, kv_head), a.width, k0, a.T, a.D);
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (int64_t q0 = k0; q0 < a.T; q0 += TILE) {
            __syncthreads(); /* the tiles before are used up */
            load_tile(q, qkv + query_offset(a, b, h), a.width, q0, a.T, a.D);
            load_tile(d, dy + output_offset(a, b, h), (int64_t)a.H * a.D, q0, a.T, a.D);
            load_rows(&g, a, lse + row_offset(a, b, h), delta + row_offset(a, b, h), q0);
            __syncthreads();
            make_scores(&g, a, q, k, d, v, q0, k0);
            __syncthreads();
            for (int i = 0; i < TILE; i++) {
                add_row<COLUMNS>(dv, g.p[i * SCORES_LD + r], d + i * (a.D + 1), a.D);
                add_row<COLUMNS>(dk, g.ds[i * SCORES_LD + r], q + i * (a.D + 1), a.D);
            }
        }
    store_row<T, COLUMNS>(dqkv + key_offset(a, b, kv_head), a.width, k0 + r, a.T, a.scale, dk, a.D);
    store_row<T, COLUMNS>(dqkv + value_offset(a, b, kv_head), a.width, k0 + r, a.T, 1.0f, dv, a.D);
}

/* A block per tile of queries (the longest first), head and sequence. */
template <typename T, int COLUMNS>
static __global__ void __launch_bounds__(SIMT_THREADS)
    simt_queries_kernel(struct attention a, const T *dy, const T *qkv, const float *lse,
                        const float *delta, T *dqkv)
{
    __shared__ struct gradient_scores g;
    const int tile = TILE * (a.D + 1);
    float *q = (float *)dynamic_shared();
    float *d = q + tile;
    float *k = d + tile;
    float *v = k + tile;
    const int h = (int)blockIdx.y;
    const int64_t b = blockIdx.z;
    const int kv_head = h / (a.H / a.K);
    const int64_t q0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * TILE;
    const int r = (int)threadIdx.x / PER_ROW;
    float dq[COLUMNS] = {};

    load_tile(q, qkv + query_offset(a, b, h), a.width, q0, a.T, a.D);
    load_tile(d, dy + output_offset(a, b, h), (int64_t)a.H * a.D, q0, a.T, a.D);
    load_rows(&g, a, lse + row_offset(a, b, h), delta + row_offset(a, b, h), q0);
    for (int64_t k0 = 0; k0 <= q0; k0 += TILE) {
        __syncthreads(); /* the tiles before are used up */
        load_tile(k, qkv + key_offset(a, b, kv_head), a.width, k0, a.T, a.D);
        load_tile(v, qkv + value_offset(a, b, kv_head), a.width, k0, a.T, a.D);
        __syncthreads();
        make_scores(&g, a, q, k, d, v, q0, k0);
        __syncthreads();
        for (int j = 0; j < TILE; j++)
            add_row<COLUMNS>(dq, g.ds[r * SCORES_LD + j], k + j * (a.D + 1), a.D);
    }
    store_row<T, COLUMNS>(dqkv + query_offset(a, b, h), a.width, q0 + r, a.T, a.scale, dq, a.D);
}

/* ---- launchers ---- */

/* Four tiles: of queries, keys, values and dy. */
static size_t tiles_bytes(const struct attention_shape *s)
{
    return (size_t)(4 * TILE * (s->D + 1)) * sizeof(float);
}

size_t attention_simt_backward_shared_bytes(const struct attention_shape *s)
{
    return tiles_bytes(s) + sizeof(struct gradient_scores);
}

template <typename T, int COLUMNS>
static shoal_status simt_backward(cudaStream_t stream, const struct attention_shape *s,
                                  const struct attention_gradient *g)
{
    const unsigned tiles = (unsigned)ceil_div(s->T, TILE);
    const size_t shared_bytes = tiles_bytes(s);
    const struct attention a = attention_of(s);

    SHOAL_TRY(launch("attention backward: keys", simt_keys_kernel<T, COLUMNS>,
                     dim3(tiles, (unsigned)s->K, (unsigned)s->B), SIMT_THREADS, shared_bytes,
                     stream, a, (const T *)g->dy, (const T *)g->qkv, g->lse, g->delta,
                     (T *)g->dqkv));
    return launch("attention backward: queries", simt_queries_kernel<T, COLUMNS>,
                  dim3(tiles, (unsigned)s->H, (unsigned)s->B), SIMT_THREADS, shared_bytes, stream,
                  a, (const T *)g->dy, (const T *)g->qkv, g->lse, g->delta, (T *)g->dqkv);
}

shoal_status attention_simt_backward(cudaStream_t stream, const struct attention_shape *s,
                                     const struct attention_gradient *g)
{
    return SIMT_DISPATCH(simt_backward, s, stream, s, g);
}

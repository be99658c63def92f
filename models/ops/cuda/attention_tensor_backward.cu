/*
 * Causal attention on tensor cores, backward; see attention_tensor.cuh and the formulas in
 * cpu/attention_backward.c.  One kernel goes over queries for a tile of keys, which owns its dK and
 * dV; it works on transposed scores, whose fragments are the left matrices of Pᵀ dY and dSᵀ Q.  One
 * goes over keys for a tile of queries, which owns its dQ.
 */
#include "models/ops/cuda/attention_tensor.cuh"

#include <math.h>

/* ---- kernels ---- */

/*
 * lse (in powers of two) and delta of queries [q0, q0 + ROWS); behind the end P becomes
 * 2^-inf = 0.
 */
static __device__ __forceinline__ void load_statistics(float *lse2, float *delta, const float *lse,
                                                       const float *deltas, int64_t q0,
                                                       int64_t rows)
{
    for (int i = (int)threadIdx.x; i < ROWS; i += TENSOR_THREADS) {
        lse2[i] = q0 + i < rows ? lse[q0 + i] * LOG2_E : INFINITY;
        delta[i] = q0 + i < rows ? deltas[q0 + i] : 0.0f;
    }
}

/*
 * s becomes P and dp becomes dS = P (dP - delta), for a tile of (left) rows by columns.  With
 * `transposed` the rows are keys and the columns queries.
 */
template <bool transposed>
static __device__ __forceinline__ void
make_gradients(float s[COLUMN_TILES][4], float dp[COLUMN_TILES][4], const float *lse2,
               const float *delta, float factor, bool diagonal)
{
    const int column = (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = fragment_row(i / 2);
            const int c = n * 8 + column + i % 2;
            const int query = transposed ? c : r;
            const int key = transposed ? r : c;
            const bool hidden = diagonal && key > query;
            const float p = hidden ? 0.0f : exp2f(s[n][i] * factor - lse2[query]);
            s[n][i] = p;
            dp[n][i] = p * (dp[n][i] - delta[query]);
        }
}

/* A block per tile of keys, key/value head and sequence; queries of the group's heads in order. */
template <int D>
static __global__ void __launch_bounds__(TENSOR_THREADS)
    tensor_keys_kernel(struct attention a, const bf16_t *dy, const bf16_t *qkv, const float *lse,
                       const float *delta, bf16_t *dqkv)
{
    __shared__ float row_lse[ROWS];
    __shared__ float row_delta[ROWS];
    bf16_t *k = (bf16_t *)dynamic_shared();
    bf16_t *v = k + ROWS * tile_ld<D>;
    bf16_t *q = v + ROWS * tile_ld<D>;
    bf16_t *d = q + ROWS * tile_ld<D>;
    const int kv_head = (int)blockIdx.y;
    const int64_t b = blockIdx.z;
    const int group = a.H / a.K;
    const int64_t k0 = (int64_t)blockIdx.x * ROWS;
    const int first_row = (int)threadIdx.x / WARP * WARP_ROWS;
    float dk[D / 8][4] = {};
    float dv[D / 8][4] = {};

    load_rows<D>(k, qkv + key_offset(a, b, kv_head), a.width, k0, a.T);
    load_rows<D>(v, qkv + value_offset(a, b, kv_head), a.width, k0, a.T);
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (int64_t q0 = k0; q0 < a.T; q0 += ROWS) {
            float s[COLUMN_TILES][4];
            float dp[COLUMN_TILES][4];
            __syncthreads(); /* the tiles before are used up */
            load_rows<D>(q, qkv + query_offset(a, b, h), a.width, q0, a.T);
            load_rows<D>(d, dy + output_offset(a, b, h), (int64_t)a.H * D, q0, a.T);
            load_statistics(row_lse, row_delta, lse + row_offset(a, b, h),
                            delta + row_offset(a, b, h), q0, a.T);
            __syncthreads();
            multiply_transposed<D>(s, k, first_row, q);
            multiply_transposed<D>(dp, v, first_row, d);
            make_gradients<true>(s, dp, row_lse, row_delta, a.scale * LOG2_E, q0 == k0);
            multiply_add<D>(dv, s, d);
            multiply_add<D>(dk, dp, q);
        }
    for (int half = 0; half < 2; half++) {
        const int64_t row = k0 + fragment_row(half);
        if (row >= a.T)
            continue;
        store_fragment_row<D>(dqkv + key_offset(a, b, kv_head) + row * a.width, dk, half, a.scale);
        store_fragment_row<D>(dqkv + value_offset(a, b, kv_head) + row * a.width, dv, half, 1.0f);
    }
}

/* A block per tile of queries (the longest first), head and sequence. */
template <int D>
static __global__ void __launch_bounds__(TENSOR_THREADS)
    tensor_queries_kernel(struct attention a, const bf16_t *dy, const bf16_t *qkv, const float *lse,
                          const float *delta, bf16_t *dqkv)
{
    __shared__ float row_lse[ROWS];
    __shared__ float row_delta[ROWS];
    bf16_t *q = (bf16_t *)dynamic_shared();
    bf16_t *d = q + ROWS * tile_ld<D>;
    bf16_t *k = d + ROWS * tile_ld<D>;
    bf16_t *v = k + ROWS * tile_ld<D>;
    const int h = (int)blockIdx.y;
    const int64_t b = blockIdx.z;
    const int kv_head = h / (a.H / a.K);
    const int64_t q0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int first_row = (int)threadIdx.x / WARP * WARP_ROWS;
    float dq[D / 8][4] = {};

    load_rows<D>(q, qkv + query_offset(a, b, h), a.width, q0, a.T);
    load_rows<D>(d, dy + output_offset(a, b, h), (int64_t)a.H * D, q0, a.T);
    load_statistics(row_lse, row_delta, lse + row_offset(a, b, h), delta + row_offset(a, b, h), q0,
                    a.T);
    for (int64_t k0 = 0; k0 <= q0; k0 += ROWS) {
        float s[COLUMN_TILES][4];
        float dp[COLUMN_TILES][4];
        __syncthreads(); /* the tiles before are used up */
        load_rows<D>(k, qkv + key_offset(a, b, kv_head), a.width, k0, a.T);
        load_rows<D>(v, qkv + value_offset(a, b, kv_head), a.width, k0, a.T);
        __syncthreads();
        multiply_transposed<D>(s, q, first_row, k);
        multiply_transposed<D>(dp, d, first_row, v);
        make_gradients<false>(s, dp, row_lse, row_delta, a.scale * LOG2_E, k0 == q0);
        multiply_add<D>(dq, dp, k);
    }
    for (int half = 0; half < 2; half++) {
        const int64_t row = q0 + fragment_row(half);
        if (row < a.T)
            store_fragment_row<D>(dqkv + query_offset(a, b, h) + row * a.width, dq, half, a.scale);
    }
}

/* ---- launchers ---- */

template <int D>
static shoal_status tensor_backward(cudaStream_t stream, const struct attention_shape *s,
                                    const struct attention_gradient *g)
{
    const unsigned tiles = (unsigned)ceil_div(s->T, ROWS);
    const struct attention a = attention_of(s);

    SHOAL_TRY(launch("attention backward: keys", tensor_keys_kernel<D>,
                     dim3(tiles, (unsigned)s->K, (unsigned)s->B), TENSOR_THREADS, 4 * tile_bytes<D>,
                     stream, a, (const bf16_t *)g->dy, (const bf16_t *)g->qkv, g->lse, g->delta,
                     (bf16_t *)g->dqkv));
    return launch("attention backward: queries", tensor_queries_kernel<D>,
                  dim3(tiles, (unsigned)s->H, (unsigned)s->B), TENSOR_THREADS, 4 * tile_bytes<D>,
                  stream, a, (const bf16_t *)g->dy, (const bf16_t *)g->qkv, g->lse, g->delta,
                  (bf16_t *)g->dqkv);
}

shoal_status attention_tensor_backward(cudaStream_t stream, const struct attention_shape *s,
                                       const struct attention_gradient *g)
{
    return (s->D == 64 ? tensor_backward<64> : tensor_backward<128>)(stream, s, g);
}

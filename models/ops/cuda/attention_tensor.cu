/* Causal attention on tensor cores, forward; see attention_tensor.cuh. */
#include "models/ops/cuda/attention_tensor.cuh"

#include <math.h>

/* ---- kernels ---- */

/* Over the four lanes that share rows. */
static __device__ __forceinline__ float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ __forceinline__ float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Keys behind the query count as -inf; q0 = k0: only the tile on the diagonal has such. */
static __device__ __forceinline__ void mask_diagonal(float s[COLUMN_TILES][4])
{
    const int column = (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (n * 8 + column + i % 2 > fragment_row(i / 2))
                s[n][i] = -INFINITY;
}

/*
 * Scores become 2^(factor (s - max)), with factor = scale log2 e, and what was summed before
 * shrinks (online softmax: Milakov & Gimelshein 2018).  `sum` is the lane's part of its row's sum.
 */
template <int D>
static __device__ __forceinline__ void softmax_rows(float s[COLUMN_TILES][4], float out[D / 8][4],
                                                    float max[2], float sum[2], float factor)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float new_max = max[half];
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
            new_max = fmaxf(new_max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        new_max = quad_max(new_max);
        const float keep = exp2f((max[half] - new_max) * factor);
        float tile_sum = 0.0f;
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = exp2f((s[n][i] - new_max) * factor);
                tile_sum += s[n][i];
            }
        sum[half] = sum[half] * keep + tile_sum;
        max[half] = new_max;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            out[n][2 * half] *= keep;
            out[n][2 * half + 1] *= keep;
        }
    }
}

/* A block per tile of queries (the longest first), head and sequence; registers for several on a
 * multiprocessor. */
template <int D>
static __global__ void __launch_bounds__(TENSOR_THREADS, D == 64 ? 4 : 3)
    tensor_forward_kernel(struct attention a, const bf16_t *qkv, bf16_t *y, float *lse)
{
    bf16_t *q = (bf16_t *)dynamic_shared();
    bf16_t *k = q + ROWS * tile_ld<D>;
    bf16_t *v = k + ROWS * tile_ld<D>;
    const int h = (int)blockIdx.y;
    const int64_t b = blockIdx.z;
    const int kv_head = h / (a.H / a.K);
    const int64_t q0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int first_row = (int)threadIdx.x / WARP * WARP_ROWS;
    float out[D / 8][4] = {};
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {};

    load_rows<D>(q, qkv + query_offset(a, b, h), a.width, q0, a.T);
    for (int64_t k0 = 0; k0 <= q0; k0 += ROWS) {
        float s[COLUMN_TILES][4];
        __syncthreads(); /* the tiles before are used up */
        load_rows<D>(k, qkv + key_offset(a, b, kv_head), a.width, k0, a.T);
        load_rows<D>(v, qkv + value_offset(a, b, kv_head), a.width, k0, a.T);
        __syncthreads();
        multiply_transposed<D>(s, q, first_row, k);
        if (k0 == q0)
            mask_diagonal(s);
        softmax_rows<D>(s, out, max, sum, a.scale * LOG2_E);
        multiply_add<D>(out, s, v);
    }
    for (int half = 0; half < 2; half++) {
        const int64_t row = q0 + fragment_row(half);
        const float total = quad_sum(sum[half]);
        if (row >= a.T)
            continue;
        store_fragment_row<D>(y + output_offset(a, b, h) + row * a.H * D, out, half, 1.0f / total);
        if (threadIdx.x % 4 == 0)
            lse[row_offset(a, b, h) + row] =
                (float)((double)max[half] * (double)a.scale + log((double)total));
    }
}

/* ---- launchers ---- */

template <int D>
static shoal_status tensor_forward(cudaStream_t stream, const struct attention_shape *s,
                                   const void *qkv, void *y, float *lse)
{
    const dim3 grid((unsigned)ceil_div(s->T, ROWS), (unsigned)s->H, (unsigned)s->B);

    return launch("attention", tensor_forward_kernel<D>, grid, TENSOR_THREADS, 3 * tile_bytes<D>,
                  stream, attention_of(s), (const bf16_t *)qkv, (bf16_t *)y, lse);
}

shoal_status attention_tensor(cudaStream_t stream, const struct attention_shape *s, const void *qkv,
                              void *y, float *lse)
{
    return (s->D == 64 ? tensor_forward<64> : tensor_forward<128>)(stream, s, qkv, y, lse);
}

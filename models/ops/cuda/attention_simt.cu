/* Causal attention in fp32 arithmetic, forward; see attention_simt.cuh. */
#include "models/ops/cuda/attention_simt.cuh"

#include <math.h>

/* ---- kernels ---- */

/* What a block carries from one tile of keys to the next (Milakov & Gimelshein 2018). */
struct online {
    float max[TILE], sum[TILE], keep[TILE];
};

/* A warp per row: scores become exp(score - max), `keep` is what earlier sums shrink by. */
static __device__ __forceinline__ void softmax_tile(struct online *o, float *scores)
{
    const int lane = (int)threadIdx.x % WARP;

    for (int r = (int)threadIdx.x / WARP; r < TILE; r += SIMT_THREADS / WARP) {
        const float score = scores[r * SCORES_LD + lane];
        const float before = o->max[r];
        const float max = fmaxf(before, warp_max(score));
        const float p = expf(score - max);
        const float sum = warp_sum(p);

        scores[r * SCORES_LD + lane] = p;
        __syncwarp(); /* all lanes have read max */
        if (lane == 0) {
            const float keep = expf(before - max);
            o->keep[r] = keep;
            o->sum[r] = o->sum[r] * keep + sum;
            o->max[r] = max;
        }
    }
}

/* A block per tile of queries (the longest first), head and sequence. */
template <typename T, int COLUMNS>
static __global__ void __launch_bounds__(SIMT_THREADS)
    simt_forward_kernel(struct attention a, const T *qkv, T *y, float *lse)
{
    __shared__ float scores[TILE * SCORES_LD];
    __shared__ struct online o;
    float *q = (float *)dynamic_shared();
    float *kv = q + TILE * (a.D + 1);
    const int h = (int)blockIdx.y;
    const int64_t b = blockIdx.z;
    const int kv_head = h / (a.H / a.K);
    const int64_t q0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * TILE;
    const int r = (int)threadIdx.x / PER_ROW;
    float out[COLUMNS] = {};

    load_tile(q, qkv + query_offset(a, b, h), a.width, q0, a.T, a.D);
    if (threadIdx.x < TILE) {
        o.max[threadIdx.x] = -INFINITY;
        o.sum[threadIdx.x] = 0.0f;
    }
    for (int64_t k0 = 0; k0 <= q0; k0 += TILE) {
        float dots[2][2];
        __syncthreads(); /* the last tile of values is used up */
        load_tile(kv, qkv + key_offset(a, b, kv_head), a.width, k0, a.T, a.D);
        __syncthreads();
        dot_tiles(dots, q, kv, a.D);
        for (int i = 0; i < 4; i++) {
            const int row = (int)threadIdx.x / 16 + 16 * (i / 2);
            const int column = (int)threadIdx.x % 16 + 16 * (i % 2);
            scores[row * SCORES_LD + column] =
                k0 + column <= q0 + row ? dots[i / 2][i % 2] * a.scale : -INFINITY;
        }
        __syncthreads();
        load_tile(kv, qkv + value_offset(a, b, kv_head), a.width, k0, a.T, a.D);
        softmax_tile(&o, scores);
        __syncthreads();
        for (int j = 0; j < COLUMNS; j++)
            out[j] *= o.keep[r];
        for (int k = 0; k < TILE; k++)
            add_row<COLUMNS>(out, scores[r * SCORES_LD + k], kv + k * (a.D + 1), a.D);
    }
    store_row<T, COLUMNS>(y + output_offset(a, b, h), (int64_t)a.H * a.D, q0 + r, a.T,
                          1.0f / o.sum[r], out, a.D);
    if (threadIdx.x < TILE && q0 + threadIdx.x < a.T)
        lse[row_offset(a, b, h) + q0 + threadIdx.x] =
            (float)((double)o.max[threadIdx.x] + log((double)o.sum[threadIdx.x]));
}

/* ---- launchers ---- */

template <typename T, int COLUMNS>
static shoal_status simt_forward(cudaStream_t stream, const struct attention_shape *s,
                                 const void *qkv, void *y, float *lse)
{
    const dim3 grid((unsigned)ceil_div(s->T, TILE), (unsigned)s->H, (unsigned)s->B);

    return launch("attention", simt_forward_kernel<T, COLUMNS>, grid, SIMT_THREADS,
                  (size_t)(2 * TILE * (s->D + 1)) * sizeof(float), stream, attention_of(s),
                  (const T *)qkv, (T *)y, lse);
}

shoal_status attention_simt(cudaStream_t stream, const struct attention_shape *s, const void *qkv,
                            void *y, float *lse)
{
    return SIMT_DISPATCH(simt_forward, s, stream, s, qkv, y, lse);
}

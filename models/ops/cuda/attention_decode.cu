/*
 * Attention of one new token: a block per query head, a warp per eighth key, each with its own
 * maximum, sum and output, which are joined in the warps' order at the end.
 */
#include "models/ops/cuda/attention_plain.cuh"

#include <math.h>

enum {
    DECODE_WARPS = 8,
    DECODE_THREADS = DECODE_WARPS * WARP,
    PER_LANE = ATTENTION_HEAD_MAX / WARP
};

/* ---- kernels ---- */

/* Keys and values of the token, [K * D] each, into their rows of the cache. */
template <typename T>
static __global__ void __launch_bounds__(DECODE_THREADS)
    append_kernel(int64_t width, const T *keys_values, T *keys, T *values)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= width)
        return;
    keys[i] = keys_values[i];
    values[i] = keys_values[width + i];
}

template <typename T>
static __global__ void __launch_bounds__(DECODE_THREADS)
    decode_kernel(struct attention a, int64_t n_keys, const T *query, const T *keys,
                  const T *values, T *y)
{
    __shared__ float outs[DECODE_WARPS][ATTENTION_HEAD_MAX];
    __shared__ float maxima[DECODE_WARPS];
    __shared__ float sums[DECODE_WARPS];
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int h = (int)blockIdx.x;
    const int64_t ld = (int64_t)a.K * a.D;
    const int64_t kv = (int64_t)(h / (a.H / a.K)) * a.D;
    float q[PER_LANE];
    float out[PER_LANE] = {};
    float max = -INFINITY;
    float sum = 0.0f;

    for (int j = 0; j < PER_LANE; j++)
        q[j] = lane + WARP * j < a.D ? to_float(query[h * a.D + lane + WARP * j]) : 0.0f;
    for (int64_t key = warp; key < n_keys; key += DECODE_WARPS) {
        const T *k = keys + key * ld + kv + lane;
        const T *v = values + key * ld + kv + lane;
        float k_loaded[PER_LANE], v_loaded[PER_LANE];
        float dot = 0.0f;

        for (int j = 0; j < PER_LANE; j++) {
            k_loaded[j] = lane + WARP * j < a.D ? to_float(k[WARP * j]) : 0.0f;
            v_loaded[j] = lane + WARP * j < a.D ? to_float(v[WARP * j]) : 0.0f;
        }
        for (int j = 0; j < PER_LANE; j++)
            if (lane + WARP * j < a.D)
                dot = fmaf(q[j], k_loaded[j], dot);
        const float score = a.scale * warp_sum(dot);
        const float new_max = fmaxf(max, score);
        const float keep = expf(max - new_max);
        const float p = expf(score - new_max);
        for (int j = 0; j < PER_LANE; j++)
            if (lane + WARP * j < a.D)
                out[j] = fmaf(p, v_loaded[j], out[j] * keep);
        sum = sum * keep + p;
        max = new_max;
    }
    for (int j = 0; j < PER_LANE; j++)
        outs[warp][lane + WARP * j] = out[j];
    if (lane == 0) {
        maxima[warp] = max;
        sums[warp] = sum;
    }
    __syncthreads();

    /* Warps without a key hold -inf, 0 and zeros; warp 0 always has one. */
    float row_max = maxima[0];
    for (int i = 1; i < DECODE_WARPS; i++)
        row_max = fmaxf(row_max, maxima[i]);
    for (int d = (int)threadIdx.x; d < a.D; d += DECODE_THREADS) {
        float total = 0.0f;
        float weight_sum = 0.0f;
        for (int i = 0; i < DECODE_WARPS; i++) {
            const float weight = expf(maxima[i] - row_max);
            total = fmaf(weight, outs[i][d], total);
            weight_sum = fmaf(weight, sums[i], weight_sum);
        }
        y[h * a.D + d] = from_float<T>(total / weight_sum);
    }
}

/* ---- launchers ---- */

template <typename T>
static shoal_status decode(cudaStream_t stream, const struct attention_shape *s, const void *qkv,
                           int64_t position, int64_t T_max, void *cache, void *y)
{
    const int64_t width = (int64_t)s->K * s->D;
    const T *query = (const T *)qkv;
    T *keys = (T *)cache;
    T *values = keys + T_max * width;

    SHOAL_TRY(launch("attention decode: append", append_kernel<T>,
                     dim3((unsigned)ceil_div(width, DECODE_THREADS)), DECODE_THREADS, 0, stream,
                     width, query + (int64_t)s->H * s->D, keys + position * width,
                     values + position * width));
    return launch("attention decode", decode_kernel<T>, dim3((unsigned)s->H), DECODE_THREADS, 0,
                  stream, attention_of(s), position + 1, query, (const T *)keys, (const T *)values,
                  (T *)y);
}

shoal_status cuda_attention_decode(cudaStream_t stream, struct attention_shape s, const void *qkv,
                                   int64_t position, int64_t T_max, void *cache, void *y)
{
    SHOAL_TRY(check_attention("attention decode", &s));
    SHOAL_TRY(check_range("attention decode", "position", position, 0, T_max - 1));
    return (s.dtype == DTYPE_F32 ? decode<float> : decode<bf16_t>)(stream, &s, qkv, position, T_max,
                                                                   cache, y);
}

/*
 * Causal attention without cuDNN: the choice between fp32 arithmetic and tensor cores, and
 * delta_i = dy_i y_i, which both backward passes start from (Dao et al. 2022).
 */
#include "models/ops/cuda/attention_plain.cuh"

enum { DELTA_THREADS = 256 };

/* ---- kernels ---- */

/* A warp per (sequence, token, head). */
template <typename T>
static __global__ void __launch_bounds__(DELTA_THREADS)
    delta_kernel(struct attention a, const T *dy, const T *y, float *delta, bool vector)
{
    const int lane = (int)threadIdx.x % WARP;
    const int64_t item = (int64_t)blockIdx.x * (DELTA_THREADS / WARP) + threadIdx.x / WARP;
    const int64_t token = item / a.H;
    const int h = (int)(item % a.H);
    float sum = 0.0f;

    if (token >= a.B * a.T)
        return;
    for (int64_t d = lane * GROUP; d < a.D; d += WARP * GROUP) {
        const packed<T> dy_loaded = load_packed(dy + item * a.D, d, a.D, vector);
        const packed<T> y_loaded = load_packed(y + item * a.D, d, a.D, vector);
        const struct group u = unpack(dy_loaded);
        const struct group v = unpack(y_loaded);
        for (int j = 0; j < GROUP; j++)
            sum += u.v[j] * v.v[j];
    }
    sum = warp_sum(sum);
    if (lane == 0)
        delta[row_offset(a, token / a.T, h) + token % a.T] = sum;
}

/* ---- launchers ---- */

static bool has_tensor_path(const struct attention_shape *s)
{
    return s->dtype == DTYPE_BF16 && (s->D == 64 || s->D == 128);
}

shoal_status cuda_attention_plain(cudaStream_t stream, struct attention_shape s, const void *qkv,
                                  void *y, float *lse)
{
    SHOAL_TRY(check_attention("attention", &s));
    if (has_tensor_path(&s) && is_aligned(qkv) && is_aligned(y))
        return attention_tensor(stream, &s, qkv, y, lse);
    return attention_simt(stream, &s, qkv, y, lse);
}

/* The backward in fp32 holds the most; tensor cores' arrays may be unaligned, too. */
size_t cuda_attention_plain_shared_bytes(struct attention_shape s)
{
    return attention_simt_backward_shared_bytes(&s);
}

size_t cuda_attention_plain_backward_scratch_bytes(struct attention_shape s)
{
    return (size_t)(s.B * s.H * s.T) * sizeof(float);
}

template <typename T>
static shoal_status make_delta(cudaStream_t stream, const struct attention_shape *s, const void *dy,
                               const void *y, float *delta)
{
    const int64_t blocks = ceil_div(s->B * s->T * s->H, DELTA_THREADS / WARP);

    SHOAL_TRY(check_range("attention backward", "number of blocks", blocks, 1, GRID_X_MAX));
    return launch("attention backward: delta", delta_kernel<T>, dim3((unsigned)blocks),
                  DELTA_THREADS, 0, stream, attention_of(s), (const T *)dy, (const T *)y, delta,
                  s->D % GROUP == 0 && is_aligned(dy) && is_aligned(y));
}

shoal_status cuda_attention_plain_backward(cudaStream_t stream, struct attention_shape s,
                                           const void *dy, const void *qkv, const void *y,
                                           const float *lse, void *dqkv, void *scratch)
{
    float *delta = (float *)scratch;
    const struct attention_gradient g = {dy, qkv, lse, delta, dqkv};

    SHOAL_TRY(check_attention("attention backward", &s));
    SHOAL_TRY(
        (s.dtype == DTYPE_F32 ? make_delta<float> : make_delta<bf16_t>)(stream, &s, dy, y, delta));
    if (has_tensor_path(&s) && is_aligned(dy) && is_aligned(qkv) && is_aligned(dqkv))
        return attention_tensor_backward(stream, &s, &g);
    return attention_simt_backward(stream, &s, &g);
}

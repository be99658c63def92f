#pragma once

#include "models/ops/cuda/kernels_internal.cuh"

/*
 * Between the files of attention without cuDNN: where heads lie, tiles in shared memory, and the
 * two ways to compute.  The dispatch is in attention_plain.cu.
 */

/* The shape and where the heads lie in a row of qkv, in elements. */
struct attention {
    int64_t T;
    int H, K, D, B;
    int64_t width; /* of a row of qkv */
    float scale;
};

static inline struct attention attention_of(const struct attention_shape *s)
{
    return {s->T,
            s->H,
            s->K,
            s->D,
            (int)s->B,
            (int64_t)(s->H + 2 * s->K) * s->D,
            (float)(1.0 / sqrt((double)s->D))};
}

/* The numbers of a head in token 0 of sequence b; tokens follow at a.width. */
static __device__ __forceinline__ int64_t query_offset(const struct attention &a, int64_t b, int h)
{
    return b * a.T * a.width + (int64_t)h * a.D;
}

static __device__ __forceinline__ int64_t key_offset(const struct attention &a, int64_t b, int k)
{
    return query_offset(a, b, a.H + k);
}

static __device__ __forceinline__ int64_t value_offset(const struct attention &a, int64_t b, int k)
{
    return query_offset(a, b, a.H + a.K + k);
}

/* The same for y and dy [B, T, H * D]; tokens follow at H * D. */
static __device__ __forceinline__ int64_t output_offset(const struct attention &a, int64_t b, int h)
{
    return b * a.T * a.H * a.D + (int64_t)h * a.D;
}

/* Of lse and delta [B, H, T]. */
static __device__ __forceinline__ int64_t row_offset(const struct attention &a, int64_t b, int h)
{
    return (b * a.H + h) * a.T;
}

struct attention_gradient {
    const void *dy;
    const void *qkv;
    const float *lse;
    const float *delta; /* [B, H, T] rowsum(dy * y) */
    void *dqkv;
};

/* fp32 arithmetic: any head size and both types. */
shoal_status attention_simt(cudaStream_t stream, const struct attention_shape *s, const void *qkv,
                            void *y, float *lse);
shoal_status attention_simt_backward(cudaStream_t stream, const struct attention_shape *s,
                                     const struct attention_gradient *g);
size_t attention_simt_backward_shared_bytes(const struct attention_shape *s); /* of a block */

/* Tensor cores: bf16, head size 64 or 128, 16-byte aligned arrays. */
shoal_status attention_tensor(cudaStream_t stream, const struct attention_shape *s, const void *qkv,
                              void *y, float *lse);
shoal_status attention_tensor_backward(cudaStream_t stream, const struct attention_shape *s,
                                       const struct attention_gradient *g);

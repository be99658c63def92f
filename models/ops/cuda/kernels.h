#pragma once

#include "models/ops/ops.h"

#include <cuda_runtime_api.h>

/*
 * Launchers of our own CUDA kernels.  The cpu op of the same name in ops.h is the specification:
 * formulas, types, and what is overwritten are its.  Every pointer is device memory unless it
 * says otherwise; nothing here allocates or waits; work is issued to `stream`.
 *
 * Any size works; 16-byte accesses are used where all addresses and row lengths allow them, with
 * the same bits.  Sums run in a fixed order that depends on the shape alone: two runs give the
 * same bits.  fp32 results agree with the cpu's within 1e-5 of the largest element; rope, casts,
 * accumulate and the embedding give the cpu's very bits.
 *
 * A launcher returns SHOAL_ERR_INTERNAL for arguments that no kernel can serve, and what the CUDA
 * runtime reported for a launch that failed.
 */
#ifdef __cplusplus
extern "C" {
#endif

/* ---- normalization ---- */

shoal_status cuda_norm(cudaStream_t stream, enum norm_kind kind, int64_t N, int64_t C, float eps,
                       enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                       float *stats);

/* dw and db: partial sums of fixed row blocks in `scratch`, then their sums in order. */
size_t cuda_norm_backward_scratch_bytes(int64_t N, int64_t C);
shoal_status cuda_norm_backward(cudaStream_t stream, enum norm_kind kind, int64_t N, int64_t C,
                                enum dtype dtype, const void *dy, const float *x, const void *w,
                                const float *stats, float *dx, void *dx_rounded, float *dw,
                                float *db, void *scratch);

/* ---- rotary positions ---- */

/*
 * cosines and sines [positions, D/2] fp32: of position * theta^(-2i/D), made in double on the host
 * as the cpu back end does, with positions >= first_position + T.
 */
shoal_status cuda_rope(cudaStream_t stream, struct attention_shape s, const float *cosines,
                       const float *sines, int64_t first_position, bool inverse, void *qkv);

/* ---- attention without cuDNN ---- */

/*
 * Head sizes 64 and 128 in bf16 run on tensor cores: probabilities and their gradients are rounded
 * to bf16 before their products, sums are fp32.  Everything else is fp32 arithmetic.
 * lse as in ops.h: natural logarithm, of the scaled scores.
 */
shoal_status cuda_attention_plain(cudaStream_t stream, struct attention_shape s, const void *qkv,
                                  void *y, float *lse);

/* Shared memory that a block of either pass takes at most: whole heads of a tile of tokens. */
size_t cuda_attention_plain_shared_bytes(struct attention_shape s);

/* Deterministic: a block of keys owns its dK and dV, a block of queries its dQ. */
size_t cuda_attention_plain_backward_scratch_bytes(struct attention_shape s);
shoal_status cuda_attention_plain_backward(cudaStream_t stream, struct attention_shape s,
                                           const void *dy, const void *qkv, const void *y,
                                           const float *lse, void *dqkv, void *scratch);

/* Needs no scratch. */
shoal_status cuda_attention_decode(cudaStream_t stream, struct attention_shape s, const void *qkv,
                                   int64_t position, int64_t T_max, void *cache, void *y);

/* ---- activations ---- */

shoal_status cuda_gelu(cudaStream_t stream, int64_t n, enum dtype dtype, const void *x, void *y);
shoal_status cuda_gelu_backward(cudaStream_t stream, int64_t n, enum dtype dtype, const void *x,
                                const void *dy, void *dx);
/* The bits of both. */
shoal_status cuda_gelu_again(cudaStream_t stream, int64_t n, enum dtype dtype, const void *x,
                             const void *dy, void *y, void *dx);
shoal_status cuda_swiglu(cudaStream_t stream, int64_t N, int64_t F, enum dtype dtype,
                         const void *gate_up, void *y);
shoal_status cuda_swiglu_backward(cudaStream_t stream, int64_t N, int64_t F, enum dtype dtype,
                                  const void *gate_up, const void *dy, void *dgate_up);

/* ---- embedding ---- */

/* The caller has checked the tokens. */
shoal_status cuda_embedding(cudaStream_t stream, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                            const int32_t *tokens, const void *wte, const void *wpe,
                            int64_t first_position, float *x);

/*
 * Tokens are put in a stable order by id in `scratch`; each row of dwte is then summed in token
 * order.  Tokens outside 0 .. V-1 are skipped.
 */
size_t cuda_embedding_backward_scratch_bytes(int64_t B, int64_t T, int64_t V);
shoal_status cuda_embedding_backward(cudaStream_t stream, int64_t B, int64_t T, int64_t C,
                                     int64_t V, int64_t T_max, const int32_t *tokens,
                                     const float *dx, float *dwte, float *dwpe, void *scratch);

/* ---- cross-entropy ---- */

/*
 * logits [rows, V] of `dtype`, row after row; with `backward` they are replaced by
 * (softmax - onehot) * scale.  row_loss[i] = logsumexp - logit of the target, in double; a negative
 * target gives loss 0 and a gradient of zeros.  The caller has checked that targets are below V.
 */
shoal_status cuda_cross_entropy(cudaStream_t stream, int64_t rows, int64_t V, void *logits,
                                enum dtype dtype, const int32_t *targets, float scale,
                                bool backward, double *row_loss);

/* ---- elementwise ---- */

/* y [n] dtype = x [n] fp32, to nearest even. */
shoal_status cuda_cast(cudaStream_t stream, int64_t n, enum dtype dtype, const float *x, void *y);

/*
 * y [n] bf16 = x rounded down or up in magnitude with the probability of its distance.  The random
 * number of element i is word (begin + i) % 4 of rng_block(seed, RNG_STREAM_ROUNDING, sub,
 * (begin + i) / 4), its low 16 bits: a pure function of the element's index, so that shards agree.
 * Infinities and NaN stay.
 */
shoal_status cuda_cast_stochastic(cudaStream_t stream, int64_t n, uint64_t seed, uint64_t sub,
                                  uint64_t begin, const float *x, void *y);

shoal_status cuda_accumulate(cudaStream_t stream, int64_t n, const float *src, float *dst);
shoal_status cuda_zero(cudaStream_t stream, size_t n_bytes, void *dst);

/* y [rows, n] dtype += bias [n] dtype, rounded once. */
shoal_status cuda_add_bias(cudaStream_t stream, int64_t rows, int64_t n, enum dtype dtype,
                           const void *bias, void *y);
/* y [rows, n] fp32 += bias [n] dtype. */
shoal_status cuda_add_bias_f32(cudaStream_t stream, int64_t rows, int64_t n, enum dtype dtype,
                               const void *bias, float *y);

/* dbias [n] fp32 = column sums of dy [rows, n], over fixed blocks of rows in order. */
size_t cuda_bias_gradient_scratch_bytes(int64_t rows, int64_t n);
shoal_status cuda_bias_gradient(cudaStream_t stream, int64_t rows, int64_t n, enum dtype dtype,
                                const void *dy, float *dbias, void *scratch);

#ifdef __cplusplus
}
#endif

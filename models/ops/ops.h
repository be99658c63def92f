#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/pool.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Ops: the mathematics of a decoder, forward and hand-written backward.  One
 * interface; `cpu` behind it (a `cuda` one has the same names and argument order).
 *
 * Conventions for all ops
 * - Row-major; N rows (= B*T tokens), C channels, F feed-forward, V vocabulary, H query heads,
 *   K key/value heads, D head size.
 * - `dtype` is the compute type (DTYPE_F32 or DTYPE_BF16) of weights, of the inputs and outputs
 *   of matmuls and of activations between them.  The residual stream, its gradient, statistics
 *   and weight gradients are always fp32.  Sums are accumulated in fp32 or better.
 * - Deterministic: work is cut by shape and never by the number of threads; sums over rows go
 *   over fixed row blocks in a fixed order.  The same inputs give the same bits on 1 or n threads.
 * - No op allocates.  `scratch` is caller's memory of at least the op's *_scratch_bytes,
 *   256-byte aligned.
 * - Ops that write weight gradients overwrite them (they do not accumulate).
 * - Matmul primitives of a shape are built by op_linear_prepare before the first step.
 *
 * An `ops` context belongs to one rank's compute thread.
 */
struct ops;

/* The pool is borrowed. */
shoal_status ops_create_cpu(struct pool *pool, struct ops **ops_out);
void ops_destroy(struct ops *ops);
int ops_threads(const struct ops *ops);

/* One line about the kernels chosen: "oneDNN 2.6.3 avx512_core_amx, kernels avx512". */
const char *ops_describe(const struct ops *ops);

/*
 * Make libraries do their lazy set-up now (code generation, packing buffers), so that the process'
 * peak afterwards, less the *own_bytes_out that this call itself used and freed, is what a step
 * finds.  Call after the shapes are prepared.
 */
shoal_status ops_warm_up(struct ops *ops, size_t *own_bytes_out);

/* ---- where time goes ---- */

enum op_class {
    OP_CLASS_LINEAR,
    OP_CLASS_HEAD, /* output projection and loss */
    OP_CLASS_ATTENTION,
    OP_CLASS_NORM,
    OP_CLASS_ACTIVATION,
    OP_CLASS_EMBEDDING,
    OP_CLASS_ELEMENTWISE,
    OP_CLASS_COUNT
};

/* Sums over the calls since the last reset; `bytes` is the least that must be read and written. */
struct op_profile {
    double seconds;
    uint64_t calls, flops, bytes;
};

const struct op_profile *ops_profile(const struct ops *ops, enum op_class op_class);
void ops_profile_reset(struct ops *ops);
const char *op_class_name(enum op_class op_class);

/*
 * What libraries chose for the shapes prepared so far, a line each (algorithm, engine, workspace).
 * None from a back end whose libraries leave no choice.
 */
typedef void ops_choice_fn(void *arg, enum op_class op_class, const char *line);
void ops_describe_choices(const struct ops *ops, ops_choice_fn *choice, void *arg);

/* ---- linear: y = x wᵀ + b, w [M, C_in] as torch's Linear ---- */

/* A matmul shape: N rows, `in` and `out` features. */
struct linear_shape {
    int64_t rows;
    int64_t in;
    int64_t out;
    enum dtype dtype;
};

/* Build (and time nothing) whatever the three products of this shape need; idempotent. */
shoal_status op_linear_prepare(struct ops *ops, struct linear_shape s);
size_t op_linear_scratch_bytes(const struct ops *ops, struct linear_shape s);

/* y [rows, out] dtype = x [rows, in] wᵀ (+ bias [out], NULL: none). */
shoal_status op_linear(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                       const void *bias, void *y, void *scratch);

/* y [rows, out] fp32 = residual [rows, out] fp32 + x wᵀ (+ bias); y may be residual. */
shoal_status op_linear_add(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                           const void *bias, const float *residual, float *y, void *scratch);

/* dx [rows, in] dtype = dy [rows, out] w. */
shoal_status op_linear_backward_input(struct ops *ops, struct linear_shape s, const void *dy,
                                      const void *w, void *dx, void *scratch);

/*
 * A linear layer and the GELU behind it, and the way back through the GELU before one.  The same
 * as op_linear and op_gelu, or op_linear_backward_input and op_gelu_backward, one after the other;
 * a back end may make them in one pass, GELU and its gradient then from sums not yet rounded.
 */

/* Build what the two below need beside op_linear_prepare: `up` is the shape of the layer before the
 * GELU, with a bias or without, `down` that of the layer behind it; idempotent. */
shoal_status op_linear_gelu_prepare(struct ops *ops, struct linear_shape up, bool bias,
                                    struct linear_shape down);

/* up [rows, out] dtype = x wᵀ (+ bias [out], NULL: none); act [rows, out] dtype = gelu(up). */
shoal_status op_linear_gelu(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                            const void *bias, void *up, void *act, void *scratch);

/* dup [rows, in] dtype = (dy [rows, out] w) * gelu'(up [rows, in]). */
shoal_status op_linear_backward_input_gelu(struct ops *ops, struct linear_shape s, const void *dy,
                                           const void *w, const void *up, void *dup, void *scratch);

/* dw [out, in] fp32 = dyᵀ x; dbias [out] fp32 = column sums of dy (NULL: not wanted). */
shoal_status op_linear_backward_weight(struct ops *ops, struct linear_shape s, const void *dy,
                                       const void *x, float *dw, float *dbias, void *scratch);

/*
 * The yardstick of `shoal bench`: seconds that the matmul library alone, with its own
 * threads, takes for each of the three products of a shape (y, dx, dw), best of several.  Allocates.
 */
shoal_status ops_library_linear_seconds(struct ops *ops, struct linear_shape s,
                                        double seconds_out[3]);

/* ---- normalization of the residual stream ---- */

enum norm_kind { NORM_LAYER, NORM_RMS };

/*
 * LayerNorm (Ba et al. 2016): y = (x - mean) / sqrt(var + eps) * w + b, biased variance.
 * RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x²) + eps) * w; b is NULL, mean unused.
 * x fp32 [N, C]; w, b, y dtype; stats fp32 [N, 2] = {mean, 1/sqrt(..)}.
 */
shoal_status op_norm(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                     enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                     float *stats);

/*
 * dx [N, C] fp32 += gradient through the norm; dx_rounded [N, C] = the new dx in dtype, which is not
 * fp32, unless NULL; dw, db [C] fp32 overwritten (db NULL for RMS).
 */
size_t op_norm_backward_scratch_bytes(const struct ops *ops, int64_t N, int64_t C);
shoal_status op_norm_backward(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                              enum dtype dtype, const void *dy, const float *x, const void *w,
                              const float *stats, float *dx, void *dx_rounded, float *dw, float *db,
                              void *scratch);

/* ---- attention ---- */

/* The largest head size, which must be even. */
enum { ATTENTION_HEAD_MAX = 256 };

struct attention_shape {
    int64_t B, T;
    int H, K, D; /* H a multiple of K */
    enum dtype dtype;
};

/*
 * Rotary positions (Su et al. 2021), rotate-half form as in Hugging Face Llama:
 * pairs (i, i + D/2), angle pos * theta^(-2i/D); in place on the q and k parts of packed
 * qkv [B, T, (H + 2K) * D].  `first_position` is the position of t = 0.  `inverse` rotates back (backward).
 *
 * The angles' table is built by op_rope_prepare for positions 0 .. T_max-1 and kept in `ops`;
 * idempotent, another D or theta replaces it.
 */
shoal_status op_rope_prepare(struct ops *ops, int64_t T_max, int D, double theta);
shoal_status op_rope(struct ops *ops, struct attention_shape s, double theta,
                     int64_t first_position, bool inverse, void *qkv);

/* Choose how a shape runs, and refuse one that cannot run here; idempotent. */
shoal_status op_attention_prepare(struct ops *ops, struct attention_shape s);

/*
 * Causal attention, scale 1/sqrt(D), query head h reads key/value head h / (H/K).
 * qkv packed [B, T, (H + 2K) * D] (q heads, k heads, v heads); y [B, T, H * D]; lse [B, H, T]
 * fp32 = log-sum-exp of the scaled scores.  Blocked over queries: never holds T x T.
 */
size_t op_attention_scratch_bytes(const struct ops *ops, struct attention_shape s);
shoal_status op_attention(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                          float *lse, void *scratch);

/* dqkv as qkv, overwritten. */
shoal_status op_attention_backward(struct ops *ops, struct attention_shape s, const void *dy,
                                   const void *qkv, const void *y, const float *lse, void *dqkv,
                                   void *scratch);

/*
 * One new token per call (generation): qkv [1, (H + 2K) * D] at `position`; its k and v are
 * stored into cache [2, T_max, K * D] dtype; y [H * D] attends to positions 0 .. position.
 */
shoal_status op_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                 int64_t position, int64_t T_max, void *cache, void *y,
                                 void *scratch);

/* ---- activations ---- */

/* GELU, tanh form (Hendrycks & Gimpel 2016): y [n] = gelu(x). */
shoal_status op_gelu(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y);
/* dx = dy * gelu'(x); dx may be dy. */
shoal_status op_gelu_backward(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                              const void *dy, void *dx);
/* Both, for a backward that makes y anew: y = gelu(x), dx = dy * gelu'(x); dx may be dy. */
shoal_status op_gelu_again(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                           const void *dy, void *y, void *dx);

/* SwiGLU (Shazeer 2020): gate_up [N, 2F] = gate | up per row; y [N, F] = silu(gate) * up. */
shoal_status op_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype, const void *gate_up,
                       void *y);
shoal_status op_swiglu_backward(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                const void *gate_up, const void *dy, void *dgate_up);

/* ---- embedding ---- */

/* x [B*T, C] fp32 = wte[token] (+ wpe[first_position + t], NULL: none). */
shoal_status op_embedding(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                          const int32_t *tokens, const void *wte, const void *wpe,
                          int64_t first_position, float *x);

/* dwte [V, C], dwpe [T_max, C] fp32 overwritten (dwpe NULL: none); rows are summed in order. */
shoal_status op_embedding_backward(struct ops *ops, int64_t B, int64_t T, int64_t C, int64_t V,
                                   int64_t T_max, const int32_t *tokens, const float *dx,
                                   float *dwte, float *dwpe);

/* ---- head: output projection and cross-entropy, in one pass over chunks of rows ---- */

struct head_shape {
    int64_t N, C, V;
    enum dtype dtype;
};

/*
 * Logits are made for a chunk of rows at a time: the logits of all rows never exist together.
 * x [N, C] dtype (normed), w [V, C] dtype, targets [N] (negative: ignored, loss 0).
 * row_loss[i] = logsumexp(logits_i) - logits_i[target], in double.
 */
shoal_status op_head_prepare(struct ops *ops, struct head_shape s);
size_t op_head_scratch_bytes(const struct ops *ops, struct head_shape s);
shoal_status op_head_loss(struct ops *ops, struct head_shape s, const void *x, const void *w,
                          const int32_t *targets, double *row_loss, void *scratch);

/*
 * The same and its gradient: dlogits = (softmax - onehot) * scale; dx [N, C] dtype = dlogits w;
 * dw [V, C] fp32 = dlogitsᵀ x, overwritten.
 */
shoal_status op_head_loss_backward(struct ops *ops, struct head_shape s, const void *x,
                                   const void *w, const int32_t *targets, float scale,
                                   double *row_loss, void *dx, float *dw, void *scratch);

/* ---- elementwise ---- */

/* y [n] dtype = x [n] fp32. */
shoal_status op_cast(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y);

/* dst += src, fp32. */
shoal_status op_accumulate(struct ops *ops, int64_t n, const float *src, float *dst);

shoal_status op_zero(struct ops *ops, size_t n_bytes, void *dst);

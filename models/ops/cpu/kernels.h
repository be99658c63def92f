#pragma once

#include "models/ops/ops.h"

/*
 * The vector kernels of the cpu back end: single-threaded loops over rows, built once per
 * instruction set (see vector.h) and reached through one table per build.  `dtype` is the type of
 * the void pointers; arrays need no alignment.
 */
struct op_kernels {
    const char *isa;

    /* ---- elementwise ---- */

    /* dst = scale * src. */
    void (*convert)(int64_t n, float scale, enum dtype src_dtype, const void *src,
                    enum dtype dst_dtype, void *dst);
    void (*accumulate)(int64_t n, const float *src, float *dst);
    /* x = 0, past the caches: for what is larger than they are. */
    void (*clear)(int64_t n, float *x);
    /* y = a + b, where b is `dtype`; a or b may be NULL (zero). */
    void (*add)(int64_t n, enum dtype dtype, const float *a, const void *b, float *y);
    /* y = a + b, both `dtype`; b may be NULL. */
    void (*add_embeddings)(int64_t n, enum dtype dtype, const void *a, const void *b, float *y);
    /* sums[j] = column sums of x [rows, n], leading dimension ld, over blocks of rows in order. */
    void (*column_sums)(int64_t rows, int64_t n, int64_t ld, enum dtype dtype, const void *x,
                        float *sums);

    /* ---- norms: rows of C; partial sums of dw and db are added to ---- */

    void (*norm)(enum norm_kind kind, int64_t rows, int64_t C, float eps, enum dtype dtype,
                 const float *x, const void *w, const void *b, void *y, float *stats);
    void (*norm_backward)(enum norm_kind kind, int64_t rows, int64_t C, enum dtype dtype,
                          const void *dy, const float *x, const void *w, const float *stats,
                          float *dx, void *dx_rounded, float *dw, float *db);

    /* ---- activations ---- */

    void (*gelu)(int64_t n, enum dtype dtype, const void *x, void *y);
    void (*gelu_backward)(int64_t n, enum dtype dtype, const void *x, const void *dy, void *dx);
    /* Both: y = gelu(x), dx = dy * gelu'(x). */
    void (*gelu_again)(int64_t n, enum dtype dtype, const void *x, const void *dy, void *y,
                       void *dx);
    void (*swiglu)(int64_t n, enum dtype dtype, const void *gate, const void *up, void *y);
    void (*swiglu_backward)(int64_t n, enum dtype dtype, const void *gate, const void *up,
                            const void *dy, void *dgate, void *dup);

    /* ---- attention ---- */

    /* Pairs (x[i], x[i + half]) turned by the angles given; direction -1 turns back. */
    void (*rotate)(int64_t half, enum dtype dtype, const float *cosines, const float *sines,
                   float direction, void *x);
    float (*exp)(float x);
    double (*log)(double x); /* x positive */
    float (*dot)(int64_t n, enum dtype a_dtype, const void *a, enum dtype b_dtype, const void *b);
    /* y += scale * x. */
    void (*axpy)(int64_t n, float scale, enum dtype dtype, const void *x, float *y);
    /*
     * s[0, n) becomes exp(s - max), s[n, n_padded) zero; returns the sum of the exps, *max_out is
     * the maximum.
     */
    float (*softmax_row)(int64_t n, int64_t n_padded, float *s, float *max_out);
    /* p[0, n) = exp(s - lse), zero up to n_padded; ds = p * (dp - delta), in place in dp. */
    void (*softmax_backward_row)(int64_t n, int64_t n_padded, float lse, float delta, float *s,
                                 float *dp);

    /* ---- head ---- */

    /* logsumexp(logits) - logits[target]. */
    double (*cross_entropy)(int64_t V, const float *logits, int32_t target);
    /*
     * The same; the logits are replaced by (softmax - onehot) * scale, as fp32 or, from the same
     * address, as bf16.
     */
    double (*cross_entropy_backward)(int64_t V, float *logits, int32_t target, float scale,
                                     enum dtype dtype);
};

extern const struct op_kernels op_kernels_scalar;
extern const struct op_kernels op_kernels_avx2;
extern const struct op_kernels op_kernels_avx512;

#pragma once

#include "models/ops/cpu/kernels.h"
#include "runtime/base/isa.h"

/*
 * Between the kernel files of one build: each name stands for the build's own symbol.  Contracts
 * are in kernels.h.
 */
#define kernel_convert                ISA_NAME(op_convert)
#define kernel_accumulate             ISA_NAME(op_accumulate)
#define kernel_clear                  ISA_NAME(op_clear)
#define kernel_add                    ISA_NAME(op_add)
#define kernel_add_embeddings         ISA_NAME(op_add_embeddings)
#define kernel_column_sums            ISA_NAME(op_column_sums)
#define kernel_norm                   ISA_NAME(op_norm)
#define kernel_norm_backward          ISA_NAME(op_norm_backward)
#define kernel_gelu                   ISA_NAME(op_gelu)
#define kernel_gelu_backward          ISA_NAME(op_gelu_backward)
#define kernel_gelu_again             ISA_NAME(op_gelu_again)
#define kernel_swiglu                 ISA_NAME(op_swiglu)
#define kernel_swiglu_backward        ISA_NAME(op_swiglu_backward)
#define kernel_rotate                 ISA_NAME(op_rotate)
#define kernel_exp                    ISA_NAME(op_exp)
#define kernel_log                    ISA_NAME(op_log)
#define kernel_dot                    ISA_NAME(op_dot)
#define kernel_axpy                   ISA_NAME(op_axpy)
#define kernel_softmax_row            ISA_NAME(op_softmax_row)
#define kernel_softmax_backward_row   ISA_NAME(op_softmax_backward_row)
#define kernel_cross_entropy          ISA_NAME(op_cross_entropy)
#define kernel_cross_entropy_backward ISA_NAME(op_cross_entropy_backward)

void kernel_convert(int64_t n, float scale, enum dtype src_dtype, const void *src,
                    enum dtype dst_dtype, void *dst);
void kernel_accumulate(int64_t n, const float *src, float *dst);
void kernel_clear(int64_t n, float *x);
void kernel_add(int64_t n, enum dtype dtype, const float *a, const void *b, float *y);
void kernel_add_embeddings(int64_t n, enum dtype dtype, const void *a, const void *b, float *y);
void kernel_column_sums(int64_t rows, int64_t n, int64_t ld, enum dtype dtype, const void *x,
                        float *sums);

void kernel_norm(enum norm_kind kind, int64_t rows, int64_t C, float eps, enum dtype dtype,
                 const float *x, const void *w, const void *b, void *y, float *stats);
void kernel_norm_backward(enum norm_kind kind, int64_t rows, int64_t C, enum dtype dtype,
                          const void *dy, const float *x, const void *w, const float *stats,
                          float *dx, void *dx_rounded, float *dw, float *db);

void kernel_gelu(int64_t n, enum dtype dtype, const void *x, void *y);
void kernel_gelu_backward(int64_t n, enum dtype dtype, const void *x, const void *dy, void *dx);
void kernel_gelu_again(int64_t n, enum dtype dtype, const void *x, const void *dy, void *y,
                       void *dx);
void kernel_swiglu(int64_t n, enum dtype dtype, const void *gate, const void *up, void *y);
void kernel_swiglu_backward(int64_t n, enum dtype dtype, const void *gate, const void *up,
                            const void *dy, void *dgate, void *dup);

void kernel_rotate(int64_t half, enum dtype dtype, const float *cosines, const float *sines,
                   float direction, void *x);
float kernel_exp(float x);
double kernel_log(double x);
float kernel_dot(int64_t n, enum dtype a_dtype, const void *a, enum dtype b_dtype, const void *b);
void kernel_axpy(int64_t n, float scale, enum dtype dtype, const void *x, float *y);
float kernel_softmax_row(int64_t n, int64_t n_padded, float *s, float *max_out);
void kernel_softmax_backward_row(int64_t n, int64_t n_padded, float lse, float delta, float *s,
                                 float *dp);

double kernel_cross_entropy(int64_t V, const float *logits, int32_t target);
double kernel_cross_entropy_backward(int64_t V, float *logits, int32_t target, float scale,
                                     enum dtype dtype);

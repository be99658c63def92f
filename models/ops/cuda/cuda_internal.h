#pragma once

#include "models/ops/cuda/cublas.h"
#include "models/ops/cuda/kernels.h"
#include "models/ops/cuda/ops_cuda.h"
#include "models/ops/ops_internal.h"
#include "runtime/device/cuda.h"

/*
 * The cuda back end: products by cuBLASLt (cublas.h), attention by cuDNN (cudnn_attention.h), all
 * else by our own kernels (kernels.h), which the functions of simple.c call one to one.
 */

/* Cosines and sines on the device, [positions, D/2] each, one behind the other. */
struct cuda_rope_table {
    int64_t positions;
    int D;
    double theta;
    float *cosines; /* NULL: none yet */
    size_t n_bytes;
};

struct cuda_attention; /* attention.c */

struct cuda_ops {
    struct ops base;
    struct device *device; /* borrowed */
    cudaStream_t stream;
    struct ops_cuda_options options;
    struct cublas *cublas;
    struct cuda_attention *attention;
    struct cuda_rope_table rope;
    char description[400];
};

static inline struct cuda_ops *cuda_of(struct ops *ops)
{
    return (struct cuda_ops *)(void *)ops;
}

static inline const struct cuda_ops *cuda_of_const(const struct ops *ops)
{
    return (const struct cuda_ops *)(const void *)ops;
}

/* Element i of an array of either type. */
static inline const void *cuda_element(enum dtype dtype, const void *p, int64_t i)
{
    return (const char *)p + (size_t)i * dtype_bytes(dtype);
}

static inline void *cuda_element_mut(enum dtype dtype, void *p, int64_t i)
{
    return (char *)p + (size_t)i * dtype_bytes(dtype);
}

static inline size_t cuda_aligned(size_t n_bytes)
{
    return (n_bytes + 255) & ~(size_t)255;
}

/* ---- the back end's table, in the order of ops.h ---- */

shoal_status ops_cuda_linear_prepare(struct ops *ops, struct linear_shape s);
size_t ops_cuda_linear_scratch_bytes(const struct ops *ops, struct linear_shape s);
shoal_status ops_cuda_linear(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                             const void *bias, void *y, void *scratch);
shoal_status ops_cuda_linear_add(struct ops *ops, struct linear_shape s, const void *x,
                                 const void *w, const void *bias, const float *residual, float *y,
                                 void *scratch);
shoal_status ops_cuda_linear_backward_input(struct ops *ops, struct linear_shape s, const void *dy,
                                            const void *w, void *dx, void *scratch);
/* GELU, its gradient and bias gradients are made inside products of this type. */
bool ops_cuda_has_epilogues(const struct ops *ops, enum dtype dtype);
shoal_status ops_cuda_linear_gelu_prepare(struct ops *ops, struct linear_shape up, bool bias,
                                          struct linear_shape down);
shoal_status ops_cuda_linear_gelu(struct ops *ops, struct linear_shape s, const void *x,
                                  const void *w, const void *bias, void *up, void *act,
                                  void *scratch);
shoal_status ops_cuda_linear_backward_input_gelu(struct ops *ops, struct linear_shape s,
                                                 const void *dy, const void *w, const void *up,
                                                 void *dup, void *scratch);
shoal_status ops_cuda_linear_backward_weight(struct ops *ops, struct linear_shape s, const void *dy,
                                             const void *x, float *dw, float *dbias, void *scratch);

shoal_status ops_cuda_norm(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                           enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                           float *stats);
size_t ops_cuda_norm_backward_scratch_bytes(const struct ops *ops, int64_t N, int64_t C);
shoal_status ops_cuda_norm_backward(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                                    enum dtype dtype, const void *dy, const float *x, const void *w,
                                    const float *stats, float *dx, void *dx_rounded, float *dw,
                                    float *db, void *scratch);

shoal_status ops_cuda_rope_prepare(struct ops *ops, int64_t T_max, int D, double theta);
void cuda_rope_table_fini(struct cuda_ops *cuda);
shoal_status ops_cuda_rope(struct ops *ops, struct attention_shape s, double theta,
                           int64_t first_position, bool inverse, void *qkv);

/* What attention needs beside the kernels; cuDNN's absence is no error unless it was demanded. */
shoal_status cuda_attention_create(const struct cuda_ops *cuda,
                                   struct cuda_attention **attention_out);
void cuda_attention_destroy(struct cuda_attention *attention);
void cuda_attention_describe(const struct cuda_attention *attention, char *text, size_t n_bytes);
/* Run what was planned once, on this much memory of any content, so that its kernels are loaded. */
size_t cuda_attention_run_bytes(const struct cuda_ops *cuda);
shoal_status cuda_attention_run_all(struct cuda_ops *cuda, void *memory);
int cuda_attention_plan_count(const struct cuda_attention *attention);
void cuda_attention_plan_describe(const struct cuda_attention *attention, int index, char *text,
                                  size_t n_bytes);

shoal_status ops_cuda_attention_prepare(struct ops *ops, struct attention_shape s);
size_t ops_cuda_attention_scratch_bytes(const struct ops *ops, struct attention_shape s);
shoal_status ops_cuda_attention(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                                float *lse, void *scratch);
shoal_status ops_cuda_attention_backward(struct ops *ops, struct attention_shape s, const void *dy,
                                         const void *qkv, const void *y, const float *lse,
                                         void *dqkv, void *scratch);
shoal_status ops_cuda_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                       int64_t position, int64_t T_max, void *cache, void *y,
                                       void *scratch);

shoal_status ops_cuda_gelu(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y);
shoal_status ops_cuda_gelu_backward(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                                    const void *dy, void *dx);
shoal_status ops_cuda_gelu_again(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                                 const void *dy, void *y, void *dx);
shoal_status ops_cuda_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                             const void *gate_up, void *y);
shoal_status ops_cuda_swiglu_backward(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                      const void *gate_up, const void *dy, void *dgate_up);

shoal_status ops_cuda_embedding(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                                const int32_t *tokens, const void *wte, const void *wpe,
                                int64_t first_position, float *x);
shoal_status ops_cuda_embedding_backward(struct ops *ops, int64_t B, int64_t T, int64_t C,
                                         int64_t V, int64_t T_max, const int32_t *tokens,
                                         const float *dx, float *dwte, float *dwpe);

shoal_status ops_cuda_head_prepare(struct ops *ops, struct head_shape s);
size_t ops_cuda_head_scratch_bytes(const struct ops *ops, struct head_shape s);
shoal_status ops_cuda_head_loss(struct ops *ops, struct head_shape s, const void *x, const void *w,
                                const int32_t *targets, double *row_loss, void *scratch);
shoal_status ops_cuda_head_loss_backward(struct ops *ops, struct head_shape s, const void *x,
                                         const void *w, const int32_t *targets, float scale,
                                         double *row_loss, void *dx, float *dw, void *scratch);

shoal_status ops_cuda_cast(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y);
shoal_status ops_cuda_accumulate(struct ops *ops, int64_t n, const float *src, float *dst);
shoal_status ops_cuda_zero(struct ops *ops, size_t n_bytes, void *dst);

/* yardstick.c */
shoal_status ops_cuda_warm_up(struct ops *ops, size_t *own_bytes_out);
shoal_status ops_cuda_library_linear_seconds(struct ops *ops, struct linear_shape s,
                                             double seconds_out[3]);
struct cublas_shape ops_cuda_forward_shape(struct linear_shape s, bool bias);
struct cublas_shape ops_cuda_input_shape(struct linear_shape s);
struct cublas_shape ops_cuda_weight_shape(struct linear_shape s);

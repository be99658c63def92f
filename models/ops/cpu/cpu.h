#pragma once

#include "models/ops/cpu/kernels.h"
#include "models/ops/cpu/matmul.h"
#include "models/ops/ops_internal.h"

/*
 * The cpu back end: a file per topic, each with the ops of the same name in ops.h.  An op cuts its
 * work into tiles by shape, the pool runs the tiles, a tile calls vector kernels and one-thread
 * matrix products.
 */

/* Cosines and sines of position * theta^(-2i/D), [positions, D/2] each. */
struct rope_table {
    int64_t positions;
    int D;
    double theta;
    float *cosines;
    float *sines;
};

struct cpu_ops {
    struct ops base;
    struct pool *pool; /* borrowed */
    const struct op_kernels *kernels;
    struct matmul_library *matmul;
    struct rope_table rope;
    char description[96];
};

static inline struct cpu_ops *cpu_of(struct ops *ops)
{
    return (struct cpu_ops *)(void *)ops;
}

static inline const struct cpu_ops *cpu_of_const(const struct ops *ops)
{
    return (const struct cpu_ops *)(const void *)ops;
}

static inline int64_t ceil_div(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

static inline int64_t round_up(int64_t n, int64_t to)
{
    return ceil_div(n, to) * to;
}

static inline int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Element i of an array of either type. */
static inline const void *element(enum dtype dtype, const void *p, int64_t i)
{
    return (const char *)p + (size_t)i * dtype_bytes(dtype);
}

static inline void *element_mut(enum dtype dtype, void *p, int64_t i)
{
    return (char *)p + (size_t)i * dtype_bytes(dtype);
}

/* fn(arg, begin, end) over [0, n) in blocks of `block`: the common loop of row-wise ops. */
typedef void cpu_range_fn(void *arg, int64_t begin, int64_t end);
void cpu_for_blocks(struct cpu_ops *cpu, int64_t n, int64_t block, cpu_range_fn *fn, void *arg);

/* Column sums of x [rows, n], leading dimension n. */
void cpu_column_sums(struct cpu_ops *cpu, int64_t rows, int64_t n, enum dtype dtype, const void *x,
                     float *sums);

/* ---- the back end's table, in the order of ops.h ---- */

shoal_status cpu_linear_prepare(struct ops *ops, struct linear_shape s);
size_t cpu_linear_scratch_bytes(const struct ops *ops, struct linear_shape s);
shoal_status cpu_linear(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                        const void *bias, void *y, void *scratch);
shoal_status cpu_linear_add(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                            const void *bias, const float *residual, float *y, void *scratch);
shoal_status cpu_linear_backward_input(struct ops *ops, struct linear_shape s, const void *dy,
                                       const void *w, void *dx, void *scratch);
shoal_status cpu_linear_backward_weight(struct ops *ops, struct linear_shape s, const void *dy,
                                        const void *x, float *dw, float *dbias, void *scratch);

shoal_status cpu_norm(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                      enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                      float *stats);
size_t cpu_norm_backward_scratch_bytes(const struct ops *ops, int64_t N, int64_t C);
shoal_status cpu_norm_backward(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                               enum dtype dtype, const void *dy, const float *x, const void *w,
                               const float *stats, float *dx, void *dx_rounded, float *dw,
                               float *db, void *scratch);

shoal_status cpu_rope_prepare(struct ops *ops, int64_t T_max, int D, double theta);
void cpu_rope_table_fini(struct rope_table *table);
shoal_status cpu_rope(struct ops *ops, struct attention_shape s, double theta,
                      int64_t first_position, bool inverse, void *qkv);
size_t cpu_attention_scratch_bytes(const struct ops *ops, struct attention_shape s);
shoal_status cpu_attention(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                           float *lse, void *scratch);
shoal_status cpu_attention_backward(struct ops *ops, struct attention_shape s, const void *dy,
                                    const void *qkv, const void *y, const float *lse, void *dqkv,
                                    void *scratch);
shoal_status cpu_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                  int64_t position, int64_t T_max, void *cache, void *y,
                                  void *scratch);

shoal_status cpu_gelu(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y);
shoal_status cpu_gelu_backward(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                               const void *dy, void *dx);
shoal_status cpu_gelu_again(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                            const void *dy, void *y, void *dx);
shoal_status cpu_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                        const void *gate_up, void *y);
shoal_status cpu_swiglu_backward(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                 const void *gate_up, const void *dy, void *dgate_up);

shoal_status cpu_embedding(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                           const int32_t *tokens, const void *wte, const void *wpe,
                           int64_t first_position, float *x);
shoal_status cpu_embedding_backward(struct ops *ops, int64_t B, int64_t T, int64_t C, int64_t V,
                                    int64_t T_max, const int32_t *tokens, const float *dx,
                                    float *dwte, float *dwpe);

shoal_status cpu_head_prepare(struct ops *ops, struct head_shape s);
size_t cpu_head_scratch_bytes(const struct ops *ops, struct head_shape s);
shoal_status cpu_head_loss(struct ops *ops, struct head_shape s, const void *x, const void *w,
                           const int32_t *targets, double *row_loss, void *scratch);
shoal_status cpu_head_loss_backward(struct ops *ops, struct head_shape s, const void *x,
                                    const void *w, const int32_t *targets, float scale,
                                    double *row_loss, void *dx, float *dw, void *scratch);

shoal_status cpu_cast(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y);
shoal_status cpu_accumulate(struct ops *ops, int64_t n, const float *src, float *dst);
shoal_status cpu_zero(struct ops *ops, size_t n_bytes, void *dst);

/* yardstick.c */
shoal_status cpu_warm_up(struct ops *ops, size_t *own_bytes_out);
shoal_status cpu_library_linear_seconds(struct ops *ops, struct linear_shape s,
                                        double seconds_out[3]);

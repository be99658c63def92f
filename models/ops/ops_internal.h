#pragma once

#include "models/ops/ops.h"

/*
 * What a back end of ops is: one table of functions with the names and the argument order of
 * ops.h.  ops.c checks arguments and forwards; a back end embeds `struct ops` as its first member.
 */
struct ops_vtable {
    bool device_memory; /* the host cannot read what the ops are given: no index is checked */
    void (*destroy)(struct ops *ops);
    int (*threads)(const struct ops *ops);
    const char *(*describe)(const struct ops *ops);
    /* Optional: NULL stands for no choices. */
    void (*describe_choices)(const struct ops *ops, ops_choice_fn *choice, void *arg);
    shoal_status (*warm_up)(struct ops *ops, size_t *own_bytes_out);
    shoal_status (*library_linear_seconds)(struct ops *ops, struct linear_shape s,
                                           double seconds_out[3]);

    shoal_status (*linear_prepare)(struct ops *ops, struct linear_shape s);
    size_t (*linear_scratch_bytes)(const struct ops *ops, struct linear_shape s);
    shoal_status (*linear)(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                           const void *bias, void *y, void *scratch);
    shoal_status (*linear_add)(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                               const void *bias, const float *residual, float *y, void *scratch);
    shoal_status (*linear_backward_input)(struct ops *ops, struct linear_shape s, const void *dy,
                                          const void *w, void *dx, void *scratch);
    /* GELU and its gradient inside products, for types of which the first says so (NULL: none); for
     * others linear and gelu, linear_backward_input and gelu_backward, one after the other. */
    bool (*has_linear_gelu)(const struct ops *ops, enum dtype dtype);
    shoal_status (*linear_gelu_prepare)(struct ops *ops, struct linear_shape up, bool bias,
                                        struct linear_shape down);
    shoal_status (*linear_gelu)(struct ops *ops, struct linear_shape s, const void *x,
                                const void *w, const void *bias, void *up, void *act,
                                void *scratch);
    shoal_status (*linear_backward_input_gelu)(struct ops *ops, struct linear_shape s,
                                               const void *dy, const void *w, const void *up,
                                               void *dup, void *scratch);
    shoal_status (*linear_backward_weight)(struct ops *ops, struct linear_shape s, const void *dy,
                                           const void *x, float *dw, float *dbias, void *scratch);

    shoal_status (*norm)(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                         enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                         float *stats);
    size_t (*norm_backward_scratch_bytes)(const struct ops *ops, int64_t N, int64_t C);
    shoal_status (*norm_backward)(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                                  enum dtype dtype, const void *dy, const float *x, const void *w,
                                  const float *stats, float *dx, void *dx_rounded, float *dw,
                                  float *db, void *scratch);

    shoal_status (*attention_prepare)(struct ops *ops, struct attention_shape s); /* or NULL */
    shoal_status (*rope_prepare)(struct ops *ops, int64_t T_max, int D, double theta);
    shoal_status (*rope)(struct ops *ops, struct attention_shape s, double theta,
                         int64_t first_position, bool inverse, void *qkv);
    size_t (*attention_scratch_bytes)(const struct ops *ops, struct attention_shape s);
    shoal_status (*attention)(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                              float *lse, void *scratch);
    shoal_status (*attention_backward)(struct ops *ops, struct attention_shape s, const void *dy,
                                       const void *qkv, const void *y, const float *lse, void *dqkv,
                                       void *scratch);
    shoal_status (*attention_decode)(struct ops *ops, struct attention_shape s, const void *qkv,
                                     int64_t position, int64_t T_max, void *cache, void *y,
                                     void *scratch);

    shoal_status (*gelu)(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y);
    shoal_status (*gelu_backward)(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                                  const void *dy, void *dx);
    /* Optional: NULL stands for gelu and gelu_backward, one after the other. */
    shoal_status (*gelu_again)(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                               const void *dy, void *y, void *dx);
    shoal_status (*swiglu)(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                           const void *gate_up, void *y);
    shoal_status (*swiglu_backward)(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                    const void *gate_up, const void *dy, void *dgate_up);

    shoal_status (*embedding)(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                              const int32_t *tokens, const void *wte, const void *wpe,
                              int64_t first_position, float *x);
    shoal_status (*embedding_backward)(struct ops *ops, int64_t B, int64_t T, int64_t C, int64_t V,
                                       int64_t T_max, const int32_t *tokens, const float *dx,
                                       float *dwte, float *dwpe);

    shoal_status (*head_prepare)(struct ops *ops, struct head_shape s);
    size_t (*head_scratch_bytes)(const struct ops *ops, struct head_shape s);
    shoal_status (*head_loss)(struct ops *ops, struct head_shape s, const void *x, const void *w,
                              const int32_t *targets, double *row_loss, void *scratch);
    shoal_status (*head_loss_backward)(struct ops *ops, struct head_shape s, const void *x,
                                       const void *w, const int32_t *targets, float scale,
                                       double *row_loss, void *dx, float *dw, void *scratch);

    shoal_status (*cast)(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y);
    shoal_status (*accumulate)(struct ops *ops, int64_t n, const float *src, float *dst);
    shoal_status (*zero)(struct ops *ops, size_t n_bytes, void *dst);
};

struct ops {
    const struct ops_vtable *table;
    struct op_profile profile[OP_CLASS_COUNT];
};

#pragma once

#include "models/model.h"

/*
 * Private to models/: where each weight lies in its unit, the shapes of one call, and the
 * carving of caller's memory into the buffers of a unit.
 */

/* Every weight a decoder may have; the blocks are all alike. */
enum weight {
    W_TOKENS, /* unit embed */
    W_POSITIONS,
    W_NORM1, /* units block.N */
    W_NORM1_BIAS,
    W_QKV,
    W_QKV_BIAS,
    W_O,
    W_O_BIAS,
    W_NORM2,
    W_NORM2_BIAS,
    W_UP, /* gate and up with SwiGLU */
    W_UP_BIAS,
    W_DOWN,
    W_DOWN_BIAS,
    W_FINAL_NORM, /* unit head */
    W_FINAL_NORM_BIAS,
    W_HEAD,
    WEIGHT_COUNT
};

struct model {
    struct model_config config;
    struct layout *layout;
    int64_t offsets[WEIGHT_COUNT]; /* in the weight's unit; -1: this model has no such weight */
};

/* model_table.c: fill model->layout and model->offsets from model->config. */
shoal_status model_build_table(struct model *model);

/* What Hugging Face calls a model of this config. */
enum model_family { FAMILY_GPT2, FAMILY_LLAMA, FAMILY_OTHER };
enum model_family model_family(const struct model_config *config);

/* Widths that follow from a config. */
static inline int64_t width_qkv(const struct model_config *c)
{
    return (int64_t)(c->heads + 2 * c->kv_heads) * c->head_size;
}

static inline int64_t width_attention(const struct model_config *c)
{
    return (int64_t)c->heads * c->head_size;
}

/* Width before the activation: gate and up lie side by side with SwiGLU. */
static inline int64_t width_up(const struct model_config *c)
{
    return c->mlp == MLP_SWIGLU ? 2 * (int64_t)c->ffn : c->ffn;
}

/* The products and the attention of one call. */
struct shapes {
    int64_t N; /* B*T */
    struct linear_shape qkv, o, up, down;
    struct attention_shape attention;
    struct head_shape head;
};

struct shapes model_shapes(const struct model *model, int64_t B, int64_t T, enum dtype dtype);

/* decode.c: the output projection of one token. */
struct linear_shape model_logits_shape(const struct model *model, enum dtype dtype);

/*
 * Carve buffers at 64-byte boundaries from a block of memory; with base NULL nothing is
 * handed out and `used` tells the size.  One function per kind of memory does both, so that what
 * is planned and what is used cannot differ.
 */
struct carve {
    char *base;
    size_t used;
};

void *carve(struct carve *c, size_t n_bytes);

/* The result of a norm: y [N, C] dtype and its statistics [N, 2]. */
struct normed {
    void *y;
    float *stats;
};

/* What a block's forward keeps for its backward: the results of matmuls and attention. */
struct saved {
    void *qkv;  /* [N, (H+2K)*D] dtype, after rotation */
    void *y;    /* [N, H*D] dtype */
    float *lse; /* [B, H, T] */
    float *mid; /* [N, C], the residual stream between attention and feed-forward */
    void *up;   /* [N, width_up] dtype, before the activation */
    /* With RECOMPUTE_NONE, else NULL: */
    struct normed norm1, norm2;
    void *act; /* [N, F] dtype */
};

size_t carve_saved(const struct model *model, int64_t B, int64_t T, enum dtype dtype,
                   enum recompute recompute, void *base, struct saved *saved_out);

/* The two halves of a call's dx. */
struct gradient {
    float *wide;   /* [N, C] */
    void *rounded; /* [N, C] dtype; NULL with fp32 */
    void *narrow;  /* what products read: rounded, or wide with fp32 */
};

size_t carve_gradient(const struct model *model, int64_t B, int64_t T, enum dtype dtype, void *base,
                      struct gradient *gradient_out);

/*
 * Temporaries of a unit.  `narrow` and the two wide buffers serve several tensors one after
 * the other; block.c says which.
 */
struct scratch {
    void *narrow; /* [N, C] dtype */
    void *wide_a; /* [N, max(width_up, width_qkv)] dtype */
    void *wide_b; /* [N, max(F, H*D, C)] dtype */
    float *stats; /* [N, 2] */
    void *op;     /* scratch of the ops */
};

size_t carve_scratch(const struct model *model, const struct ops *ops, int64_t B, int64_t T,
                     enum dtype dtype, void *base, struct scratch *scratch_out);

/* Address of a weight among the unit's flat weights or gradients; NULL if the model has none. */
const void *weight_at(const struct model *model, const void *params, enum dtype dtype,
                      enum weight weight);
float *grad_at(const struct model *model, float *grads, enum weight weight);

/* op_norm with the model's kind and epsilon; the shift is the weight after the scale. */
shoal_status model_norm(const struct model *model, struct ops *ops, int64_t N, enum dtype dtype,
                        const float *x, const void *params, enum weight weight, void *y,
                        float *stats);

/* embed_head.c, block.c */
shoal_status embed_forward(const struct model *model, struct ops *ops,
                           const struct model_call *call);
shoal_status embed_backward(const struct model *model, struct ops *ops,
                            const struct model_call *call);
shoal_status block_forward(const struct model *model, struct ops *ops,
                           const struct model_call *call);
shoal_status block_backward(const struct model *model, struct ops *ops,
                            const struct model_call *call);
shoal_status head_forward(const struct model *model, struct ops *ops,
                          const struct model_call *call);
shoal_status head_backward(const struct model *model, struct ops *ops,
                           const struct model_call *call);

/* The output projection: the head's own, or the token embedding of a tied model. */
const void *head_weight(const struct model *model, const struct model_call *call);

/* block.c: activation between the two feed-forward products, [N, width_up] -> [N, F]. */
shoal_status block_activation(const struct model *model, struct ops *ops, int64_t N,
                              enum dtype dtype, const void *up, void *y);

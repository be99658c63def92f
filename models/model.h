#pragma once

#include "models/ops/ops.h"
#include "runtime/base/status.h"
#include "runtime/layout/layout.h"
#include "runtime/schedule/schedule.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Models: decoders built from ops.  One configurable decoder covers GPT-2 and Llama.
 *
 * A model is its config, a parameter table (a `layout`: units embed, block.0 .. block.L-1, head)
 * and forward/backward per unit.  It holds no parameters and no activations: the caller passes
 * pointers to a unit's flat weights, to its input and output and to scratch.
 *
 * Weight tying: with `tied`, the head multiplies with the embedding's weights; its gradient
 * for them goes to a buffer of its own (`tied_grads`, laid out as unit embed), because the two
 * contributions are summed over microbatches separately and added at the end: so every
 * accumulation order gives the same bits.
 *
 * Padding: model_backward zeroes the gaps between tensors, up to the unit's n_elements.  What
 * shards hold past that end belongs to the caller: zeroed once, never written here.
 *
 * A model is read-only after creation, hence thread-safe.  Everything here is local.
 */

enum model_position { POSITION_LEARNED, POSITION_ROPE };
enum model_mlp { MLP_GELU, MLP_SWIGLU };

struct model_config {
    int layers, hidden, heads, kv_heads, head_size, ffn, vocab, max_seq;
    enum norm_kind norm;
    enum model_position position;
    enum model_mlp mlp;
    bool bias; /* biases on projections (GPT-2); a LayerNorm always has its shift, RMSNorm never */
    bool tied;
    float norm_eps;
    double rope_theta;
};

struct model;

/*
 * Fill *config_out from a preset: "gpt2" (124M) and its larger sisters, "gpt-tiny" and "llama-tiny"
 * (about 2 M parameters, byte tokens), "smollm-135m", "llama-1b", "llama-3b", "llama-8b".
 * SHOAL_ERR_CONFIG for an unknown name, with the nearest one.
 */
shoal_status model_config_preset(const char *name, struct model_config *config_out);

/* Space-separated names of all presets; static. */
const char *model_presets(void);

/*
 * Check sizes (heads divide hidden, kv_heads divide heads, even head size for RoPE, ...);
 * SHOAL_ERR_CONFIG names the key.  head_size must be filled in; it may differ from hidden / heads.
 */
shoal_status model_config_check(const struct model_config *config);

/*
 * The config as JSON in Hugging Face's terms, and back without loss (but for a rope_theta that
 * GPT-2 does not use); for checkpoints.  The caller frees the text.  Text that is not JSON, lacks
 * a key or asks for what we cannot compute (stretched RoPE, other activations, ...) is
 * SHOAL_ERR_DATA and names the key.
 */
shoal_status model_config_to_json(const struct model_config *config, char **json_out);
shoal_status model_config_from_json(const char *json, struct model_config *config_out);

shoal_status model_create(const struct model_config *config, struct model **model_out);
void model_destroy(struct model *model);
const struct model_config *model_config(const struct model *model);
const struct layout *model_layout(const struct model *model);

int model_embed_unit(const struct model *model);
int model_head_unit(const struct model *model);

/*
 * FLOPs of one training token, forward and backward: 6 * (parameters that multiply: all but
 * embeddings; the head counts, tied or not) + 6 * L * H*D * T (the causal half of attention).
 */
double model_flops_per_token(const struct model *model, int64_t T);

/* Matmul and attention FLOPs of one forward of a unit over N = B*T tokens. */
uint64_t model_unit_flops(const struct model *model, int unit, int64_t B, int64_t T);

/*
 * Initial values of elements [begin, end) of a unit's flat space, fp32: a pure function of
 * (seed, tensor, element).  GPT-2's rule: N(0, 0.02), residual projections N(0, 0.02/sqrt(2L)),
 * norms 1, biases 0.  Padding becomes 0.
 */
void model_init_range(const struct model *model, uint64_t seed, int unit, struct shard range,
                      float *out);

/* ---- sizes of buffers, in bytes; shapes B x T, compute type dtype ---- */

/*
 * What a block's forward keeps for its backward; never changes a bit.  Chen et al. 2016; to make
 * anew only what is large and cheap is Korthikanti et al. 2022.
 */
enum recompute {
    RECOMPUTE_NONE,      /* all that backward reads */
    RECOMPUTE_SELECTIVE, /* what products and attention made; norms and activations run again */
    RECOMPUTE_FULL       /* nothing but its input: all of the block's forward runs again */
};

/* "none", "selective", "full" */
const char *recompute_name(enum recompute recompute);

size_t model_residual_bytes(const struct model *model, int64_t B, int64_t T); /* fp32 [B*T, C] */
size_t model_saved_bytes(const struct model *model, int64_t B, int64_t T, enum dtype dtype,
                         enum recompute recompute);
/* `dx` of a call. */
size_t model_gradient_bytes(const struct model *model, int64_t B, int64_t T, enum dtype dtype);
size_t model_scratch_bytes(const struct model *model, const struct ops *ops, int64_t B, int64_t T,
                           enum dtype dtype);
size_t model_decode_scratch_bytes(const struct model *model, const struct ops *ops, int64_t T_max,
                                  enum dtype dtype);
/* Per block. */
size_t model_cache_bytes(const struct model *model, int64_t T_max, enum dtype dtype);

/* Build matmul primitives for these shapes before the first step. */
shoal_status model_prepare(const struct model *model, struct ops *ops, int64_t B, int64_t T,
                           enum dtype dtype, enum recompute recompute);
shoal_status model_prepare_decode(const struct model *model, struct ops *ops, int64_t T_max,
                                  enum dtype dtype);

/* ---- compute ---- */

/*
 * One call's pointers, 64-byte aligned.  Which are used:
 *   embed forward   params, tokens, x_out
 *   embed backward  tokens, dx, grads
 *   block forward   params, x_in, x_out, saved, scratch
 *   block backward  params, x_in, saved, dx, grads, scratch
 *   head forward    params, tied_params, targets, x_in, row_loss, scratch (loss only)
 *   head backward   the same and dx, grads, tied_grads (loss and gradient)
 *
 * dx is the residual stream's gradient as fp32 [B*T, C] and, behind it, unless dtype is fp32, the same
 * rounded to dtype: head and blocks write both, blocks read both, embed reads fp32.
 */
struct model_call {
    int64_t B, T;
    enum dtype dtype;
    const void *params;       /* the unit's flat weights, dtype */
    const void *tied_params;  /* head of a tied model: unit embed's flat weights */
    const int32_t *tokens;    /* [B, T] */
    const int32_t *targets;   /* [B, T] */
    const float *x_in;        /* residual stream before the unit [B*T, C] */
    float *x_out;             /* after it; not x_in */
    void *saved;              /* what forward keeps for backward, model_saved_bytes */
    enum recompute recompute; /* full: backward runs the block's forward into `saved` first */
    void *dx;          /* in: gradient of the unit's output (head: none); out: of its input */
    float *grads;      /* the unit's flat gradient, fp32, overwritten; gaps zeroed */
    float *tied_grads; /* head of a tied model: flat as unit embed, zero but for the tokens */
    double *row_loss;  /* [B*T] */
    float loss_scale;  /* 1 / number of target tokens of the whole global batch */
    void *scratch;
};

shoal_status model_forward(const struct model *model, struct ops *ops, int unit,
                           const struct model_call *call);
shoal_status model_backward(const struct model *model, struct ops *ops, int unit,
                            const struct model_call *call);

/*
 * Generation, one token per call at `position`: embed: tokens[0] -> x_out [C]; block: x_in ->
 * x_out, cache updated; head: x_in -> logits [V] fp32.  B = T = 1 in the call; its scratch is
 * model_decode_scratch_bytes.
 */
struct model_decode {
    struct model_call call;
    int64_t position, T_max;
    void *cache;   /* the block's, model_cache_bytes */
    float *logits; /* head */
};
shoal_status model_decode(const struct model *model, struct ops *ops, int unit,
                          const struct model_decode *decode);

/*
 * Choose a token from logits [V]: temperature 0 = argmax (lowest index wins ties), top_p nucleus
 * (1: off).  A pure function of its arguments; `index` counts the draws.  NaN is never chosen while
 * a finite logit exists.  `scratch` holds V * 8 bytes.
 */
int32_t model_sample(const float *logits, int64_t V, double temperature, double top_p,
                     uint64_t seed, uint64_t index, void *scratch);

/* ---- operations for schedules ---- */

/*
 * Where a unit's operation finds its buffers (see struct model_call).  `loss_scale` and `position`
 * are host scalars owned by the trainer, read when the operation runs.
 */
struct model_refs {
    struct slot_ref params, tied_params, tokens, targets, x_in, x_out, saved, dx, grads, tied_grads,
        row_loss, scratch, cache, logits;
    enum recompute recompute;
    const float *loss_scale;
    const int64_t *position;
};

struct model_op_shape {
    int64_t B, T, T_max;
    enum dtype dtype;
};

shoal_status model_op_forward(struct schedule *sched, const struct model *model, struct ops *ops,
                              int unit, int index, struct model_op_shape shape,
                              const struct model_refs *refs);
shoal_status model_op_backward(struct schedule *sched, const struct model *model, struct ops *ops,
                               int unit, int index, struct model_op_shape shape,
                               const struct model_refs *refs);
shoal_status model_op_decode(struct schedule *sched, const struct model *model, struct ops *ops,
                             int unit, struct model_op_shape shape, const struct model_refs *refs);

/* dst += src over n fp32 elements: one step of the accumulation tree. */
shoal_status model_op_accumulate(struct schedule *sched, struct ops *ops, int unit, int index,
                                 struct slot_ref src, struct slot_ref dst, size_t n);

#include "models/model_internal.h"

/*
 * A pre-norm decoder block: x -> mid = x + attention(norm1 x) -> mid + feed-forward(norm2 mid).
 *
 * Forward keeps only what products and attention made (struct saved).  Norms and
 * activations cost little to run again, so backward makes them anew instead of reading them
 * from memory: a GPT-2 block with bf16 activations keeps 20 bytes instead of 32 per element of
 * the residual stream.  They come out with the same bits.
 *
 * One call's context, so that the functions below read as lists of ops.
 */
struct block {
    const struct model *model;
    struct ops *ops;
    const struct model_call *call;
    struct shapes shapes;
    struct saved saved;
    struct scratch scratch;
};

static struct block block_of(const struct model *model, struct ops *ops,
                             const struct model_call *call)
{
    struct block b = {.model = model,
                      .ops = ops,
                      .call = call,
                      .shapes = model_shapes(model, call->B, call->T, call->dtype)};

    carve_saved(model, call->B, call->T, call->dtype, call->saved, &b.saved);
    carve_scratch(model, ops, call->B, call->T, call->dtype, call->scratch, &b.scratch);
    return b;
}

static const void *weight_of(const struct block *b, enum weight weight)
{
    return weight_at(b->model, b->call->params, b->call->dtype, weight);
}

static float *grad_of(const struct block *b, enum weight weight)
{
    return grad_at(b->model, b->call->grads, weight);
}

shoal_status block_activation(const struct model *model, struct ops *ops, int64_t N,
                              enum dtype dtype, const void *up, void *y)
{
    int64_t F = model->config.ffn;

    if (model->config.mlp == MLP_SWIGLU)
        return op_swiglu(ops, N, F, dtype, up, y);
    return op_gelu(ops, N * F, dtype, up, y);
}

static shoal_status rotate(const struct block *b, bool inverse, void *qkv)
{
    const struct model_config *c = &b->model->config;

    if (c->position != POSITION_ROPE)
        return SHOAL_OK;
    return op_rope(b->ops, b->shapes.attention, c->rope_theta, 0, inverse, qkv);
}

static shoal_status norm(const struct block *b, const float *x, enum weight weight, void *y)
{
    return model_norm(b->model, b->ops, b->shapes.N, b->call->dtype, x, b->call->params, weight, y,
                      b->scratch.stats);
}

/* dx += gradient through a norm whose statistics are in scratch. */
static shoal_status norm_backward(const struct block *b, const void *dy, const float *x,
                                  enum weight weight)
{
    const struct model_config *c = &b->model->config;

    return op_norm_backward(b->ops, c->norm, b->shapes.N, c->hidden, b->call->dtype, dy, x,
                            weight_of(b, weight), b->scratch.stats, b->call->dx, grad_of(b, weight),
                            grad_of(b, weight + 1), b->scratch.op);
}

/* All of forward that backward needs: up to the feed-forward's activation. */
static shoal_status forward_to_saved(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct saved *saved = &b->saved;
    const float *x = b->call->x_in;
    void *normed = b->scratch.narrow;
    void *op = b->scratch.op;

    /* normed [N,C] */
    SHOAL_TRY(norm(b, x, W_NORM1, normed));
    /* qkv [N,(H+2K)D] */
    SHOAL_TRY(op_linear(b->ops, s->qkv, normed, weight_of(b, W_QKV), weight_of(b, W_QKV_BIAS),
                        saved->qkv, op));
    SHOAL_TRY(rotate(b, false, saved->qkv));
    /* y [N,HD] */
    SHOAL_TRY(op_attention(b->ops, s->attention, saved->qkv, saved->y, saved->lse, op));
    /* mid [N,C] = x + y Woᵀ */
    SHOAL_TRY(op_linear_add(b->ops, s->o, saved->y, weight_of(b, W_O), weight_of(b, W_O_BIAS), x,
                            saved->mid, op));
    /* normed [N,C] */
    SHOAL_TRY(norm(b, saved->mid, W_NORM2, normed));
    /* up [N,F] or [N,2F] */
    return op_linear(b->ops, s->up, normed, weight_of(b, W_UP), weight_of(b, W_UP_BIAS), saved->up,
                     op);
}

shoal_status block_forward(const struct model *model, struct ops *ops,
                           const struct model_call *call)
{
    struct block b = block_of(model, ops, call);
    void *act = b.scratch.wide_b;

    SHOAL_TRY(forward_to_saved(&b));
    /* act [N,F] */
    SHOAL_TRY(block_activation(model, ops, b.shapes.N, call->dtype, b.saved.up, act));
    /* x_out [N,C] = mid + act Wdownᵀ */
    return op_linear_add(ops, b.shapes.down, act, weight_of(&b, W_DOWN), weight_of(&b, W_DOWN_BIAS),
                         b.saved.mid, call->x_out, b.scratch.op);
}

/*
 * act, dWdown and dup.  GELU and its gradient are one pass, with dup in the place of dact; SwiGLU's dup
 * is wider and lies where act was.
 */
static shoal_status activation_backward(const struct block *b, const void *dy, void **dup_out)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    const bool swiglu = b->model->config.mlp == MLP_SWIGLU;
    enum dtype dtype = b->call->dtype;
    int64_t F = b->model->config.ffn;
    void *act = t->wide_a;
    void *dact = t->wide_b;

    *dup_out = swiglu ? t->wide_a : t->wide_b;
    if (swiglu)
        SHOAL_TRY(op_swiglu(b->ops, s->N, F, dtype, b->saved.up, act));
    else
        SHOAL_TRY(op_gelu_again(b->ops, s->N * F, dtype, b->saved.up, dact, act, *dup_out));
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->down, dy, act, grad_of(b, W_DOWN),
                                        grad_of(b, W_DOWN_BIAS), t->op));
    if (swiglu)
        SHOAL_TRY(op_swiglu_backward(b->ops, s->N, F, dtype, b->saved.up, dact, *dup_out));
    return SHOAL_OK;
}

/* dx: gradient of the block's output on entry, of mid on return. */
static shoal_status mlp_backward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    const void *dy = NULL;
    void *dact = t->wide_b;
    void *dup = NULL;
    void *normed = t->narrow; /* dy is done with */

    /* dy [N,C] */
    SHOAL_TRY(model_round(b->ops, s->N * s->down.out, b->call->dtype, b->call->dx, t->narrow, &dy));
    /* dact [N,F] = dy Wdown */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->down, dy, weight_of(b, W_DOWN), dact, t->op));
    /* act [N,F], dWdown [C,F] = dyᵀ act, dup [N,F] or [N,2F] */
    SHOAL_TRY(activation_backward(b, dy, &dup));
    void *dnormed = dup == t->wide_a ? t->wide_b : t->wide_a; /* act and dact are done with */
    /* normed [N,C], again */
    SHOAL_TRY(norm(b, b->saved.mid, W_NORM2, normed));
    /* dWup [F or 2F,C] = dupᵀ normed */
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->up, dup, normed, grad_of(b, W_UP),
                                        grad_of(b, W_UP_BIAS), t->op));
    /* dnormed [N,C] = dup Wup */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->up, dup, weight_of(b, W_UP), dnormed, t->op));
    /* dx [N,C] += d norm2 */
    return norm_backward(b, dnormed, b->saved.mid, W_NORM2);
}

/* dx: gradient of mid on entry, of the block's input on return. */
static shoal_status attention_backward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    const struct saved *saved = &b->saved;
    const void *dmid = NULL;
    void *dy = t->wide_b;
    void *dqkv = t->wide_a;
    void *normed = t->narrow;  /* dmid is done with */
    void *dnormed = t->wide_b; /* dy is done with */

    /* dmid [N,C] */
    SHOAL_TRY(model_round(b->ops, s->N * s->o.out, b->call->dtype, b->call->dx, t->narrow, &dmid));
    /* dWo [C,HD] = dmidᵀ y */
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->o, dmid, saved->y, grad_of(b, W_O),
                                        grad_of(b, W_O_BIAS), t->op));
    /* dy [N,HD] = dmid Wo */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->o, dmid, weight_of(b, W_O), dy, t->op));
    /* dqkv [N,(H+2K)D] */
    SHOAL_TRY(op_attention_backward(b->ops, s->attention, dy, saved->qkv, saved->y, saved->lse,
                                    dqkv, t->op));
    SHOAL_TRY(rotate(b, true, dqkv));
    /* normed [N,C], again */
    SHOAL_TRY(norm(b, b->call->x_in, W_NORM1, normed));
    /* dWqkv [(H+2K)D,C] = dqkvᵀ normed */
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->qkv, dqkv, normed, grad_of(b, W_QKV),
                                        grad_of(b, W_QKV_BIAS), t->op));
    /* dnormed [N,C] = dqkv Wqkv */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->qkv, dqkv, weight_of(b, W_QKV), dnormed, t->op));
    /* dx [N,C] += d norm1 */
    return norm_backward(b, dnormed, b->call->x_in, W_NORM1);
}

shoal_status block_backward(const struct model *model, struct ops *ops,
                            const struct model_call *call)
{
    struct block b = block_of(model, ops, call);

    if (call->recompute)
        SHOAL_TRY(forward_to_saved(&b));
    SHOAL_TRY(mlp_backward(&b));
    return attention_backward(&b);
}

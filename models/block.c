#include "models/model_internal.h"

/*
 * A pre-norm decoder block: x -> mid = x + attention(norm1 x) -> mid + feed-forward(norm2 mid).
 *
 * What forward keeps is `recompute`'s choice.  With selective recomputation a GPT-2 block with bf16
 * activations keeps 20 instead of 32 bytes per element of the residual stream, and backward makes
 * norms and activations anew, with the same bits.
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
    struct normed norm1, norm2; /* kept, or both in scratch, one after the other */
    struct gradient dx;         /* backward */
};

static bool keeps_all(const struct model_call *call)
{
    return call->recompute == RECOMPUTE_NONE;
}

static struct block block_of(const struct model *model, struct ops *ops,
                             const struct model_call *call)
{
    struct block b = {.model = model,
                      .ops = ops,
                      .call = call,
                      .shapes = model_shapes(model, call->B, call->T, call->dtype)};

    carve_saved(model, call->B, call->T, call->dtype, call->recompute, call->saved, &b.saved);
    carve_scratch(model, ops, call->B, call->T, call->dtype, call->scratch, &b.scratch);
    carve_gradient(model, call->B, call->T, call->dtype, call->dx, &b.dx);
    b.norm1 = b.norm2 = (struct normed){.y = b.scratch.narrow, .stats = b.scratch.stats};
    if (keeps_all(call)) {
        b.norm1 = b.saved.norm1;
        b.norm2 = b.saved.norm2;
    }
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

static shoal_status norm(const struct block *b, const float *x, enum weight weight,
                         struct normed normed)
{
    return model_norm(b->model, b->ops, b->shapes.N, b->call->dtype, x, b->call->params, weight,
                      normed.y, normed.stats);
}

/* dx += gradient through a norm. */
static shoal_status norm_backward(const struct block *b, const void *dy, const float *x,
                                  enum weight weight, struct normed normed)
{
    const struct model_config *c = &b->model->config;

    return op_norm_backward(b->ops, c->norm, b->shapes.N, c->hidden, b->call->dtype, dy, x,
                            weight_of(b, weight), normed.stats, b->dx.wide, b->dx.rounded,
                            grad_of(b, weight), grad_of(b, weight + 1), b->scratch.op);
}

/* All of forward up to the feed-forward's first product. */
static shoal_status attention_forward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct saved *saved = &b->saved;
    const float *x = b->call->x_in;
    void *op = b->scratch.op;

    /* normed [N,C] */
    SHOAL_TRY(norm(b, x, W_NORM1, b->norm1));
    /* qkv [N,(H+2K)D] */
    SHOAL_TRY(op_linear(b->ops, s->qkv, b->norm1.y, weight_of(b, W_QKV), weight_of(b, W_QKV_BIAS),
                        saved->qkv, op));
    SHOAL_TRY(rotate(b, false, saved->qkv));
    /* y [N,HD] */
    SHOAL_TRY(op_attention(b->ops, s->attention, saved->qkv, saved->y, saved->lse, op));
    /* mid [N,C] = x + y Woᵀ */
    SHOAL_TRY(op_linear_add(b->ops, s->o, saved->y, weight_of(b, W_O), weight_of(b, W_O_BIAS), x,
                            saved->mid, op));
    /* normed [N,C] */
    return norm(b, saved->mid, W_NORM2, b->norm2);
}

/* up [N,F] or [N,2F] */
static shoal_status up_forward(const struct block *b)
{
    return op_linear(b->ops, b->shapes.up, b->norm2.y, weight_of(b, W_UP), weight_of(b, W_UP_BIAS),
                     b->saved.up, b->scratch.op);
}

/* up and act [N,F].  Products with GELU inside are for those who keep its result: backward, making it
 * anew, would start from the rounded `up` and get other bits. */
static shoal_status up_and_activation(const struct block *b, void *act)
{
    if (keeps_all(b->call) && b->model->config.mlp == MLP_GELU)
        return op_linear_gelu(b->ops, b->shapes.up, b->norm2.y, weight_of(b, W_UP),
                              weight_of(b, W_UP_BIAS), b->saved.up, act, b->scratch.op);
    SHOAL_TRY(up_forward(b));
    return block_activation(b->model, b->ops, b->shapes.N, b->call->dtype, b->saved.up, act);
}

shoal_status block_forward(const struct model *model, struct ops *ops,
                           const struct model_call *call)
{
    struct block b = block_of(model, ops, call);
    void *act = keeps_all(call) ? b.saved.act : b.scratch.wide_b;

    SHOAL_TRY(attention_forward(&b));
    SHOAL_TRY(up_and_activation(&b, act));
    /* x_out [N,C] = mid + act Wdownᵀ */
    return op_linear_add(ops, b.shapes.down, act, weight_of(&b, W_DOWN), weight_of(&b, W_DOWN_BIAS),
                         b.saved.mid, call->x_out, b.scratch.op);
}

/* dWdown [C,F] = dyᵀ act */
static shoal_status down_weight(const struct block *b, const void *act)
{
    return op_linear_backward_weight(b->ops, b->shapes.down, b->dx.narrow, act, grad_of(b, W_DOWN),
                                     grad_of(b, W_DOWN_BIAS), b->scratch.op);
}

/* dact [N,F] = dy Wdown */
static shoal_status down_input(const struct block *b, void *dact)
{
    return op_linear_backward_input(b->ops, b->shapes.down, b->dx.narrow, weight_of(b, W_DOWN),
                                    dact, b->scratch.op);
}

/* dWdown, and dup [N,F] in wide_b: the gradient of GELU takes the place of dact. */
static shoal_status gelu_backward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    void *act = t->wide_a, *dup = t->wide_b;

    if (keeps_all(b->call)) {
        SHOAL_TRY(op_linear_backward_input_gelu(b->ops, s->down, b->dx.narrow, weight_of(b, W_DOWN),
                                                b->saved.up, dup, t->op));
        return down_weight(b, b->saved.act);
    }
    SHOAL_TRY(down_input(b, dup));
    SHOAL_TRY(op_gelu_again(b->ops, s->N * s->down.in, b->call->dtype, b->saved.up, dup, act, dup));
    return down_weight(b, act);
}

/* dWdown, and dup [N,2F] in wide_a. */
static shoal_status swiglu_backward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    enum dtype dtype = b->call->dtype;
    void *act = keeps_all(b->call) ? b->saved.act : t->wide_a;

    SHOAL_TRY(down_input(b, t->wide_b));
    if (!keeps_all(b->call))
        SHOAL_TRY(op_swiglu(b->ops, s->N, s->down.in, dtype, b->saved.up, act));
    SHOAL_TRY(down_weight(b, act));
    return op_swiglu_backward(b->ops, s->N, s->down.in, dtype, b->saved.up, t->wide_b, t->wide_a);
}

/* dx: gradient of the block's output on entry, of mid on return. */
static shoal_status mlp_backward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    const bool swiglu = b->model->config.mlp == MLP_SWIGLU;
    void *dup = swiglu ? t->wide_a : t->wide_b;
    void *dnormed = swiglu ? t->wide_b : t->wide_a;

    SHOAL_TRY(swiglu ? swiglu_backward(b) : gelu_backward(b));
    /* normed [N,C]: kept, or still there from the forward that was run again, or made anew */
    if (b->call->recompute == RECOMPUTE_SELECTIVE)
        SHOAL_TRY(norm(b, b->saved.mid, W_NORM2, b->norm2));
    /* dWup [F or 2F,C] = dupᵀ normed */
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->up, dup, b->norm2.y, grad_of(b, W_UP),
                                        grad_of(b, W_UP_BIAS), t->op));
    /* dnormed [N,C] = dup Wup */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->up, dup, weight_of(b, W_UP), dnormed, t->op));
    /* dx [N,C] += d norm2 */
    return norm_backward(b, dnormed, b->saved.mid, W_NORM2, b->norm2);
}

/* dx: gradient of mid on entry, of the block's input on return. */
static shoal_status attention_backward(const struct block *b)
{
    const struct shapes *s = &b->shapes;
    const struct scratch *t = &b->scratch;
    const struct saved *saved = &b->saved;
    const void *dmid = b->dx.narrow;
    void *dy = t->wide_b;
    void *dqkv = t->wide_a;
    void *dnormed = t->wide_b; /* dy is done with */

    /* dWo [C,HD] = dmidᵀ y */
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->o, dmid, saved->y, grad_of(b, W_O),
                                        grad_of(b, W_O_BIAS), t->op));
    /* dy [N,HD] = dmid Wo */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->o, dmid, weight_of(b, W_O), dy, t->op));
    /* dqkv [N,(H+2K)D] */
    SHOAL_TRY(op_attention_backward(b->ops, s->attention, dy, saved->qkv, saved->y, saved->lse,
                                    dqkv, t->op));
    SHOAL_TRY(rotate(b, true, dqkv));
    /* normed [N,C]: kept, or made anew */
    if (!keeps_all(b->call))
        SHOAL_TRY(norm(b, b->call->x_in, W_NORM1, b->norm1));
    /* dWqkv [(H+2K)D,C] = dqkvᵀ normed */
    SHOAL_TRY(op_linear_backward_weight(b->ops, s->qkv, dqkv, b->norm1.y, grad_of(b, W_QKV),
                                        grad_of(b, W_QKV_BIAS), t->op));
    /* dnormed [N,C] = dqkv Wqkv */
    SHOAL_TRY(op_linear_backward_input(b->ops, s->qkv, dqkv, weight_of(b, W_QKV), dnormed, t->op));
    /* dx [N,C] += d norm1 */
    return norm_backward(b, dnormed, b->call->x_in, W_NORM1, b->norm1);
}

shoal_status block_backward(const struct model *model, struct ops *ops,
                            const struct model_call *call)
{
    struct block b = block_of(model, ops, call);

    if (call->recompute == RECOMPUTE_FULL) {
        SHOAL_TRY(attention_forward(&b));
        SHOAL_TRY(up_forward(&b));
    }
    SHOAL_TRY(mlp_backward(&b));
    return attention_backward(&b);
}

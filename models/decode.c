#include "models/model_internal.h"

/*
 * Generation: one token through all units, keys and values kept in a cache per block.  The
 * same ops as forward with one row, but for attention, which reads the cache.
 */

struct linear_shape model_logits_shape(const struct model *model, enum dtype dtype)
{
    return (struct linear_shape){
        .rows = 1, .in = model->config.hidden, .out = model->config.vocab, .dtype = dtype};
}

/* Temporaries of one token; sized for any unit. */
struct decode_scratch {
    void *normed; /* [C] */
    void *qkv;    /* [(H+2K)*D] */
    void *y;      /* [H*D] */
    void *up;     /* [width_up] */
    void *act;    /* [F] */
    float *stats; /* [2] */
    void *op;
};

static size_t max_bytes(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The attention of a decode step as op_attention_scratch_bytes wants it: one row of T_max. */
static size_t op_scratch_bytes(const struct model *model, const struct ops *ops, int64_t T_max,
                               enum dtype dtype)
{
    struct shapes s = model_shapes(model, 1, 1, dtype);
    struct attention_shape whole = s.attention;
    size_t n_bytes = op_linear_scratch_bytes(ops, model_logits_shape(model, dtype));

    whole.T = T_max;
    n_bytes = max_bytes(n_bytes, op_linear_scratch_bytes(ops, s.qkv));
    n_bytes = max_bytes(n_bytes, op_linear_scratch_bytes(ops, s.o));
    n_bytes = max_bytes(n_bytes, op_linear_scratch_bytes(ops, s.up));
    n_bytes = max_bytes(n_bytes, op_linear_scratch_bytes(ops, s.down));
    return max_bytes(n_bytes, op_attention_scratch_bytes(ops, whole));
}

static size_t carve_decode(const struct model *model, const struct ops *ops, int64_t T_max,
                           enum dtype dtype, void *base, struct decode_scratch *out)
{
    const struct model_config *c = &model->config;
    size_t element = dtype_bytes(dtype);
    struct carve memory = {.base = base};

    out->normed = carve(&memory, (size_t)c->hidden * element);
    out->qkv = carve(&memory, (size_t)width_qkv(c) * element);
    out->y = carve(&memory, (size_t)width_attention(c) * element);
    out->up = carve(&memory, (size_t)width_up(c) * element);
    out->act = carve(&memory, (size_t)c->ffn * element);
    out->stats = carve(&memory, 2 * sizeof(float));
    out->op = carve(&memory, op_scratch_bytes(model, ops, T_max, dtype));
    return memory.used;
}

size_t model_decode_scratch_bytes(const struct model *model, const struct ops *ops, int64_t T_max,
                                  enum dtype dtype)
{
    struct decode_scratch unused;

    return carve_decode(model, ops, T_max, dtype, NULL, &unused);
}

static shoal_status decode_embed(const struct model *model, struct ops *ops,
                                 const struct model_decode *d)
{
    const struct model_call *call = &d->call;
    const void *wte = weight_at(model, call->params, call->dtype, W_TOKENS);
    const void *wpe = weight_at(model, call->params, call->dtype, W_POSITIONS);

    /* x [C] */
    return op_embedding(ops, 1, 1, model->config.hidden, call->dtype, call->tokens, wte, wpe,
                        d->position, call->x_out);
}

static shoal_status decode_attention(const struct model *model, struct ops *ops,
                                     const struct model_decode *d, const struct decode_scratch *t)
{
    const struct model_config *c = &model->config;
    const struct model_call *call = &d->call;
    struct shapes s = model_shapes(model, 1, 1, call->dtype);
    const void *w_qkv = weight_at(model, call->params, call->dtype, W_QKV);
    const void *b_qkv = weight_at(model, call->params, call->dtype, W_QKV_BIAS);
    const void *w_o = weight_at(model, call->params, call->dtype, W_O);
    const void *b_o = weight_at(model, call->params, call->dtype, W_O_BIAS);

    /* normed [C] */
    SHOAL_TRY(model_norm(model, ops, 1, call->dtype, call->x_in, call->params, W_NORM1, t->normed,
                         t->stats));
    /* qkv [(H+2K)D] */
    SHOAL_TRY(op_linear(ops, s.qkv, t->normed, w_qkv, b_qkv, t->qkv, t->op));
    if (c->position == POSITION_ROPE)
        SHOAL_TRY(op_rope(ops, s.attention, c->rope_theta, d->position, false, t->qkv));
    /* y [HD] */
    SHOAL_TRY(op_attention_decode(ops, s.attention, t->qkv, d->position, d->T_max, d->cache, t->y,
                                  t->op));
    /* x_out [C] = x + y Woᵀ */
    return op_linear_add(ops, s.o, t->y, w_o, b_o, call->x_in, call->x_out, t->op);
}

static shoal_status decode_mlp(const struct model *model, struct ops *ops,
                               const struct model_decode *d, const struct decode_scratch *t)
{
    const struct model_call *call = &d->call;
    struct shapes s = model_shapes(model, 1, 1, call->dtype);
    const void *w_up = weight_at(model, call->params, call->dtype, W_UP);
    const void *b_up = weight_at(model, call->params, call->dtype, W_UP_BIAS);
    const void *w_down = weight_at(model, call->params, call->dtype, W_DOWN);
    const void *b_down = weight_at(model, call->params, call->dtype, W_DOWN_BIAS);

    /* normed [C] */
    SHOAL_TRY(model_norm(model, ops, 1, call->dtype, call->x_out, call->params, W_NORM2, t->normed,
                         t->stats));
    /* up [F] or [2F] */
    SHOAL_TRY(op_linear(ops, s.up, t->normed, w_up, b_up, t->up, t->op));
    /* act [F] */
    SHOAL_TRY(block_activation(model, ops, 1, call->dtype, t->up, t->act));
    /* x_out [C] += act Wdownᵀ */
    return op_linear_add(ops, s.down, t->act, w_down, b_down, call->x_out, call->x_out, t->op);
}

static shoal_status decode_head(const struct model *model, struct ops *ops,
                                const struct model_decode *d, const struct decode_scratch *t)
{
    const struct model_call *call = &d->call;
    size_t n_bytes = (size_t)model->config.vocab * sizeof *d->logits;

    /* normed [C] */
    SHOAL_TRY(model_norm(model, ops, 1, call->dtype, call->x_in, call->params, W_FINAL_NORM,
                         t->normed, t->stats));
    /* logits [V]: added to zeros, because only op_linear_add writes fp32 */
    SHOAL_TRY(op_zero(ops, n_bytes, d->logits));
    return op_linear_add(ops, model_logits_shape(model, call->dtype), t->normed,
                         head_weight(model, call), NULL, d->logits, d->logits, t->op);
}

shoal_status model_decode(const struct model *model, struct ops *ops, int unit,
                          const struct model_decode *decode)
{
    struct decode_scratch t;

    if (decode->position < 0 || decode->position >= decode->T_max ||
        decode->T_max > model->config.max_seq)
        return fail(SHOAL_ERR_INTERNAL, "decode: position %lld of %lld, the model has %d",
                    (long long)decode->position, (long long)decode->T_max, model->config.max_seq);
    carve_decode(model, ops, decode->T_max, decode->call.dtype, decode->call.scratch, &t);
    if (unit == model_embed_unit(model))
        return decode_embed(model, ops, decode);
    if (unit == model_head_unit(model))
        return decode_head(model, ops, decode, &t);
    SHOAL_TRY(decode_attention(model, ops, decode, &t));
    return decode_mlp(model, ops, decode, &t);
}

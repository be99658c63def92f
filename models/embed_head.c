#include "models/model_internal.h"

/*
 * The first and the last unit.  A tied head has no projection of its own: it multiplies with
 * the token embedding, which unit embed stores at offset 0.
 */

shoal_status embed_forward(const struct model *model, struct ops *ops,
                           const struct model_call *call)
{
    const void *wte = weight_at(model, call->params, call->dtype, W_TOKENS);
    const void *wpe = weight_at(model, call->params, call->dtype, W_POSITIONS);

    /* x [N,C] */
    return op_embedding(ops, call->B, call->T, model->config.hidden, call->dtype, call->tokens, wte,
                        wpe, 0, call->x_out);
}

shoal_status embed_backward(const struct model *model, struct ops *ops,
                            const struct model_call *call)
{
    const struct model_config *c = &model->config;

    /* dwte [V,C], dwpe [max_seq,C] */
    return op_embedding_backward(ops, call->B, call->T, c->hidden, c->vocab, c->max_seq,
                                 call->tokens, call->dx, grad_at(model, call->grads, W_TOKENS),
                                 grad_at(model, call->grads, W_POSITIONS));
}

const void *head_weight(const struct model *model, const struct model_call *call)
{
    if (model->config.tied)
        return weight_at(model, call->tied_params, call->dtype, W_TOKENS);
    return weight_at(model, call->params, call->dtype, W_HEAD);
}

shoal_status head_forward(const struct model *model, struct ops *ops, const struct model_call *call)
{
    struct shapes s = model_shapes(model, call->B, call->T, call->dtype);
    struct scratch t;

    carve_scratch(model, ops, call->B, call->T, call->dtype, call->scratch, &t);
    /* normed [N,C] */
    SHOAL_TRY(model_norm(model, ops, s.N, call->dtype, call->x_in, call->params, W_FINAL_NORM,
                         t.narrow, t.stats));
    /* row_loss [N] */
    return op_head_loss(ops, s.head, t.narrow, head_weight(model, call), call->targets,
                        call->row_loss, t.op);
}

/* Where the projection's gradient goes. */
static float *projection_grad(const struct model *model, const struct model_call *call)
{
    if (model->config.tied)
        return grad_at(model, call->tied_grads, W_TOKENS);
    return grad_at(model, call->grads, W_HEAD);
}

/* Zero what is not token embedding in tied_grads: positions and gaps. */
static shoal_status zero_rest_of_tied(const struct model *model, struct ops *ops, float *tied_grads)
{
    const struct unit *embed = &model->layout->units[model_embed_unit(model)];
    const struct tensor *tokens = &model->layout->tensors[embed->first_tensor];
    int64_t end = tokens->offset + tokens->n_elements;

    return op_zero(ops, (size_t)(embed->n_elements - end) * sizeof *tied_grads, tied_grads + end);
}

shoal_status head_backward(const struct model *model, struct ops *ops,
                           const struct model_call *call)
{
    const struct model_config *c = &model->config;
    struct shapes s = model_shapes(model, call->B, call->T, call->dtype);
    const void *norm_weight = weight_at(model, call->params, call->dtype, W_FINAL_NORM);
    struct scratch t;
    struct gradient dx;

    carve_scratch(model, ops, call->B, call->T, call->dtype, call->scratch, &t);
    carve_gradient(model, call->B, call->T, call->dtype, call->dx, &dx);
    if (c->tied)
        SHOAL_TRY(zero_rest_of_tied(model, ops, call->tied_grads));
    /* normed [N,C] */
    SHOAL_TRY(model_norm(model, ops, s.N, call->dtype, call->x_in, call->params, W_FINAL_NORM,
                         t.narrow, t.stats));
    /* row_loss [N], dnormed [N,C], dW [V,C] */
    SHOAL_TRY(op_head_loss_backward(ops, s.head, t.narrow, head_weight(model, call), call->targets,
                                    call->loss_scale, call->row_loss, t.wide_b,
                                    projection_grad(model, call), t.op));
    /* dx [N,C] = d final norm */
    SHOAL_TRY(op_zero(ops, model_residual_bytes(model, call->B, call->T), dx.wide));
    return op_norm_backward(ops, c->norm, s.N, c->hidden, call->dtype, t.wide_b, call->x_in,
                            norm_weight, t.stats, dx.wide, dx.rounded,
                            grad_at(model, call->grads, W_FINAL_NORM),
                            grad_at(model, call->grads, W_FINAL_NORM_BIAS), t.op);
}

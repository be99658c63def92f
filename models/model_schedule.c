#include "models/model_internal.h"

/*
 * The model's work as operations of a schedule: which slots an operation touches, what it
 * costs, and how it runs.  References become addresses when the operation runs.
 */

/* What an operation remembers; lives in the schedule. */
struct unit_arg {
    const struct model *model;
    struct ops *ops;
    const struct plan *plan;
    struct model_op_shape shape;
    struct model_refs refs;
};

static struct model_call call_of(const struct unit_arg *arg)
{
    const struct plan *plan = arg->plan;
    const struct model_refs *refs = &arg->refs;

    return (struct model_call){
        .B = arg->shape.B,
        .T = arg->shape.T,
        .dtype = arg->shape.dtype,
        .params = plan_ref(plan, refs->params),
        .tied_params = plan_ref(plan, refs->tied_params),
        .tokens = plan_ref(plan, refs->tokens),
        .targets = plan_ref(plan, refs->targets),
        .x_in = plan_ref(plan, refs->x_in),
        .x_out = plan_ref(plan, refs->x_out),
        .saved = plan_ref(plan, refs->saved),
        .recompute = refs->recompute,
        .dx = plan_ref(plan, refs->dx),
        .grads = plan_ref(plan, refs->grads),
        .tied_grads = plan_ref(plan, refs->tied_grads),
        .row_loss = plan_ref(plan, refs->row_loss),
        .loss_scale = refs->loss_scale == NULL ? 1.0f : *refs->loss_scale,
        .scratch = plan_ref(plan, refs->scratch),
    };
}

static shoal_status run_forward(const struct op *op)
{
    const struct unit_arg *arg = op->arg;
    struct model_call call = call_of(arg);

    return model_forward(arg->model, arg->ops, op->unit, &call);
}

static shoal_status run_backward(const struct op *op)
{
    const struct unit_arg *arg = op->arg;
    struct model_call call = call_of(arg);

    return model_backward(arg->model, arg->ops, op->unit, &call);
}

static shoal_status run_decode(const struct op *op)
{
    const struct unit_arg *arg = op->arg;
    struct model_decode decode = {
        .call = call_of(arg),
        .position = *arg->refs.position,
        .T_max = arg->shape.T_max,
        .cache = plan_ref(arg->plan, arg->refs.cache),
        .logits = plan_ref(arg->plan, arg->refs.logits),
    };

    return model_decode(arg->model, arg->ops, op->unit, &decode);
}

/* ---- slots ---- */

/* An operation under construction, with the first thing that was found wrong about it. */
struct builder {
    struct op op;
    const char *missing; /* NULL: nothing */
};

static void uses(struct builder *b, const char *name, struct slot_ref ref, enum access access)
{
    if (ref.slot < 0 && b->missing == NULL)
        b->missing = name;
    op_uses(&b->op, ref, access);
}

static void forward_slots(struct builder *b, const struct model *model, int unit,
                          const struct model_refs *refs)
{
    uses(b, "params", refs->params, ACCESS_READ);
    if (unit == model_embed_unit(model)) {
        uses(b, "tokens", refs->tokens, ACCESS_READ);
        uses(b, "x_out", refs->x_out, ACCESS_WRITE);
        return;
    }
    uses(b, "x_in", refs->x_in, ACCESS_READ);
    uses(b, "scratch", refs->scratch, ACCESS_WRITE);
    if (unit == model_head_unit(model)) {
        if (model->config.tied)
            uses(b, "tied_params", refs->tied_params, ACCESS_READ);
        uses(b, "targets", refs->targets, ACCESS_READ);
        uses(b, "row_loss", refs->row_loss, ACCESS_WRITE);
        return;
    }
    uses(b, "saved", refs->saved, ACCESS_WRITE);
    uses(b, "x_out", refs->x_out, ACCESS_WRITE);
}

static void backward_slots(struct builder *b, const struct model *model, int unit,
                           const struct model_refs *refs)
{
    uses(b, "dx", refs->dx, ACCESS_WRITE);
    uses(b, "grads", refs->grads, ACCESS_WRITE);
    if (unit == model_embed_unit(model)) {
        uses(b, "tokens", refs->tokens, ACCESS_READ);
        return;
    }
    uses(b, "params", refs->params, ACCESS_READ);
    uses(b, "x_in", refs->x_in, ACCESS_READ);
    uses(b, "scratch", refs->scratch, ACCESS_WRITE);
    if (unit == model_head_unit(model)) {
        if (model->config.tied) {
            uses(b, "tied_params", refs->tied_params, ACCESS_READ);
            uses(b, "tied_grads", refs->tied_grads, ACCESS_WRITE);
        }
        uses(b, "targets", refs->targets, ACCESS_READ);
        uses(b, "row_loss", refs->row_loss, ACCESS_WRITE);
        return;
    }
    uses(b, "saved", refs->saved, refs->recompute == RECOMPUTE_FULL ? ACCESS_WRITE : ACCESS_READ);
}

static void decode_slots(struct builder *b, const struct model *model, int unit,
                         const struct model_refs *refs)
{
    uses(b, "params", refs->params, ACCESS_READ);
    if (unit == model_embed_unit(model)) {
        uses(b, "tokens", refs->tokens, ACCESS_READ);
        uses(b, "x_out", refs->x_out, ACCESS_WRITE);
        return;
    }
    uses(b, "x_in", refs->x_in, ACCESS_READ);
    uses(b, "scratch", refs->scratch, ACCESS_WRITE);
    if (unit == model_head_unit(model)) {
        if (model->config.tied)
            uses(b, "tied_params", refs->tied_params, ACCESS_READ);
        uses(b, "logits", refs->logits, ACCESS_WRITE);
        return;
    }
    uses(b, "x_out", refs->x_out, ACCESS_WRITE);
    uses(b, "cache", refs->cache, ACCESS_WRITE);
}

/* ---- costs ---- */

/* Weights that a unit reads in one pass; of the embedding only the rows of B*T tokens. */
static uint64_t weight_bytes(const struct model *model, int unit, struct model_op_shape shape)
{
    const struct model_config *c = &model->config;
    uint64_t n = (uint64_t)model->layout->units[unit].n_elements;

    if (unit == model_embed_unit(model))
        n = (uint64_t)(shape.B * shape.T * c->hidden) * (c->position == POSITION_LEARNED ? 2u : 1u);
    else if (unit == model_head_unit(model) && c->tied)
        n += (uint64_t)c->vocab * (uint64_t)c->hidden;
    return n * dtype_bytes(shape.dtype);
}

static uint64_t gradient_bytes(const struct model *model, int unit)
{
    uint64_t n = (uint64_t)model->layout->units[unit].n_elements;

    if (unit == model_head_unit(model) && model->config.tied)
        n += (uint64_t)model->layout->units[model_embed_unit(model)].n_elements;
    return n * sizeof(float);
}

static uint64_t saved_bytes(const struct model *model, int unit, struct model_op_shape shape,
                            enum recompute recompute)
{
    if (unit == model_embed_unit(model) || unit == model_head_unit(model))
        return 0;
    return model_saved_bytes(model, shape.B, shape.T, shape.dtype, recompute);
}

/* Weights, residual stream in and out, activations that are kept; temporaries are left out. */
static uint64_t forward_bytes(const struct model *model, int unit, struct model_op_shape shape,
                              enum recompute recompute)
{
    return weight_bytes(model, unit, shape) + 2 * model_residual_bytes(model, shape.B, shape.T) +
           saved_bytes(model, unit, shape, recompute);
}

static uint64_t backward_bytes(const struct model *model, int unit, struct model_op_shape shape,
                               enum recompute recompute)
{
    return forward_bytes(model, unit, shape, recompute) +
           model_gradient_bytes(model, shape.B, shape.T, shape.dtype) + gradient_bytes(model, unit);
}

/* The head's backward makes its logits anew; a block does so only when asked. */
static uint64_t backward_flops(const struct model *model, int unit, struct model_op_shape shape,
                               enum recompute recompute)
{
    uint64_t forward = model_unit_flops(model, unit, shape.B, shape.T);

    return unit == model_head_unit(model) || recompute == RECOMPUTE_FULL ? 3 * forward
                                                                         : 2 * forward;
}

/* One token that attends to a full cache: the most a decode step costs. */
static uint64_t decode_flops(const struct model *model, int unit, struct model_op_shape shape)
{
    const struct model_config *c = &model->config;
    uint64_t products = model_unit_flops(model, unit, 1, 0);

    if (unit == model_embed_unit(model) || unit == model_head_unit(model))
        return products;
    return products + 4 * (uint64_t)width_attention(c) * (uint64_t)shape.T_max;
}

/* ---- makers ---- */

/* The head reads the loss scale when it is issued. */
static bool is_steady(const struct model *model, int unit)
{
    return unit != model_head_unit(model);
}

static shoal_status append(struct schedule *sched, struct builder *b, const struct model *model,
                           struct ops *ops, struct model_op_shape shape,
                           const struct model_refs *refs)
{
    struct unit_arg *arg = NULL;
    void *memory = NULL;

    if (b->missing != NULL)
        return fail(SHOAL_ERR_INTERNAL, "%s %s: needs a slot for %s", op_kind_name(b->op.kind),
                    model->layout->units[b->op.unit].name, b->missing);
    SHOAL_TRY(sched_alloc(sched, sizeof *arg, &memory));
    arg = memory;
    *arg = (struct unit_arg){
        .model = model, .ops = ops, .plan = sched_plan(sched), .shape = shape, .refs = *refs};
    b->op.arg = arg;
    return sched_append(sched, &b->op);
}

shoal_status model_op_forward(struct schedule *sched, const struct model *model, struct ops *ops,
                              int unit, int index, struct model_op_shape shape,
                              const struct model_refs *refs)
{
    struct builder b = {.op = {.kind = OP_FORWARD,
                               .lane = LANE_COMPUTE,
                               .unit = unit,
                               .index = index,
                               .steady = is_steady(model, unit),
                               .bytes = forward_bytes(model, unit, shape, refs->recompute),
                               .flops = model_unit_flops(model, unit, shape.B, shape.T),
                               .run = run_forward}};

    forward_slots(&b, model, unit, refs);
    return append(sched, &b, model, ops, shape, refs);
}

shoal_status model_op_backward(struct schedule *sched, const struct model *model, struct ops *ops,
                               int unit, int index, struct model_op_shape shape,
                               const struct model_refs *refs)
{
    struct builder b = {.op = {.kind = OP_BACKWARD,
                               .lane = LANE_COMPUTE,
                               .unit = unit,
                               .index = index,
                               .steady = is_steady(model, unit),
                               .bytes = backward_bytes(model, unit, shape, refs->recompute),
                               .flops = backward_flops(model, unit, shape, refs->recompute),
                               .run = run_backward}};

    backward_slots(&b, model, unit, refs);
    return append(sched, &b, model, ops, shape, refs);
}

shoal_status model_op_decode(struct schedule *sched, const struct model *model, struct ops *ops,
                             int unit, struct model_op_shape shape, const struct model_refs *refs)
{
    struct builder b = {.op = {.kind = OP_DECODE,
                               .lane = LANE_COMPUTE,
                               .unit = unit,
                               .index = -1,
                               .bytes = weight_bytes(model, unit, shape),
                               .flops = decode_flops(model, unit, shape),
                               .run = run_decode}};

    if (refs->position == NULL)
        b.missing = "position";
    decode_slots(&b, model, unit, refs);
    return append(sched, &b, model, ops, shape, refs);
}

/* ---- accumulation ---- */

struct accumulate_arg {
    struct ops *ops;
    const struct plan *plan;
    struct slot_ref src, dst;
    size_t n;
};

static shoal_status run_accumulate(const struct op *op)
{
    const struct accumulate_arg *arg = op->arg;

    return op_accumulate(arg->ops, (int64_t)arg->n, plan_ref(arg->plan, arg->src),
                         plan_ref(arg->plan, arg->dst));
}

shoal_status model_op_accumulate(struct schedule *sched, struct ops *ops, int unit, int index,
                                 struct slot_ref src, struct slot_ref dst, size_t n)
{
    struct op op = {.kind = OP_ACCUMULATE,
                    .lane = LANE_COMPUTE,
                    .unit = unit,
                    .index = index,
                    .steady = true,
                    .bytes = 3 * n * sizeof(float),
                    .flops = n,
                    .run = run_accumulate};
    struct accumulate_arg *arg = NULL;
    void *memory = NULL;

    SHOAL_TRY(sched_alloc(sched, sizeof *arg, &memory));
    arg = memory;
    *arg = (struct accumulate_arg){
        .ops = ops, .plan = sched_plan(sched), .src = src, .dst = dst, .n = n};
    op.arg = arg;
    op_uses(&op, src, ACCESS_READ);
    op_uses(&op, dst, ACCESS_WRITE);
    return sched_append(sched, &op);
}

#include "tests/models/rig.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Operations in a schedule against the same work done by direct calls. */

#define MUST(expr) cr_assert_eq((expr), SHOAL_OK, "%s", shoal_last_error())

enum { B = 2, T = 12, SEED = 11 };

static const struct model_op_shape shape = {.B = B, .T = T, .T_max = T, .dtype = DTYPE_F32};

/* A plan and schedule around a rig's model, with slots for one microbatch. */
struct bench {
    struct rig *rig;
    struct plan *plan;
    struct schedule *sched;
    void *memory;
    float loss_scale;
    int params[RIG_UNITS], grads[RIG_UNITS], x[RIG_UNITS];
    int saved, dx, tied_grads, row_loss, tokens, targets, scratch;
};

static int slot(struct bench *b, const char *name, enum plan_row row, size_t n_bytes)
{
    int id = -1;

    MUST(plan_slot(b->plan, name, row, SPACE_PRIVATE, n_bytes, &id));
    return id;
}

static void setup(struct bench *b, struct model_config config)
{
    struct rig *rig = rig_create(&config, B, T, DTYPE_F32, RECOMPUTE_FULL, 1);
    size_t rows = (size_t)(B * T);

    *b = (struct bench){.rig = rig, .loss_scale = 1.0f / (B * T)};
    rig_fill(rig, SEED);
    MUST(plan_create(&b->plan));
    for (int u = 0; u < rig->layout->n_units; u++) {
        size_t n_bytes = (size_t)rig->layout->units[u].n_elements * sizeof(float);

        b->params[u] = slot(b, "params", PLAN_PARAM, n_bytes);
        b->grads[u] = slot(b, "grads", PLAN_GRAD, n_bytes);
        b->x[u] = slot(b, "x", PLAN_ACTIVATION, model_residual_bytes(rig->model, B, T));
    }
    b->saved = slot(b, "saved", PLAN_ACTIVATION,
                    model_saved_bytes(rig->model, B, T, DTYPE_F32, RECOMPUTE_FULL));
    b->dx = slot(b, "dx", PLAN_SCRATCH, model_gradient_bytes(rig->model, B, T, DTYPE_F32));
    b->tied_grads =
        slot(b, "tied", PLAN_GRAD, (size_t)rig->layout->units[0].n_elements * sizeof(float));
    b->row_loss = slot(b, "row_loss", PLAN_SCRATCH, rows * sizeof(double));
    b->tokens = slot(b, "tokens", PLAN_DATA, rows * sizeof(int32_t));
    b->targets = slot(b, "targets", PLAN_DATA, rows * sizeof(int32_t));
    b->scratch = slot(b, "scratch", PLAN_SCRATCH,
                      model_scratch_bytes(rig->model, rig->ops, B, T, DTYPE_F32));
    MUST(sched_create("test", b->plan, &b->sched));
}

/* Memory for the plan, with the rig's weights and tokens in it. */
static void bind(struct bench *b)
{
    size_t n_bytes = plan_space_bytes(b->plan, SPACE_PRIVATE);
    const struct rig *rig = b->rig;

    b->memory = aligned_alloc(4096, n_bytes);
    cr_assert_not_null(b->memory);
    memset(b->memory, 0xff, n_bytes);
    plan_bind(b->plan, SPACE_PRIVATE, b->memory);
    for (int u = 0; u < rig->layout->n_units; u++)
        memcpy(plan_ptr(b->plan, b->params[u], 0), rig->params[u],
               (size_t)rig->layout->units[u].n_elements * sizeof(float));
    memcpy(plan_ptr(b->plan, b->tokens, 0), rig->tokens, B * T * sizeof(int32_t));
    memcpy(plan_ptr(b->plan, b->targets, 0), rig->targets, B * T * sizeof(int32_t));
}

static void teardown(struct bench *b)
{
    sched_destroy(b->sched);
    plan_destroy(b->plan);
    free(b->memory);
    rig_destroy(b->rig);
}

/* All blocks share one slot for what they save: backward must recompute. */
static struct model_refs refs_of(const struct bench *b, int unit)
{
    return (struct model_refs){
        .params = slot_at(b->params[unit], 0),
        .tied_params = slot_at(b->params[0], 0),
        .tokens = slot_at(b->tokens, 0),
        .targets = slot_at(b->targets, 0),
        .x_in = unit > 0 ? slot_at(b->x[unit - 1], 0) : SLOT_NONE,
        .x_out = slot_at(b->x[unit], 0),
        .saved = slot_at(b->saved, 0),
        .dx = slot_at(b->dx, 0),
        .grads = slot_at(b->grads[unit], 0),
        .tied_grads = slot_at(b->tied_grads, 0),
        .row_loss = slot_at(b->row_loss, 0),
        .scratch = slot_at(b->scratch, 0),
        .cache = SLOT_NONE,
        .logits = SLOT_NONE,
        .recompute = RECOMPUTE_FULL,
        .loss_scale = &b->loss_scale,
    };
}

static void append_step(struct bench *b)
{
    const struct rig *rig = b->rig;
    int head = model_head_unit(rig->model);

    for (int u = 0; u < head; u++) {
        struct model_refs refs = refs_of(b, u);

        MUST(model_op_forward(b->sched, rig->model, rig->ops, u, 0, shape, &refs));
    }
    for (int u = head; u >= 0; u--) {
        struct model_refs refs = refs_of(b, u);

        MUST(model_op_backward(b->sched, rig->model, rig->ops, u, 0, shape, &refs));
    }
    MUST(model_op_accumulate(b->sched, rig->ops, 0, 0, slot_at(b->tied_grads, 0),
                             slot_at(b->grads[0], 0), (size_t)rig->layout->units[0].n_elements));
}

Test(model_schedule, a_schedule_gives_the_bits_of_direct_calls)
{
    struct bench b;

    setup(&b, rig_gpt2_like());
    append_step(&b);
    bind(&b);
    MUST(exec_run(b.sched));

    struct rig *rig = b.rig;
    rig_backward(rig);
    MUST(op_accumulate(rig->ops, rig->layout->units[0].n_elements, rig->tied_grads, rig->grads[0]));
    cr_expect_arr_eq(plan_ptr(b.plan, b.row_loss, 0), rig->row_loss, B * T * sizeof(double));
    for (int u = 0; u < rig->layout->n_units; u++)
        cr_expect_arr_eq(plan_ptr(b.plan, b.grads[u], 0), rig->grads[u],
                         (size_t)rig->layout->units[u].n_elements * sizeof(float), "%s",
                         rig->layout->units[u].name);
    teardown(&b);
}

/* Whether operation `later` waits for `earlier`, directly or through others. */
static bool waits_for(const struct schedule *sched, int later, int earlier)
{
    const struct op *op = sched_op(sched, later);
    const int *deps = sched_deps(sched, op);

    for (int i = 0; i < op->n_deps; i++) {
        if (deps[i] == earlier || (deps[i] > earlier && waits_for(sched, deps[i], earlier)))
            return true;
    }
    return false;
}

Test(model_schedule, operations_wait_for_what_they_read_and_tell_their_cost)
{
    struct bench b;

    setup(&b, rig_llama_like());
    append_step(&b);

    int head = model_head_unit(b.rig->model); /* operations: forwards 0..head-1, backwards after */
    for (int u = 1; u < head; u++)
        cr_expect(waits_for(b.sched, u, u - 1), "forward %d", u);
    for (int i = head; i <= 2 * head; i++)
        cr_expect(waits_for(b.sched, i, i - 1), "backward %d", i);

    const struct op *forward = sched_op(b.sched, 1);
    const struct op *backward = sched_op(b.sched, 2 * head - 1);
    cr_expect_eq(forward->kind, OP_FORWARD);
    cr_expect_eq(backward->kind, OP_BACKWARD);
    cr_expect_eq(forward->unit, backward->unit);
    cr_expect_eq(forward->flops, model_unit_flops(b.rig->model, 1, B, T));
    cr_expect_eq(backward->flops, 3 * forward->flops, "recomputation counts");
    cr_expect_gt(backward->bytes, forward->bytes);
    teardown(&b);
}

Test(model_schedule, an_operation_without_a_slot_it_needs_is_refused)
{
    struct bench b;

    setup(&b, rig_gpt2_like());
    struct model_refs refs = refs_of(&b, 1);
    refs.saved = SLOT_NONE;

    cr_assert_eq(model_op_forward(b.sched, b.rig->model, b.rig->ops, 1, 0, shape, &refs),
                 SHOAL_ERR_INTERNAL);
    cr_expect_not_null(strstr(shoal_last_error(), "forward block.0: needs a slot for saved"), "%s",
                       shoal_last_error());

    refs = refs_of(&b, 1);
    refs.cache = slot_at(b.saved, 0);
    cr_assert_eq(model_op_decode(b.sched, b.rig->model, b.rig->ops, 1, shape, &refs),
                 SHOAL_ERR_INTERNAL);
    cr_expect_not_null(strstr(shoal_last_error(), "position"));
    cr_expect_eq(sched_count(b.sched), 0);
    teardown(&b);
}

/* Decode operations, run once per token with the position read from the host. */
Test(model_schedule, decode_operations_follow_the_position)
{
    struct bench b;
    int64_t position = 0;

    setup(&b, rig_llama_like());
    struct rig *rig = b.rig;
    int n_units = rig->layout->n_units;
    int64_t V = model_config(rig->model)->vocab;
    size_t cache_bytes = model_cache_bytes(rig->model, T, DTYPE_F32);
    int cache = slot(&b, "cache", PLAN_CACHE, cache_bytes * (size_t)n_units);
    int logits = slot(&b, "logits", PLAN_SCRATCH, (size_t)V * sizeof(float));
    int scratch = slot(&b, "decode", PLAN_SCRATCH,
                       model_decode_scratch_bytes(rig->model, rig->ops, T, DTYPE_F32));

    MUST(model_prepare_decode(rig->model, rig->ops, T, DTYPE_F32));
    for (int u = 0; u < n_units; u++) {
        struct model_refs refs = refs_of(&b, u);

        refs.position = &position;
        refs.cache = slot_at(cache, cache_bytes * (size_t)u);
        refs.logits = slot_at(logits, 0);
        refs.scratch = slot_at(scratch, 0);
        MUST(model_op_decode(b.sched, rig->model, rig->ops, u, shape, &refs));
    }
    bind(&b);
    rig_forward(rig);

    const float *last = plan_ptr(b.plan, logits, 0);
    const int32_t *prompt = rig->tokens;
    for (position = 0; position < T; position++) {
        double sum = 0.0;

        memcpy(plan_ptr(b.plan, b.tokens, 0), prompt + position, sizeof *prompt);
        MUST(exec_run(b.sched));
        /* loss of the target = log of the sum of exp(logit - target's logit) */
        for (int64_t v = 0; v < V; v++)
            sum += exp((double)last[v] - (double)last[rig->targets[position]]);
        cr_expect_float_eq(log(sum), rig->row_loss[position],
                           TOL_MODEL_LOSS * rig->row_loss[position]);
    }
    teardown(&b);
}

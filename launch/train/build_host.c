#include "launch/train/train_internal.h"

#include "optim/optim_device.h"

/*
 * Host memory beside a device with memory of its own: what host code fills or reads has a slot on
 * both sides, and a copy operation between them.  Elsewhere the host's slot is the device's.
 */

static shoal_status host_slot(struct build *build, enum plan_row row, size_t n_bytes,
                              const char *name, struct slot_ref *out)
{
    int id = -1;

    SHOAL_TRY(plan_slot(build->plan, name, row, SPACE_HOST, n_bytes, &id));
    *out = slot_at(id, 0);
    return SHOAL_OK;
}

static void share_slots(struct build *build)
{
    build->host_tokens = build->tokens;
    build->host_targets = build->targets;
    build->host_row_loss = build->row_loss;
    build->host_token = build->decode_token;
    build->host_logits = build->logits;
    build->host_limbs = build->limbs;
    for (int unit = 0; unit < build->n_units; unit++)
        build->host_vectors[unit] = build->vectors[unit];
}

static shoal_status squares_slots(struct build *build)
{
    size_t n_bytes = sizeof(struct exact_sum);
    int id = -1;

    SHOAL_TRY(plan_slot(build->plan, "squares", PLAN_SCRATCH, SPACE_PRIVATE, n_bytes, &id));
    build->squares = slot_at(id, 0);
    return host_slot(build, PLAN_SCRATCH, n_bytes, "host squares", &build->host_squares);
}

/* Sums over tensors, and what the host makes of them. */
static shoal_status statistics_slots(struct build *build)
{
    const struct optim_setup *setup = build->setup;

    if (setup->n_limbs > 0)
        SHOAL_TRY(host_slot(build, PLAN_OPTIM, setup->n_limbs * sizeof(int64_t), "host sums",
                            &build->host_limbs));
    for (int unit = 0; unit < build->n_units; unit++) {
        size_t n_bytes = optim_vectors_bytes(setup, unit);
        if (n_bytes > 0)
            SHOAL_TRY(host_slot(build, PLAN_OPTIM, n_bytes, "host statistics",
                                &build->host_vectors[unit]));
    }
    return SHOAL_OK;
}

static shoal_status training_slots(struct build *build)
{
    const struct policy *policy = &build->policy;
    size_t rows = (size_t)policy->A * (size_t)policy->B * (size_t)policy->T;

    SHOAL_TRY(
        host_slot(build, PLAN_DATA, rows * sizeof(int32_t), "host tokens", &build->host_tokens));
    SHOAL_TRY(
        host_slot(build, PLAN_DATA, rows * sizeof(int32_t), "host targets", &build->host_targets));
    SHOAL_TRY(
        host_slot(build, PLAN_DATA, rows * sizeof(double), "host losses", &build->host_row_loss));
    SHOAL_TRY(statistics_slots(build));
    return squares_slots(build);
}

shoal_status build_host_slots(struct build *build)
{
    size_t V = (size_t)model_config(build->model)->vocab;

    share_slots(build);
    if (!build->policy.separate)
        return SHOAL_OK;
    if (!build->policy.infer_only)
        SHOAL_TRY(training_slots(build));
    if (build->policy.sample_tokens > 0) {
        SHOAL_TRY(host_slot(build, PLAN_CACHE, 64, "host token", &build->host_token));
        SHOAL_TRY(host_slot(build, PLAN_CACHE, V * (sizeof(float) + 8), "host logits",
                            &build->host_logits));
    }
    return SHOAL_OK;
}

/* ---- copies ---- */

struct copy_arg {
    const struct plan *plan;
    struct device *device;
    enum device_queue queue;
    struct slot_ref from, to;
    size_t n_bytes;
};

static shoal_status run_copy(const struct op *op)
{
    const struct copy_arg *arg = op->arg;

    return device_copy(arg->device, arg->queue, plan_ref(arg->plan, arg->to),
                       plan_ref(arg->plan, arg->from), arg->n_bytes);
}

shoal_status train_op_copy(struct schedule *sched, const struct build *build,
                           const struct build_env *env, enum op_kind kind, struct slot_ref from,
                           struct slot_ref to, size_t n_bytes)
{
    bool to_device = plan_slot_space(build->plan, from.slot) == SPACE_HOST;
    struct op op = {.kind = kind,
                    .lane = to_device ? LANE_H2D : LANE_D2H,
                    .unit = -1,
                    .index = -1,
                    .bytes = n_bytes,
                    .run = run_copy};

    if (!build->policy.separate)
        return SHOAL_OK;
    SHOAL_TRY(sched_alloc(sched, sizeof(struct copy_arg), &op.arg));
    *(struct copy_arg *)op.arg = (struct copy_arg){.plan = build->plan,
                                                   .device = env->device,
                                                   .queue = to_device ? QUEUE_H2D : QUEUE_D2H,
                                                   .from = from,
                                                   .to = to,
                                                   .n_bytes = n_bytes};
    op_uses(&op, from, ACCESS_READ);
    op_uses(&op, to, ACCESS_WRITE);
    return sched_append(sched, &op);
}

shoal_status train_op_tokens(struct schedule *sched, const struct build *build,
                             const struct build_env *env, int64_t rows)
{
    size_t n_bytes = (size_t)rows * sizeof(int32_t);

    SHOAL_TRY(
        train_op_copy(sched, build, env, OP_DATA, build->host_tokens, build->tokens, n_bytes));
    return train_op_copy(sched, build, env, OP_DATA, build->host_targets, build->targets, n_bytes);
}

shoal_status train_op_losses(struct schedule *sched, const struct build *build,
                             const struct build_env *env, int64_t rows)
{
    return train_op_copy(sched, build, env, OP_NORM, build->row_loss, build->host_row_loss,
                         (size_t)rows * sizeof(double));
}

/* ---- squares of gradients ---- */

shoal_status train_op_squares(struct schedule *sched, const struct build *build,
                              const struct build_env *env, struct exact_sum *squares)
{
    bool any = false;

    for (int unit = 0; unit < build->n_units; unit++) {
        size_t n = build_norm_elements(build, unit);
        if (n == 0)
            continue;
        SHOAL_TRY(optim_op_device_squares(sched, env->device, env->pool, unit,
                                          build->streams[unit].result, n, any, build->squares));
        any = true;
    }
    if (!any)
        return SHOAL_OK;
    SHOAL_TRY(train_op_copy(sched, build, env, OP_NORM, build->squares, build->host_squares,
                            sizeof *squares));
    return optim_op_take_squares(sched, build->host_squares, squares);
}

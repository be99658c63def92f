#include "launch/train/train_internal.h"

/*
 * Schedules without gradients, over the same slots: the loss of one microbatch, and one token of
 * generated text.  All ranks run them together, since stage 3 gathers its units in them too.
 */

static shoal_status gather(const struct build *build, const struct build_env *env,
                           struct schedule *sched, int unit)
{
    if (!build->policy.shards_params)
        return SHOAL_OK;
    return comm_op_gather(sched, env->comm, OP_GATHER, unit, -1, build->param[unit],
                          build->full[unit], build_shard_elements(build, unit),
                          build->policy.compute);
}

static struct model_refs no_refs(const struct build *build, const struct build_env *env, int unit)
{
    struct model_refs refs = {.params = build->full[unit],
                              .tied_params = SLOT_NONE,
                              .tokens = SLOT_NONE,
                              .targets = SLOT_NONE,
                              .x_in = SLOT_NONE,
                              .x_out = SLOT_NONE,
                              .saved = SLOT_NONE,
                              .dx = SLOT_NONE,
                              .grads = SLOT_NONE,
                              .tied_grads = SLOT_NONE,
                              .row_loss = SLOT_NONE,
                              .scratch = SLOT_NONE,
                              .cache = SLOT_NONE,
                              .logits = SLOT_NONE,
                              .recompute = build->policy.recompute,
                              .loss_scale = &env->state->loss_scale,
                              .position = &env->state->position};

    if (unit == build->head && model_config(build->model)->tied)
        refs.tied_params = build->full[build->embed];
    return refs;
}

static shoal_status gather_for(const struct build *build, const struct build_env *env,
                               struct schedule *sched, int unit)
{
    if (unit == build->head && model_config(build->model)->tied)
        SHOAL_TRY(gather(build, env, sched, build->embed));
    return gather(build, env, sched, unit);
}

static shoal_status eval_units(const struct build *build, const struct build_env *env,
                               struct schedule *sched)
{
    const struct policy *policy = &build->policy;
    struct model_op_shape shape = {.B = policy->B, .T = policy->T, .dtype = policy->compute};

    SHOAL_TRY(train_op_tokens(sched, build, env, policy->B * policy->T));
    for (int unit = 0; unit < build->n_units; unit++) {
        struct model_refs refs = no_refs(build, env, unit);
        refs.tokens = build->tokens;
        refs.targets = build->targets;
        refs.row_loss = build->row_loss;
        refs.scratch = build->scratch;
        refs.x_in = unit == build->embed ? SLOT_NONE : build->residual[(unit + 1) % 2];
        refs.x_out = unit == build->head ? SLOT_NONE : build->residual[unit % 2];
        if (unit != build->embed && unit != build->head)
            refs.saved = build->saved[0];
        SHOAL_TRY(gather_for(build, env, sched, unit));
        SHOAL_TRY(model_op_forward(sched, build->model, env->ops, unit, -1, shape, &refs));
    }
    return train_op_losses(sched, build, env, policy->B * policy->T);
}

static shoal_status decode_units(const struct build *build, const struct build_env *env,
                                 struct schedule *sched)
{
    const struct policy *policy = &build->policy;
    struct model_op_shape shape = {
        .B = 1, .T = 1, .T_max = policy->sample_tokens, .dtype = policy->compute};
    size_t cache = model_cache_bytes(build->model, policy->sample_tokens, policy->compute);

    SHOAL_TRY(train_op_copy(sched, build, env, OP_DATA, build->host_token, build->decode_token,
                            sizeof(int32_t)));
    for (int unit = 0; unit < build->n_units; unit++) {
        struct model_refs refs = no_refs(build, env, unit);
        refs.tokens = build->decode_token;
        refs.scratch = build->decode_scratch;
        refs.x_in = unit == build->embed ? SLOT_NONE : build->decode_x[(unit + 1) % 2];
        refs.x_out = unit == build->head ? SLOT_NONE : build->decode_x[unit % 2];
        if (unit == build->head)
            refs.logits = build->logits;
        else if (unit != build->embed)
            refs.cache = slot_at(build->cache.slot, (size_t)(unit - 1) * cache);
        SHOAL_TRY(gather_for(build, env, sched, unit));
        SHOAL_TRY(model_op_decode(sched, build->model, env->ops, unit, shape, &refs));
    }
    return train_op_copy(sched, build, env, OP_DATA, build->logits, build->host_logits,
                         (size_t)model_config(build->model)->vocab * sizeof(float));
}

typedef shoal_status add_units_fn(const struct build *build, const struct build_env *env,
                                  struct schedule *sched);

static shoal_status make(struct build *build, const struct build_env *env, const char *name,
                         add_units_fn *add_units, struct schedule **sched_out)
{
    struct schedule *sched = NULL;

    SHOAL_TRY(sched_create(name, build->plan, &sched));
    sched_name_units(sched, build->unit_names, build->n_units);
    shoal_status status = add_units(build, env, sched);
    if (status != SHOAL_OK) {
        sched_destroy(sched);
        return status;
    }
    *sched_out = sched;
    return SHOAL_OK;
}

shoal_status build_eval(struct build *build, const struct build_env *env,
                        struct schedule **sched_out)
{
    return make(build, env, "eval", eval_units, sched_out);
}

shoal_status build_decode(struct build *build, const struct build_env *env,
                          struct schedule **sched_out)
{
    return make(build, env, "decode", decode_units, sched_out);
}

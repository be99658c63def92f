#include "launch/train/train_internal.h"
#include "optim/stats.h"

#include <stdlib.h>

/*
 * The schedule of one optimizer step.
 *
 * horizontal: a microbatch goes through the whole model, forward and backward, before the next.
 * vertical:   all microbatches go through a unit before the next unit, so that stage 3 gathers
 *             each unit twice per step instead of twice per microbatch.
 */

struct step_builder {
    struct build *build;
    const struct build_env *env;
    struct schedule *sched;
    int ahead; /* the visit that is gathered next, once this one computes; -1: none */
};

static int live(const struct build *build, int j)
{
    return build->policy.vertical ? j : 0;
}

static struct slot_ref residual(const struct build *build, int j, int l)
{
    return build->residual[live(build, j) * (build->n_blocks + 1) + l];
}

static struct slot_ref row(struct slot_ref base, const struct build *build, int j, size_t width)
{
    size_t rows = (size_t)build->policy.B * (size_t)build->policy.T;

    return slot_at(base.slot, base.offset_bytes + (size_t)j * rows * width);
}

static shoal_status gather(struct step_builder *s, int unit, int j)
{
    struct build *build = s->build;

    if (!build->policy.shards_params)
        return SHOAL_OK;
    return comm_op_gather(s->sched, s->env->comm, OP_GATHER, unit, j, build->param[unit],
                          build->full[unit], build_shard_elements(build, unit),
                          build->policy.compute);
}

/* Everything a block, the embedding or the head may touch for microbatch j. */
static struct model_refs refs_of(struct step_builder *s, int unit, int j)
{
    struct build *build = s->build;
    struct model_refs refs = {
        .params = build->full[unit],
        .tied_params = SLOT_NONE,
        .tokens = row(build->tokens, build, j, sizeof(int32_t)),
        .targets = row(build->targets, build, j, sizeof(int32_t)),
        .x_in = SLOT_NONE,
        .x_out = SLOT_NONE,
        .saved = SLOT_NONE,
        .dx = build->dx[live(build, j)],
        .grads = SLOT_NONE,
        .tied_grads = SLOT_NONE,
        .row_loss = row(build->row_loss, build, j, sizeof(double)),
        .scratch = build->scratch,
        .cache = SLOT_NONE,
        .logits = SLOT_NONE,
        .recompute = build->policy.recompute,
        .loss_scale = &s->env->state->loss_scale,
        .position = &s->env->state->position,
    };

    if (unit == build->embed) {
        refs.x_out = residual(build, j, 0);
    } else if (unit == build->head) {
        refs.x_in = residual(build, j, build->n_blocks);
        if (model_config(build->model)->tied)
            refs.tied_params = build->full[build->embed];
    } else {
        int l = unit - 1;
        refs.x_in = residual(build, j, l);
        refs.x_out = residual(build, j, l + 1);
        refs.saved = build->saved[live(build, j) * build->n_blocks + l];
    }
    return refs;
}

static struct model_op_shape shape_of(const struct build *build)
{
    return (struct model_op_shape){.B = build->policy.B,
                                   .T = build->policy.T,
                                   .T_max = build->policy.sample_tokens,
                                   .dtype = build->policy.compute};
}

static shoal_status gather_ahead(struct step_builder *s);

static shoal_status forward(struct step_builder *s, int unit, int j)
{
    struct model_refs refs = refs_of(s, unit, j);

    SHOAL_TRY(model_op_forward(s->sched, s->build->model, s->env->ops, unit, j, shape_of(s->build),
                               &refs));
    return gather_ahead(s);
}

static size_t stream_elements(const struct build *build, const struct grad_stream *stream)
{
    bool whole = build->policy.n_ranks == 1 || !build->policy.reduce_each;

    return whole ? build_unit_elements(build, stream->unit)
                 : build_shard_elements(build, stream->unit);
}

/* The buffer that the stream's next leaf goes to: the next position of the binary counter. */
static struct slot_ref next_leaf(const struct build *build, const struct grad_stream *stream)
{
    bool whole = build->policy.n_ranks == 1 || !build->policy.reduce_each;

    return whole ? stream->buffers[stream->depth] : stream->full;
}

static shoal_status add_top_two(struct step_builder *s, struct grad_stream *stream, int j)
{
    int top = stream->depth - 1;

    SHOAL_TRY(model_op_accumulate(s->sched, s->env->ops, stream->unit, j, stream->buffers[top],
                                  stream->buffers[top - 1], stream_elements(s->build, stream)));
    stream->levels[top - 1]++;
    stream->depth--;
    return SHOAL_OK;
}

/*
 * The leaf of microbatch j is complete: reduce it if every microbatch is reduced, then carry
 * through the binary counter.  After the last microbatch reduce if that is done once per step.
 */
static shoal_status leaf_done(struct step_builder *s, struct grad_stream *stream, int j)
{
    const struct policy *policy = &s->build->policy;
    bool many = policy->n_ranks > 1;

    if (many && policy->reduce_each)
        SHOAL_TRY(comm_op_reduce(s->sched, s->env->comm, stream->unit, j, stream->full,
                                 stream->buffers[stream->depth],
                                 build_shard_elements(s->build, stream->unit)));
    stream->levels[stream->depth++] = 0;
    while (stream->depth > 1 &&
           stream->levels[stream->depth - 1] == stream->levels[stream->depth - 2])
        SHOAL_TRY(add_top_two(s, stream, j));
    if (j + 1 < policy->A)
        return SHOAL_OK;
    while (stream->depth > 1)
        SHOAL_TRY(add_top_two(s, stream, j));
    if (many && !policy->reduce_each)
        SHOAL_TRY(comm_op_reduce(s->sched, s->env->comm, stream->unit, -1, stream->buffers[0],
                                 stream->result, build_shard_elements(s->build, stream->unit)));
    return SHOAL_OK;
}

static shoal_status backward(struct step_builder *s, int unit, int j)
{
    struct build *build = s->build;
    struct model_refs refs = refs_of(s, unit, j);
    struct grad_stream *stream = &build->streams[unit];
    struct grad_stream *tied = NULL;

    refs.grads = next_leaf(build, stream);
    if (unit == build->head && build->n_streams > build->n_units) {
        tied = &build->streams[build->n_units];
        refs.tied_grads = next_leaf(build, tied);
    }
    SHOAL_TRY(
        model_op_backward(s->sched, build->model, s->env->ops, unit, j, shape_of(build), &refs));
    SHOAL_TRY(gather_ahead(s));
    SHOAL_TRY(leaf_done(s, stream, j));
    return tied == NULL ? SHOAL_OK : leaf_done(s, tied, j);
}

/* Forward of the head is part of its backward: loss and gradient come from one pass. */
static shoal_status gather_head(struct step_builder *s, int j)
{
    if (model_config(s->build->model)->tied)
        SHOAL_TRY(gather(s, s->build->embed, j));
    return gather(s, s->build->head, j);
}

/*
 * A visit of a unit: its weights are gathered once, then some microbatches go through it.  A round
 * of visits is forward up to the head, then backward from it.
 */
struct visit {
    int unit;
    bool backward;
    int first, end; /* microbatches */
    int index;      /* of the gather: the microbatch, or -1 for all */
};

static int round_visits(const struct build *build)
{
    return 2 * build->n_units - 1;
}

static struct visit visit_at(const struct build *build, int k)
{
    int round = k / round_visits(build), at = k % round_visits(build);
    bool backward = at >= build->head;
    bool all = build->policy.vertical;

    return (struct visit){.unit = backward ? 2 * build->head - at : at,
                          .backward = backward,
                          .first = all ? 0 : round,
                          .end = all ? build->policy.A : round + 1,
                          .index = all ? -1 : round};
}

static shoal_status gather_visit(struct step_builder *s, struct visit visit)
{
    if (visit.unit == s->build->head)
        return gather_head(s, visit.index);
    if (visit.backward && visit.unit == s->build->embed)
        return SHOAL_OK; /* needs no weights */
    return gather(s, visit.unit, visit.index);
}

static shoal_status compute_visit(struct step_builder *s, struct visit visit)
{
    for (int j = visit.first; j < visit.end; j++)
        SHOAL_TRY(visit.backward ? backward(s, visit.unit, j) : forward(s, visit.unit, j));
    return SHOAL_OK;
}

/*
 * With prefetch a unit is gathered while the one before it computes; neighbours use different
 * slots.  It is issued right behind that computation: later, that unit's reduction, which waits
 * for the computation, would be before it in the lane of communication; earlier, a transport that
 * blocks would keep the computation from being issued.
 */
static shoal_status gather_ahead(struct step_builder *s)
{
    int k = s->ahead;

    s->ahead = -1;
    return k < 0 ? SHOAL_OK : gather_visit(s, visit_at(s->build, k));
}

static shoal_status visits(struct step_builder *s)
{
    const struct policy *policy = &s->build->policy;
    int n = round_visits(s->build) * (policy->vertical ? 1 : policy->A);

    for (int k = 0; k < n; k++) {
        struct visit visit = visit_at(s->build, k);
        if (!policy->prefetch || k == 0)
            SHOAL_TRY(gather_visit(s, visit));
        s->ahead = policy->prefetch && k + 1 < n ? k + 1 : -1;
        SHOAL_TRY(compute_visit(s, visit));
    }
    return SHOAL_OK;
}

/* The two contributions to tied weights are summed here, after each has been reduced. */
static shoal_status combine_tied(struct step_builder *s)
{
    struct build *build = s->build;

    if (build->n_streams == build->n_units)
        return SHOAL_OK;
    return model_op_accumulate(
        s->sched, s->env->ops, build->embed, -1, build->streams[build->n_units].result,
        build->streams[build->embed].result, build_shard_elements(build, build->embed));
}

/* A shard may reach past the unit's end, where a shared buffer holds anything. */
size_t build_norm_elements(const struct build *build, int unit)
{
    int64_t left = build->layout->units[unit].n_elements - build_stored(build, unit).begin;
    int64_t shard = (int64_t)build_shard_elements(build, unit);
    int64_t n = left < shard ? left : shard;

    return n > 0 ? (size_t)n : 0;
}

static shoal_status norm(struct step_builder *s)
{
    struct build *build = s->build;
    struct exact_sum *squares = &s->env->state->sums[SUM_SQUARES];

    SHOAL_TRY(train_op_losses(s->sched, build, s->env,
                              build->policy.A * build->policy.B * build->policy.T));
    if (build->policy.separate) {
        SHOAL_TRY(train_op_squares(s->sched, build, s->env, squares));
        return train_op_norm(s->sched, build, s->env);
    }
    for (int unit = 0; unit < build->n_units; unit++) {
        size_t n = build_norm_elements(build, unit);
        if (n > 0)
            SHOAL_TRY(optim_op_sum_squares(s->sched, s->env->pool, unit,
                                           build->streams[unit].result, n, squares));
    }
    return train_op_norm(s->sched, build, s->env);
}

/* What an UPDATE of a unit works on; the gradient is the shard's. */
static struct optim_refs unit_refs(const struct step_builder *s, int unit)
{
    const struct build *build = s->build;
    const struct policy *policy = &build->policy;
    struct optim_refs refs = {.grad = build->streams[unit].result,
                              .master = build->master[unit],
                              .param = SLOT_NONE,
                              .vectors = build->vectors[unit],
                              .limbs = build->limbs,
                              .device = s->env->device};

    if (policy->compute == DTYPE_BF16)
        refs.param = build_own_param(build, unit);
    for (int kind = 0; kind < OPTIM_MAX_KINDS; kind++)
        refs.kinds[kind] = build->kinds[unit * OPTIM_MAX_KINDS + kind];
    return refs;
}

/* What all ranks together added up becomes vectors, on the host and then on the device. */
static shoal_status finish_statistics(struct step_builder *s, int pass)
{
    struct build *build = s->build;
    const size_t n_limbs = build->setup->n_limbs;

    SHOAL_TRY(train_op_copy(s->sched, build, s->env, OP_NORM, build->limbs, build->host_limbs,
                            n_limbs * sizeof(int64_t)));
    if (build->policy.n_ranks > 1)
        SHOAL_TRY(
            pass == STATS_PASS_MAXIMA
                ? comm_op_all_reduce_max_i64(s->sched, s->env->comm, -1, build->host_limbs, n_limbs)
                : comm_op_all_reduce_i64(s->sched, s->env->comm, -1, build->host_limbs, n_limbs));
    for (int unit = 0; unit < build->n_units; unit++) {
        struct optim_refs refs = unit_refs(s, unit);
        refs.limbs = build->host_limbs;
        refs.vectors = build->host_vectors[unit];
        if (refs.vectors.slot < 0)
            continue;
        SHOAL_TRY(optim_op_sums_finish(s->sched, s->env->pool, build->setup, unit, pass, &refs,
                                       &s->env->state->optim));
        SHOAL_TRY(train_op_copy(s->sched, build, s->env, OP_NORM, build->host_vectors[unit],
                                build->vectors[unit], optim_vectors_bytes(build->setup, unit)));
    }
    return SHOAL_OK;
}

/* Sums over tensors, for the rules that need them: every rank adds those of its shards. */
static shoal_status statistics(struct step_builder *s)
{
    struct build *build = s->build;

    for (int pass = 0; pass < build->setup->n_passes; pass++) {
        if (!optim_pass_is_used(build->setup, pass))
            continue;
        for (int unit = 0; unit < build->n_units; unit++) {
            struct optim_refs refs = unit_refs(s, unit);
            struct shard stored = build_stored(build, unit);
            SHOAL_TRY(optim_op_sums(s->sched, s->env->pool, build->setup, unit, pass, stored,
                                    build_owned(build, unit), stored, &refs,
                                    &s->env->state->optim));
        }
        SHOAL_TRY(finish_statistics(s, pass));
    }
    return SHOAL_OK;
}

static shoal_status update(struct step_builder *s, int unit)
{
    struct build *build = s->build;
    const struct policy *policy = &build->policy;
    struct shard owned = build_owned(build, unit);
    size_t shard = build_shard_elements(build, unit);
    struct optim_refs refs = unit_refs(s, unit);

    if (!policy->shards_states && policy->n_ranks > 1) {
        SHOAL_TRY(comm_op_gather(s->sched, s->env->comm, OP_GATHER, unit, -1,
                                 build->streams[unit].result, build->grad_all, shard, DTYPE_F32));
        refs.grad = build->grad_all;
    }
    SHOAL_TRY(optim_op_update(s->sched, s->env->pool, build->setup, unit, 0, owned, owned, &refs,
                              &s->env->state->optim));
    if (policy->shards_states && !policy->shards_params)
        SHOAL_TRY(comm_op_gather(s->sched, s->env->comm, OP_PUBLISH, unit, -1,
                                 build_own_param(build, unit), build->param[unit], shard,
                                 policy->compute));
    return SHOAL_OK;
}

shoal_status build_step(struct build *build, const struct build_env *env,
                        struct schedule **sched_out)
{
    shoal_status status = SHOAL_OK;
    struct step_builder s = {.build = build, .env = env, .ahead = -1};

    SHOAL_TRY(sched_create("step", build->plan, &s.sched));
    sched_name_units(s.sched, build->unit_names, build->n_units);
    for (int i = 0; i < build->n_streams; i++)
        build->streams[i].depth = 0;
    for (int j = 0; j < build->policy.A; j++)
        SHOAL_TRY_GOTO(train_op_data(s.sched, build, env, j), err);
    SHOAL_TRY_GOTO(
        train_op_tokens(s.sched, build, env, build->policy.A * build->policy.B * build->policy.T),
        err);
    SHOAL_TRY_GOTO(visits(&s), err);
    SHOAL_TRY_GOTO(combine_tied(&s), err);
    SHOAL_TRY_GOTO(norm(&s), err);
    SHOAL_TRY_GOTO(statistics(&s), err);
    for (int unit = 0; unit < build->n_units; unit++)
        SHOAL_TRY_GOTO(update(&s, unit), err);
    *sched_out = s.sched;
    return SHOAL_OK;

err:
    sched_destroy(s.sched);
    return status;
}

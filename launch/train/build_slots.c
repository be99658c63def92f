#include "launch/train/train_internal.h"

#include <stdio.h>
#include <stdlib.h>

/*
 * Slots of a run.  Every byte that a rank uses between the first and the last step is reserved
 * here; nothing else decides about memory.
 */

int64_t policy_microbatch(const struct policy *policy, int j)
{
    if (policy->reduce_each)
        return (int64_t)j * policy->n_ranks + policy->rank;
    return (int64_t)policy->rank * policy->A + j;
}

size_t build_shard_elements(const struct build *build, int unit)
{
    return (size_t)layout_shard_elements(build->layout, unit, build->policy.n_ranks);
}

size_t build_unit_elements(const struct build *build, int unit)
{
    return build_shard_elements(build, unit) * (size_t)build->policy.n_ranks;
}

struct shard build_stored(const struct build *build, int unit)
{
    return layout_shard(build->layout, unit, build->policy.rank, build->policy.n_ranks);
}

struct shard build_owned(const struct build *build, int unit)
{
    if (build->policy.shards_states)
        return build_stored(build, unit);
    return (struct shard){.begin = 0, .end = (int64_t)build_unit_elements(build, unit)};
}

struct slot_ref build_own_param(const struct build *build, int unit)
{
    const struct policy *policy = &build->policy;
    size_t width = dtype_bytes(policy->compute);
    bool slice = policy->shards_states && !policy->shards_params;
    size_t before = slice ? (size_t)policy->rank * build_shard_elements(build, unit) * width : 0;

    return slot_at(build->param[unit].slot, build->param[unit].offset_bytes + before);
}

static shoal_status slot(struct build *build, enum plan_row row, enum space space, size_t n_bytes,
                         const char *what, const char *of, struct slot_ref *out)
{
    char name[64];
    int id = -1;

    snprintf(name, sizeof name, "%s %s", what, of);
    SHOAL_TRY(plan_slot(build->plan, name, row, space, n_bytes, &id));
    *out = slot_at(id, 0);
    return SHOAL_OK;
}

/* Depth of the binary counter that sums A leaves: floor(log2 A) + 1 buffers. */
static int counter_depth(int A)
{
    int depth = 1;

    while (A >>= 1)
        depth++;
    return depth;
}

/*
 * Weights.  Stage 0 (and a single rank): everything private.  Stages 1 and 2: one full copy per
 * host in the shared window, in which each rank updates its own slice, so that publishing copies
 * nothing inside a host.  Stage 3: the shard; compute reads gathered units.
 */
static shoal_status weight_slots(struct build *build, int unit)
{
    const struct policy *policy = &build->policy;
    const char *name = build->layout->units[unit].name;
    size_t all = build_unit_elements(build, unit), shard = build_shard_elements(build, unit);
    size_t width = dtype_bytes(policy->compute);
    bool shared = policy->shards_states && !policy->shards_params;
    size_t n = policy->shards_params ? shard : all;

    SHOAL_TRY(slot(build, PLAN_PARAM, shared ? SPACE_SHARED : SPACE_PRIVATE, n * width, "weights",
                   name, &build->param[unit]));
    build->full[unit] = build->param[unit];

    if (policy->infer_only)
        return SHOAL_OK;
    struct shard owned = build_owned(build, unit);
    size_t n_owned = (size_t)(owned.end - owned.begin);
    if (policy->compute == DTYPE_F32) {
        size_t slice = shared ? (size_t)policy->rank * shard : 0;
        build->master[unit] = slot_at(build->param[unit].slot, slice * sizeof(float));
    } else if (build->setup->master->bits > 0) {
        SHOAL_TRY(slot(build, PLAN_MASTER, SPACE_PRIVATE,
                       n_owned * (size_t)build->setup->master->bits / 8, "master", name,
                       &build->master[unit]));
    }
    for (int kind = 0; kind < build->setup->n_kinds; kind++) {
        size_t n_bytes = optim_kind_bytes(build->setup, unit, kind, owned);
        if (n_bytes > 0)
            SHOAL_TRY(slot(build, PLAN_OPTIM, SPACE_PRIVATE, n_bytes, build->setup->kinds[kind],
                           name, &build->kinds[unit * OPTIM_MAX_KINDS + kind]));
    }
    size_t n_vectors = optim_vectors_bytes(build->setup, unit);
    if (n_vectors > 0)
        SHOAL_TRY(slot(build, PLAN_OPTIM, SPACE_PRIVATE, n_vectors, "statistics", name,
                       &build->vectors[unit]));
    return SHOAL_OK;
}

/*
 * Gathered units: the embedding has a slot of its own (a tied head needs both at once).  With
 * prefetch neighbours have different slots of the ring, so that one is filled while the other is
 * read.
 */
static shoal_status gather_slots(struct build *build)
{
    size_t width = dtype_bytes(build->policy.compute);
    int n_ring = build->policy.prefetch ? 2 : 1;

    if (!build->policy.shards_params)
        return SHOAL_OK;
    for (int at = 0; at < n_ring; at++) {
        size_t most = 0;
        for (int unit = build->embed + 1; unit < build->n_units; unit++)
            if (unit % n_ring == at && build_unit_elements(build, unit) > most)
                most = build_unit_elements(build, unit);
        SHOAL_TRY(slot(build, PLAN_GATHER, SPACE_SHARED, most * width, "gathered", "unit",
                       &build->gather_ring[at]));
    }
    SHOAL_TRY(slot(build, PLAN_GATHER, SPACE_SHARED,
                   build_unit_elements(build, build->embed) * width, "gathered", "embed",
                   &build->gather_embed));
    for (int unit = 0; unit < build->n_units; unit++)
        build->full[unit] =
            unit == build->embed ? build->gather_embed : build->gather_ring[unit % n_ring];
    return SHOAL_OK;
}

static void stream_init(struct build *build, int index, int unit, bool tied)
{
    struct grad_stream *stream = &build->streams[index];

    *stream = (struct grad_stream){.unit = unit, .tied = tied};
    stream->full = SLOT_NONE;
    for (size_t i = 0; i < sizeof stream->buffers / sizeof stream->buffers[0]; i++)
        stream->buffers[i] = SLOT_NONE;
}

/* Buffers of all streams at once: `n` elements each, shared by streams that never overlap. */
static shoal_status shared_buffers(struct build *build, enum space space, int first, int depth,
                                   bool of_shards, const char *what)
{
    size_t most = 0;

    for (int i = 0; i < build->n_streams; i++) {
        int unit = build->streams[i].unit;
        size_t n = of_shards ? build_shard_elements(build, unit) : build_unit_elements(build, unit);
        most = n > most ? n : most;
    }
    for (int d = first; d < depth; d++) {
        struct slot_ref common = SLOT_NONE, tied = SLOT_NONE;
        SHOAL_TRY(slot(build, PLAN_GRAD, space, most * sizeof(float), what, "common", &common));
        for (int i = 0; i < build->n_streams; i++) {
            struct grad_stream *stream = &build->streams[i];
            size_t n = of_shards ? build_shard_elements(build, stream->unit)
                                 : build_unit_elements(build, stream->unit);
            /* The head's own gradient and its part of the embedding's are alive together. */
            if (stream->tied && tied.slot < 0)
                SHOAL_TRY(slot(build, PLAN_GRAD, space, n * sizeof(float), what, "tied", &tied));
            stream->buffers[d] = stream->tied ? tied : common;
        }
    }
    return SHOAL_OK;
}

static shoal_status own_buffers(struct build *build, enum space space, int first, int depth,
                                bool of_shards)
{
    for (int i = 0; i < build->n_streams; i++) {
        struct grad_stream *stream = &build->streams[i];
        const char *name = build->layout->units[stream->unit].name;
        size_t n = of_shards ? build_shard_elements(build, stream->unit)
                             : build_unit_elements(build, stream->unit);
        for (int d = first; d < depth; d++)
            SHOAL_TRY(slot(build, PLAN_GRAD, space, n * sizeof(float),
                           stream->tied ? "tied gradient" : "gradient", name, &stream->buffers[d]));
    }
    return SHOAL_OK;
}

/*
 * Where backward writes the gradient of one microbatch that is reduced at once.  With prefetch
 * neighbouring units take turns, so that the next is written while this one is reduced.
 */
static shoal_status full_slots(struct build *build)
{
    int n_ring = build->policy.prefetch ? 2 : 1;

    for (int at = 0; at < n_ring; at++) {
        struct slot_ref common = SLOT_NONE;
        size_t most = 0;
        for (int unit = at; unit < build->n_units; unit += n_ring)
            if (build_unit_elements(build, unit) > most)
                most = build_unit_elements(build, unit);
        SHOAL_TRY(slot(build, PLAN_GRAD, SPACE_WINDOW, most * sizeof(float), "gradient", "common",
                       &common));
        for (int unit = at; unit < build->n_units; unit += n_ring)
            build->streams[unit].full = common;
    }
    /* The head's own gradient and its part of the embedding's are alive together. */
    if (build->n_streams > build->n_units)
        SHOAL_TRY(slot(build, PLAN_GRAD, SPACE_WINDOW,
                       build_unit_elements(build, build->embed) * sizeof(float), "gradient", "tied",
                       &build->streams[build->n_units].full));
    return SHOAL_OK;
}

/*
 * Gradients.  Either whole units are summed over this rank's microbatches and reduced once
 * (reduce_each false), or each microbatch is reduced and shards are summed (true).  In the
 * horizontal order every unit's counter is alive through the whole step; in the vertical order one
 * counter serves all units and only its result stays.
 */
static shoal_status grad_slots(struct build *build)
{
    const struct policy *policy = &build->policy;
    int depth = counter_depth(policy->A);
    bool one = policy->n_ranks == 1;
    enum space full_space = one ? SPACE_PRIVATE : SPACE_WINDOW;

    if (policy->reduce_each && !one) {
        SHOAL_TRY(full_slots(build));
        SHOAL_TRY(own_buffers(build, SPACE_PRIVATE, 0, 1, true));
        if (policy->vertical)
            SHOAL_TRY(shared_buffers(build, SPACE_PRIVATE, 1, depth, true, "gradient sum"));
        else
            SHOAL_TRY(own_buffers(build, SPACE_PRIVATE, 1, depth, true));
    } else if (policy->vertical && one) {
        SHOAL_TRY(own_buffers(build, full_space, 0, 1, false));
        SHOAL_TRY(shared_buffers(build, full_space, 1, depth, false, "gradient sum"));
    } else if (policy->vertical) {
        SHOAL_TRY(shared_buffers(build, full_space, 0, depth, false, "gradient sum"));
    } else {
        SHOAL_TRY(own_buffers(build, full_space, 0, depth, false));
    }

    for (int i = 0; i < build->n_streams; i++) {
        struct grad_stream *stream = &build->streams[i];
        stream->result = stream->buffers[0];
        if (!one && !policy->reduce_each)
            SHOAL_TRY(slot(build, PLAN_GRAD, SPACE_PRIVATE,
                           build_shard_elements(build, stream->unit) * sizeof(float),
                           stream->tied ? "tied gradient shard" : "gradient shard",
                           build->layout->units[stream->unit].name, &stream->result));
    }
    if (policy->stage == 0 && !one) {
        size_t most = 0;
        for (int unit = 0; unit < build->n_units; unit++)
            if (build_unit_elements(build, unit) > most)
                most = build_unit_elements(build, unit);
        SHOAL_TRY(slot(build, PLAN_GRAD, SPACE_SHARED, most * sizeof(float), "gathered", "gradient",
                       &build->grad_all));
    }
    return SHOAL_OK;
}

static shoal_status activation_slots(struct build *build)
{
    const struct policy *policy = &build->policy;
    size_t residual = model_residual_bytes(build->model, policy->B, policy->T);
    size_t saved =
        model_saved_bytes(build->model, policy->B, policy->T, policy->compute, policy->recompute);
    size_t gradient = model_gradient_bytes(build->model, policy->B, policy->T, policy->compute);
    char of[24];

    for (int j = 0; j < build->n_live; j++) {
        for (int l = 0; l <= build->n_blocks; l++) {
            snprintf(of, sizeof of, "%d.%d", j, l);
            SHOAL_TRY(slot(build, PLAN_ACTIVATION, SPACE_PRIVATE, residual, "residual", of,
                           &build->residual[j * (build->n_blocks + 1) + l]));
        }
        SHOAL_TRY(slot(build, PLAN_ACTIVATION, SPACE_PRIVATE, gradient, "gradient of residual", "",
                       &build->dx[j]));
        for (int l = 0; l < build->n_blocks; l++) {
            struct slot_ref *ref = &build->saved[j * build->n_blocks + l];
            if (policy->recompute == RECOMPUTE_FULL && (j > 0 || l > 0)) {
                *ref = build->saved[0];
                continue;
            }
            snprintf(of, sizeof of, "%d.%d", j, l);
            SHOAL_TRY(slot(build, PLAN_ACTIVATION, SPACE_PRIVATE, saved, "saved", of, ref));
        }
    }
    return SHOAL_OK;
}

static shoal_status small_slots(struct build *build, const struct ops *ops)
{
    const struct policy *policy = &build->policy;
    size_t rows = (size_t)policy->B * (size_t)policy->T;
    size_t A = (size_t)policy->A;

    SHOAL_TRY(slot(build, PLAN_DATA, SPACE_PRIVATE, A * rows * sizeof(int32_t), "tokens", "",
                   &build->tokens));
    SHOAL_TRY(slot(build, PLAN_DATA, SPACE_PRIVATE, A * rows * sizeof(int32_t), "targets", "",
                   &build->targets));
    SHOAL_TRY(slot(build, PLAN_DATA, SPACE_PRIVATE, A * rows * sizeof(double), "losses", "",
                   &build->row_loss));
    SHOAL_TRY(slot(build, PLAN_DATA, policy->separate ? SPACE_HOST : SPACE_PRIVATE,
                   ((size_t)policy->T + 1) * sizeof(int32_t), "window", "", &build->window));
    if (build->setup->n_limbs > 0)
        SHOAL_TRY(slot(build, PLAN_OPTIM, SPACE_PRIVATE,
                       (size_t)ops_threads(ops) * build->setup->n_limbs * sizeof(int64_t),
                       "sums of statistics", "", &build->limbs));
    SHOAL_TRY(slot(build, PLAN_SCRATCH, SPACE_PRIVATE,
                   model_scratch_bytes(build->model, ops, policy->B, policy->T, policy->compute),
                   "scratch", "", &build->scratch));
    return SHOAL_OK;
}

static shoal_status decode_slots(struct build *build, const struct ops *ops)
{
    const struct policy *policy = &build->policy;
    const struct model_config *config = model_config(build->model);
    int64_t T_max = policy->sample_tokens;
    size_t V = (size_t)config->vocab;

    if (T_max == 0)
        return SHOAL_OK;
    SHOAL_TRY(
        slot(build, PLAN_CACHE, SPACE_PRIVATE,
             (size_t)build->n_blocks * model_cache_bytes(build->model, T_max, policy->compute),
             "k/v cache", "", &build->cache));
    for (int i = 0; i < 2; i++)
        SHOAL_TRY(slot(build, PLAN_CACHE, SPACE_PRIVATE, model_residual_bytes(build->model, 1, 1),
                       "decode residual", "", &build->decode_x[i]));
    SHOAL_TRY(slot(build, PLAN_CACHE, SPACE_PRIVATE, V * (sizeof(float) + 8), "logits", "",
                   &build->logits));
    SHOAL_TRY(slot(build, PLAN_CACHE, SPACE_PRIVATE,
                   model_decode_scratch_bytes(build->model, ops, T_max, policy->compute),
                   "decode scratch", "", &build->decode_scratch));
    SHOAL_TRY(slot(build, PLAN_CACHE, SPACE_PRIVATE, 64, "decode token", "", &build->decode_token));
    return SHOAL_OK;
}

static shoal_status alloc_tables(struct build *build)
{
    size_t units = (size_t)build->n_units, live = (size_t)build->n_live;

    build->unit_names = calloc(units, sizeof *build->unit_names);
    build->param = calloc(units, sizeof *build->param);
    build->master = calloc(units, sizeof *build->master);
    build->full = calloc(units, sizeof *build->full);
    build->kinds = calloc(units * OPTIM_MAX_KINDS, sizeof *build->kinds);
    build->vectors = calloc(units, sizeof *build->vectors);
    build->host_vectors = calloc(units, sizeof *build->host_vectors);
    build->streams = calloc(units + 1, sizeof *build->streams);
    build->residual = calloc(live * ((size_t)build->n_blocks + 1), sizeof *build->residual);
    build->saved = calloc(live * (size_t)build->n_blocks, sizeof *build->saved);
    build->dx = calloc(live, sizeof *build->dx);
    if (build->unit_names == NULL || build->param == NULL || build->master == NULL ||
        build->full == NULL || build->kinds == NULL || build->vectors == NULL ||
        build->host_vectors == NULL || build->streams == NULL || build->residual == NULL ||
        build->saved == NULL || build->dx == NULL)
        return fail(SHOAL_ERR_NOMEM, "builder: cannot allocate tables of %zu units", units);
    for (int unit = 0; unit < build->n_units; unit++)
        build->unit_names[unit] = build->layout->units[unit].name;
    for (size_t i = 0; i < units * OPTIM_MAX_KINDS; i++)
        build->kinds[i] = SLOT_NONE;
    for (size_t i = 0; i < units; i++)
        build->master[i] = build->vectors[i] = build->host_vectors[i] = SLOT_NONE;
    return SHOAL_OK;
}

static shoal_status reserve_all(struct build *build, const struct ops *ops)
{
    for (int unit = 0; unit < build->n_units; unit++)
        SHOAL_TRY(weight_slots(build, unit));
    SHOAL_TRY(gather_slots(build));
    if (build->policy.infer_only) {
        SHOAL_TRY(decode_slots(build, ops));
        return build_host_slots(build);
    }
    for (int unit = 0; unit < build->n_units; unit++)
        stream_init(build, unit, unit, false);
    build->n_streams = build->n_units;
    if (model_config(build->model)->tied)
        stream_init(build, build->n_streams++, build->embed, true);
    SHOAL_TRY(grad_slots(build));
    SHOAL_TRY(activation_slots(build));
    SHOAL_TRY(small_slots(build, ops));
    SHOAL_TRY(decode_slots(build, ops));
    return build_host_slots(build);
}

shoal_status build_create(const struct policy *policy, const struct model *model,
                          const struct ops *ops, const struct optim_setup *setup,
                          struct build **build_out)
{
    shoal_status status = SHOAL_OK;
    struct build *build = calloc(1, sizeof *build);

    if (build == NULL)
        return fail(SHOAL_ERR_NOMEM, "builder: cannot allocate its record");
    build->policy = *policy;
    build->model = model;
    build->layout = model_layout(model);
    build->setup = setup;
    build->n_units = build->layout->n_units;
    build->embed = model_embed_unit(model);
    build->head = model_head_unit(model);
    build->n_blocks = build->n_units - 2;
    build->n_live = policy->vertical ? policy->A : 1;
    build->gather_embed = build->gather_ring[0] = build->gather_ring[1] = SLOT_NONE;
    build->grad_all = build->limbs = build->host_limbs = SLOT_NONE;
    SHOAL_TRY_GOTO(plan_create(&build->plan), err);
    SHOAL_TRY_GOTO(alloc_tables(build), err);
    SHOAL_TRY_GOTO(reserve_all(build, ops), err);
    *build_out = build;
    return SHOAL_OK;

err:
    build_destroy(build);
    return status;
}

void build_destroy(struct build *build)
{
    if (build == NULL)
        return;
    plan_destroy(build->plan);
    free(build->unit_names);
    free(build->param);
    free(build->master);
    free(build->full);
    free(build->kinds);
    free(build->vectors);
    free(build->host_vectors);
    free(build->streams);
    free(build->residual);
    free(build->saved);
    free(build->dx);
    free(build);
}

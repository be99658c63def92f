#include "launch/train/train_internal.h"

#include "runtime/base/log.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Weights and optimizer state: initial values, checkpoints in and out. */

enum { INIT_TILE = 1 << 14 };

struct init_arg {
    const struct trainer *trainer;
    int unit;
    struct shard owned;
    _Atomic(shoal_status) status;
};

static void init_tile(void *arg, size_t tile, int thread)
{
    struct init_arg *init = arg;
    int64_t begin = init->owned.begin + (int64_t)tile * INIT_TILE;
    int64_t end = begin + INIT_TILE < init->owned.end ? begin + INIT_TILE : init->owned.end;
    struct shard range = {.begin = begin, .end = end};
    float x[INIT_TILE];

    (void)thread;
    model_init_range(init->trainer->model, init->trainer->config->run.seed, init->unit, range, x);
    shoal_status status = weights_store_range(init->trainer, init->unit, range, x);
    if (status != SHOAL_OK)
        init->status = status;
}

shoal_status state_init(struct trainer *trainer)
{
    const struct build *build = trainer->build;

    for (int unit = 0; unit < build->n_units; unit++) {
        struct init_arg init = {
            .trainer = trainer, .unit = unit, .owned = build_owned(build, unit)};
        size_t n = (size_t)(init.owned.end - init.owned.begin);
        pool_run(trainer->pool, (n + INIT_TILE - 1) / INIT_TILE, init_tile, &init);
        if (init.status != SHOAL_OK)
            return fail(init.status, "%s: cannot store initial weights",
                        build->layout->units[unit].name);
    }
    return SHOAL_OK;
}

shoal_status state_publish_shards(struct trainer *trainer)
{
    const struct build *build = trainer->build;
    const struct policy *policy = &build->policy;

    for (int unit = 0; unit < build->n_units; unit++)
        if (policy->shards_states && !policy->shards_params)
            SHOAL_TRY(comm_all_gather(trainer->comm,
                                      plan_ref(build->plan, build_own_param(build, unit)),
                                      plan_ref(build->plan, build->param[unit]),
                                      build_shard_elements(build, unit), policy->compute));
    return train_device_sync(trainer);
}

/* Bring the weights that compute reads in line with the master weights. */
shoal_status state_publish(struct trainer *trainer)
{
    const struct build *build = trainer->build;
    const struct policy *policy = &build->policy;

    for (int unit = 0; unit < build->n_units; unit++) {
        struct shard owned = build_owned(build, unit);
        void *mine = plan_ref(build->plan, build_own_param(build, unit));

        if (policy->compute == DTYPE_BF16 && build->setup->master->bits == 32) {
            train_device_begin(trainer);
            SHOAL_TRY(train_device_end(trainer,
                                       op_cast(trainer->ops, owned.end - owned.begin, DTYPE_BF16,
                                               plan_ref(build->plan, build->master[unit]), mine)));
        }
    }
    return state_publish_shards(trainer);
}

/* What to say beside a checkpoint to go on from that could not be opened, if there is more to say. */
static shoal_status explain_resume(const struct config *config, bool is_auto, bool is_number,
                                   shoal_status status)
{
    bool unread =
        status == SHOAL_ERR_IO || status == SHOAL_ERR_NOMEM || status == SHOAL_ERR_NOINPUT;

    if (is_auto && unread)
        return fail_hint(status,
                         "run it again when the checkpoint can be read, or go on from an older "
                         "one with checkpoint.resume=STEP; `shoal ckpt ls %s` lists them",
                         config->run.out);
    if (is_number && (status == SHOAL_ERR_NOINPUT || status == SHOAL_ERR_DATA))
        return fail_hint(status, "`shoal ckpt ls %s` lists the steps there are", config->run.out);
    if (!is_auto && status == SHOAL_ERR_NOINPUT)
        return fail_hint(status, "set checkpoint.resume=auto to continue in %s", config->run.out);
    return status;
}

/* The checkpoint of this run to go on from; NULL: there is none, or none is wanted.  Collective. */
static shoal_status open_resumed(struct trainer *trainer, struct ckpt **ckpt_out)
{
    const struct config *config = trainer->config;
    const char *resume = config->checkpoint.resume;
    bool is_auto = strcmp(resume, "auto") == 0;
    bool is_number = resume[0] != '\0' && strspn(resume, "0123456789") == strlen(resume);
    char path[CONFIG_TEXT + 64];

    *ckpt_out = NULL;
    if (strcmp(resume, "never") == 0)
        return SHOAL_OK;
    if (is_auto)
        snprintf(path, sizeof path, "%s/checkpoints", config->run.out);
    else if (is_number)
        snprintf(path, sizeof path, "%s/checkpoints/step-%012lld", config->run.out, atoll(resume));
    else
        snprintf(path, sizeof path, "%s", resume);
    return explain_resume(config, is_auto, is_number,
                          ckpt_open_all(trainer->comm, path, is_auto, ckpt_out));
}

/* Checkpoints above the step we start from are of another past: `auto` would go on from them. */
static void warn_of_later_steps(const struct trainer *trainer)
{
    const char *out = trainer->config->run.out;
    bool chosen = strcmp(trainer->config->checkpoint.resume, "auto") != 0;
    int64_t newest;

    if (chosen && comm_rank(trainer->comm) == 0 && ckpt_newest_step(out, &newest) == SHOAL_OK &&
        newest > trainer->first_step)
        log_line("warn",
                 "%s holds a checkpoint of step %lld from before: remove it, or a later "
                 "checkpoint.resume=auto continues there",
                 out, (long long)newest);
}

/* The rule of tensors that no group takes. */
static const struct optim_group *main_group(const struct trainer *trainer)
{
    return &trainer->optim->groups[trainer->optim->n_groups - 1];
}

/* Weights are saved in fp32: only a coarser codec than they were trained with loses anything. */
static shoal_status check_master(const struct trainer *trainer, const char *saved)
{
    const char *ours = trainer->optim->master->name;
    bool exact =
        strcmp(ours, saved) == 0 || strcmp(ours, "fp32") == 0 || strcmp(ours, "split16") == 0;

    if (exact || trainer->config->checkpoint.convert) {
        if (strcmp(ours, saved) != 0)
            log_line("resume", "weights were trained with precision.master=%s, go on with %s%s",
                     saved, ours, exact ? "" : ": rounded");
        return SHOAL_OK;
    }
    fail(SHOAL_ERR_CONFIG,
         "precision.master: %s would round the checkpoint's weights, trained with %s", ours, saved);
    return fail_hint(SHOAL_ERR_CONFIG, "keep precision.master=%s, or set checkpoint.convert=true",
                     saved);
}

static shoal_status check_same_run(const struct trainer *trainer, const struct ckpt_meta *meta)
{
    const char *name = main_group(trainer)->rule->name;
    json_t *optimizer = json_loads(meta->optimizer_json, 0, NULL);
    const char *master = json_string_value(json_object_get(optimizer, "master"));
    shoal_status status = SHOAL_OK;

    if (strcmp(meta->optimizer, name) != 0) {
        status =
            fail(SHOAL_ERR_CONFIG, "optimizer.name: %s, but the checkpoint holds the state of %s",
                 name, meta->optimizer);
        fail_hint(status, "keep optimizer.name=%s, or start a new run.out", meta->optimizer);
    } else {
        status = check_master(trainer, master == NULL ? "fp32" : master);
    }
    json_decref(optimizer);
    SHOAL_TRY(status);
    if (meta->data_fingerprint != data_info(trainer->data).fingerprint)
        log_line("warn",
                 "the data differs from the checkpoint's (fingerprint %016" PRIx64
                 ", was %016" PRIx64 "): the order of windows is new",
                 data_info(trainer->data).fingerprint, meta->data_fingerprint);
    if (meta->seed != trainer->config->run.seed)
        log_line("warn", "run.seed is %" PRIu64 ", the checkpoint's was %" PRIu64,
                 trainer->config->run.seed, meta->seed);
    return SHOAL_OK;
}

static void adopt_meta(struct trainer *trainer, const struct ckpt_meta *meta)
{
    json_t *optimizer = json_loads(meta->optimizer_json, 0, NULL);
    json_t *updates = json_object_get(optimizer, "updates");

    trainer->first_step = meta->step;
    trainer->saved_step = meta->step;
    trainer->updates = json_is_integer(updates) ? json_integer_value(updates) : meta->step;
    trainer->average = (struct optim_average){
        .lr_max = json_real_value(json_object_get(optimizer, "average_lr_max")),
        .weight_sum = json_real_value(json_object_get(optimizer, "average_weight_sum"))};
    trainer->consumed_sequences = meta->consumed_sequences;
    trainer->consumed_tokens = meta->consumed_tokens;
    trainer->last_loss = meta->loss;
    snprintf(trainer->run_uuid, sizeof trainer->run_uuid, "%s", meta->run_uuid);
    json_decref(optimizer);
}

/* In portions, so that ranks that are done already see this one's progress. */
static shoal_status read_pieces(struct trainer *trainer, struct ckpt *ckpt,
                                struct ckpt_piece *pieces, size_t n)
{
    enum { PORTION = 1 << 26 }; /* elements */

    for (size_t i = 0; i < n;) {
        size_t begin = i;
        int64_t elements = 0;
        while (i < n && elements < PORTION) {
            elements += pieces[i].end - pieces[i].begin;
            i++;
        }
        comm_note(trainer->comm, 0, "loading");
        SHOAL_TRY(ckpt_read(ckpt, trainer->build->layout, pieces + begin, i - begin));
    }
    return SHOAL_OK;
}

/* States that rest in another codec than in the checkpoint. */
static shoal_status convert_states(struct trainer *trainer, struct ckpt *ckpt,
                                   struct state_pieces *pieces)
{
    size_t n = 0;

    if (!trainer->config->checkpoint.convert)
        return SHOAL_OK;
    SHOAL_TRY(state_convert(trainer, ckpt, pieces, &n));
    if (n > 0)
        log_line("resume",
                 "%zu states had another codec in the checkpoint: decoded and encoded "
                 "anew, which is not exact",
                 n);
    return SHOAL_OK;
}

static shoal_status load_from(struct trainer *trainer, struct ckpt *ckpt, bool weights_only)
{
    struct state_pieces all = {0};
    shoal_status status = SHOAL_OK;

    if (!weights_only)
        SHOAL_TRY_GOTO(check_same_run(trainer, ckpt_meta(ckpt)), end);
    SHOAL_TRY_GOTO(state_pieces(trainer, false, &all), end);
    if (weights_only) {
        size_t kept = 0;
        for (size_t i = 0; i < all.n; i++)
            if (strcmp(all.pieces[i].kind, "master") == 0 ||
                strcmp(all.pieces[i].kind, STATE_TRAINED) == 0) {
                all.pieces[kept] = all.pieces[i];
                strcpy(all.pieces[kept++].kind, "master");
            }
        all.n = kept;
    } else {
        SHOAL_TRY_GOTO(convert_states(trainer, ckpt, &all), end);
    }
    train_device_begin(trainer);
    status = train_device_end(trainer, read_pieces(trainer, ckpt, all.pieces, all.n));
    if (status == SHOAL_ERR_CONFIG && !weights_only)
        fail_hint(status, "keep optimizer.state and optimizer.groups as they were, or set "
                          "checkpoint.convert=true");
    SHOAL_TRY_GOTO(status, end);
    if (!weights_only)
        adopt_meta(trainer, ckpt_meta(ckpt));

end:
    state_pieces_free(&all);
    return status;
}

static void report_resume(const struct trainer *trainer, const struct ckpt *ckpt, bool weights_only)
{
    const struct config *config = trainer->config;

    if (weights_only)
        log_line("resume", "weights from %s, new optimizer state", config->model.from);
    else if (ckpt != NULL)
        log_line("resume", "%s: continuing after step %lld", ckpt_path(ckpt),
                 (long long)trainer->first_step);
    else
        log_line("resume", "none found (%s): starting anew", config->checkpoint.resume);
}

shoal_status state_resume(struct trainer *trainer)
{
    const char *from = trainer->config->model.from;
    struct ckpt *ckpt = NULL;

    SHOAL_TRY(open_resumed(trainer, &ckpt));
    bool weights_only = ckpt == NULL && from[0] != '\0';
    if (weights_only)
        SHOAL_TRY(ckpt_open_all(trainer->comm, from, false, &ckpt));
    shoal_status status =
        ckpt != NULL ? load_from(trainer, ckpt, weights_only) : state_init(trainer);
    status = comm_agree(trainer->comm, status);
    if (status == SHOAL_OK)
        report_resume(trainer, ckpt, weights_only);
    ckpt_close(ckpt);
    SHOAL_TRY(status);
    warn_of_later_steps(trainer);
    return state_publish(trainer);
}

static json_t *group_json(const struct optim_group *group)
{
    const struct optim_hyper *h = &group->hyper;

    return json_pack("{s:s s:s s:s s:f s:[f,f] s:f s:f s:f s:b s:f s:f s:f s:b s:b s:f s:b s:b}",
                     "match", group->match, "name", group->rule->name, "state", group->state->name,
                     "lr_scale", group->lr_scale, "betas", h->beta1, h->beta2, "eps", h->eps,
                     "weight_decay", h->weight_decay, "momentum", h->momentum, "nesterov",
                     h->nesterov, "beta3", h->beta3, "alpha", h->alpha, "gamma", h->gamma,
                     "cautious", h->cautious, "tensor_clip", h->tensor_clip, "clip_threshold",
                     h->clip_threshold, "scale_parameter", h->scale_parameter, "relative_step",
                     h->relative_step);
}

/* The settings that the state depends on, and how many updates it has seen; freed by the caller. */
static char *optimizer_json(const struct trainer *trainer)
{
    const struct optim_setup *setup = trainer->optim;
    json_t *root = group_json(main_group(trainer)), *groups = json_array();

    for (int g = 0; g < setup->n_groups - 1; g++)
        json_array_append_new(groups, group_json(&setup->groups[g]));
    json_object_set_new(root, "groups", groups);
    json_object_set_new(root, "updates", json_integer(trainer->updates));
    if (average_is_used(trainer)) {
        json_object_set_new(root, "average_lr_max", json_real(trainer->average.lr_max));
        json_object_set_new(root, "average_weight_sum", json_real(trainer->average.weight_sum));
    }
    json_object_set_new(root, "master", json_string(setup->master->name));
    json_object_set_new(root, "convention", json_string("pytorch"));
    char *text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(root);
    return text;
}

static void make_meta(const struct trainer *trainer, int64_t step, const char *optimizer,
                      char *topology, size_t n_topology, struct ckpt_meta *meta)
{
    const struct policy *policy = &trainer->policy;

    snprintf(topology, n_topology,
             "{\"world_size\":%d,\"zero_stage\":%d,\"order\":\"%s\",\"hosts\":%d,\"mpi\":\"%s\"}",
             policy->n_ranks, policy->stage, policy->vertical ? "vertical" : "horizontal",
             comm_host_count(trainer->comm), comm_library(trainer->comm));
    *meta = (struct ckpt_meta){.step = step,
                               .consumed_sequences = trainer->consumed_sequences,
                               .consumed_tokens = trainer->consumed_tokens,
                               .data_fingerprint = data_info(trainer->data).fingerprint,
                               .seed = trainer->config->run.seed,
                               .loss = trainer->last_loss,
                               .config_yaml = trainer->config_yaml,
                               .model_json = trainer->model_json,
                               .optimizer_json = optimizer,
                               .topology_json = topology};
    snprintf(meta->run_uuid, sizeof meta->run_uuid, "%s", trainer->run_uuid);
    snprintf(meta->optimizer, sizeof meta->optimizer, "%s", main_group(trainer)->rule->name);
    snprintf(meta->conventions, sizeof meta->conventions, "pytorch");
}

shoal_status state_save(struct trainer *trainer, int64_t step)
{
    struct ckpt_meta meta;
    struct ckpt_result result = {0};
    char topology[512];

    if (trainer->saved_step == step)
        return SHOAL_OK;
    comm_note(trainer->comm, step, "saving a checkpoint");
    char *optimizer = optimizer_json(trainer);
    make_meta(trainer, step, optimizer, topology, sizeof topology, &meta);
    train_device_begin(trainer);
    shoal_status status = train_device_end(
        trainer, ckpt_save(trainer->store, trainer->build->layout, trainer->pieces.pieces,
                           trainer->pieces.n, &meta, &result));
    free(optimizer);
    SHOAL_TRY(status);
    trainer->saved_step = step;
    log_line("ckpt", "%-8lld %s  %.1f MiB in %.2f s (%.2f GiB/s)%s", (long long)step, result.path,
             (double)result.n_bytes / (1 << 20), result.seconds,
             (double)result.n_bytes / (1 << 30) / (result.seconds > 0 ? result.seconds : 1),
             result.n_removed > 0 ? ", older ones removed" : "");
    if (trainer->metrics == NULL)
        return SHOAL_OK;
    metrics_begin(trainer->metrics, step);
    metrics_text(trainer->metrics, "event", "ckpt");
    metrics_text(trainer->metrics, "path", result.path);
    metrics_integer(trainer->metrics, "bytes", (int64_t)result.n_bytes);
    metrics_number(trainer->metrics, "seconds", result.seconds);
    return metrics_end_event(trainer->metrics);
}

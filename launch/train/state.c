#include "launch/train/train_internal.h"

#include "runtime/base/log.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Weights and optimizer state: initial values, checkpoints in and out. */

enum { INIT_TILE = 1 << 18 };

static float *master_of(const struct trainer *trainer, int unit)
{
    return plan_ref(trainer->build->plan, trainer->build->master[unit]);
}

struct init_arg {
    const struct trainer *trainer;
    int unit;
    struct shard owned;
    float *master;
};

static void init_tile(void *arg, size_t tile, int thread)
{
    const struct init_arg *init = arg;
    int64_t begin = init->owned.begin + (int64_t)tile * INIT_TILE;
    int64_t end = begin + INIT_TILE < init->owned.end ? begin + INIT_TILE : init->owned.end;

    (void)thread;
    model_init_range(init->trainer->model, init->trainer->config->run.seed, init->unit,
                     (struct shard){.begin = begin, .end = end},
                     init->master + (begin - init->owned.begin));
}

shoal_status state_init(struct trainer *trainer)
{
    const struct build *build = trainer->build;

    for (int unit = 0; unit < build->n_units; unit++) {
        struct init_arg init = {.trainer = trainer,
                                .unit = unit,
                                .owned = build_owned(build, unit),
                                .master = master_of(trainer, unit)};
        size_t n = (size_t)(init.owned.end - init.owned.begin);
        pool_run(trainer->pool, (n + INIT_TILE - 1) / INIT_TILE, init_tile, &init);
    }
    return SHOAL_OK;
}

/* Bring the weights that compute reads in line with the master weights. */
shoal_status state_publish(struct trainer *trainer)
{
    const struct build *build = trainer->build;
    const struct policy *policy = &build->policy;

    for (int unit = 0; unit < build->n_units; unit++) {
        struct shard owned = build_owned(build, unit);
        size_t shard = build_shard_elements(build, unit), width = dtype_bytes(policy->compute);
        bool slice = policy->shards_states && !policy->shards_params;
        char *param = plan_ref(build->plan, build->param[unit]);
        char *mine = param + (slice ? (size_t)policy->rank * shard * width : 0);

        if (policy->compute == DTYPE_BF16)
            SHOAL_TRY(op_cast(trainer->ops, owned.end - owned.begin, DTYPE_BF16,
                              master_of(trainer, unit), mine));
        if (slice)
            SHOAL_TRY(comm_all_gather(trainer->comm, mine, param, shard, policy->compute));
    }
    return SHOAL_OK;
}

/* What this rank stores (`stored`) or must load (all that it owns), as pieces of tensors. */
shoal_status state_pieces(struct trainer *trainer, bool stored, struct ckpt_piece **pieces_out,
                          size_t *n_out)
{
    const struct build *build = trainer->build;
    size_t most = (size_t)build->layout->n_tensors * (1 + (size_t)build->rule->n_states), n = 0;
    struct ckpt_piece *pieces = calloc(most, sizeof *pieces);

    if (pieces == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint: cannot allocate %zu pieces", most);
    for (int t = 0; t < build->layout->n_tensors; t++) {
        const struct tensor *tensor = &build->layout->tensors[t];
        struct shard owned = build_owned(build, tensor->unit);
        struct shard range = stored ? build_stored(build, tensor->unit) : owned;
        struct shard part = layout_tensor_part(tensor, range);
        int64_t at = tensor->offset + part.begin - owned.begin;

        if (part.begin == part.end)
            continue;
        for (int k = -1; k < build->rule->n_states; k++) {
            struct ckpt_piece *piece = &pieces[n++];
            struct slot_ref ref = k < 0 ? build->master[tensor->unit]
                                        : build->states[tensor->unit * OPTIM_MAX_STATES + k];
            *piece = (struct ckpt_piece){.tensor = t, .begin = part.begin, .end = part.end};
            snprintf(piece->kind, sizeof piece->kind, "%s",
                     k < 0 ? "master" : build->rule->state_names[k]);
            piece->data = (float *)plan_ref(build->plan, ref) + at;
        }
    }
    *pieces_out = pieces;
    *n_out = n;
    return SHOAL_OK;
}

/* Rank 0 chooses the step directory; all ranks then open that one. */
static shoal_status choose_checkpoint(struct trainer *trainer, char *path, size_t n_bytes)
{
    const char *resume = trainer->config->checkpoint.resume;
    char root[600];
    bool is_number = resume[0] != '\0' && strspn(resume, "0123456789") == strlen(resume);
    struct ckpt *ckpt = NULL;

    path[0] = '\0';
    if (strcmp(resume, "never") == 0)
        return SHOAL_OK;
    if (strcmp(resume, "auto") == 0)
        snprintf(root, sizeof root, "%s/checkpoints", trainer->config->run.out);
    else if (is_number)
        snprintf(root, sizeof root, "%s/checkpoints/step-%012lld", trainer->config->run.out,
                 atoll(resume));
    else
        snprintf(root, sizeof root, "%s", resume);
    shoal_status status = ckpt_open(root, &ckpt);
    if (status == SHOAL_ERR_NOINPUT && strcmp(resume, "auto") == 0)
        return SHOAL_OK;
    if (status == SHOAL_ERR_NOINPUT)
        fail_hint(status,
                  is_number ? "`shoal ckpt ls %s` lists the steps there are"
                            : "set checkpoint.resume=auto to continue in %s",
                  trainer->config->run.out);
    SHOAL_TRY(status);
    snprintf(path, n_bytes, "%s", ckpt_path(ckpt));
    ckpt_close(ckpt);
    return SHOAL_OK;
}

/* Checkpoints above the step we start from are of another past: `auto` would go on from them. */
static void warn_of_later_steps(const struct trainer *trainer)
{
    const char *out = trainer->config->run.out;
    bool chosen = strcmp(trainer->config->checkpoint.resume, "auto") != 0;
    struct ckpt_entry *entries = NULL;
    size_t n = 0, i = 0;

    if (!chosen || comm_rank(trainer->comm) != 0 || ckpt_list(out, &entries, &n) != SHOAL_OK)
        return;
    while (i < n && entries[i].state != CKPT_COMPLETE)
        i++;
    if (i < n && entries[i].step > trainer->first_step)
        log_line("warn",
                 "%s holds a checkpoint of step %lld from before: remove it, or a later "
                 "checkpoint.resume=auto continues there",
                 out, (long long)entries[i].step);
    free(entries);
}

static shoal_status check_same_run(const struct trainer *trainer, const struct ckpt_meta *meta)
{
    if (strcmp(meta->optimizer, trainer->rule->name) != 0) {
        fail(SHOAL_ERR_CONFIG, "optimizer.name: %s, but the checkpoint holds the state of %s",
             trainer->rule->name, meta->optimizer);
        return fail_hint(SHOAL_ERR_CONFIG, "keep optimizer.name=%s, or start a new run.out",
                         meta->optimizer);
    }
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

static shoal_status load_from(struct trainer *trainer, const char *path, bool weights_only)
{
    struct ckpt *ckpt = NULL;
    struct ckpt_piece *pieces = NULL;
    size_t n = 0;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(ckpt_open(path, &ckpt));
    if (!weights_only)
        SHOAL_TRY_GOTO(check_same_run(trainer, ckpt_meta(ckpt)), end);
    SHOAL_TRY_GOTO(state_pieces(trainer, false, &pieces, &n), end);
    if (weights_only) {
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
            if (strcmp(pieces[i].kind, "master") == 0)
                pieces[kept++] = pieces[i];
        n = kept;
    }
    SHOAL_TRY_GOTO(read_pieces(trainer, ckpt, pieces, n), end);
    if (!weights_only)
        adopt_meta(trainer, ckpt_meta(ckpt));

end:
    free(pieces);
    ckpt_close(ckpt);
    return status;
}

shoal_status state_resume(struct trainer *trainer)
{
    char path[640] = "";
    const char *from = trainer->config->model.from;
    shoal_status status = SHOAL_OK;

    if (comm_rank(trainer->comm) == 0)
        status = choose_checkpoint(trainer, path, sizeof path);
    SHOAL_TRY(comm_agree(trainer->comm, status));
    SHOAL_TRY(comm_broadcast(trainer->comm, 0, path, sizeof path));
    if (path[0] != '\0')
        status = load_from(trainer, path, false);
    else if (from[0] != '\0')
        status = load_from(trainer, from, true);
    else
        status = state_init(trainer);
    SHOAL_TRY(comm_agree(trainer->comm, status));
    if (path[0] != '\0')
        log_line("resume", "%s: continuing after step %lld", path, (long long)trainer->first_step);
    else if (from[0] != '\0')
        log_line("resume", "weights from %s, new optimizer state", from);
    else
        log_line("resume", "none found (%s): starting anew", trainer->config->checkpoint.resume);
    warn_of_later_steps(trainer);
    return state_publish(trainer);
}

static shoal_status make_meta(struct trainer *trainer, int64_t step, struct ckpt_meta *meta,
                              char *optimizer, size_t n_optimizer, char *topology,
                              size_t n_topology)
{
    const struct policy *policy = &trainer->policy;

    const struct optim_hyper *h = &trainer->hyper;
    snprintf(optimizer, n_optimizer,
             "{\"name\":\"%s\",\"updates\":%lld,\"betas\":[%.17g,%.17g],\"eps\":%.17g,"
             "\"weight_decay\":%.17g,\"momentum\":%.17g,\"nesterov\":%s,\"beta3\":%.17g,"
             "\"alpha\":%.17g,\"gamma\":%.17g,\"convention\":\"pytorch\"}",
             trainer->rule->name, (long long)trainer->updates, h->beta1, h->beta2, h->eps,
             h->weight_decay, h->momentum, h->nesterov ? "true" : "false", h->beta3, h->alpha,
             h->gamma);
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
    snprintf(meta->optimizer, sizeof meta->optimizer, "%s", trainer->rule->name);
    snprintf(meta->conventions, sizeof meta->conventions, "pytorch");
    return SHOAL_OK;
}

shoal_status state_save(struct trainer *trainer, int64_t step)
{
    struct ckpt_meta meta;
    struct ckpt_result result = {0};
    char optimizer[512], topology[512];

    if (trainer->saved_step == step)
        return SHOAL_OK;
    comm_note(trainer->comm, step, "saving a checkpoint");
    SHOAL_TRY(
        make_meta(trainer, step, &meta, optimizer, sizeof optimizer, topology, sizeof topology));
    SHOAL_TRY(ckpt_save(trainer->store, trainer->build->layout, trainer->pieces, trainer->n_pieces,
                        &meta, &result));
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

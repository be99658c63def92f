#include "launch/train/train_internal.h"

#include "runtime/base/host.h"
#include "runtime/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From the config's words to numbers, with the checks that need more than one key. */

static void replace_int(int *value, int wanted)
{
    if (wanted > 0)
        *value = wanted;
}

static shoal_status base_model(const struct config *config, struct model_config *out)
{
    if (config->model.from[0] != '\0') {
        struct ckpt *ckpt = NULL;
        shoal_status status = ckpt_open(config->model.from, &ckpt);
        if (status == SHOAL_ERR_NOINPUT)
            fail_hint(status, "set model.from to a run's directory or a checkpoint");
        SHOAL_TRY(status);
        status = model_config_from_json(ckpt_meta(ckpt)->model_json, out);
        ckpt_close(ckpt);
        return status;
    }
    if (config->model.preset[0] != '\0')
        return model_config_preset(config->model.preset, out);
    *out = (struct model_config){.norm = NORM_RMS,
                                 .position = POSITION_ROPE,
                                 .mlp = MLP_SWIGLU,
                                 .norm_eps = 1e-5f,
                                 .rope_theta = 10000.0};
    return SHOAL_OK;
}

/* Architecture words; "auto" keeps what the preset says. */
static void apply_words(const struct config *config, struct model_config *out)
{
    if (strcmp(config->model.norm, "layernorm") == 0)
        out->norm = NORM_LAYER;
    else if (strcmp(config->model.norm, "rmsnorm") == 0)
        out->norm = NORM_RMS;
    if (strcmp(config->model.position, "learned") == 0)
        out->position = POSITION_LEARNED;
    else if (strcmp(config->model.position, "rope") == 0)
        out->position = POSITION_ROPE;
    if (strcmp(config->model.mlp, "gelu") == 0)
        out->mlp = MLP_GELU;
    else if (strcmp(config->model.mlp, "swiglu") == 0)
        out->mlp = MLP_SWIGLU;
    if (strcmp(config->model.tied, "auto") != 0)
        out->tied = strcmp(config->model.tied, "true") == 0;
    if (out->position == POSITION_ROPE && out->rope_theta == 0)
        out->rope_theta = 10000.0;
    if (strcmp(config->model.norm, "rmsnorm") == 0)
        out->bias = false;
}

shoal_status setup_model_config(const struct config *config, struct model_config *out)
{
    bool sized = config->model.hidden > 0 || config->model.heads > 0;
    bool bytes = strcmp(config->data.tokenizer, "bytes") == 0;

    SHOAL_TRY(base_model(config, out));
    replace_int(&out->layers, config->model.layers);
    replace_int(&out->hidden, config->model.hidden);
    replace_int(&out->heads, config->model.heads);
    if (sized) { /* what follows from other widths is not the preset's any more */
        out->kv_heads = out->heads;
        out->head_size = out->heads > 0 ? out->hidden / out->heads : 0;
        out->ffn = 4 * out->hidden;
    }
    replace_int(&out->kv_heads, config->model.kv_heads);
    replace_int(&out->ffn, config->model.ffn);
    replace_int(&out->vocab, config->model.vocab);
    if (out->vocab == 0 && bytes)
        out->vocab = BYTE_TOKENIZER_VOCAB;
    apply_words(config, out);
    if (out->max_seq < config->data.seq_len) {
        bool by_hand = config->model.preset[0] == '\0' && config->model.from[0] == '\0';
        if (out->position == POSITION_LEARNED && !by_hand && out->max_seq > 0 && !sized) {
            fail(SHOAL_ERR_CONFIG, "data.seq_len: %lld is longer than the model's %d positions",
                 (long long)config->data.seq_len, out->max_seq);
            return fail_hint(SHOAL_ERR_CONFIG, "set data.seq_len to at most %d", out->max_seq);
        }
        out->max_seq = (int)config->data.seq_len;
    }
    return model_config_check(out);
}

/* So many terms the exact sum of the losses may have, and so many operations memory can hold. */
enum { MAX_STEP_TOKENS = 1 << 30, MAX_MICROBATCHES = 1 << 16 };

static bool is_power_of_two(int64_t n)
{
    return n > 0 && (n & (n - 1)) == 0;
}

static shoal_status batch_arithmetic(const struct config *config, int n_ranks, struct policy *out)
{
    int64_t global = config->batch.global, per_round = out->B * n_ranks;
    int64_t most = MAX_STEP_TOKENS / out->T;

    if (config->batch.global_tokens > 0) {
        if (config->batch.global_tokens % out->T != 0) {
            fail(SHOAL_ERR_CONFIG, "batch.global_tokens: %lld is no multiple of data.seq_len %lld",
                 (long long)config->batch.global_tokens, (long long)out->T);
            return fail_hint(SHOAL_ERR_CONFIG, "use a multiple of %lld", (long long)out->T);
        }
        global = config->batch.global_tokens / out->T;
    }
    if (global < per_round || global % per_round != 0) {
        int64_t below = global / per_round * per_round;
        fail(SHOAL_ERR_CONFIG,
             "batch.global: %lld sequences cannot be shared by %d ranks in microbatches of %lld",
             (long long)global, n_ranks, (long long)out->B);
        fail_why(SHOAL_ERR_CONFIG, "it must be a multiple of batch.micro x ranks = %lld",
                 (long long)per_round);
        return fail_hint(SHOAL_ERR_CONFIG, "set batch.global=%lld, or change batch.micro",
                         (long long)(below > 0 ? below : per_round));
    }
    if (global > most) {
        fail(SHOAL_ERR_CONFIG,
             "batch.global: %lld sequences of %lld tokens, at most %d tokens a step",
             (long long)global, (long long)out->T, MAX_STEP_TOKENS);
        return fail_hint(SHOAL_ERR_CONFIG, "set batch.global to at most %lld", (long long)most);
    }
    if (global / per_round > MAX_MICROBATCHES) {
        fail(SHOAL_ERR_CONFIG, "batch.global: %lld microbatches per rank and step, at most %d",
             (long long)(global / per_round), MAX_MICROBATCHES);
        return fail_hint(SHOAL_ERR_CONFIG, "raise batch.micro, or lower batch.global");
    }
    out->global = global;
    out->A = (int)(global / per_round);
    return SHOAL_OK;
}

int64_t setup_sample_tokens(const struct model_config *model, size_t n_prompt, int n_tokens)
{
    int64_t n = (int64_t)n_prompt + n_tokens + 1;

    return n < model->max_seq ? n : model->max_seq;
}

static int64_t longest_sample(const struct config *config, const struct model_config *model)
{
    size_t longest = 0;

    /* Prompts are bytes: a model of another vocabulary cannot read them. */
    if (config->eval.sample_every == 0 || strcmp(config->data.tokenizer, "bytes") != 0 ||
        model->vocab < BYTE_TOKENIZER_VOCAB)
        return 0;
    for (int i = 0; i < config->eval.sample_prompts.n; i++) {
        size_t n = strlen(config->eval.sample_prompts.items[i]);
        longest = n > longest ? n : longest;
    }
    return setup_sample_tokens(model, longest, config->eval.sample_tokens);
}

static enum recompute recompute_of(const struct config *config)
{
    enum recompute recompute = RECOMPUTE_NONE;

    while (strcmp(recompute_name(recompute), config->parallel.recompute) != 0)
        recompute++;
    return recompute;
}

/* Recomputation must not change a bit. */
static shoal_status check_epilogue(const struct config *config, enum recompute recompute)
{
    if (strcmp(config->run.epilogue, "full") != 0 || recompute == RECOMPUTE_NONE)
        return SHOAL_OK;
    fail(SHOAL_ERR_CONFIG,
         "run.epilogue: full makes GELU of sums that are gone when parallel.recompute: %s makes it "
         "again",
         recompute_name(recompute));
    return fail_hint(SHOAL_ERR_CONFIG, "set parallel.recompute to none, or run.epilogue to bias");
}

shoal_status setup_policy(const struct config *config, const struct model_config *model,
                          int n_ranks, int rank, struct policy *out)
{
    *out = (struct policy){
        .stage = config->parallel.zero,
        .n_ranks = n_ranks,
        .rank = rank,
        .vertical = strcmp(config->parallel.order, "vertical") == 0,
        .recompute = recompute_of(config),
        .ring = strcmp(config->parallel.reduction, "ring") == 0,
        .compute = strcmp(config->precision.compute, "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32,
        .B = config->batch.micro,
        .T = config->data.seq_len,
        .sample_tokens = longest_sample(config, model),
        .grad_clip = config->optimizer.grad_clip,
    };
    SHOAL_TRY(check_epilogue(config, out->recompute));
    SHOAL_TRY(batch_arithmetic(config, n_ranks, out));
    out->shards_states = out->stage >= 1 && n_ranks > 1;
    out->shards_params = out->stage == 3 && n_ranks > 1;
    /*
     * With powers of two both ways of cutting the microbatches are subtrees of one tree and give
     * the same bits; otherwise every stage and order takes the one way that all can take.
     */
    out->reduce_each = (out->stage >= 2 && !out->vertical) || !is_power_of_two(n_ranks) ||
                       !is_power_of_two(out->A);
    if (n_ranks == 1)
        out->reduce_each = false;
    return SHOAL_OK;
}

enum comm_transport setup_transport(const struct config *config)
{
    static const enum comm_transport all[] = {COMM_MPI, COMM_STAGED, COMM_NCCL};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (strcmp(config->comm.transport, comm_transport_name(all[i])) == 0)
            return all[i];
    return COMM_AUTO;
}

void setup_device_policy(const struct config *config, bool separate, bool queues,
                         struct policy *out)
{
    bool automatic = strcmp(config->parallel.prefetch, "auto") == 0;

    out->separate = separate;
    out->transport = setup_transport(config);
    if (out->transport == COMM_AUTO && separate)
        out->transport = out->n_ranks == 1 ? COMM_SELF : COMM_NCCL;
    else if (out->transport == COMM_AUTO)
        out->transport = COMM_MPI;
    out->prefetch = automatic ? queues : strcmp(config->parallel.prefetch, "on") == 0;
}

shoal_status setup_data(const struct config *config, const struct model_config *model,
                        struct data **data_out)
{
    const char *paths[CONFIG_LIST];
    struct data_params params = {.train = paths,
                                 .n_train = (size_t)config->data.train.n,
                                 .val = config->data.val,
                                 .format = data_format_named(config->data.format),
                                 .tokenizer = config->data.tokenizer,
                                 .seq_len = config->data.seq_len,
                                 .vocab = model->vocab,
                                 .seed = config->run.seed};

    if (config->data.train.n == 0) {
        fail(SHOAL_ERR_CONFIG, "data.train: no files given");
        return fail_hint(SHOAL_ERR_CONFIG, "add data.train=FILE, a glob or a list to the config");
    }
    for (int i = 0; i < config->data.train.n; i++)
        paths[i] = config->data.train.items[i];
    return data_open(&params, data_out);
}

/* What tensors get that no group of optimizer.groups takes. */
static shoal_status default_group(const struct config *config, struct optim_group *out)
{
    *out = (struct optim_group){.match = "*", .lr_scale = 1};
    SHOAL_TRY(optim_find(config->optimizer.name, &out->rule));
    SHOAL_TRY(codec_find(config->optimizer.state, &out->state));
    out->hyper = (struct optim_hyper){.beta1 = config->optimizer.betas[0],
                                      .beta2 = config->optimizer.betas[1],
                                      .eps = config->optimizer.eps,
                                      .weight_decay = config->optimizer.weight_decay,
                                      .momentum = config->optimizer.momentum,
                                      .nesterov = config->optimizer.nesterov,
                                      .beta3 = config->optimizer.beta3,
                                      .alpha = config->optimizer.alpha,
                                      .slow_warmup_steps = config->optimizer.slow_warmup_steps,
                                      .gamma = config->optimizer.gamma,
                                      .cautious = config->optimizer.cautious,
                                      .tensor_clip = config->optimizer.tensor_clip,
                                      .clip_threshold = config->optimizer.clip_threshold,
                                      .scale_parameter = config->optimizer.scale_parameter,
                                      .relative_step = config->optimizer.relative_step};
    return SHOAL_OK;
}

static shoal_status master_codec(const struct config *config, const struct master_codec **out)
{
    SHOAL_TRY(master_codec_find(config->precision.master, out));
    if ((*out)->bits < 32 && strcmp(config->precision.compute, "bf16") != 0) {
        fail(SHOAL_ERR_CONFIG,
             "precision.master: %s keeps what lies below bf16 weights, but "
             "precision.compute is %s",
             (*out)->name, config->precision.compute);
        return fail_hint(SHOAL_ERR_CONFIG, "set precision.compute=bf16, or precision.master=fp32");
    }
    return SHOAL_OK;
}

static struct lr_params lr_of(const struct config *config)
{
    static const char *const schedules[] = {[LR_COSINE] = "cosine",
                                            [LR_LINEAR] = "linear",
                                            [LR_CONSTANT] = "constant",
                                            [LR_WSD] = "wsd"};
    struct lr_params lr = {.lr = config->optimizer.lr,
                           .min_lr = config->optimizer.min_lr,
                           .warmup_steps = config->optimizer.warmup_steps,
                           .total_steps = config->steps,
                           .decay_fraction = 0.2};

    for (size_t i = 0; i < sizeof schedules / sizeof schedules[0]; i++)
        if (strcmp(config->optimizer.schedule, schedules[i]) == 0)
            lr.schedule = (enum lr_schedule)i;
    return lr;
}

/* The groups of the configuration, the default last. */
static shoal_status optimizer_groups(const struct config *config,
                                     struct optim_group groups[CONFIG_LIST + 1], int *n_out)
{
    struct optim_group base;
    int n = 0;

    SHOAL_TRY(default_group(config, &base));
    for (; n < config->optimizer.groups.n; n++)
        SHOAL_TRY(optim_group_parse(config->optimizer.groups.items[n], &base, &groups[n]));
    groups[n++] = base;
    *n_out = n;
    return SHOAL_OK;
}

shoal_status setup_optimizer(const struct config *config, const struct layout *layout,
                             struct optim_setup **optim_out, struct lr_params *lr_out)
{
    struct optim_group groups[CONFIG_LIST + 1];
    const struct master_codec *master = NULL;
    int n = 0;

    if (!(config->optimizer.lr > 0)) {
        fail(SHOAL_ERR_CONFIG, "optimizer.lr: %g, must be above 0", config->optimizer.lr);
        return fail_hint(SHOAL_ERR_CONFIG, "3e-4 is a usual value for adamw, 1e-4 for lion");
    }
    SHOAL_TRY(optimizer_groups(config, groups, &n));
    SHOAL_TRY(master_codec(config, &master));
    SHOAL_TRY(optim_setup_create(layout, groups, n, master, optim_out));
    *lr_out = lr_of(config);
    return SHOAL_OK;
}

int setup_threads(const struct config *config, const struct comm *comm)
{
    int cores = host_cpus(), ranks = comm == NULL ? 1 : comm_node_ranks(comm);
    int threads = config->run.threads > 0 ? config->run.threads : cores / ranks;

    return threads < 1 ? 1 : threads;
}

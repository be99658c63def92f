#include "launch/train/train_internal.h"

#include "runtime/base/host.h"
#include "runtime/base/log.h"

#include <stdlib.h>
#include <string.h>

/* `shoal sample`: the decode schedule on one rank, with the weights of a checkpoint in fp32. */

static shoal_status load_weights(struct trainer *trainer, struct ckpt *ckpt)
{
    const struct build *build = trainer->build;
    size_t n = (size_t)build->layout->n_tensors;
    struct ckpt_piece *pieces = calloc(n, sizeof *pieces);

    if (pieces == NULL)
        return fail(SHOAL_ERR_NOMEM, "sample: cannot allocate %zu pieces", n);
    for (size_t t = 0; t < n; t++) {
        const struct tensor *tensor = &build->layout->tensors[t];
        pieces[t] = (struct ckpt_piece){
            .tensor = (int)t,
            .kind = "master",
            .begin = 0,
            .end = tensor->n_elements,
            .data = (float *)plan_ref(build->plan, build->param[tensor->unit]) + tensor->offset};
    }
    shoal_status status = ckpt_read(ckpt, build->layout, pieces, n);
    free(pieces);
    return status;
}

/* Prompts and text are bytes; a model of tokens has its tokenizer elsewhere. */
static shoal_status check_bytes(const struct ckpt *ckpt)
{
    struct config *config = malloc(sizeof *config);

    if (config == NULL)
        return fail(SHOAL_ERR_NOMEM, "sample: cannot allocate the config");
    shoal_status status =
        config_load_text(ckpt_path(ckpt), ckpt_meta(ckpt)->config_yaml, NULL, 0, config);
    bool bytes = status == SHOAL_OK && strcmp(config->data.tokenizer, "bytes") == 0;
    char tokenizer[CONFIG_TEXT];
    snprintf(tokenizer, sizeof tokenizer, "%s", status == SHOAL_OK ? config->data.tokenizer : "");
    free(config);
    if (status != SHOAL_OK || bytes)
        return status;
    fail(SHOAL_ERR_DATA, "%s: was trained with data.tokenizer=%s", ckpt_path(ckpt), tokenizer);
    return fail_hint(SHOAL_ERR_DATA, "text can be sampled from models of bytes only");
}

static shoal_status prepare(struct trainer *trainer, struct ckpt *ckpt,
                            const struct sample_params *params)
{
    int threads = params->threads > 0 ? params->threads : host_cpus();
    struct build_env env = {.state = &trainer->state};
    size_t n_prompt = strlen(params->prompt);

    SHOAL_TRY(check_bytes(ckpt));
    SHOAL_TRY(model_config_from_json(ckpt_meta(ckpt)->model_json, &trainer->model_config));
    if (trainer->model_config.vocab < BYTE_TOKENIZER_VOCAB) {
        fail(SHOAL_ERR_DATA, "%s: its vocabulary of %d does not hold all bytes", ckpt_path(ckpt),
             trainer->model_config.vocab);
        return fail_hint(SHOAL_ERR_DATA, "text can be sampled from models of bytes only");
    }
    trainer->policy = (struct policy){.n_ranks = 1,
                                      .B = 1,
                                      .T = 1,
                                      .A = 1,
                                      .global = 1,
                                      .compute = DTYPE_F32,
                                      .infer_only = true};
    trainer->policy.sample_tokens =
        setup_sample_tokens(&trainer->model_config, n_prompt, params->n_tokens);
    if ((int64_t)n_prompt + params->n_tokens > trainer->model_config.max_seq)
        log_line("warn", "the model has %d positions: the text ends there",
                 trainer->model_config.max_seq);
    SHOAL_TRY(device_open("cpu", 0, &trainer->device));
    SHOAL_TRY(model_create(&trainer->model_config, &trainer->model));
    SHOAL_TRY(pool_create(threads, -1, &trainer->pool));
    SHOAL_TRY(ops_create_cpu(trainer->pool, &trainer->ops));
    SHOAL_TRY(model_prepare_decode(trainer->model, trainer->ops, trainer->policy.sample_tokens,
                                   DTYPE_F32));
    SHOAL_TRY(build_create(&trainer->policy, trainer->model, trainer->ops, NULL, &trainer->build));
    env.ops = trainer->ops;
    env.pool = trainer->pool;
    SHOAL_TRY(build_decode(trainer->build, &env, &trainer->decode));
    SHOAL_TRY(exec_prepare(trainer->decode));
    SHOAL_TRY(trainer->device->ops->alloc(trainer->device, "weights",
                                          plan_space_bytes(trainer->build->plan, SPACE_PRIVATE),
                                          &trainer->memory));
    plan_bind(trainer->build->plan, SPACE_PRIVATE, trainer->memory);
    return load_weights(trainer, ckpt);
}

shoal_status train_sample(const struct sample_params *params, FILE *out)
{
    struct generation generation = {.prompt = params->prompt,
                                    .n_tokens = params->n_tokens,
                                    .temperature = params->temperature,
                                    .top_p = params->top_p,
                                    .seed = params->seed};
    struct trainer *trainer = NULL;
    struct ckpt *ckpt = NULL;
    char *text = NULL;
    bool stop = false;
    size_t n_bytes = 8 * ((size_t)params->n_tokens + strlen(params->prompt) + 2);
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(ckpt_open(params->checkpoint, &ckpt));
    trainer = calloc(1, sizeof *trainer);
    text = malloc(n_bytes);
    if (trainer == NULL || text == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "sample: cannot allocate %zu bytes", n_bytes);
        goto end;
    }
    SHOAL_TRY_GOTO(prepare(trainer, ckpt, params), end);
    SHOAL_TRY_GOTO(generate(trainer, &generation, text, n_bytes, &stop), end);
    fprintf(out, "%s\n", text);

end:
    if (trainer != NULL) {
        sched_destroy(trainer->decode);
        train_memory_release(trainer);
        build_destroy(trainer->build);
        ops_destroy(trainer->ops);
        model_destroy(trainer->model);
        device_close(trainer->device);
        pool_destroy(trainer->pool);
    }
    free(trainer);
    free(text);
    ckpt_close(ckpt);
    return status;
}

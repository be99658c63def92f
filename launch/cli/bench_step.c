/* shoal bench step: optimizer steps against oneDNN's matmuls alone, in the same run. */
#include "launch/cli/cli_internal.h"
#include "launch/train/train.h"

#include <stdlib.h>
#include <string.h>

/* What the command's own words and config may override. */
static const char *const defaults[] = {
    "model.preset=gpt2",   "data.seq_len=256",    "batch.micro=4",  "batch.global=4",
    "data.tokenizer=none", "eval.sample_every=0", "parallel.zero=3"};

static shoal_status load(const struct command_line *line, struct config *config)
{
    enum { N_DEFAULTS = sizeof defaults / sizeof defaults[0] };
    bool has_path = line->n_args > 0 && strchr(line->args[0], '=') == NULL;
    size_t n = has_path ? 0 : N_DEFAULTS;
    const char **words = calloc(N_DEFAULTS + (size_t)line->n_args + 1, sizeof *words);

    if (words == NULL)
        return fail(SHOAL_ERR_NOMEM, "bench step: cannot allocate %d words", line->n_args);
    memcpy(words, defaults, n * sizeof *words);
    for (int i = has_path; i < line->n_args; i++)
        words[n++] = line->args[i];
    shoal_status status = config_load(has_path ? line->args[0] : NULL, words, n, config);
    free(words);
    return status;
}

static shoal_status run_bench_step(const struct command_line *line)
{
    struct bench_params params = {.steps = 5, .out = stdout};
    int64_t steps = params.steps;
    struct config *config = NULL;

    SHOAL_TRY(option_int(line, "steps", 1, 1000, &steps));
    params.steps = (int)steps;
    config = malloc(sizeof *config);
    if (config == NULL)
        return fail(SHOAL_ERR_NOMEM, "bench step: cannot allocate the config");
    params.config = config;
    shoal_status status = load(line, config);
    if (status == SHOAL_OK)
        status = train_bench(&params);
    free(config);
    return status;
}

static const struct option options[] = {
    {"steps", 0, "N", "steps to time; the median counts (5)"},
    {.name = NULL},
};

const struct command command_bench_step = {
    .path = "bench step",
    .purpose = "Time optimizer steps and each class of work against its floor.",
    .arguments = "[CONFIG] [KEY=VALUE...]",
    .notes = "Without a config: GPT-2 124M, 4 sequences of 256 random tokens, fp32.",
    .examples = {"shoal bench step", "shoal bench step precision.compute=bf16"},
    .options = options,
    .max_args = -1,
    .run = run_bench_step,
};

/* shoal sample: text from a checkpoint. */
#include "launch/cli/cli_internal.h"
#include "launch/train/train.h"

static shoal_status run_sample(const struct command_line *line)
{
    int64_t n_tokens = 200;
    int64_t threads = 0;
    int64_t seed = 1;
    struct sample_params params = {
        .checkpoint = line->args[0],
        .prompt = option_text(line, "prompt"),
        .temperature = 0.8,
        .top_p = 0.95,
    };

    SHOAL_TRY(option_int(line, "tokens", 1, 1 << 20, &n_tokens));
    SHOAL_TRY(option_int(line, "seed", 0, INT64_MAX, &seed));
    SHOAL_TRY(option_int(line, "threads", 0, 4096, &threads));
    SHOAL_TRY(option_real(line, "temperature", 0, 100, &params.temperature));
    SHOAL_TRY(option_real(line, "top-p", 0, 1, &params.top_p));
    if (params.prompt == NULL)
        params.prompt = "\n";
    params.n_tokens = (int)n_tokens;
    params.seed = (uint64_t)seed;
    params.threads = (int)threads;
    return train_sample(&params, stdout);
}

static const struct option options[] = {
    {"prompt", 'p', "TEXT", "what the text starts with (a line end)"},
    {"tokens", 'n', "N", "length (200)"},
    {"temperature", 0, "X", "0: always the likeliest token (0.8)"},
    {"top-p", 0, "X", "sample from the likeliest tokens of this probability (0.95)"},
    {"seed", 0, "N", "the same seed gives the same text (1)"},
    {"threads", 0, "N", "0: all cores (0)"},
    {.name = NULL},
};

const struct command command_sample = {
    .path = "sample",
    .purpose = "Write text with the model of a run or checkpoint.",
    .arguments = "RUN",
    .notes = "RUN is a run directory, a checkpoint root or one step's directory.",
    .examples = {"shoal sample runs/shoal --prompt \"int main\"",
                 "shoal sample runs/shoal -n 500 --temperature 0 --seed 7"},
    .options = options,
    .min_args = 1,
    .max_args = 1,
    .run = run_sample,
};

/* shoal train: options become overrides, so that errors and the resolved config name them. */
#include "launch/train/train.h"
#include "launch/cli/cli_internal.h"

#include <stdlib.h>

enum { N_SHORTCUTS = 3 };

static const struct {
    const char *option, *key;
} shortcuts[N_SHORTCUTS] = {
    {"resume", "checkpoint.resume"},
    {"steps", "steps"},
    {"out", "run.out"},
};

static shoal_status run_train(const struct command_line *line)
{
    char texts[N_SHORTCUTS][CONFIG_TEXT + 64];
    const char *extra[N_SHORTCUTS + 1];
    size_t n = 0;
    struct config *config;

    for (size_t i = 0; i < N_SHORTCUTS; i++) {
        const char *value = option_text(line, shortcuts[i].option);

        if (value == NULL)
            continue;
        int length = snprintf(texts[n], sizeof texts[n], "%s=%s", shortcuts[i].key, value);
        if (length >= (int)sizeof texts[n])
            return fail_usage(line->command, "option --%s: expected at most %d bytes",
                              shortcuts[i].option, CONFIG_TEXT - 1);
        extra[n] = texts[n];
        n++;
    }
    extra[n] = NULL;
    SHOAL_TRY(config_from_line(line, extra, &config));
    const struct train_params params = {
        .config = config,
        .dry_run = option_is_set(line, "dry-run"),
    };
    shoal_status status = train_run(&params);
    free(config);
    return status;
}

static const struct option options[] = {
    {"dry-run", 0, NULL, "do and check everything up to the first step"},
    {"resume", 0, "X", "auto, never, a path or a step (checkpoint.resume)"},
    {"steps", 0, "N", "steps of the whole run (steps)"},
    {"out", 0, "DIR", "directory of the run (run.out)"},
    {.name = NULL},
};

const struct command command_train = {
    .path = "train",
    .purpose = "Train a model, alone or on the ranks of mpirun.",
    .arguments = "CONFIG [KEY=VALUE...]",
    .notes =
        "SIGTERM, SIGUSR1 or SIGINT: finish the step, save, exit 75; the same command goes on.",
    .examples = {"mpirun -n 2 shoal train run.yaml",
                 "shoal train run.yaml optimizer.lr=1e-3 --steps 100 --resume never"},
    .options = options,
    .min_args = 1,
    .max_args = -1,
    .run = run_train,
};

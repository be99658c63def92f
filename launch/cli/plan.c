/* shoal plan: the memory of a run that does not take place. */
#include "launch/cli/cli_internal.h"
#include "launch/train/train.h"

#include <stdlib.h>

enum { MAX_RANKS = 1 << 20 };

static shoal_status run_plan(const struct command_line *line)
{
    int64_t ranks = 1;
    int64_t ranks_per_host = 0;
    struct config *config;

    SHOAL_TRY(option_int(line, "ranks", 1, MAX_RANKS, &ranks));
    SHOAL_TRY(option_int(line, "ranks-per-host", 0, MAX_RANKS, &ranks_per_host));
    SHOAL_TRY(config_from_line(line, NULL, &config));
    shoal_status status =
        train_plan(config, (int)ranks, (int)ranks_per_host, option_is_set(line, "json"), stdout);
    free(config);
    return status;
}

static const struct option options[] = {
    {"ranks", 'n', "RANKS", "number of ranks (1)"},
    {"ranks-per-host", 0, "N", "ranks that share a host; 0: all (0)"},
    {"json", 0, NULL, "one JSON object on stdout"},
    {.name = NULL},
};

const struct command command_plan = {
    .path = "plan",
    .purpose = "Print the memory that a run would take, without running it.",
    .arguments = "CONFIG [KEY=VALUE...]",
    .notes = "Reads the very schedule that train would run; needs no data and no ranks.",
    .examples = {"shoal plan run.yaml -n 8", "shoal plan run.yaml parallel.zero=1 -n 8 --json"},
    .options = options,
    .min_args = 1,
    .max_args = -1,
    .run = run_plan,
};

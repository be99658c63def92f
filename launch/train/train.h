#pragma once

#include "runtime/base/status.h"
#include "runtime/config/config.h"

#include <stdbool.h>
#include <stdio.h>

/*
 * Training: the one place that knows all folders.  build_*.c turn (model, layout, policy)
 * into schedules; trainer.c runs them.  Everything here prints human lines to stderr through
 * the log, results that were asked for (plan, sampled text) to `out`.
 */

/*
 * `shoal train`: run to the end, to a signal (SHOAL_ERR_STOPPED, checkpoint saved) or to a
 * failure.  Opens and closes communication itself.  The status is the same on all ranks.
 * With `dry_run` everything up to the first step is done, checked and printed.  Collective.
 */
struct train_params {
    const struct config *config;
    bool dry_run;
};
shoal_status train_run(const struct train_params *params);

/*
 * `shoal plan`: the memory table of the schedule that train would run, with `ranks` ranks of which
 * `ranks_per_host` share a host (0: all).  Allocates no training memory, needs no data.  Local.
 */
shoal_status train_plan(const struct config *config, int ranks, int ranks_per_host, bool json,
                        FILE *out);

/* `shoal sample`: text from a checkpoint, one process. */
struct sample_params {
    const char *checkpoint; /* as ckpt_open takes it */
    const char *prompt;
    int n_tokens;
    double temperature, top_p;
    uint64_t seed;
    int threads; /* 0: all cores */
};
shoal_status train_sample(const struct sample_params *params, FILE *out);

/*
 * `shoal bench step`: optimizer steps on random tokens, each class of work against its floor, and the
 * whole against oneDNN's matmuls alone on the same shapes in the same run.  Collective.
 */
struct bench_params {
    const struct config *config;
    int steps;
    FILE *out;
};
shoal_status train_bench(const struct bench_params *params);

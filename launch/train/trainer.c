#include "launch/train/train_internal.h"

#include "runtime/base/clock.h"
#include "runtime/base/host.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * A run from start to end: open the parts, build the schedules, take the memory, load or
 * initialize, then step after step.  The phases that can fail on one rank alone end in comm_agree.
 */

static shoal_status make_directories(const char *path)
{
    char partial[CONFIG_TEXT + 64];

    if (path[0] == '\0') {
        fail(SHOAL_ERR_CONFIG, "run.out: is empty, expected a directory");
        return fail_hint(SHOAL_ERR_CONFIG, "set run.out to a place that can be written");
    }
    snprintf(partial, sizeof partial, "%s", path);
    for (char *p = partial + 1;; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char kept = *p;
        *p = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST) {
            fail(SHOAL_ERR_CANTCREATE, "run.out: cannot create %s: %s", partial, strerror(errno));
            return fail_hint(SHOAL_ERR_CANTCREATE, "set run.out to a place that can be written");
        }
        *p = kept;
        if (kept == '\0')
            return SHOAL_OK;
    }
}

static shoal_status write_config(const struct trainer *trainer)
{
    char path[CONFIG_TEXT + 64];

    SHOAL_TRY(make_directories(trainer->config->run.out));
    snprintf(path, sizeof path, "%s/config.yaml", trainer->config->run.out);
    FILE *out = fopen(path, "w");
    if (out == NULL) {
        fail(SHOAL_ERR_CANTCREATE, "run.out: cannot write %s: %s", path, strerror(errno));
        return fail_hint(SHOAL_ERR_CANTCREATE, "set run.out to a place that can be written");
    }
    shoal_status status = config_write(trainer->config, out);
    if (fclose(out) != 0 && status == SHOAL_OK)
        status = fail(SHOAL_ERR_IO, "%s: %s", path, strerror(errno));
    return status;
}

static void make_uuid(char out[40])
{
    uint32_t bits[4];

    rng_block((uint64_t)(clock_wall() * 1e9), 0, (uint64_t)getpid(), 0, bits);
    snprintf(out, 40, "%08x-%04x-4%03x-%04x-%08x%04x", bits[0], bits[1] >> 16, bits[1] & 0xfff,
             0x8000u | (bits[2] & 0x3fff), bits[3], bits[2] >> 16);
}

static shoal_status open_device(struct trainer *trainer)
{
    const struct config *config = trainer->config;

    SHOAL_TRY(setup_model_config(config, &trainer->model_config));
    SHOAL_TRY(setup_policy(config, &trainer->model_config, comm_size(trainer->comm),
                           comm_rank(trainer->comm), &trainer->policy));
    return train_device_open(trainer);
}

static shoal_status open_ops(struct trainer *trainer)
{
    const struct config *config = trainer->config;
    int threads = setup_threads(config, trainer->comm);
    int first_cpu = config->run.bind ? threads * comm_node_rank(trainer->comm) : -1;

    SHOAL_TRY(model_create(&trainer->model_config, &trainer->model));
    SHOAL_TRY(setup_optimizer(config, model_layout(trainer->model), &trainer->optim, &trainer->lr));
    SHOAL_TRY(pool_create(threads, first_cpu, &trainer->pool));
    SHOAL_TRY(train_device_ops(config, trainer->device, trainer->pool, &trainer->ops));
    SHOAL_TRY(model_prepare(trainer->model, trainer->ops, trainer->policy.B, trainer->policy.T,
                            trainer->policy.compute, trainer->policy.recompute));
    if (trainer->policy.sample_tokens > 0)
        SHOAL_TRY(model_prepare_decode(trainer->model, trainer->ops, trainer->policy.sample_tokens,
                                       trainer->policy.compute));
    return train_memory_warm_up(trainer);
}

/* Model, device, threads and ops: what needs no data. */
shoal_status train_open_compute(struct trainer *trainer)
{
    SHOAL_TRY(comm_agree(trainer->comm, open_device(trainer)));
    SHOAL_TRY(train_taken_note(trainer, TAKEN_BEFORE));
    SHOAL_TRY(comm_agree(trainer->comm, open_ops(trainer)));
    SHOAL_TRY(setup_compare_choices(trainer->comm, trainer->ops));
    return train_taken_note(trainer, TAKEN_BY_LIBRARIES);
}

/* Where this rank's timeline goes; false: nowhere. */
static bool trace_path(const struct trainer *trainer, char *out, size_t n_bytes)
{
    const char *trace = trainer->config->log.trace;

    snprintf(out, n_bytes, "%s.rank%d.json", trace, trainer->policy.rank);
    return trace[0] != '\0';
}

/* It is written after the last step: a place that cannot be written is found now. */
static shoal_status try_trace(const struct trainer *trainer)
{
    char path[CONFIG_TEXT + 32];

    if (!trace_path(trainer, path, sizeof path))
        return SHOAL_OK;
    FILE *file = fopen(path, "a");
    if (file == NULL) {
        fail(SHOAL_ERR_CANTCREATE, "log.trace: cannot write %s: %s", path, strerror(errno));
        return fail_hint(SHOAL_ERR_CANTCREATE, "set log.trace to a place that can be written");
    }
    fclose(file);
    return SHOAL_OK;
}

static shoal_status open_parts(struct trainer *trainer)
{
    const struct config *config = trainer->config;

    SHOAL_TRY(model_config_to_json(&trainer->model_config, &trainer->model_json));
    SHOAL_TRY(config_to_yaml(config, &trainer->config_yaml));
    SHOAL_TRY(setup_data(config, &trainer->model_config, &trainer->data));
    SHOAL_TRY(try_trace(trainer));
    return comm_rank(trainer->comm) == 0 ? write_config(trainer) : SHOAL_OK;
}

shoal_status train_build(struct trainer *trainer)
{
    struct build_env env = {.comm = trainer->comm,
                            .ops = trainer->ops,
                            .pool = trainer->pool,
                            .data = trainer->data,
                            .state = &trainer->state,
                            .device = trainer->device};

    SHOAL_TRY(build_create(&trainer->policy, trainer->model, trainer->ops, trainer->optim,
                           &trainer->build));
    SHOAL_TRY(build_step(trainer->build, &env, &trainer->step));
    exec_use_device(trainer->step, trainer->device);
    if (trainer->config->run.graphs)
        exec_use_graphs(trainer->step);
    SHOAL_TRY(exec_prepare(trainer->step));
    SHOAL_TRY(build_eval(trainer->build, &env, &trainer->eval));
    exec_use_device(trainer->eval, trainer->device);
    SHOAL_TRY(exec_prepare(trainer->eval));
    if (trainer->policy.sample_tokens > 0) {
        SHOAL_TRY(build_decode(trainer->build, &env, &trainer->decode));
        exec_use_device(trainer->decode, trainer->device);
        SHOAL_TRY(exec_prepare(trainer->decode));
    }
    return SHOAL_OK;
}

static shoal_status open_store(struct trainer *trainer)
{
    char root[CONFIG_TEXT + 32];
    struct ckpt_store_params params = {.root = root, .keep = trainer->config->checkpoint.keep};

    snprintf(root, sizeof root, "%s/checkpoints", trainer->config->run.out);
    return ckpt_store_open(trainer->comm, &params, &trainer->store);
}

static shoal_status prepare(struct trainer *trainer)
{
    struct comm *comm = trainer->comm;

    comm_note(comm, 0, "starting");
    SHOAL_TRY(setup_agree_config(comm, trainer->config));
    SHOAL_TRY(train_open_compute(trainer));
    SHOAL_TRY(comm_agree(comm, open_parts(trainer)));
    SHOAL_TRY(train_device_connect(trainer));
    comm_use_pool(comm, trainer->pool);
    SHOAL_TRY(comm_agree(comm, train_build(trainer)));
    if (comm_rank(comm) == 0)
        make_uuid(trainer->run_uuid);
    SHOAL_TRY(comm_broadcast(comm, 0, trainer->run_uuid, sizeof trainer->run_uuid));
    report_banner(trainer);
    SHOAL_TRY(open_store(trainer));
    SHOAL_TRY(train_memory_take(trainer));
    SHOAL_TRY(comm_agree(comm, state_pieces(trainer, true, &trainer->pieces)));
    comm_note(comm, 0, "loading");
    SHOAL_TRY(state_resume(trainer));
    shoal_status status = SHOAL_OK;
    if (comm_rank(comm) == 0)
        status = metrics_open(trainer->config->run.out, trainer->first_step, &trainer->metrics);
    train_memory_note_base(trainer);
    return comm_agree(comm, status);
}

static shoal_status stopped(struct trainer *trainer, int64_t step)
{
    shoal_status status = state_save(trainer, step);

    if (status != SHOAL_OK)
        return status;
    log_line("signal", "asked to stop: saved at step %lld (run the same command to continue)",
             (long long)step);
    fail(SHOAL_ERR_STOPPED, "stopped on request after step %lld", (long long)step);
    return fail_hint(SHOAL_ERR_STOPPED, "run the same command to continue");
}

static shoal_status nonfinite(struct trainer *trainer, int64_t step)
{
    const struct step_state *state = &trainer->state;

    if (strcmp(trainer->config->optimizer.on_nonfinite, "skip") == 0) {
        log_line("warn", "step %lld: loss %g, gradient norm %g: skipped, weights untouched",
                 (long long)step, state->loss, state->grad_norm);
        return SHOAL_OK;
    }
    fail(SHOAL_ERR_NONFINITE, "step %lld: loss %g, gradient norm %g: not finite", (long long)step,
         state->loss, state->grad_norm);
    fail_why(SHOAL_ERR_NONFINITE, "optimizer.on_nonfinite is stop; weights are those of step %lld",
             (long long)step - 1);
    return fail_hint(SHOAL_ERR_NONFINITE, "lower optimizer.lr, or set optimizer.on_nonfinite=skip");
}

shoal_status train_one_step(struct trainer *trainer, int64_t step, double *lr_out)
{
    struct step_state *state = &trainer->state;
    struct optim_average average = trainer->average;
    uint64_t sequences = (uint64_t)trainer->policy.global;

    *lr_out = lr_at(&trainer->lr, step);
    state->step = step;
    state->first_sequence = trainer->consumed_sequences;
    state->loss_scale = (float)(1.0 / ((double)trainer->policy.global * (double)trainer->policy.T));
    if (fault_point(step, trainer->policy.rank))
        state->loss_scale = NAN;
    optim_step_begin(trainer->optim, *lr_out, optim_average_add(&average, *lr_out),
                     trainer->config->run.seed, trainer->updates + 1, &state->optim);
    exact_sum_clear(&state->sums[SUM_LOSS]);
    exact_sum_clear(&state->sums[SUM_SQUARES]);
    state->stop_wanted = signals_wanted() != 0;
    comm_note(trainer->comm, step, "step");
    comm_ledger_reset(trainer->comm);
    shoal_status status = exec_run(trainer->step);
    if (status != SHOAL_OK)
        return fail_context(status, "step %lld", (long long)step);
    trainer->consumed_sequences += sequences;
    trainer->consumed_tokens += sequences * (uint64_t)trainer->policy.T;
    trainer->last_loss = state->loss;
    if (!state->finite)
        return nonfinite(trainer, step);
    trainer->updates++;
    trainer->average = average;
    return SHOAL_OK;
}

static bool due(int64_t every, int64_t step)
{
    return every > 0 && step % every == 0;
}

/* Validation and samples, where they are due, with the weights to use. */
static shoal_status look(struct trainer *trainer, int64_t step, bool *stop)
{
    const struct config *config = trainer->config;
    const bool last = step == config->steps;
    const bool loss = config->eval.every > 0 && (due(config->eval.every, step) || last);
    const bool samples = trainer->decode != NULL && (due(config->eval.sample_every, step) || last);

    if (!loss && !samples)
        return SHOAL_OK;
    SHOAL_TRY(average_enter(trainer));
    fault_point_look(step, trainer->policy.rank);
    if (loss)
        SHOAL_TRY(evaluate_loss(trainer, step, stop));
    if (samples && !*stop)
        SHOAL_TRY(evaluate_samples(trainer, step, stop));
    return average_leave(trainer);
}

/* After a step: validation, samples, checkpoint, and leaving if a rank was asked to. */
static shoal_status after_step(struct trainer *trainer, int64_t step)
{
    const struct config *config = trainer->config;
    bool last = step == config->steps, stop = trainer->state.stop_wanted > 0;

    if (!stop)
        SHOAL_TRY(look(trainer, step, &stop));
    if (stop && !last)
        return stopped(trainer, step);
    if (due(config->checkpoint.every, step) || last)
        return state_save(trainer, step);
    return SHOAL_OK;
}

static shoal_status loop(struct trainer *trainer)
{
    const struct config *config = trainer->config;
    double begin = clock_seconds();
    int64_t since = 0;

    for (int64_t step = trainer->first_step + 1; step <= config->steps; step++) {
        double lr = 0;
        SHOAL_TRY(train_one_step(trainer, step, &lr));
        since++;
        if (step == trainer->first_step + 1)
            log_verbose("start", "first step finished %.2f s after start",
                        clock_seconds() - trainer->start_seconds);
        if (step == trainer->first_step + 1 || due(config->log.every, step) ||
            step == config->steps) {
            SHOAL_TRY(report_step(trainer, step, since, clock_seconds() - begin, lr));
            begin = clock_seconds();
            since = 0;
        }
        double pause = clock_seconds();
        SHOAL_TRY(after_step(trainer, step));
        train_memory_sample(trainer);
        begin += clock_seconds() - pause;
    }
    return SHOAL_OK;
}

static shoal_status write_trace(const struct trainer *trainer)
{
    char path[CONFIG_TEXT + 32];

    if (!trace_path(trainer, path, sizeof path))
        return SHOAL_OK;
    return exec_trace_write(trainer->step, trainer->policy.rank, path);
}

static shoal_status run(struct trainer *trainer, bool dry_run)
{
    bool stop = false;

    SHOAL_TRY(prepare(trainer));
    if (dry_run) {
        log_line("run", "dry run: everything is ready, nothing was trained");
        return SHOAL_OK;
    }
    if (trainer->first_step >= trainer->config->steps) {
        log_line("run", "step %lld of %lld is done already: nothing to do",
                 (long long)trainer->first_step, (long long)trainer->config->steps);
        return SHOAL_OK;
    }
    if (trainer->first_step == 0 && trainer->decode != NULL)
        SHOAL_TRY(evaluate_samples(trainer, 0, &stop));
    shoal_status status = loop(trainer);
    if (status != SHOAL_OK && status != SHOAL_ERR_STOPPED)
        return status;
    SHOAL_TRY(train_memory_log_measured(trainer));
    if (status == SHOAL_ERR_STOPPED)
        return status;
    SHOAL_TRY(comm_agree(trainer->comm, write_trace(trainer)));
    log_line("done", "%lld steps, loss %.4f", (long long)trainer->config->steps,
             trainer->last_loss);
    return SHOAL_OK;
}

shoal_status train_open(const struct config *config, struct trainer **trainer_out)
{
    struct comm_params params = {.timeout_s = config->comm.timeout_s,
                                 .heartbeat_s = config->comm.heartbeat_s,
                                 .ranks_per_host = config->comm.ranks_per_host,
                                 .ring = strcmp(config->parallel.reduction, "ring") == 0,
                                 .transport = setup_transport(config)};
    struct trainer *trainer = calloc(1, sizeof *trainer);

    if (trainer == NULL)
        return fail(SHOAL_ERR_NOMEM, "trainer: cannot allocate its record");
    trainer->config = config;
    trainer->saved_step = -1;
    trainer->start_seconds = clock_seconds();
    shoal_status status = comm_open(&params, &trainer->comm);
    if (status != SHOAL_OK) {
        free(trainer);
        return status;
    }
    log_init(comm_rank(trainer->comm), log_level_now());
    *trainer_out = trainer;
    return SHOAL_OK;
}

shoal_status train_close(struct trainer *trainer, shoal_status status)
{
    if (status != SHOAL_OK)
        comm_fail(trainer->comm, status);
    metrics_close(trainer->metrics);
    ckpt_store_close(trainer->store);
    /* Before the memory goes: after a failure a transport may still be at work on it. */
    status = comm_close(trainer->comm, status);
    sched_destroy(trainer->step);
    sched_destroy(trainer->eval);
    sched_destroy(trainer->decode);
    train_memory_release(trainer);
    build_destroy(trainer->build);
    state_pieces_free(&trainer->pieces);
    ops_destroy(trainer->ops);
    data_close(trainer->data);
    optim_setup_destroy(trainer->optim);
    model_destroy(trainer->model);
    free(trainer->config_yaml);
    free(trainer->model_json);
    device_close(trainer->device);
    pool_destroy(trainer->pool);
    free(trainer);
    return status;
}

shoal_status train_run(const struct train_params *params)
{
    struct trainer *trainer = NULL;

    signals_install();
    SHOAL_TRY(train_open(params->config, &trainer));
    shoal_status status = run(trainer, params->dry_run);
    return train_close(trainer, status);
}

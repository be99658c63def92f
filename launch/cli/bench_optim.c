/*
 * shoal bench optim: updates of one matrix, in the cache with one thread and streaming through
 * memory with all, against a copy with the same threads in the same run.  On a device with memory
 * of its own: streaming alone, against a copy within that memory; what the host makes of sums
 * between two passes is left out there.
 */
#include "launch/cli/cli_internal.h"
#include "optim/optim.h"
#include "runtime/base/clock.h"
#include "runtime/base/copy_rate.h"
#include "runtime/base/host.h"
#include "runtime/base/pages.h"
#include "runtime/base/rng.h"
#include "runtime/device/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CACHED_ELEMENTS = 16 * 1024,
    COPY_MIB = 128,
    DEVICE_COPY_MIB = 1024,
    CACHED_UPDATES = 64, /* in one schedule, so that starting it does not count */
    DEVICE_UPDATES = 8,  /* likewise */
    COLUMNS = 1024,
    MIB_ELEMENTS = 1 << 20
};

struct bench {
    const char *rule, *state, *master;
    int repeats;
    struct device *device; /* with memory of its own, or NULL */
    double copy_rate;      /* bytes per second, read and written */
};

/* One matrix with everything that its update touches. */
struct matrix {
    struct layout *layout;
    struct optim_setup *setup;
    struct plan *plan;
    struct device *device; /* whose memory it is; NULL: the host's */
    void *memory;
    size_t n_bytes;
    struct pool *pool;
    struct schedule *sched;
    struct optim_refs refs;
    struct optim_step step;
    uint64_t bytes; /* read and written by one update */
};

static shoal_status make_setup(struct matrix *m, const struct bench *bench)
{
    const struct master_codec *master = NULL;
    struct optim_group group = {.match = "*", .lr_scale = 1, .state_forced = true};

    group.hyper = (struct optim_hyper){.beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .eps = 1e-8,
                                       .weight_decay = 0.1,
                                       .momentum = 0.9,
                                       .beta3 = 0.9999,
                                       .alpha = 5,
                                       .gamma = 0.025};
    SHOAL_TRY(optim_find(bench->rule, &group.rule));
    SHOAL_TRY(codec_find(bench->state, &group.state));
    SHOAL_TRY(master_codec_find(bench->master, &master));
    return optim_setup_create(m->layout, &group, 1, master, &m->setup);
}

static shoal_status make_layout(struct matrix *m, int64_t n)
{
    struct tensor tensor = {.name = "matrix",
                            .role = ROLE_UP,
                            .ndim = 2,
                            .shape = {n / COLUMNS, COLUMNS},
                            .decay = true};

    SHOAL_TRY(layout_create(&m->layout));
    SHOAL_TRY(layout_add_unit(m->layout, "unit"));
    return layout_add_tensor(m->layout, &tensor);
}

static shoal_status slot(struct matrix *m, size_t n_bytes, struct slot_ref *out)
{
    int id = -1;

    *out = SLOT_NONE;
    if (n_bytes == 0)
        return SHOAL_OK;
    SHOAL_TRY(plan_slot(m->plan, "bench", PLAN_OPTIM, SPACE_PRIVATE, n_bytes, &id));
    *out = slot_at(id, 0);
    return SHOAL_OK;
}

static shoal_status make_slots(struct matrix *m, int64_t n)
{
    const struct shard all = {0, n};
    const size_t bits = (size_t)m->setup->master->bits;

    SHOAL_TRY(plan_create(&m->plan));
    SHOAL_TRY(slot(m, (size_t)n * sizeof(float), &m->refs.grad));
    SHOAL_TRY(slot(m, (size_t)n * bits / 8, &m->refs.master));
    SHOAL_TRY(slot(m, (size_t)n * sizeof(bf16_t), &m->refs.param));
    SHOAL_TRY(slot(m, optim_vectors_bytes(m->setup, 0), &m->refs.vectors));
    SHOAL_TRY(
        slot(m, (size_t)pool_size(m->pool) * m->setup->n_limbs * sizeof(int64_t), &m->refs.limbs));
    for (int kind = 0; kind < OPTIM_MAX_KINDS; kind++)
        SHOAL_TRY(slot(m, kind < m->setup->n_kinds ? optim_kind_bytes(m->setup, 0, kind, all) : 0,
                       &m->refs.kinds[kind]));
    m->n_bytes = plan_space_bytes(m->plan, SPACE_PRIVATE);
    if (m->device != NULL) {
        SHOAL_TRY(m->device->ops->alloc(m->device, "bench optim", m->n_bytes, &m->memory));
        SHOAL_TRY(m->device->ops->zero(m->device, m->memory, m->n_bytes));
    } else {
        SHOAL_TRY(pages_alloc("bench optim", m->n_bytes, &m->memory));
        memset(m->memory, 0, m->n_bytes);
    }
    plan_bind(m->plan, SPACE_PRIVATE, m->memory);
    return SHOAL_OK;
}

static shoal_status fill_gradient(struct matrix *m, int64_t n)
{
    float *grad = plan_ref(m->plan, m->refs.grad);
    const size_t n_bytes = (size_t)n * sizeof *grad;
    float *values = grad;

    if (m->device != NULL)
        values = malloc(n_bytes);
    if (values == NULL)
        return fail(SHOAL_ERR_NOMEM, "bench optim: cannot allocate %zu bytes", n_bytes);
    rng_fill_normal(1, 1, 0, 0, (size_t)n, 0.01f, values);
    if (m->device == NULL)
        return SHOAL_OK;

    const shoal_status status = m->device->ops->copy(m->device, grad, values, n_bytes);
    free(values);
    return status;
}

static void matrix_fini(struct matrix *m)
{
    sched_destroy(m->sched);
    pool_destroy(m->pool);
    if (m->memory != NULL && m->device != NULL)
        m->device->ops->free(m->device, m->memory, m->n_bytes);
    else if (m->memory != NULL)
        pages_free(m->memory, m->n_bytes);
    plan_destroy(m->plan);
    optim_setup_destroy(m->setup);
    layout_destroy(m->layout);
}

/* The passes of sums that a rule needs, and the update. */
static shoal_status append_update(struct matrix *m, struct shard all, int index)
{
    for (int pass = 0; pass < m->setup->n_passes; pass++) {
        SHOAL_TRY(
            optim_op_sums(m->sched, m->pool, m->setup, 0, pass, all, all, all, &m->refs, &m->step));
        if (m->device == NULL)
            SHOAL_TRY(
                optim_op_sums_finish(m->sched, m->pool, m->setup, 0, pass, &m->refs, &m->step));
    }
    return optim_op_update(m->sched, m->pool, m->setup, 0, index, all, all, &m->refs, &m->step);
}

static shoal_status matrix_init(struct matrix *m, const struct bench *bench, int64_t n, int threads,
                                int n_updates)
{
    const struct shard all = {0, n};

    *m = (struct matrix){.device = bench->device, .step.grad_scale = 1};
    m->refs.device = bench->device;
    SHOAL_TRY(make_layout(m, n));
    SHOAL_TRY(make_setup(m, bench));
    SHOAL_TRY(pool_create(threads, -1, &m->pool));
    SHOAL_TRY(make_slots(m, n));
    SHOAL_TRY(sched_create("bench", m->plan, &m->sched));
    exec_use_device(m->sched, m->device);
    for (int i = 0; i < n_updates; i++)
        SHOAL_TRY(append_update(m, all, i));
    SHOAL_TRY(fill_gradient(m, n));
    optim_step_begin(m->setup, 1e-3, 1, 1, 1, &m->step);
    for (int i = 0; i < sched_count(m->sched); i++)
        m->bytes += sched_op(m->sched, i)->bytes / (uint64_t)n_updates;
    m->step.grad_squares = 1e-4 * (double)n; /* the squares of 0.01 */
    return exec_prepare(m->sched);
}

/* Best seconds of one update; *bytes_out: what it reads and writes. */
static shoal_status best_seconds(const struct bench *bench, int64_t n, int threads, int n_updates,
                                 double *seconds_out, double *bytes_out)
{
    struct matrix m;
    double best = 1e30;
    shoal_status status = matrix_init(&m, bench, n, threads, n_updates);

    for (int i = 0; status == SHOAL_OK && i < bench->repeats + 2; i++) {
        const double start = clock_seconds();
        status = exec_run(m.sched);
        const double seconds = (clock_seconds() - start) / n_updates;
        best = i >= 2 && seconds < best ? seconds : best;
    }
    *seconds_out = best;
    *bytes_out = (double)m.bytes;
    matrix_fini(&m);
    return status;
}

/* From one half of `memory` to the other, on the queue of computations. */
static shoal_status time_copies(const struct bench *bench, char *memory, size_t n_bytes,
                                double *best_out)
{
    struct device *device = bench->device;

    *best_out = 1e30;
    for (int i = 0; i < bench->repeats + 2; i++) {
        const double start = clock_seconds();
        for (int k = 0; k < DEVICE_UPDATES; k++)
            SHOAL_TRY(device_copy(device, QUEUE_COMPUTE, memory + n_bytes, memory, n_bytes));
        if (device_has_queues(device))
            SHOAL_TRY(device->ops->queue_sync(device, QUEUE_COMPUTE));
        const double seconds = (clock_seconds() - start) / DEVICE_UPDATES;
        *best_out = i >= 2 && seconds < *best_out ? seconds : *best_out;
    }
    return SHOAL_OK;
}

static shoal_status measure_device_copy(struct bench *bench)
{
    const size_t n_bytes = (size_t)DEVICE_COPY_MIB << 20;
    struct device *device = bench->device;
    void *memory = NULL;
    double best = 0;

    SHOAL_TRY(device->ops->alloc(device, "bench optim copy", 2 * n_bytes, &memory));
    const shoal_status status = time_copies(bench, memory, n_bytes, &best);
    device->ops->free(device, memory, 2 * n_bytes);
    bench->copy_rate = 2.0 * (double)n_bytes / best;
    return status;
}

static shoal_status measure_copy(struct bench *bench, int threads)
{
    struct pool *pool = NULL;

    SHOAL_TRY(pool_create(threads, -1, &pool));
    shoal_status status =
        copy_rate(pool, (size_t)COPY_MIB << 20, bench->repeats + 2, &bench->copy_rate);
    pool_destroy(pool);
    return status;
}

/* 4.8 TB/s is the H200's published memory bandwidth: a prediction, and it says so. */
static const double h200_bytes_per_second = 4.8e12;

/* `cached`: seconds of an update in the cache; 0: not measured. */
static void print_row(const struct bench *bench, int64_t elements, double cached, double streamed,
                      double bytes)
{
    char per_element[32] = "-", rate[32] = "-";

    if (cached > 0) {
        snprintf(per_element, sizeof per_element, "%.3f ns", 1e9 * cached / CACHED_ELEMENTS);
        snprintf(rate, sizeof rate, "%.2f G/s", 1e-9 * CACHED_ELEMENTS / cached);
    }
    printf("%-17s %-11s %-8s %6.2f B %11s %10s %9.3f ns %7.1f GB/s %7.1f GB/s %4.0f %% %9.2f ms\n",
           bench->rule, bench->state, bench->master, bytes / (double)elements, per_element, rate,
           1e9 * streamed / (double)elements, 1e-9 * bytes / streamed, 1e-9 * bench->copy_rate,
           100 * bytes / streamed / bench->copy_rate,
           1e3 * bytes / (double)elements * 1e9 / h200_bytes_per_second);
}

/* The copy is measured anew beside every row: the speed of a shared machine's memory drifts. */
static shoal_status measure(struct bench *bench, int64_t elements, int threads)
{
    double cached = 0, streamed = 0, bytes = 0;

    if (bench->device != NULL) {
        SHOAL_TRY(measure_device_copy(bench));
        SHOAL_TRY(best_seconds(bench, elements, 1, DEVICE_UPDATES, &streamed, &bytes));
    } else {
        SHOAL_TRY(measure_copy(bench, threads));
        SHOAL_TRY(best_seconds(bench, CACHED_ELEMENTS, 1, CACHED_UPDATES, &cached, &bytes));
        SHOAL_TRY(best_seconds(bench, elements, threads, 1, &streamed, &bytes));
    }
    print_row(bench, elements, cached, streamed, bytes);
    return SHOAL_OK;
}

static shoal_status run_all(struct bench *bench, const struct command_line *line, int64_t elements,
                            int threads)
{
    static const char *const rules[] = {"adamw",
                                        "lion",
                                        "adam",
                                        "adam_atan2",
                                        "ademamix",
                                        "adopt",
                                        "mars",
                                        "sgd",
                                        "adam_mini",
                                        "adafactor",
                                        "came",
                                        "adamw_torch_fused",
                                        "adamw_deepspeed",
                                        "adamw_apex",
                                        "adamw_bnb",
                                        "schedule_free",
                                        NULL};
    const char *rule = option_text(line, "rule"), *state = option_text(line, "state");
    const char *master = option_text(line, "master");
    const bool all = option_is_set(line, "all");

    for (int r = 0; rules[r] != NULL && (rule == NULL || r == 0); r++)
        for (int c = 0; codec_name(c) != NULL && (state == NULL || c == 0); c++)
            for (int w = 0; master_codec_name(w) != NULL && (master == NULL || w == 0); w++) {
                bench->rule = rule != NULL ? rule : rules[r];
                bench->state = state != NULL ? state : codec_name(c);
                bench->master = master != NULL ? master : master_codec_name(w);
                /* Adafactor has no state for a codec to hold. */
                if (state == NULL && c > 0 && strcmp(bench->rule, "adafactor") == 0)
                    continue;
                /* By default: every rule with fp32, and adamw and lion with everything. */
                if (!all && rule == NULL && r > 1 && c + w > 0)
                    continue;
                SHOAL_TRY(measure(bench, elements, threads));
            }
    return SHOAL_OK;
}

static shoal_status run_on(struct bench *bench, const struct command_line *line, int64_t mib,
                           int threads)
{
    if (bench->device == NULL)
        printf("cached: %d elements, 1 thread; streaming: %lld Mi elements, %d thread(s); ",
               (int)CACHED_ELEMENTS, (long long)mib, threads);
    else
        printf("%s; streaming: %lld Mi elements; ", bench->device->ops->describe(bench->device),
               (long long)mib);
    printf("H200: predicted for 1e9 parameters from bytes at 4.8 TB/s\n");
    printf("%-17s %-11s %-8s %8s %11s %10s %12s %12s %12s %6s %12s\n", "rule", "state", "master",
           "moved", "cached", "", "streaming", "", "copy", "", "H200");
    return run_all(bench, line, mib * MIB_ELEMENTS, threads);
}

static shoal_status run_bench_optim(const struct command_line *line)
{
    const char *name = option_text(line, "device");
    int64_t mib = 32, repeats = 10, threads = host_cpus();
    struct device *device = NULL;
    struct bench bench = {0};

    SHOAL_TRY(option_int(line, "elements", 1, 4096, &mib));
    SHOAL_TRY(option_int(line, "repeats", 1, 1000, &repeats));
    SHOAL_TRY(option_int(line, "threads", 1, 1024, &threads));
    bench.repeats = (int)repeats;
    SHOAL_TRY(device_open(name != NULL ? name : "cpu", 0, &device));
    bench.device = device_is_separate(device) ? device : NULL;

    const shoal_status status = run_on(&bench, line, mib, (int)threads);
    device_close(device);
    return status;
}

static const struct option options[] = {
    {"rule", 0, "NAME", "only this rule"},
    {"state", 0, "NAME", "only this codec of the state"},
    {"master", 0, "NAME", "only this codec of the weights"},
    {"all", 0, NULL, "every rule with every codec"},
    {"elements", 0, "N", "Mi elements of the streaming matrix (32)"},
    {"repeats", 0, "N", "passes; the best one counts (10)"},
    {"threads", 0, "N", "threads of the streaming passes (all cores)"},
    {"device", 0, "NAME", "cpu (the default), cuda, or auto"},
    {.name = NULL},
};

const struct command command_bench_optim = {
    .path = "bench optim",
    .purpose = "Optimizer updates per rule and codec, in the cache and streaming, against a copy.",
    .notes = "Bytes moved count the fp32 gradient, the bf16 weight, the master weight and the "
             "state, read and written.",
    .examples = {"shoal bench optim --rule lion --state int8 --master ecc8",
                 "shoal bench optim --device cuda --elements 128"},
    .options = options,
    .max_args = 0,
    .run = run_bench_optim,
};

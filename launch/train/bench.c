#include "launch/train/train_internal.h"

#include "runtime/base/clock.h"
#include "runtime/base/copy_rate.h"
#include "runtime/base/host.h"
#include "runtime/base/log.h"
#include "runtime/base/rng.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * `shoal bench step`.  Floors of the same run: FLOPs against the library's matmuls alone (oneDNN
 * with its own threading or cuBLASLt, same shapes), bytes against memcpy with all threads or the
 * device's copies.
 */

enum { WARM_STEPS = 2, BENCH_MAX_STEPS = 1000, MOST_IDS = 65536 };

/* Random tokens as a nanoGPT file, of 16 bits each, that disappears with its mapping. */
static shoal_status random_tokens(const struct trainer *trainer, char *path, size_t n_bytes)
{
    size_t n = (size_t)(trainer->policy.T + 1) * (size_t)trainer->policy.global * 8;
    uint32_t block[4], vocab = (uint32_t)trainer->model_config.vocab;
    uint32_t below = vocab < MOST_IDS ? vocab : MOST_IDS;

    snprintf(path, n_bytes, "/tmp/shoal-bench-XXXXXX.bin");
    int fd = mkstemps(path, 4);
    if (fd < 0)
        return fail(SHOAL_ERR_CANTCREATE, "%s: %s", path, strerror(errno));
    FILE *out = fdopen(fd, "w");
    if (out == NULL) {
        close(fd);
        return fail(SHOAL_ERR_NOMEM, "%s: %s", path, strerror(errno));
    }
    for (size_t i = 0; i < n; i++) {
        rng_block(1, RNG_STREAM_DATA, 0, i, block);
        uint16_t token = (uint16_t)(block[0] % below);
        fwrite(&token, sizeof token, 1, out);
    }
    return fclose(out) == 0 ? SHOAL_OK : fail(SHOAL_ERR_IO, "%s: %s", path, strerror(errno));
}

static shoal_status open_random_data(struct trainer *trainer)
{
    char path[64];
    const char *paths[1] = {path};
    struct data_params params = {.train = paths,
                                 .n_train = 1,
                                 .val = "none",
                                 .format = DATA_NANOGPT,
                                 .tokenizer = "none",
                                 .seq_len = trainer->policy.T,
                                 .vocab = trainer->model_config.vocab};

    shoal_status status = random_tokens(trainer, path, sizeof path);
    if (status == SHOAL_OK)
        status = data_open(&params, &trainer->data);
    unlink(path);
    return status;
}

/* ---- floors ---- */

enum { COPY_BYTES = 256 << 20, COPY_REPEATS = 8, DEVICE_COPIES = 32 };

/* Bytes per second, read and written, of copies within a device. */
static shoal_status device_copy_rate(struct device *device, double *rate_out)
{
    const size_t n = COPY_BYTES;
    void *memory = NULL;
    double best = 1e30;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(device->ops->alloc(device, "bench", 2 * n, &memory));
    for (int i = 0; i < 4 && status == SHOAL_OK; i++) {
        double start = clock_seconds();
        for (int copies = 0; copies < DEVICE_COPIES && status == SHOAL_OK; copies++)
            status = device->ops->copy_async(device, QUEUE_COMPUTE, memory, (char *)memory + n, n);
        if (status == SHOAL_OK)
            status = device->ops->queue_sync(device, QUEUE_COMPUTE);
        double seconds = (clock_seconds() - start) / DEVICE_COPIES;
        best = seconds < best ? seconds : best;
    }
    device->ops->free(device, memory, 2 * n);
    if (status == SHOAL_OK)
        *rate_out = 2 * (double)n / best;
    return status;
}

struct matmul_floor {
    double seconds, flops; /* of one step */
};

/* The matmuls of a step by the library alone: blocks' four products and the head, three passes each. */
static shoal_status matmul_floor(const struct trainer *trainer, struct matmul_floor *floor_out)
{
    const struct model_config *c = &trainer->model_config;
    int64_t rows = trainer->policy.B * trainer->policy.T, A = trainer->policy.A;
    enum dtype dtype = trainer->policy.compute;
    int64_t qkv = (int64_t)(c->heads + 2 * c->kv_heads) * c->head_size;
    int64_t up = (c->mlp == MLP_SWIGLU ? 2 : 1) * (int64_t)c->ffn;
    const struct {
        struct linear_shape shape;
        int64_t times;
    } products[] = {
        {{rows, c->hidden, qkv, dtype}, c->layers},
        {{rows, (int64_t)c->heads * c->head_size, c->hidden, dtype}, c->layers},
        {{rows, c->hidden, up, dtype}, c->layers},
        {{rows, c->ffn, c->hidden, dtype}, c->layers},
        {{rows, c->hidden, c->vocab, dtype}, 1},
    };

    *floor_out = (struct matmul_floor){0};
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        struct linear_shape s = products[i].shape;
        double seconds[3] = {0};
        SHOAL_TRY(ops_library_linear_seconds(trainer->ops, s, seconds));
        floor_out->seconds +=
            (seconds[0] + seconds[1] + seconds[2]) * (double)(products[i].times * A);
        floor_out->flops +=
            6.0 * (double)s.rows * (double)s.in * (double)s.out * (double)(products[i].times * A);
    }
    return SHOAL_OK;
}

/* ---- the run ---- */

static shoal_status prepare(struct trainer *trainer)
{
    struct comm *comm = trainer->comm;

    SHOAL_TRY(setup_agree_config(comm, trainer->config));
    SHOAL_TRY(train_open_compute(trainer));
    SHOAL_TRY(comm_agree(comm, open_random_data(trainer)));
    SHOAL_TRY(train_device_connect(trainer));
    comm_use_pool(comm, trainer->pool);
    SHOAL_TRY(comm_agree(comm, train_build(trainer)));
    SHOAL_TRY(train_memory_take(trainer));
    SHOAL_TRY(state_init(trainer));
    return state_publish(trainer);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_line(FILE *out, const char *name, double seconds, double whole, double floor,
                       const char *kind)
{
    if (seconds <= 0)
        return;
    fprintf(out, "  %-22s %9.2f ms %5.1f %%", name, 1e3 * seconds, 100 * seconds / whole);
    if (floor > 0)
        fprintf(out, "   floor %9.2f ms (%s)  %3.0f %%", 1e3 * floor, kind, 100 * floor / seconds);
    fprintf(out, "\n");
}

/* What a step's ops take at least, and what the optimizer's bytes do. */
struct floors {
    double flop_rate, byte_rate, update;
    double classes[OP_CLASS_COUNT];
    bool by_flops[OP_CLASS_COUNT];
};

static struct floors step_floors(const struct trainer *trainer, const struct op_profile *profile,
                                 double flop_rate, double byte_rate)
{
    struct floors floors = {.flop_rate = flop_rate, .byte_rate = byte_rate};

    for (int class = 0; class < OP_CLASS_COUNT; class ++) {
        const struct op_profile *p = &profile[class];
        double by_flops = (double)p->flops / flop_rate, by_bytes = (double)p->bytes / byte_rate;
        floors.by_flops[class] = by_flops > by_bytes;
        floors.classes[class] = by_flops > by_bytes ? by_flops : by_bytes;
    }
    for (int i = 0; i < sched_count(trainer->step); i++)
        if (sched_op(trainer->step, i)->kind == OP_UPDATE)
            floors.update += (double)sched_op(trainer->step, i)->bytes / byte_rate;
    return floors;
}

static void print_classes(const struct trainer *trainer, FILE *out, double step,
                          const struct op_profile *profile, const struct floors *floors)
{
    double in_ops = 0, update = exec_kind_seconds(trainer->step, OP_UPDATE);
    double comm = exec_lane_seconds(trainer->step, LANE_COMM), norm = 0;

    for (int class = 0; class < OP_CLASS_COUNT; class ++) {
        print_line(out, op_class_name((enum op_class) class), profile[class].seconds, step,
                   floors->classes[class], floors->by_flops[class] ? "flops" : "bytes");
        in_ops += profile[class].seconds;
    }
    print_line(out, "optimizer", update, step, floors->update, "bytes");
    norm = exec_kind_seconds(trainer->step, OP_NORM);
    print_line(out, "norm and communication", comm + norm, step, 0, "");
    print_line(out, "everything else", step - in_ops - update - comm - norm, step, 0, "");
}

/* On a device with queues only whole operations have times; their classes have floors. */
static void print_kinds(const struct trainer *trainer, FILE *out, double step,
                        const struct floors *floors)
{
    static const struct {
        enum op_kind kind;
        const char *name;
    } rows[] = {{OP_DATA, "data"},
                {OP_ACCUMULATE, "accumulate"},
                {OP_NORM, "norm of gradients"},
                {OP_PUBLISH, "publish"}};
    const struct schedule *sched = trainer->step;
    double passes = exec_kind_seconds(sched, OP_FORWARD) + exec_kind_seconds(sched, OP_BACKWARD);
    double sum = 0;

    for (int class = 0; class < OP_CLASS_COUNT; class ++) {
        if (floors->classes[class] <= 0)
            continue;
        fprintf(out, "  %-22s %12s %7s   floor %9.2f ms (%s)\n",
                op_class_name((enum op_class) class), "", "", 1e3 * floors->classes[class],
                floors->by_flops[class] ? "flops" : "bytes");
        sum += floors->classes[class];
    }
    print_line(out, "forward and backward", passes, step, sum, "of these");
    print_line(out, "optimizer", exec_kind_seconds(sched, OP_UPDATE), step, floors->update,
               "bytes");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        print_line(out, rows[i].name, exec_kind_seconds(sched, rows[i].kind), step, 0, "");
    print_line(out, "communication", exec_lane_seconds(sched, LANE_COMM), step, 0, "");
    print_line(out, "  that nothing hides", exec_exposed_seconds(sched), step, 0, "");
}

static void print_step(const struct trainer *trainer, FILE *out, const double *seconds, int n)
{
    double tokens = (double)trainer->policy.global * (double)trainer->policy.T;
    double median = seconds[n / 2];

    fprintf(out,
            "%s  %d rank(s) x %d thread(s)  zero %d  %s  %lld x %lld tokens, %d microbatch(es)\n",
            ops_describe(trainer->ops), trainer->policy.n_ranks, pool_size(trainer->pool),
            trainer->policy.stage, trainer->policy.compute == DTYPE_BF16 ? "bf16" : "fp32",
            (long long)trainer->policy.B, (long long)trainer->policy.T, trainer->policy.A);
    fprintf(out,
            "step: median %.1f ms, best %.1f, worst %.1f of %d  (%.0f tokens/s, %.1f GFLOP/s)\n",
            1e3 * median, 1e3 * seconds[0], 1e3 * seconds[n - 1], n, tokens / median,
            1e-9 * tokens / median * model_flops_per_token(trainer->model, trainer->policy.T));
    fflush(out);
}

/* The device's bytes that are in use now, those of other processes too. */
static shoal_status print_device_memory(const struct trainer *trainer, FILE *out)
{
    size_t left = 0, total = 0;

    SHOAL_TRY(trainer->device->ops->memory(trainer->device, &left, &total));
    fprintf(out, "device memory in use: %.2f of %.2f GiB\n", (double)(total - left) / 0x1p30,
            (double)total / 0x1p30);
    return SHOAL_OK;
}

/*
 * Seconds of the steps behind the warm ones.  The profile is that of the last step; on a device that
 * of the first, as recorded operations issue no ops later.
 */
static shoal_status time_steps(struct trainer *trainer, int n, double *seconds,
                               struct op_profile profile[OP_CLASS_COUNT])
{
    for (int i = 0; i < WARM_STEPS + n; i++) {
        ops_profile_reset(trainer->ops);
        double start = clock_seconds(), lr = 0;
        SHOAL_TRY(train_one_step(trainer, i + 1, &lr));
        if (i >= WARM_STEPS)
            seconds[i - WARM_STEPS] = clock_seconds() - start;
        if (i > 0 && device_has_queues(trainer->device))
            continue;
        for (int class = 0; class < OP_CLASS_COUNT; class ++)
            profile[class] = *ops_profile(trainer->ops, (enum op_class) class);
    }
    return SHOAL_OK;
}

static shoal_status measure(struct trainer *trainer, const struct bench_params *params)
{
    double seconds[BENCH_MAX_STEPS], rate = 0;
    struct op_profile profile[OP_CLASS_COUNT];
    struct matmul_floor floor;
    FILE *out = params->out;

    SHOAL_TRY(time_steps(trainer, params->steps, seconds, profile));
    double last = seconds[params->steps - 1];
    bool queues = device_has_queues(trainer->device), first = comm_rank(trainer->comm) == 0;
    qsort(seconds, (size_t)params->steps, sizeof seconds[0], by_value);
    if (first)
        print_step(trainer, out, seconds, params->steps);
    if (first && queues)
        SHOAL_TRY(print_device_memory(trainer, out));
    SHOAL_TRY(comm_barrier(trainer->comm));
    SHOAL_TRY(matmul_floor(trainer, &floor));
    SHOAL_TRY(comm_barrier(trainer->comm));
    SHOAL_TRY(queues ? device_copy_rate(trainer->device, &rate)
                     : copy_rate(trainer->pool, COPY_BYTES, COPY_REPEATS, &rate));
    if (!first)
        return SHOAL_OK;

    fprintf(out,
            "%s's matmuls alone, same shapes: %.1f ms (%.0f GFLOP/s)  ->  the step runs at "
            "%.0f %% of their speed\n",
            queues ? "cuBLASLt" : "oneDNN", 1e3 * floor.seconds, 1e-9 * floor.flops / floor.seconds,
            100 * floor.seconds / seconds[params->steps / 2]);
    fprintf(out, "%s: %.1f GB/s read and written\nthe last step, by class of work:\n",
            queues ? "copies on the device" : "memcpy with all threads", 1e-9 * rate);
    const struct floors floors = step_floors(trainer, profile, floor.flops / floor.seconds, rate);
    if (queues)
        print_kinds(trainer, out, last, &floors);
    else
        print_classes(trainer, out, last, profile, &floors);
    return SHOAL_OK;
}

shoal_status train_bench(const struct bench_params *params)
{
    struct trainer *trainer = NULL;

    if (params->steps < 1 || params->steps > BENCH_MAX_STEPS)
        return fail(SHOAL_ERR_USAGE, "bench step: 1 to %d steps", BENCH_MAX_STEPS);
    SHOAL_TRY(train_open(params->config, &trainer));
    shoal_status status = prepare(trainer);
    if (status == SHOAL_OK)
        status = measure(trainer, params);
    return train_close(trainer, status);
}

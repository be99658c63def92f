#include "launch/train/train_internal.h"

#include "runtime/base/host.h"
#include "runtime/base/log.h"

#include <stdio.h>
#include <string.h>

/*
 * The plan's memory is taken and touched as a whole before the first step, so that what the plan
 * printed is what the process then has, and nothing faults or fails later.
 */

enum { TOUCH_BYTES = 8 << 20 };

/*
 * Heap that is first touched in a step or a save (HDF5, MPI, the matmul library's buffers): 2 to
 * 3 MiB per process (2026-11-22, Debian 12).
 */
enum { LATE_HEAP_BYTES = 5 << 19 };

struct touch {
    char *base;
    size_t n_bytes;
};

static void touch_tile(void *arg, size_t tile, int thread)
{
    const struct touch *touch = arg;
    size_t begin = tile * TOUCH_BYTES;
    size_t n = touch->n_bytes - begin < TOUCH_BYTES ? touch->n_bytes - begin : TOUCH_BYTES;

    (void)thread;
    memset(touch->base + begin, 0, n);
}

static void touch_all(struct pool *pool, void *base, size_t n_bytes)
{
    struct touch touch = {.base = base, .n_bytes = n_bytes};

    pool_run(pool, (n_bytes + TOUCH_BYTES - 1) / TOUCH_BYTES, touch_tile, &touch);
}

struct comm_memory train_memory_window(const struct build *build, int ranks_per_host)
{
    const struct policy *policy = &build->policy;
    size_t own = plan_space_bytes(build->plan, SPACE_WINDOW);
    size_t shared = plan_space_bytes(build->plan, SPACE_SHARED);

    if (own + shared == 0)
        return (struct comm_memory){0};
    return comm_memory_of(policy->transport, policy->ring, policy->n_ranks, ranks_per_host, own,
                          shared);
}

/* Bytes of a device with memory of its own: the plan's and the transport's. */
static size_t device_bytes(const struct build *build, int ranks_per_host)
{
    return plan_space_bytes(build->plan, SPACE_PRIVATE) +
           train_memory_window(build, ranks_per_host).device_bytes;
}

static size_t run_device_bytes(const struct trainer *trainer)
{
    return device_bytes(trainer->build, comm_local_size(trainer->comm));
}

/* The plan's bytes in this process' own host memory. */
static size_t process_bytes(const struct trainer *trainer)
{
    const struct plan *plan = trainer->build->plan;
    bool on_host = !trainer->policy.separate || trainer->device->ops->expose != NULL;

    return plan_space_bytes(plan, SPACE_HOST) +
           (on_host ? plan_space_bytes(plan, SPACE_PRIVATE) : 0);
}

static shoal_status check_device_fits(struct trainer *trainer)
{
    const struct device_taken *taken = &trainer->taken;
    size_t have = taken->left, sharing = (size_t)comm_device_ranks(trainer->comm);
    size_t need = run_device_bytes(trainer) * sharing;

    if (need <= have)
        return SHOAL_OK;
    fail(SHOAL_ERR_NOMEM,
         "memory: the plan needs %.2f GiB of the device for %zu rank(s), %.2f of %.2f GiB are free",
         (double)need / (1 << 30), sharing, (double)have / (1 << 30),
         (double)taken->total / (1 << 30));
    taken_explain(taken, SHOAL_ERR_NOMEM);
    return fail_hint(SHOAL_ERR_NOMEM,
                     "try parallel.recompute=full, parallel.zero=3 or a smaller batch.micro");
}

static shoal_status check_fits(struct trainer *trainer)
{
    const struct plan *plan = trainer->build->plan;
    uint64_t ranks = (uint64_t)comm_node_ranks(trainer->comm);

    if (trainer->policy.separate)
        return check_device_fits(trainer);
    uint64_t need =
        ranks * (plan_space_bytes(plan, SPACE_PRIVATE) + plan_space_bytes(plan, SPACE_WINDOW)) +
        plan_space_bytes(plan, SPACE_SHARED);
    uint64_t have = host_memory_available_bytes();

    if (have == 0 || need <= have)
        return SHOAL_OK;
    fail(SHOAL_ERR_NOMEM, "memory: the plan needs %.2f GiB on this host, %.2f GiB are available",
         (double)need / (1 << 30), (double)have / (1 << 30));
    fail_why(
        SHOAL_ERR_NOMEM, "%llu ranks of %.2f GiB, and %.2f GiB shared by them",
        (unsigned long long)ranks,
        (double)(plan_space_bytes(plan, SPACE_PRIVATE) + plan_space_bytes(plan, SPACE_WINDOW)) /
            (1 << 30),
        (double)plan_space_bytes(plan, SPACE_SHARED) / (1 << 30));
    return fail_hint(SHOAL_ERR_NOMEM,
                     "try parallel.recompute=full, parallel.zero=3 or a smaller batch.micro");
}

/* Start the peak (VmHWM) anew at what is resident now; where the kernel refuses, it stays higher. */
static void reset_peak(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "w");

    if (file != NULL) {
        fputs("5", file);
        fclose(file);
    }
}

shoal_status train_memory_warm_up(struct trainer *trainer)
{
    size_t own = 0;

    reset_peak();
    SHOAL_TRY(ops_warm_up(trainer->ops, &own));
    uint64_t peak = host_peak_resident_bytes(), after = host_resident_bytes() + own;
    trainer->library_bytes = peak > after ? peak - after : 0;
    reset_peak();
    return SHOAL_OK;
}

/* Memory is zeroed and touched, so that nothing faults or fails later. */
shoal_status train_memory_alloc(struct trainer *trainer, const char *name)
{
    struct device *device = trainer->device;
    struct plan *plan = trainer->build->plan;
    size_t own = plan_space_bytes(plan, SPACE_PRIVATE), host = plan_space_bytes(plan, SPACE_HOST);

    SHOAL_TRY(device->ops->alloc(device, name, own, &trainer->memory));
    plan_bind(plan, SPACE_PRIVATE, trainer->memory);
    if (trainer->policy.separate)
        SHOAL_TRY(device->ops->zero(device, trainer->memory, own));
    else
        touch_all(trainer->pool, trainer->memory, own);
    if (host == 0)
        return SHOAL_OK;
    SHOAL_TRY(device->ops->host_alloc(device, name, host, &trainer->host_memory));
    plan_bind(plan, SPACE_HOST, trainer->host_memory);
    touch_all(trainer->pool, trainer->host_memory, host);
    return SHOAL_OK;
}

shoal_status train_memory_take(struct trainer *trainer)
{
    struct plan *plan = trainer->build->plan;
    size_t own = plan_space_bytes(plan, SPACE_WINDOW);
    size_t shared = plan_space_bytes(plan, SPACE_SHARED);

    SHOAL_TRY(comm_agree(trainer->comm, check_fits(trainer)));
    SHOAL_TRY(comm_agree(trainer->comm, train_memory_alloc(trainer, "training memory")));
    if (own + shared == 0)
        return SHOAL_OK;
    SHOAL_TRY(comm_window_create(trainer->comm, own, shared));
    plan_bind(plan, SPACE_WINDOW, comm_window_own(trainer->comm));
    plan_bind(plan, SPACE_SHARED, comm_window_shared(trainer->comm));
    if (comm_shared_per_rank(trainer->comm))
        return comm_barrier(trainer->comm); /* zeroed when it was made */
    touch_all(trainer->pool, comm_window_own(trainer->comm), own);
    if (comm_local_rank(trainer->comm) == 0)
        touch_all(trainer->pool, comm_window_shared(trainer->comm), shared);
    return comm_barrier(trainer->comm);
}

void train_memory_sample(struct trainer *trainer)
{
    uint64_t now = host_anonymous_resident_bytes();

    trainer->peak_bytes = now > trainer->peak_bytes ? now : trainer->peak_bytes;
}

void train_memory_note_base(struct trainer *trainer)
{
    trainer->peak_bytes = host_anonymous_resident_bytes();
    trainer->base_bytes = trainer->peak_bytes - process_bytes(trainer) +
                          comm_staging_bytes(trainer->comm) + LATE_HEAP_BYTES;
}

void train_memory_release(struct trainer *trainer)
{
    if (trainer->memory != NULL)
        trainer->device->ops->free(trainer->device, trainer->memory,
                                   plan_space_bytes(trainer->build->plan, SPACE_PRIVATE));
    if (trainer->host_memory != NULL)
        trainer->device->ops->host_free(trainer->device, trainer->host_memory,
                                        plan_space_bytes(trainer->build->plan, SPACE_HOST));
    trainer->memory = trainer->host_memory = NULL;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void print_row(FILE *out, const char *name, const uint64_t bytes[SPACE_COUNT], bool beside)
{
    fprintf(out, "%-20s %12.2f %12.2f %12.2f", name, mib(bytes[SPACE_PRIVATE]),
            mib(bytes[SPACE_WINDOW]), mib(bytes[SPACE_SHARED]));
    if (beside)
        fprintf(out, " %12.2f", mib(bytes[SPACE_HOST]));
    fprintf(out, "\n");
}

void train_memory_print_table(const struct build *build, int ranks_per_host, FILE *out)
{
    const struct plan *plan = build->plan;
    uint64_t total[SPACE_COUNT] = {0};

    bool beside = plan_space_bytes(plan, SPACE_HOST) > 0;
    fprintf(out, "%-20s %12s %12s %12s%s\n", "MiB", "per rank", "window/rank",
            beside ? "shared/rank" : "shared/host", beside ? "    host/rank" : "");
    for (int row = 0; row < PLAN_ROW_COUNT; row++) {
        uint64_t bytes[SPACE_COUNT], sum = 0;
        for (int space = 0; space < SPACE_COUNT; space++) {
            bytes[space] = plan_row_bytes(plan, (enum plan_row)row, (enum space)space);
            total[space] += bytes[space];
            sum += bytes[space];
        }
        if (sum > 0)
            print_row(out, plan_row_name((enum plan_row)row), bytes, beside);
    }
    print_row(out, "sum", total, beside);
    if (beside) {
        fprintf(out, "device tier: %.2f MiB per rank; host tier: %d x %.2f + %.2f MiB per host\n",
                mib(device_bytes(build, ranks_per_host)), ranks_per_host, mib(total[SPACE_HOST]),
                mib(train_memory_window(build, ranks_per_host).window_bytes));
        return;
    }
    fprintf(out, "host tier: %d x (%.2f + %.2f) + %.2f = %.2f MiB per host\n", ranks_per_host,
            mib(total[SPACE_PRIVATE]), mib(total[SPACE_WINDOW]), mib(total[SPACE_SHARED]),
            mib((uint64_t)ranks_per_host * (total[SPACE_PRIVATE] + total[SPACE_WINDOW]) +
                total[SPACE_SHARED]));
}

void train_memory_log_plan(const struct trainer *trainer)
{
    char text[4096];
    FILE *out = fmemopen(text, sizeof text, "w");

    if (out == NULL)
        return;
    train_memory_print_table(trainer->build, comm_node_ranks(trainer->comm), out);
    if (trainer->policy.separate)
        taken_print(&trainer->taken, comm_transport_name(trainer->policy.transport), out);
    fclose(out);
    char *save = NULL;
    const char *label = "memory";
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        log_line(label, "%s", line);
        label = "";
    }
}

/* What the device lost since it was last measured, to all its ranks; other processes on it count too. */
static shoal_status log_device(struct trainer *trainer)
{
    size_t left = 0, total = 0;
    size_t planned = run_device_bytes(trainer) * (size_t)comm_device_ranks(trainer->comm);

    if (!trainer->policy.separate || trainer->device->ops->expose != NULL)
        return SHOAL_OK;
    SHOAL_TRY(trainer->device->ops->memory(trainer->device, &left, &total));
    double used = (double)trainer->taken.left - (double)left;
    log_line("memory", "device: planned %.1f MiB, measured %.1f MiB (%+.2f %%)", mib(planned),
             used / (1 << 20), 100.0 * (used - (double)planned) / (double)planned);
    return SHOAL_OK;
}

/*
 * Planned: what each process had before, and the plan.  Measured: the most of each process' own
 * pages after any step or save, and the pages behind the host's window, which exist once.  What the
 * matmul library takes and gives back within an operation is in both as measured at the start.
 * Pages of mapped files (code, data) are in neither, nor is VmHWM used, which counts them: they are
 * the kernel's to map and to drop, and how many there are depends on what it has cached.
 */
shoal_status train_memory_log_measured(struct trainer *trainer)
{
    bool first = comm_local_rank(trainer->comm) == 0;
    uint64_t library = trainer->library_bytes;
    int64_t sums[2] = {(int64_t)(trainer->base_bytes + process_bytes(trainer) + library),
                       (int64_t)(trainer->peak_bytes + library)};

    if (first) {
        sums[0] += (int64_t)train_memory_window(trainer->build, comm_local_size(trainer->comm))
                       .window_bytes;
        sums[1] += (int64_t)comm_window_resident_bytes(trainer->comm);
    }
    SHOAL_TRY(comm_all_reduce_i64(trainer->comm, sums, 2));
    log_line("memory", "all ranks: planned %.1f MiB, measured peak %.1f MiB (%+.2f %%)",
             mib((uint64_t)sums[0]), mib((uint64_t)sums[1]),
             100.0 * ((double)sums[1] - (double)sums[0]) / (double)sums[0]);
    return log_device(trainer);
}

/*
 * Worker: bulk by way of the host, on a device that runs what its queue was given as late as it may, as
 * early as it can, or in between; the order of what it was given.
 * Usage: comm_staged RANKS_PER_HOST MODE [COPY]
 *   MODE  lazy, eager, random; mixed: odd ranks eager, the others lazy
 *   COPY  the number of a copy that fails on rank 1
 * Rank 0 prints the order of a gather and of a sum in five pieces between two ranks: F copy to the host,
 * D copy to the device, r record, w wait for a record, x exchange, s wait for the queue.
 */
#include "comm/transport_internal.h"
#include "runtime/base/log.h"
#include "tests/world/comm_values.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

shoal_status __real_comm_host_all_gather(struct comm *comm, const void *shard, void *full,
                                         size_t shard_bytes);
shoal_status __wrap_comm_host_all_gather(struct comm *comm, const void *shard, void *full,
                                         size_t shard_bytes);
shoal_status __real_comm_host_reduce_scatter(struct comm *comm, const float *full, float *out,
                                             size_t n);
shoal_status __wrap_comm_host_reduce_scatter(struct comm *comm, const float *full, float *out,
                                             size_t n);

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return fail(SHOAL_ERR_INTERNAL, __VA_ARGS__);                                          \
    } while (0)

enum { N_MAX = 2200000, MAX_ISSUED = 1 << 14, MAX_ORDER = 256 };

struct device_event {
    size_t after; /* so many copies */
};

static struct comm *comm;
static char order[MAX_ORDER];

static void note(char what)
{
    size_t n = strlen(order);

    if (n + 1 < sizeof order)
        order[n] = what;
}

/* ---- the device ---- */

enum mode { LAZY, EAGER, RANDOM };

static struct {
    const struct device_ops *real;
    struct device_ops ops;
    enum mode mode;
    struct {
        void *dst;
        const void *src;
        size_t n_bytes;
    } copies[MAX_ISSUED];
    size_t issued, done, failing;
    const char *memory[8];
    size_t memory_bytes[8];
    int n_memory;
} queue;

static bool is_on_device(const void *p)
{
    for (int i = 0; i < queue.n_memory; i++)
        if ((const char *)p >= queue.memory[i] &&
            (const char *)p < queue.memory[i] + queue.memory_bytes[i])
            return true;
    return false;
}

static shoal_status queue_alloc(struct device *device, const char *name, size_t n_bytes,
                                void **ptr_out)
{
    SHOAL_TRY(queue.real->alloc(device, name, n_bytes, ptr_out));
    queue.memory[queue.n_memory] = *ptr_out;
    queue.memory_bytes[queue.n_memory++] = n_bytes;
    return SHOAL_OK;
}

static shoal_status run_until(struct device *device, size_t end)
{
    for (; queue.done < end && queue.done < queue.issued; queue.done++)
        SHOAL_TRY(queue.real->copy(device, queue.copies[queue.done].dst,
                                   queue.copies[queue.done].src, queue.copies[queue.done].n_bytes));
    return SHOAL_OK;
}

static shoal_status queue_copy(struct device *device, enum device_queue which, void *dst,
                               const void *src, size_t n_bytes)
{
    static uint32_t state = 1;

    CHECK(which == QUEUE_COMM && queue.issued < MAX_ISSUED, "test: queue %d", (int)which);
    note(is_on_device(dst) ? 'D' : 'F');
    if (queue.failing > 0 && queue.issued + 1 == queue.failing)
        return fail(SHOAL_ERR_UNAVAILABLE, "copy %zu: the device refuses", queue.failing);
    queue.copies[queue.issued].dst = dst;
    queue.copies[queue.issued].src = src;
    queue.copies[queue.issued++].n_bytes = n_bytes;
    state = state * 1664525u + 1013904223u + (uint32_t)comm_rank(comm);
    if (queue.mode == LAZY)
        return SHOAL_OK;
    return run_until(device, queue.mode == EAGER ? queue.issued : queue.done + (state >> 16) % 4);
}

static shoal_status queue_record(struct device *device, struct device_event *event,
                                 enum device_queue which)
{
    (void)device;
    (void)which;
    note('r');
    event->after = queue.issued;
    return SHOAL_OK;
}

/* So that ranks that need not wait for this one are ahead. */
static void pause_if_lazy(void)
{
    const struct timespec pause = {.tv_nsec = 8 * 1000 * 1000};

    if (queue.mode == LAZY)
        nanosleep(&pause, NULL);
}

static shoal_status queue_wait(struct device *device, struct device_event *event)
{
    note('w');
    pause_if_lazy();
    return run_until(device, event->after);
}

static shoal_status queue_sync(struct device *device, enum device_queue which)
{
    (void)which;
    note('s');
    pause_if_lazy();
    return run_until(device, queue.issued);
}

static shoal_status queue_event(struct device *device, struct device_event **event_out)
{
    (void)device;
    *event_out = calloc(1, sizeof **event_out);
    return *event_out == NULL ? fail(SHOAL_ERR_NOMEM, "test: out of memory") : SHOAL_OK;
}

static void queue_event_free(struct device *device, struct device_event *event)
{
    (void)device;
    free(event);
}

static shoal_status open_device(const char *mode, struct device **device_out)
{
    const bool is_odd = comm_rank(comm) % 2 == 1;

    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    SHOAL_TRY(device_open("auto", 0, device_out));
    queue.mode = strcmp(mode, "random") == 0                                            ? RANDOM
                 : strcmp(mode, "eager") == 0 || (strcmp(mode, "mixed") == 0 && is_odd) ? EAGER
                                                                                        : LAZY;
    queue.real = (*device_out)->ops;
    queue.ops = *queue.real;
    queue.ops.alloc = queue_alloc;
    queue.ops.copy_async = queue_copy;
    queue.ops.event_create = queue_event;
    queue.ops.event_destroy = queue_event_free;
    queue.ops.event_record = queue_record;
    queue.ops.event_sync = queue_wait;
    queue.ops.queue_sync = queue_sync;
    (*device_out)->ops = &queue.ops;
    return SHOAL_OK;
}

shoal_status __wrap_comm_host_all_gather(struct comm *of, const void *shard, void *full,
                                         size_t shard_bytes)
{
    note('x');
    return __real_comm_host_all_gather(of, shard, full, shard_bytes);
}

shoal_status __wrap_comm_host_reduce_scatter(struct comm *of, const float *full, float *out,
                                             size_t n)
{
    note('x');
    return __real_comm_host_reduce_scatter(of, full, out, n);
}

/* ---- the operations ---- */

static float *host; /* comm_size * N_MAX */
static char *out;   /* on the device, N_MAX floats */

static shoal_status gather(struct device *device, size_t n, bool in_place, int round)
{
    const int R = comm_size(comm), rank = comm_rank(comm);
    char *full = comm_window_shared(comm), *shard = in_place ? full + (size_t)rank * n : out;
    uint8_t *bytes = (uint8_t *)host;

    for (size_t i = 0; i < n; i++)
        bytes[i] = pattern(rank, i, round);
    SHOAL_TRY(device->ops->copy(device, shard, bytes, n));
    memset(order, 0, sizeof order);
    shoal_status status = comm_all_gather(comm, shard, full, n / 4, DTYPE_F32);
    CHECK(queue.done == queue.issued, "gather: %zu copies are left", queue.issued - queue.done);
    SHOAL_TRY(status);
    SHOAL_TRY(device->ops->copy(device, bytes, full, (size_t)R * n));
    for (int r = 0; r < R; r++)
        for (size_t i = 0; i < n; i++)
            CHECK(bytes[(size_t)r * n + i] == pattern(r, i, round),
                  "gather %d of %zu: byte %zu of rank %d is wrong", round, n, i, r);
    return SHOAL_OK;
}

static shoal_status reduce(struct device *device, size_t n)
{
    const int R = comm_size(comm), rank = comm_rank(comm);
    float *full = comm_window_own(comm);

    for (size_t i = 0; i < (size_t)R * n; i++)
        host[i] = element(rank, i, n);
    SHOAL_TRY(device->ops->copy(device, full, host, (size_t)R * n * sizeof *host));
    memset(order, 0, sizeof order);
    shoal_status status = comm_reduce_scatter(comm, full, (float *)(void *)out, n);
    CHECK(queue.done == queue.issued, "sum: %zu copies are left", queue.issued - queue.done);
    SHOAL_TRY(status);
    SHOAL_TRY(device->ops->copy(device, host, out, n * sizeof *host));
    for (size_t i = 0; i < n; i++) {
        const float want = reference_sum(0, R, (size_t)rank * n + i, n);

        CHECK(memcmp(&host[i], &want, sizeof want) == 0, "sum of %zu: element %zu is %a, not %a", n,
              i, (double)host[i], (double)want);
    }
    return SHOAL_OK;
}

/* Calls of many sizes behind each other, so that slots are taken up where the last one left them. */
static shoal_status run(struct device *device)
{
    static const size_t sizes[] = {N_MAX, 8, 700001, 1, 300000};
    const size_t n_bytes = ((size_t)comm_size(comm) * N_MAX + 16) * sizeof(float);
    void *memory = NULL;

    host = calloc(1, n_bytes);
    CHECK(host != NULL, "test: out of memory");
    SHOAL_TRY(comm_window_create(comm, n_bytes, n_bytes));
    SHOAL_TRY(device->ops->alloc(device, "test", N_MAX * sizeof(float), &memory));
    out = memory;
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        SHOAL_TRY(gather(device, sizes[k] * 4, k % 2 == 0, (int)k));
        if (k == 0 && comm_rank(comm) == 0)
            fprintf(stderr, "gather %s\n", order);
        SHOAL_TRY(reduce(device, sizes[k]));
        if (k == 0 && comm_rank(comm) == 0)
            fprintf(stderr, "sum %s\n", order);
        SHOAL_TRY(gather(device, sizes[k] * 4, true, (int)k + 1));
        SHOAL_TRY(gather(device, sizes[k] / 2 * 4, false, (int)k + 2));
    }
    return SHOAL_OK;
}

int main(int argc, char **argv)
{
    struct device *device = NULL;

    if (argc != 3 && argc != 4)
        return 64;
    struct comm_params params = {.ranks_per_host = atoi(argv[1]),
                                 .transport = COMM_STAGED,
                                 .heartbeat_s = 0.05,
                                 .timeout_s = 10};
    shoal_status status = comm_open(&params, &comm);

    if (status != SHOAL_OK)
        return 1;
    const int rank = comm_rank(comm);

    log_init(rank, LOG_NORMAL);
    status = comm_agree(comm, open_device(argv[2], &device));
    if (status == SHOAL_OK)
        status = comm_use_device(comm, device);
    queue.failing = argc == 4 && rank == 1 ? (size_t)atol(argv[3]) : 0;
    if (status == SHOAL_OK)
        status = run(device);
    if (status != SHOAL_OK)
        fprintf(stderr, "learned by %d: %d %s\n", rank, (int)status, shoal_last_error());
    status = comm_close(comm, status);
    free(host);
    device_close(device);
    return shoal_exit_code(status);
}

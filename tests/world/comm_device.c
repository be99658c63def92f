#include "comm/comm.h"
#include "comm/nccl/tree_layout.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "tests/tolerance.h"
#include "tests/world/comm_values.h"
#include "tests/world/fake_nccl.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * Worker: the bulk operations on device memory against what a single process computes, bit for
 * bit; or a fault in the midst of them.
 * Usage: comm_device RANKS_PER_HOST REDUCTION TRANSPORT DEVICE [FAULT TIMEOUT_S]
 *   REDUCTION  tree or ring
 *   TRANSPORT  auto, mpi, staged, nccl
 *   DEVICE     cpu; remote: host memory that faults when touched; fake: the same with a queue of
 *              its own, and an NCCL made for it; cuda (77 where there is none)
 * Prints the transport that was chosen.
 */

enum { N_MAX = 700001 }; /* more than a piece of staging between four ranks */
enum { VICTIM = 1, BAD_STEP = 3, STEPS = 6 };

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return fail(SHOAL_ERR_INTERNAL, __VA_ARGS__);                                          \
    } while (0)

static bool is_ring;
static struct comm *comm;
static struct device *device;
static float *host;     /* comm_size * N_MAX floats: what goes to the device and comes back */
static float *out_copy; /* N_MAX */
static char *out;       /* on the device: N_MAX floats */

static shoal_status sync_comm(void)
{
    return device_has_queues(device) ? device->ops->queue_sync(device, QUEUE_COMM) : SHOAL_OK;
}

static shoal_status put(void *to, const void *from, size_t n_bytes)
{
    return device->ops->copy(device, to, from, n_bytes);
}

static bool is_right_sum(float got, int R, size_t i, size_t n)
{
    float want = reference_sum(0, R, i, n);
    double magnitude = 0;

    if (!is_ring)
        return memcmp(&got, &want, sizeof want) == 0;
    for (int r = 0; r < R; r++)
        magnitude += fabs((double)element(r, i, n));
    return fabs((double)got - (double)want) <= TOL_F32_SUM_ORDER(R) * magnitude;
}

static shoal_status check_reduce(size_t offset, size_t n)
{
    int R = comm_size(comm), rank = comm_rank(comm);
    size_t n_bytes = (size_t)R * n * sizeof(float);
    float *full = (float *)comm_window_own(comm) + offset;

    for (size_t i = 0; i < (size_t)R * n; i++)
        host[i] = element(rank, i, n);
    SHOAL_TRY(put(full, host, n_bytes));
    SHOAL_TRY(comm_reduce_scatter(comm, full, (float *)(void *)out, n));
    /* Peers no longer read, once the queue is through. */
    SHOAL_TRY(sync_comm());
    memset(host, 0xff, n_bytes);
    SHOAL_TRY(put(full, host, n_bytes));
    SHOAL_TRY(put(out_copy, out, n * sizeof(float)));
    for (size_t i = 0; i < n; i++)
        CHECK(is_right_sum(out_copy[i], R, (size_t)rank * n + i, n),
              "reduce-scatter of %zu: element %zu is %a, not %a", n, i, (double)out_copy[i],
              (double)reference_sum(0, R, (size_t)rank * n + i, n));
    return SHOAL_OK;
}

static shoal_status check_gather(enum dtype dtype, size_t n, bool in_place, int round)
{
    int R = comm_size(comm), rank = comm_rank(comm);
    size_t shard_bytes = n * dtype_bytes(dtype);
    char *full = comm_window_shared(comm);
    char *shard = in_place ? full + (size_t)rank * shard_bytes : out;
    uint8_t *bytes = (uint8_t *)host;

    /* In host memory peers may still check the last result. */
    SHOAL_TRY(comm_barrier(comm));
    for (size_t i = 0; i < shard_bytes; i++)
        bytes[i] = pattern(rank, i, round);
    SHOAL_TRY(put(shard, bytes, shard_bytes));
    SHOAL_TRY(comm_all_gather(comm, shard, full, n, dtype));
    SHOAL_TRY(sync_comm());
    SHOAL_TRY(put(bytes, full, (size_t)R * shard_bytes));
    for (int r = 0; r < R; r++)
        for (size_t i = 0; i < shard_bytes; i++)
            CHECK(bytes[(size_t)r * shard_bytes + i] == pattern(r, i, round),
                  "all-gather of %zu %s: byte %zu of rank %d is wrong", n, dtype_name(dtype), i, r);
    return SHOAL_OK;
}

static shoal_status check_bulk(void)
{
    static const size_t sizes[] = {1, 7, 256, 1000, 70001, N_MAX};

    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        SHOAL_TRY(check_reduce(k, sizes[k]));
        SHOAL_TRY(check_gather(DTYPE_F32, sizes[k], false, (int)k));
        SHOAL_TRY(check_gather(DTYPE_BF16, sizes[k], true, (int)k + 1));
    }
    return SHOAL_OK;
}

/* One after the other without waiting: later ones must find what earlier ones made. */
static shoal_status check_chain(void)
{
    enum { N = 3000, LENGTH = 300 }; /* more than the host may be ahead */
    int R = comm_size(comm), rank = comm_rank(comm);
    float *full = comm_window_own(comm);

    for (size_t i = 0; i < (size_t)R * N; i++)
        host[i] = 1.0f;
    SHOAL_TRY(put(full, host, (size_t)R * N * sizeof(float)));
    for (int k = 0; k < LENGTH; k++) {
        SHOAL_TRY(comm_reduce_scatter(comm, full, (float *)(void *)out, N));
        SHOAL_TRY(comm_all_gather(comm, out, comm_window_shared(comm), N, DTYPE_F32));
    }
    SHOAL_TRY(sync_comm());
    SHOAL_TRY(put(host, comm_window_shared(comm), (size_t)R * N * sizeof(float)));
    for (size_t i = 0; i < (size_t)R * N; i++)
        CHECK(host[i] == (float)R, "chain on rank %d: element %zu is %g", rank, i, (double)host[i]);
    return SHOAL_OK;
}

static shoal_status check_refusals(size_t own_bytes)
{
    char *own = comm_window_own(comm);

    CHECK(comm_use_device(comm, device) == SHOAL_ERR_INTERNAL, "a device after the window");
    CHECK(comm_window_create(comm, 1, 1) == SHOAL_ERR_INTERNAL, "a second window");
    CHECK(comm_reduce_scatter(comm, (float *)(void *)(own + own_bytes), (float *)(void *)out,
                              1 << 20) == SHOAL_ERR_INTERNAL,
          "a buffer outside the window");
    return SHOAL_OK;
}

static shoal_status check_window(size_t own_bytes)
{
    struct comm_memory memory = comm_memory_of(comm_transport(comm), is_ring, comm_size(comm),
                                               comm_local_size(comm), own_bytes, own_bytes);
    bool is_on_device = comm_transport(comm) != COMM_MPI;

    CHECK(comm_shared_per_rank(comm) == is_on_device, "whose the shared part is");
    CHECK((memory.device_bytes >= 2 * own_bytes + memory.scratch_bytes) == is_on_device,
          "%zu bytes of the device for twice %zu", memory.device_bytes, own_bytes);
    CHECK(comm_window_resident_bytes(comm) <= memory.window_bytes + (1 << 16),
          "the host's window holds %llu bytes, %zu were told",
          (unsigned long long)comm_window_resident_bytes(comm), memory.window_bytes);
    SHOAL_TRY(put(host, comm_window_own(comm), own_bytes - 64));
    for (size_t i = 0; i < own_bytes / sizeof(float) - 16; i++)
        CHECK(host[i] == 0, "element %zu of the window is not zero", i);
    return SHOAL_OK;
}

static shoal_status take_memory(size_t *own_bytes_out)
{
    size_t own_bytes = ((size_t)comm_size(comm) * N_MAX + 16) * sizeof(float);
    void *memory = NULL;

    host = calloc(1, own_bytes);
    out_copy = calloc(N_MAX, sizeof(float));
    if (host == NULL || out_copy == NULL)
        return fail(SHOAL_ERR_NOMEM, "test: out of memory");
    SHOAL_TRY(comm_window_create(comm, own_bytes, own_bytes));
    SHOAL_TRY(device->ops->alloc(device, "test", N_MAX * sizeof(float), &memory));
    out = memory;
    *own_bytes_out = own_bytes;
    return SHOAL_OK;
}

static shoal_status run_all(void)
{
    size_t own_bytes = 0;

    SHOAL_TRY(take_memory(&own_bytes));
    SHOAL_TRY(check_window(own_bytes));
    SHOAL_TRY(check_bulk());
    SHOAL_TRY(check_chain());
    return check_refusals(own_bytes);
}

/* ---- faults ---- */

static void sleep_seconds(double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds};

    t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
    nanosleep(&t, NULL);
}

static shoal_status misbehave(const char *mode)
{
    fprintf(stderr, "fault at %.6f\n", clock_seconds());
    if (strcmp(mode, "kill") == 0)
        raise(SIGKILL);
    if (strcmp(mode, "stop") == 0)
        raise(SIGSTOP);
    if (strcmp(mode, "hang") == 0)
        sleep_seconds(60);
    for (int i = 0; strcmp(mode, "slow") == 0 && i < 20; i++) {
        sleep_seconds(0.2);
        comm_note(comm, BAD_STEP, "writing a long file");
    }
    if (strcmp(mode, "error") == 0)
        fake_nccl_fail_next();
    if (strcmp(mode, "fail") == 0)
        return fail(SHOAL_ERR_IO, "disk is full");
    return SHOAL_OK;
}

/* As in training: a few bulk operations, a wait for the queue, a small all-reduce. */
static shoal_status run_steps(const char *mode)
{
    size_t own_bytes = 0;

    SHOAL_TRY(take_memory(&own_bytes));
    for (int step = 1; step <= STEPS; step++) {
        int64_t sum = 1;
        bool is_bad = step == BAD_STEP, is_victim = is_bad && comm_rank(comm) == VICTIM;
        bool is_skipping = is_bad && strcmp(mode, "skip") == 0;

        comm_note(comm, step, "forward block.2");
        sleep_seconds(0.06);
        if (is_victim)
            SHOAL_TRY(misbehave(mode));
        if (!is_skipping || !is_victim)
            SHOAL_TRY(comm_all_gather(comm, out, comm_window_shared(comm), N_MAX, DTYPE_F32));
        if (is_victim && strcmp(mode, "hang-sum") == 0)
            sleep_seconds(60);
        SHOAL_TRY(comm_reduce_scatter(comm, comm_window_own(comm), (float *)(void *)out, 1000));
        if (!is_skipping)
            SHOAL_TRY(sync_comm());
        SHOAL_TRY(comm_all_reduce_i64(comm, &sum, 1));
    }
    return SHOAL_OK;
}

/* ---- main ---- */

static enum comm_transport transport_named(const char *name)
{
    for (int t = COMM_AUTO; t <= COMM_SELF; t++)
        if (strcmp(name, comm_transport_name((enum comm_transport)t)) == 0)
            return (enum comm_transport)t;
    return COMM_AUTO;
}

static shoal_status open_device(const char *asked)
{
    const char *name = asked;

    if (strcmp(name, "fake") == 0) {
        comm_nccl_set_scratch(1 << 20); /* so that the longest sums come in several chunks */
        return fake_device_open(&device);
    }
    if (strcmp(name, "remote") == 0) {
        setenv("SHOAL_TEST_DEVICE", "remote", 1);
        name = "auto";
    }
    SHOAL_TRY(device_open(name, comm_node_rank(comm), &device));
    CHECK(device_is_separate(device) == (strcmp(asked, "cpu") != 0), "device %s",
          device->ops->name);
    return SHOAL_OK;
}

static void release_memory(shoal_status status)
{
    if (out != NULL && status == SHOAL_OK)
        device->ops->free(device, out, N_MAX * sizeof(float));
    free(host);
    free(out_copy);
}

int main(int argc, char **argv)
{
    const char *fault = argc > 5 ? argv[5] : NULL;

    if (argc != 5 && argc != 7)
        return 64;
    struct comm_params params = {.ranks_per_host = atoi(argv[1]),
                                 .ring = strcmp(argv[2], "ring") == 0,
                                 .transport = transport_named(argv[3]),
                                 .heartbeat_s = 0.05,
                                 .timeout_s = fault != NULL ? atof(argv[6]) : 20};

    is_ring = params.ring;
    if (strcmp(argv[4], "cuda") == 0 && strcmp(device_auto_name(), "cuda") != 0)
        return 77;
    shoal_status status = comm_open(&params, &comm);

    if (status != SHOAL_OK) {
        log_failure(shoal_exit_code(status));
        return 1;
    }
    int rank = comm_rank(comm);

    log_init(rank, LOG_NORMAL);
    status = comm_agree(comm, open_device(argv[4]));
    if (status == SHOAL_OK)
        status = comm_use_device(comm, device);
    fake_nccl_seal();
    if (status == SHOAL_OK && rank == 0)
        fprintf(stderr, "transport %s\ndevice of %d\n", comm_transport_name(comm_transport(comm)),
                comm_device_ranks(comm));
    if (status == SHOAL_OK)
        status = fault != NULL ? run_steps(fault) : run_all();
    if (status != SHOAL_OK)
        fprintf(stderr, "learned by %d: %d %s\n", rank, (int)status, shoal_last_error());
    status = comm_close(comm, status);
    release_memory(status);
    if (status == SHOAL_OK)
        device_close(device);
    return shoal_exit_code(status);
}

#include "comm/comm.h"
#include "runtime/base/log.h"
#include "runtime/base/pool.h"
#include "tests/tolerance.h"
#include "tests/world/comm_values.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Worker: every collective against what a single process computes, bit for bit.
 * Usage: comm_collectives RANKS_PER_HOST [ring].  As the reference does not know the layout of
 * ranks on hosts, passing with several layouts shows that all give the same bits.  With `ring` the
 * order of the sum is the library's, and only its rounding is bounded.
 */

enum { N_MAX = 700001 }; /* more than a piece of an exchange between two hosts */

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return fail(SHOAL_ERR_INTERNAL, __VA_ARGS__);                                          \
    } while (0)

static bool is_ring;

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

static shoal_status check_reduce(struct comm *comm, size_t offset, size_t n)
{
    int R = comm_size(comm), rank = comm_rank(comm);
    float *full = (float *)comm_window_own(comm) + offset;
    float *out = malloc(n * sizeof *out);

    if (out == NULL)
        return fail(SHOAL_ERR_NOMEM, "reduce-scatter test: out of memory");
    for (size_t i = 0; i < (size_t)R * n; i++)
        full[i] = element(rank, i, n);
    shoal_status status = comm_reduce_scatter(comm, full, out, n);
    /* Peers no longer read: what is overwritten now must not show in anyone's result. */
    memset(full, 0xff, (size_t)R * n * sizeof *full);
    for (size_t i = 0; status == SHOAL_OK && i < n; i++) {
        if (!is_right_sum(out[i], R, (size_t)rank * n + i, n))
            status = fail(SHOAL_ERR_INTERNAL, "reduce-scatter of %zu: element %zu is %a, not %a", n,
                          i, (double)out[i], (double)reference_sum(0, R, (size_t)rank * n + i, n));
    }
    free(out);
    return status;
}

static shoal_status check_gather(struct comm *comm, enum dtype dtype, size_t n, bool in_place,
                                 int round)
{
    int R = comm_size(comm), rank = comm_rank(comm);
    size_t shard_bytes = n * dtype_bytes(dtype);
    uint8_t *full = comm_window_shared(comm);
    uint8_t *own = malloc(shard_bytes + 1);

    if (own == NULL)
        return fail(SHOAL_ERR_NOMEM, "all-gather test: out of memory");
    uint8_t *shard = in_place ? full + (size_t)rank * shard_bytes : own;

    /* Peers may still check the last result in the shared copy. */
    shoal_status status = comm_barrier(comm);
    for (size_t i = 0; i < shard_bytes; i++)
        shard[i] = pattern(rank, i, round);
    if (status == SHOAL_OK)
        status = comm_all_gather(comm, shard, full, n, dtype);
    free(own);
    SHOAL_TRY(status);
    for (int r = 0; r < R; r++)
        for (size_t i = 0; i < shard_bytes; i++)
            CHECK(full[(size_t)r * shard_bytes + i] == pattern(r, i, round),
                  "all-gather of %zu %s: byte %zu of rank %d is wrong", n, dtype_name(dtype), i, r);
    return SHOAL_OK;
}

static shoal_status check_bulk(struct comm *comm, int round)
{
    static const size_t sizes[] = {1, 7, 256, 1000, 70001, N_MAX};

    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        SHOAL_TRY(check_reduce(comm, k, sizes[k]));
        SHOAL_TRY(check_gather(comm, DTYPE_F32, sizes[k], false, round));
        SHOAL_TRY(check_gather(comm, DTYPE_BF16, sizes[k], true, round + 1));
    }
    return SHOAL_OK;
}

/* Lengths around the pieces that an all-reduce is cut into, and none at all. */
static shoal_status check_all_reduce(struct comm *comm)
{
    enum { MOST = 10001 };
    static const size_t lengths[] = {0, 1, 4096, 4097, MOST};
    static int64_t values[MOST + 1];
    int R = comm_size(comm), rank = comm_rank(comm);

    for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++) {
        size_t n = lengths[k];

        for (int64_t i = 0; i <= MOST; i++)
            values[i] = (i - 2000) * 0x123456789ab * (rank + 1);
        SHOAL_TRY(comm_all_reduce_i64(comm, values, n));
        for (int64_t i = 0; i <= MOST; i++)
            CHECK(values[i] ==
                      (i - 2000) * 0x123456789ab * ((size_t)i < n ? R * (R + 1) / 2 : rank + 1),
                  "all-reduce of %zu: element %d is %lld", n, (int)i, (long long)values[i]);

        /* The first or the last rank has the largest, by sign. */
        for (int64_t i = 0; i <= MOST; i++)
            values[i] = (i - 2000) * 0x123456789ab * (rank + 1);
        SHOAL_TRY(comm_all_reduce_max_i64(comm, values, n));
        for (int64_t i = 0; i <= MOST; i++)
            CHECK(values[i] == (i - 2000) * 0x123456789ab *
                                   ((size_t)i >= n ? rank + 1
                                    : i < 2000     ? 1
                                                   : R),
                  "maxima of %zu: element %d is %lld", n, (int)i, (long long)values[i]);
    }
    return SHOAL_OK;
}

static shoal_status check_bytes(struct comm *comm, size_t n_bytes)
{
    int R = comm_size(comm), rank = comm_rank(comm);
    uint8_t *in = malloc(n_bytes);
    uint8_t *out = malloc(n_bytes * (size_t)R);
    shoal_status status = SHOAL_OK;

    if (in == NULL || out == NULL)
        status = fail(SHOAL_ERR_NOMEM, "gather test: out of memory");
    for (size_t i = 0; status == SHOAL_OK && i < n_bytes; i++)
        in[i] = pattern(rank, i, 3);
    if (status == SHOAL_OK)
        status = comm_all_gather_bytes(comm, in, n_bytes, out);
    for (int r = 0; status == SHOAL_OK && r < R; r++)
        for (size_t i = 0; status == SHOAL_OK && i < n_bytes; i++)
            if (out[(size_t)r * n_bytes + i] != pattern(r, i, 3))
                status = fail(SHOAL_ERR_INTERNAL, "gather of %zu bytes: byte %zu of rank %d",
                              n_bytes, i, r);
    for (int root = 0; status == SHOAL_OK && root < R; root++) {
        for (size_t i = 0; i < n_bytes; i++)
            in[i] = rank == root ? pattern(root, i, 4) : 0;
        status = comm_broadcast(comm, root, in, n_bytes);
        for (size_t i = 0; status == SHOAL_OK && i < n_bytes; i++)
            if (in[i] != pattern(root, i, 4))
                status = fail(SHOAL_ERR_INTERNAL, "broadcast of %zu bytes from %d: byte %zu",
                              n_bytes, root, i);
    }
    free(in);
    free(out);
    return status;
}

/* The two highest ranks fail; all must hear of the lower of them. */
static shoal_status check_agree(struct comm *comm)
{
    int R = comm_size(comm), rank = comm_rank(comm), lowest = R > 1 ? R - 2 : 0;
    char want[64];
    shoal_status own = SHOAL_OK;

    SHOAL_TRY(comm_agree(comm, SHOAL_OK));
    if (rank >= lowest)
        own = fail(rank == lowest ? SHOAL_ERR_IO : SHOAL_ERR_DATA, "disk %d is full", rank);
    shoal_status agreed = comm_agree(comm, own);
    snprintf(want, sizeof want, "): disk %d is full", lowest);
    CHECK(agreed == SHOAL_ERR_IO, "agreed on %d", (int)agreed);
    CHECK(strstr(shoal_last_error(), want) != NULL, "agreed message is: %s", shoal_last_error());
    snprintf(want, sizeof want, "rank %d (", lowest);
    CHECK(strncmp(shoal_last_error(), want, strlen(want)) == 0, "agreed message is: %s",
          shoal_last_error());
    return SHOAL_OK;
}

static shoal_status check_ledger(struct comm *comm)
{
    uint64_t others = (uint64_t)comm_size(comm) - 1;
    float out[100];

    comm_ledger_reset(comm);
    SHOAL_TRY(
        comm_all_gather(comm, comm_window_own(comm), comm_window_shared(comm), 300, DTYPE_BF16));
    SHOAL_TRY(comm_reduce_scatter(comm, comm_window_own(comm), out, 100));
    SHOAL_TRY(comm_reduce_scatter(comm, comm_window_own(comm), out, 50));
    SHOAL_TRY(comm_barrier(comm));
    struct comm_ledger ledger = comm_ledger_read(comm);

    CHECK(ledger.all_gather_calls == 1 && ledger.all_gather_bytes == others * 300 * 2,
          "ledger: all-gather %llu bytes", (unsigned long long)ledger.all_gather_bytes);
    CHECK(ledger.reduce_scatter_calls == 2 && ledger.reduce_scatter_bytes == others * 150 * 4,
          "ledger: reduce-scatter %llu bytes", (unsigned long long)ledger.reduce_scatter_bytes);
    CHECK(ledger.small_calls == 1, "ledger: %llu small calls",
          (unsigned long long)ledger.small_calls);
    return SHOAL_OK;
}

enum { N_COUNTS = 5000 };

/* A schedule that reduces a gradient and gathers the result gives every rank the full sum. */
static shoal_status run_schedule(struct comm *comm, struct plan *plan, struct schedule **sched)
{
    enum { N = 512 };
    int R = comm_size(comm), grad, shard, full, counts;
    size_t shard_bytes = N * sizeof(float);
    static _Alignas(4096) char memory[4096 + N_COUNTS * sizeof(int64_t)];

    SHOAL_TRY(plan_slot(plan, "grad", PLAN_GRAD, SPACE_WINDOW, (size_t)R * shard_bytes, &grad));
    SHOAL_TRY(plan_slot(plan, "shard", PLAN_GRAD, SPACE_PRIVATE, shard_bytes, &shard));
    SHOAL_TRY(plan_slot(plan, "full", PLAN_PARAM, SPACE_SHARED, (size_t)R * shard_bytes, &full));
    SHOAL_TRY(plan_slot(plan, "counts", PLAN_SCRATCH, SPACE_PRIVATE, N_COUNTS * sizeof(int64_t),
                        &counts));
    plan_bind(plan, SPACE_WINDOW, comm_window_own(comm));
    plan_bind(plan, SPACE_SHARED, comm_window_shared(comm));
    plan_bind(plan, SPACE_PRIVATE, memory);
    SHOAL_TRY(sched_create("test", plan, sched));
    SHOAL_TRY(comm_op_reduce(*sched, comm, 0, -1, slot_at(grad, 0), slot_at(shard, 0), N));
    SHOAL_TRY(comm_op_gather(*sched, comm, OP_PUBLISH, 0, -1, slot_at(shard, 0), slot_at(full, 0),
                             N, DTYPE_F32));
    SHOAL_TRY(comm_op_all_reduce_i64(*sched, comm, -1, slot_at(counts, 0), N_COUNTS));
    CHECK(sched_op(*sched, 2)->n_slots == 1 && sched_op(*sched, 2)->host,
          "the all-reduce does not say what it changes");
    CHECK(sched_op(*sched, 1)->n_deps == 1, "the gather does not wait for the reduce");
    CHECK(sched_op(*sched, 0)->bytes == (uint64_t)(R - 1) * shard_bytes, "bytes of the reduce");

    float *values = comm_window_own(comm);
    const float *sums = comm_window_shared(comm);

    for (size_t i = 0; i < (size_t)R * N; i++)
        values[i] = element(comm_rank(comm), i, N);
    int64_t *count = plan_ptr(plan, counts, 0);

    for (int64_t i = 0; i < N_COUNTS; i++)
        count[i] = i * (comm_rank(comm) + 1);
    SHOAL_TRY(exec_run(*sched));
    for (int64_t i = 0; i < N_COUNTS; i++)
        CHECK(count[i] == i * R * (R + 1) / 2, "schedule: count %d is wrong", (int)i);
    for (size_t i = 0; i < (size_t)R * N; i++)
        CHECK(is_right_sum(sums[i], R, i, N), "schedule: element %zu is %a", i, (double)sums[i]);
    return comm_barrier(comm);
}

static shoal_status check_ops(struct comm *comm)
{
    struct plan *plan = NULL;
    struct schedule *sched = NULL;

    SHOAL_TRY(plan_create(&plan));
    shoal_status status = run_schedule(comm, plan, &sched);
    sched_destroy(sched);
    plan_destroy(plan);
    return status;
}

static shoal_status check_layout(const struct comm *comm, int ranks_per_host)
{
    int L = comm_local_size(comm), H = comm_host_count(comm);

    CHECK(L * H == comm_size(comm), "%d hosts of %d ranks for %d ranks", H, L, comm_size(comm));
    CHECK(comm_host(comm) * L + comm_local_rank(comm) == comm_rank(comm), "blocks of ranks");
    CHECK(comm_node_ranks(comm) >= L, "%d ranks on this machine", comm_node_ranks(comm));
    CHECK(ranks_per_host != 0 || comm_node_ranks(comm) < comm_size(comm) || H == 1,
          "%d hosts on one machine", H);
    CHECK(ranks_per_host != 1 || L == 1, "%d ranks on a host of one", L);
    CHECK(H == 1 || (L & (L - 1)) == 0, "a host of %d ranks is no subtree", L);
    CHECK(comm_library(comm)[0] != '\0', "the library has no name");
    CHECK((comm_staging_bytes(comm) > 0) == (H > 1), "%zu bytes of staging for %d hosts",
          comm_staging_bytes(comm), H);
    return SHOAL_OK;
}

static shoal_status check_window(struct comm *comm)
{
    size_t own_bytes = ((size_t)comm_size(comm) * N_MAX + 8) * sizeof(float);

    CHECK(comm_window_own(comm) == NULL, "a window before comm_window_create");
    CHECK(comm_window_create(comm, SIZE_MAX - 5, 1) == SHOAL_ERR_NOMEM, "a size that wraps");
    SHOAL_TRY(comm_window_create(comm, own_bytes, own_bytes));
    CHECK(comm_window_create(comm, own_bytes, own_bytes) == SHOAL_ERR_INTERNAL, "a second window");
    uint64_t before = comm_window_resident_bytes(comm);

    SHOAL_TRY(comm_barrier(comm));
    const char *own = comm_window_own(comm);
    for (size_t i = 0; i < own_bytes; i += 4096)
        CHECK(own[i] == 0, "byte %zu of the window is not zero", i);
    memset(comm_window_own(comm), 1, 1 << 20);
    CHECK(comm_window_resident_bytes(comm) >= before + (1 << 20), "resident bytes did not grow");
    return comm_barrier(comm);
}

static shoal_status run_all(struct comm *comm, int ranks_per_host)
{
    struct pool *pool;

    SHOAL_TRY(check_layout(comm, ranks_per_host));
    SHOAL_TRY(check_window(comm));
    SHOAL_TRY(check_bulk(comm, 0));
    SHOAL_TRY(pool_create(3, -1, &pool));
    comm_use_pool(comm, pool);
    shoal_status status = check_bulk(comm, 10);
    comm_use_pool(comm, NULL);
    pool_destroy(pool);
    SHOAL_TRY(status);
    SHOAL_TRY(check_all_reduce(comm));
    SHOAL_TRY(check_bytes(comm, 3));
    SHOAL_TRY(check_bytes(comm, 200003));
    SHOAL_TRY(check_agree(comm));
    SHOAL_TRY(check_ledger(comm));
    return check_ops(comm);
}

int main(int argc, char **argv)
{
    struct comm_params params = {.ranks_per_host = argc > 1 ? atoi(argv[1]) : 0, .timeout_s = 20};
    struct comm *comm;

    is_ring = argc > 2 && strcmp(argv[2], "ring") == 0;
    params.ring = is_ring;
    shoal_status status = comm_open(&params, &comm);

    if (status != SHOAL_OK) {
        log_failure(shoal_exit_code(status));
        return 1;
    }
    log_init(comm_rank(comm), LOG_NORMAL);
    status = run_all(comm, params.ranks_per_host);
    if (status != SHOAL_OK)
        log_failure(shoal_exit_code(status));
    status = comm_close(comm, status);
    return status == SHOAL_OK ? 0 : 1;
}

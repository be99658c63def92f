/*
 * shoal bench comm: reduce-scatter and all-gather against memcpy in the same run.
 *
 * The bound counts what must move: a reduce-scatter of S bytes over R ranks reads S and writes S/R per
 * rank, an all-gather into the host's shared copy reads and writes S/R per rank.  memcpy of n bytes
 * reads n and writes n; all ranks copy at once, with all threads, over buffers of the same size.
 */
#include "comm/comm.h"
#include "launch/cli/cli_internal.h"
#include "runtime/base/clock.h"
#include "runtime/base/host.h"
#include "runtime/base/pages.h"

#include <string.h>

enum { MAX_MIB = 4096 };

struct copy {
    char *dst;
    const char *src;
    size_t n_bytes; /* of one thread's part */
};

static void copy_part(void *arg, size_t part, int thread)
{
    const struct copy *copy = arg;

    (void)thread;
    memcpy(copy->dst + part * copy->n_bytes, copy->src + part * copy->n_bytes, copy->n_bytes);
}

struct bench {
    struct comm *comm;
    struct pool *pool;
    size_t n_bytes; /* of the whole vector */
    int repeats;
    char *private; /* two buffers of n_bytes */
};

enum what { WHAT_MEMCPY, WHAT_REDUCE_SCATTER, WHAT_ALL_GATHER };

static shoal_status once(const struct bench *bench, enum what what)
{
    size_t R = (size_t)comm_size(bench->comm), n = bench->n_bytes / sizeof(float) / R;
    size_t parts = (size_t)pool_size(bench->pool);
    struct copy copy = {bench->private, bench->private + bench->n_bytes, bench->n_bytes / parts};

    switch (what) {
    case WHAT_MEMCPY:
        pool_run(bench->pool, parts, copy_part, &copy);
        return SHOAL_OK;
    case WHAT_REDUCE_SCATTER:
        return comm_reduce_scatter(bench->comm, comm_window_own(bench->comm),
                                   (float *)(void *)bench->private, n);
    case WHAT_ALL_GATHER:
        return comm_all_gather(bench->comm, bench->private, comm_window_shared(bench->comm), n,
                               DTYPE_F32);
    }
    return SHOAL_OK;
}

/* Best time of all repeats of the slowest rank: ranks start together. */
static shoal_status best_seconds(const struct bench *bench, enum what what, double *seconds_out)
{
    double best = 1e30;
    double all[1024];

    for (int i = 0; i < bench->repeats + 2; i++) {
        SHOAL_TRY(comm_barrier(bench->comm));
        double seconds = clock_seconds();
        SHOAL_TRY(once(bench, what));
        seconds = clock_seconds() - seconds;
        SHOAL_TRY(comm_all_gather_bytes(bench->comm, &seconds, sizeof seconds, all));
        for (int r = 0; r < comm_size(bench->comm); r++)
            seconds = all[r] > seconds ? all[r] : seconds;
        if (i >= 2 && seconds < best)
            best = seconds;
    }
    *seconds_out = best;
    return SHOAL_OK;
}

static shoal_status measure(struct bench *bench)
{
    double R = comm_size(bench->comm), S = (double)bench->n_bytes, seconds[3];
    void *memory = NULL;

    SHOAL_TRY(pages_alloc("bench", 2 * bench->n_bytes, &memory));
    bench->private = memory;
    memset(memory, 0, 2 * bench->n_bytes);
    memset(comm_window_own(bench->comm), 0, bench->n_bytes);
    for (int what = 0; what < 3; what++)
        SHOAL_TRY(best_seconds(bench, (enum what)what, &seconds[what]));
    pages_free(memory, 2 * bench->n_bytes);
    if (comm_rank(bench->comm) != 0)
        return SHOAL_OK;

    double per_byte = seconds[WHAT_MEMCPY] / (2 * S); /* read or written */
    double scatter_bound = (S + S / R) * per_byte, gather_bound = 2 * S / R * per_byte;
    printf("%6.0f MiB  memcpy %6.2f GB/s   reduce-scatter %6.2f GB/s %4.0f %% of its bound   "
           "all-gather %6.2f GB/s %4.0f %% of its bound\n",
           S / (1 << 20), 1e-9 * S / seconds[WHAT_MEMCPY], 1e-9 * S / seconds[WHAT_REDUCE_SCATTER],
           100 * scatter_bound / seconds[WHAT_REDUCE_SCATTER], 1e-9 * S / seconds[WHAT_ALL_GATHER],
           100 * gather_bound / seconds[WHAT_ALL_GATHER]);
    return SHOAL_OK;
}

static shoal_status run_sizes(struct bench *bench, int64_t largest_mib)
{
    size_t largest = (size_t)largest_mib << 20;

    if (comm_size(bench->comm) > 1024)
        return fail(SHOAL_ERR_USAGE, "bench comm: at most 1024 ranks");
    SHOAL_TRY(comm_window_create(bench->comm, largest, largest));
    if (comm_rank(bench->comm) == 0)
        printf("%d ranks on %d host(s), %d thread(s) each; S/t of the slowest rank, best of %d\n",
               comm_size(bench->comm), comm_host_count(bench->comm), pool_size(bench->pool),
               bench->repeats);
    for (size_t n = 1 << 20; n < largest; n *= 4) {
        bench->n_bytes = n;
        SHOAL_TRY(measure(bench));
    }
    bench->n_bytes = largest;
    return measure(bench);
}

static shoal_status run_bench_comm(const struct command_line *line)
{
    int64_t mib = 64, repeats = 20, ranks_per_host = 0;
    struct bench bench = {0};
    struct comm_params params = {0};

    SHOAL_TRY(option_int(line, "mib", 1, MAX_MIB, &mib));
    SHOAL_TRY(option_int(line, "repeats", 1, 1000, &repeats));
    SHOAL_TRY(option_int(line, "ranks-per-host", 0, 1024, &ranks_per_host));
    params.ranks_per_host = (int)ranks_per_host;
    bench.repeats = (int)repeats;
    SHOAL_TRY(comm_open(&params, &bench.comm));
    log_init(comm_rank(bench.comm), log_level_now());
    int threads = host_cpus() / comm_node_ranks(bench.comm);
    threads = threads < 1 ? 1 : threads;
    shoal_status status = pool_create(threads, threads * comm_node_rank(bench.comm), &bench.pool);
    if (status == SHOAL_OK) {
        comm_use_pool(bench.comm, bench.pool);
        status = run_sizes(&bench, mib);
    }
    fflush(stdout);
    status = comm_close(bench.comm, status);
    pool_destroy(bench.pool);
    return status;
}

static const struct option options[] = {
    {"mib", 0, "N", "largest vector, MiB (64)"},
    {"repeats", 0, "N", "passes; the best one counts (20)"},
    {"ranks-per-host", 0, "N",
     "cut this machine's ranks into hosts of N, over MPI between them (0: off)"},
    {.name = NULL},
};

const struct command command_bench_comm = {
    .path = "bench comm",
    .purpose = "Reduce-scatter and all-gather against the memcpy bound of the same run.",
    .examples = {"mpirun -n 2 shoal bench comm", "mpirun -n 4 shoal bench comm --mib 256"},
    .options = options,
    .max_args = 0,
    .run = run_bench_comm,
};

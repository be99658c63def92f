#include "comm/transport_internal.h"

#include <string.h>

/*
 * All-gather and reduce-scatter.  The shape of both: the ranks of a host meet, work on the
 * window directly, exchange with the rank of the same number on the other hosts in pieces
 * of PIECE_BYTES (two in flight), and meet again.
 */

shoal_status comm_window_offset(const char *what, const void *p, size_t n_bytes, const void *part,
                                size_t part_bytes, size_t *offset_out)
{
    uintptr_t begin = (uintptr_t)part;
    uintptr_t at = (uintptr_t)p;

    if (part == NULL || at < begin || at - begin > part_bytes ||
        n_bytes > part_bytes - (at - begin))
        return fail(SHOAL_ERR_INTERNAL,
                    "%s: buffer of %zu bytes lies outside its part of the window (%zu bytes)", what,
                    n_bytes, part_bytes);
    *offset_out = at - begin;
    return SHOAL_OK;
}

/* Staging for a piece in flight: one block per host, for sending and for receiving. */
static char *staging_send(const struct comm *comm, size_t piece)
{
    return comm->staging + (piece % WIRE_JOBS) * 2 * (comm->staging_bytes / (2 * WIRE_JOBS));
}

static char *staging_receive(const struct comm *comm, size_t piece)
{
    return staging_send(comm, piece) + comm->staging_bytes / (2 * WIRE_JOBS);
}

/* Elements per host in one piece. */
static size_t piece_elements(const struct comm *comm, size_t element_bytes)
{
    return comm->staging_bytes / (2 * WIRE_JOBS) / (size_t)comm->host_count / element_bytes;
}

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- all-gather ---- */

/* Put the shards that a finished piece brought from rank `local_rank` of each host in place. */
static void place_piece(struct comm *comm, size_t piece, char *full, size_t shard_bytes,
                        size_t begin, size_t n_bytes)
{
    const char *from = staging_receive(comm, piece);

    for (int h = 0; h < comm->host_count; h++) {
        size_t rank = (size_t)(leader_of(comm, h) + comm->local_rank);

        if (h != comm->host)
            comm_parallel_copy(comm, full + rank * shard_bytes + begin, from + (size_t)h * n_bytes,
                               n_bytes);
    }
}

static shoal_status gather_between_hosts(struct comm *comm, char *full, size_t shard_bytes)
{
    size_t piece_bytes = piece_elements(comm, 1);
    size_t n_pieces = (shard_bytes + piece_bytes - 1) / piece_bytes;
    const char *shard = full + (size_t)comm->rank * shard_bytes;
    uint32_t tickets[WIRE_JOBS] = {0};

    for (size_t k = 0; k <= n_pieces; k++) {
        if (k < n_pieces) {
            struct wire_job job = {.kind = WIRE_ALL_GATHER,
                                   .send = shard + k * piece_bytes,
                                   .receive = staging_receive(comm, k),
                                   .n = min_size(piece_bytes, shard_bytes - k * piece_bytes)};
            tickets[k % WIRE_JOBS] = comm_wire_post(comm->wire, &job);
        }
        if (k > 0) {
            size_t begin = (k - 1) * piece_bytes;

            SHOAL_TRY(comm_wire_wait(comm, tickets[(k - 1) % WIRE_JOBS]));
            place_piece(comm, k - 1, full, shard_bytes, begin,
                        min_size(piece_bytes, shard_bytes - begin));
        }
    }
    return SHOAL_OK;
}

shoal_status comm_host_all_gather(struct comm *comm, const void *shard, void *full,
                                  size_t shard_bytes)
{
    char *place = (char *)full + (size_t)comm->rank * shard_bytes;
    size_t offset = 0;

    comm_call_enter(comm, CALL_ALL_GATHER, shard_bytes);
    SHOAL_TRY(comm_window_offset("all-gather", full, (size_t)comm->size * shard_bytes,
                                 comm->window.base, comm->window_shared_bytes, &offset));
    SHOAL_TRY(comm_call_meet(comm));
    if (place != shard)
        comm_parallel_copy(comm, place, shard, shard_bytes);
    if (comm->host_count > 1)
        SHOAL_TRY(gather_between_hosts(comm, full, shard_bytes));
    return comm_local_barrier(comm);
}

shoal_status comm_all_gather(struct comm *comm, const void *shard, void *full, size_t n,
                             enum dtype dtype)
{
    double begin = clock_seconds();
    size_t shard_bytes = n * dtype_bytes(dtype);

    SHOAL_TRY(comm->transport->all_gather(comm, shard, full, shard_bytes));
    comm->ledger.all_gather_calls++;
    comm->ledger.all_gather_bytes += (uint64_t)(comm->size - 1) * shard_bytes;
    comm->ledger.all_gather_seconds += clock_seconds() - begin;
    return SHOAL_OK;
}

/* ---- reduce-scatter ---- */

/*
 * Tree sum over the ranks of this host of the elements [begin, begin + n) that rank
 * `target` will own; `offset` is where `full` lies in every rank's part of the window.
 */
static void sum_locally(struct comm *comm, size_t offset, size_t shard_elements, int target,
                        size_t begin, size_t n, float *out)
{
    for (int l = 0; l < comm->local_size; l++)
        comm->inputs[l] = (const float *)(const void *)(window_own(comm, l) + offset) +
                          (size_t)target * shard_elements + begin;
    comm_tree_sum(comm, comm->inputs, comm->local_size, n, out);
}

static void sum_over_hosts(struct comm *comm, size_t piece, size_t n, float *out)
{
    const float *from = (const float *)(const void *)staging_receive(comm, piece);

    for (int h = 0; h < comm->host_count; h++)
        comm->inputs[h] = from + (size_t)h * n;
    comm_tree_sum(comm, comm->inputs, comm->host_count, n, out);
}

/*
 * Level one sums the shards of the ranks with this local number over the host; level two sends one
 * partial sum to each of them and adds what came.  Hosts hold aligned power-of-two blocks
 * of ranks, so both levels together are the one tree over all ranks.
 */
static shoal_status reduce_between_hosts(struct comm *comm, size_t offset, float *out, size_t n)
{
    size_t piece = piece_elements(comm, sizeof(float));
    size_t n_pieces = (n + piece - 1) / piece;
    uint32_t tickets[WIRE_JOBS] = {0};

    for (size_t k = 0; k <= n_pieces; k++) {
        if (k < n_pieces) {
            size_t begin = k * piece, m = min_size(piece, n - begin);
            float *send = (float *)(void *)staging_send(comm, k);

            for (int h = 0; h < comm->host_count; h++)
                sum_locally(comm, offset, n, leader_of(comm, h) + comm->local_rank, begin, m,
                            send + (size_t)h * m);
            struct wire_job job = {
                .kind = WIRE_ALL_TO_ALL, .send = send, .receive = staging_receive(comm, k), .n = m};
            tickets[k % WIRE_JOBS] = comm_wire_post(comm->wire, &job);
        }
        if (k > 0) {
            size_t begin = (k - 1) * piece;

            SHOAL_TRY(comm_wire_wait(comm, tickets[(k - 1) % WIRE_JOBS]));
            sum_over_hosts(comm, k - 1, min_size(piece, n - begin), out + begin);
        }
    }
    return SHOAL_OK;
}

static shoal_status reduce_ring(struct comm *comm, const float *full, float *out, size_t n)
{
    if (n > INT_MAX)
        return fail(SHOAL_ERR_INTERNAL, "reduce-scatter: %zu elements per rank, MPI takes up to %d",
                    n, INT_MAX);
    return comm_wire_run(
        comm,
        &(struct wire_job){.kind = WIRE_REDUCE_SCATTER, .send = full, .receive = out, .n = n});
}

shoal_status comm_host_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n)
{
    size_t offset = 0;

    comm_call_enter(comm, CALL_REDUCE_SCATTER, n);
    SHOAL_TRY(comm_window_offset("reduce-scatter", full, (size_t)comm->size * n * sizeof *full,
                                 window_own(comm, comm->local_rank), comm->window_own_bytes,
                                 &offset));
    SHOAL_TRY(comm_call_meet(comm));
    if (comm->ring && comm->size > 1)
        return reduce_ring(comm, full, out, n);
    if (comm->host_count > 1)
        SHOAL_TRY(reduce_between_hosts(comm, offset, out, n));
    else
        sum_locally(comm, offset, n, comm->rank, 0, n, out);
    return comm_local_barrier(comm);
}

shoal_status comm_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n)
{
    double begin = clock_seconds();

    SHOAL_TRY(comm->transport->reduce_scatter(comm, full, out, n));
    comm->ledger.reduce_scatter_calls++;
    comm->ledger.reduce_scatter_bytes += (uint64_t)(comm->size - 1) * n * sizeof(float);
    comm->ledger.reduce_scatter_seconds += clock_seconds() - begin;
    return SHOAL_OK;
}

#include "comm/comm_internal.h"

#include <stdio.h>
#include <string.h>

/*
 * Small collectives: every rank of a host writes its slot, they meet, each reads all slots and
 * then exchanges with its partners on the other hosts.  Slots are used in turns of two by
 * the parity of the call number: who starts call k + 2 has met the others in call k + 1,
 * hence all have read the slots of call k.  So one meeting per call is enough.
 */

enum { MAX_REDUCE_ELEMENTS = 4096 };
_Static_assert(MAX_REDUCE_ELEMENTS * sizeof(int64_t) <= SLOT_BYTES, "an all-reduce fits a slot");

static void count_small(struct comm *comm, double begin)
{
    comm->ledger.small_calls++;
    comm->ledger.small_seconds += clock_seconds() - begin;
}

static void add(int64_t *values, const int64_t *slot, size_t n)
{
    for (size_t i = 0; i < n; i++)
        values[i] = (int64_t)((uint64_t)values[i] + (uint64_t)slot[i]);
}

static void take_larger(int64_t *values, const int64_t *slot, size_t n)
{
    for (size_t i = 0; i < n; i++)
        values[i] = values[i] > slot[i] ? values[i] : slot[i];
}

/* What an all-reduce does with two ranks' values. */
struct reduction {
    enum call_kind call;
    enum wire_kind wire;
    void (*join)(int64_t *values, const int64_t *slot, size_t n);
};

static const struct reduction SUM = {CALL_ALL_REDUCE, WIRE_ALL_REDUCE, add};
static const struct reduction MAX = {CALL_ALL_REDUCE_MAX, WIRE_ALL_REDUCE_MAX, take_larger};

/*
 * A job in place of n_bytes at `data`, if there are other hosts.  It works on memory of our own: a
 * wait that ends early leaves the job to run, and the caller's memory may be gone by then.
 */
static shoal_status run_between_hosts(struct comm *comm, const struct wire_job *job, void *data,
                                      size_t n_bytes)
{
    struct wire_job own = *job;

    if (comm->host_count == 1)
        return SHOAL_OK;
    own.receive = comm->staging;
    memcpy(comm->staging, data, n_bytes);
    SHOAL_TRY(comm_wire_run(comm, &own));
    memcpy(data, comm->staging, n_bytes);
    return SHOAL_OK;
}

/* One piece of an all-reduce, n <= MAX_REDUCE_ELEMENTS. */
static shoal_status reduce_piece(struct comm *comm, const struct reduction *reduction,
                                 int64_t *values, size_t n)
{
    comm_call_enter(comm, reduction->call, n);
    memcpy(slot_of(comm, comm->local_rank), values, n * sizeof *values);
    SHOAL_TRY(comm_call_meet(comm));
    for (int l = 0; l < comm->local_size; l++)
        if (l != comm->local_rank)
            reduction->join(values, (const int64_t *)(const void *)slot_of(comm, l), n);
    return run_between_hosts(comm, &(struct wire_job){.kind = reduction->wire, .n = n}, values,
                             n * sizeof *values);
}

static shoal_status reduce(struct comm *comm, const struct reduction *reduction, int64_t *values,
                           size_t n)
{
    double begin = clock_seconds();
    size_t done = 0;

    do {
        size_t piece = n - done < MAX_REDUCE_ELEMENTS ? n - done : MAX_REDUCE_ELEMENTS;

        SHOAL_TRY(reduce_piece(comm, reduction, values + done, piece));
        done += piece;
    } while (done < n);
    count_small(comm, begin);
    return SHOAL_OK;
}

shoal_status comm_all_reduce_i64(struct comm *comm, int64_t *values, size_t n)
{
    return reduce(comm, &SUM, values, n);
}

shoal_status comm_all_reduce_max_i64(struct comm *comm, int64_t *values, size_t n)
{
    return reduce(comm, &MAX, values, n);
}

/* One piece of an all-gather of bytes; rank r's block goes to out + r * stride. */
static shoal_status gather_piece(struct comm *comm, const char *in, size_t n_bytes, char *out,
                                 size_t stride)
{
    size_t local_size = (size_t)comm->local_size;

    comm_call_enter(comm, CALL_GATHER_BYTES, n_bytes);
    memcpy(slot_of(comm, comm->local_rank), in, n_bytes);
    SHOAL_TRY(comm_call_meet(comm));
    if (comm->host_count == 1) {
        for (size_t l = 0; l < local_size; l++)
            memcpy(out + l * stride, slot_of(comm, (int)l), n_bytes);
        return SHOAL_OK;
    }

    char *send = comm->staging, *receive = comm->staging + comm->staging_bytes / 2;

    for (size_t l = 0; l < local_size; l++)
        memcpy(send + l * n_bytes, slot_of(comm, (int)l), n_bytes);
    SHOAL_TRY(comm_wire_run(comm, &(struct wire_job){.kind = WIRE_ALL_GATHER,
                                                     .send = send,
                                                     .receive = receive,
                                                     .n = local_size * n_bytes}));
    for (size_t r = 0; r < (size_t)comm->size; r++)
        memcpy(out + r * stride, receive + r * n_bytes, n_bytes);
    return SHOAL_OK;
}

shoal_status comm_all_gather_bytes(struct comm *comm, const void *in, size_t n_bytes, void *out)
{
    double begin = clock_seconds();
    size_t piece = SLOT_BYTES;

    if (comm->host_count > 1 && piece > comm->staging_bytes / 2 / (size_t)comm->size)
        piece = comm->staging_bytes / 2 / (size_t)comm->size;
    for (size_t done = 0; done < n_bytes; done += piece)
        SHOAL_TRY(gather_piece(comm, (const char *)in + done,
                               n_bytes - done < piece ? n_bytes - done : piece, (char *)out + done,
                               n_bytes));
    count_small(comm, begin);
    return SHOAL_OK;
}

static shoal_status broadcast_piece(struct comm *comm, int root, char *data, size_t n_bytes)
{
    int root_host = root / comm->local_size, root_local = root % comm->local_size;

    comm_call_enter(comm, CALL_BROADCAST, n_bytes);
    if (comm->rank == root)
        memcpy(slot_of(comm, comm->local_rank), data, n_bytes);
    SHOAL_TRY(comm_call_meet(comm));
    if (comm->host == root_host && comm->rank != root)
        memcpy(data, slot_of(comm, root_local), n_bytes);
    return run_between_hosts(
        comm, &(struct wire_job){.kind = WIRE_BROADCAST, .n = n_bytes, .root = root_host}, data,
        n_bytes);
}

shoal_status comm_broadcast(struct comm *comm, int root, void *data, size_t n_bytes)
{
    double begin = clock_seconds();

    if (root < 0 || root >= comm->size)
        return fail(SHOAL_ERR_INTERNAL, "broadcast: root %d of %d ranks", root, comm->size);
    for (size_t done = 0; done < n_bytes; done += SLOT_BYTES)
        SHOAL_TRY(broadcast_piece(comm, root, (char *)data + done,
                                  n_bytes - done < SLOT_BYTES ? n_bytes - done : SLOT_BYTES));
    count_small(comm, begin);
    return SHOAL_OK;
}

shoal_status comm_barrier(struct comm *comm)
{
    double begin = clock_seconds();

    comm_call_enter(comm, CALL_BARRIER, 0);
    SHOAL_TRY(comm_call_meet(comm));
    if (comm->host_count > 1)
        SHOAL_TRY(comm_wire_run(comm, &(struct wire_job){.kind = WIRE_BARRIER}));
    count_small(comm, begin);
    return SHOAL_OK;
}

shoal_status comm_agree(struct comm *comm, shoal_status status)
{
    char text[BOARD_TEXT_BYTES] = "";
    int32_t own = status;
    int lowest = 0;

    if (status != SHOAL_OK)
        snprintf(text, sizeof text, "%s", shoal_last_error());
    SHOAL_TRY(comm_all_gather_bytes(comm, &own, sizeof own, comm->verdicts));
    while (lowest < comm->size && comm->verdicts[lowest] == SHOAL_OK)
        lowest++;
    if (lowest == comm->size)
        return SHOAL_OK;
    SHOAL_TRY(comm_broadcast(comm, lowest, text, sizeof text));
    fail_adopt((shoal_status)comm->verdicts[lowest], text);
    return fail_context((shoal_status)comm->verdicts[lowest], "rank %d (%s)", lowest,
                        comm->ranks[lowest].host_name);
}

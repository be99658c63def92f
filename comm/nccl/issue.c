#include "comm/nccl/nccl_internal.h"

/* Bulk operations over NCCL: each goes to the COMM queue, between two events. */

/* Room for one more pending operation: the host is ahead of its device by MAX_PENDING at most. */
static shoal_status wait_for_room(struct nccl *nccl)
{
    struct patience patience;
    uint64_t progress = 0;

    patience_start(&patience);
    for (int turn = 0; nccl->issued - nccl->finished == MAX_PENDING; turn++) {
        if (turn > 0)
            comm_nccl_nap(nccl, turn);
        /* The watch judges operations that do not end; it is this wait's limit, too. */
        SHOAL_TRY(comm_nccl_wait_more(nccl, &patience, &progress, 1e9, "room in the queue"));
        SHOAL_TRY(comm_nccl_advance(nccl));
    }
    return SHOAL_OK;
}

/* Bulk operations are not compared one by one: the next control call compares all before it. */
static void note_issue(struct comm *comm, enum call_kind kind, size_t n)
{
    uint64_t digest = comm->issued_digest ^ ((uint64_t)kind << 56) ^ (uint64_t)n;

    digest = (digest + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    comm->issued_digest = digest ^ (digest >> 31);
    atomic_fetch_add_explicit(&comm->self->issued, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&comm->self->progress, 1, memory_order_relaxed);
}

/* Begin an operation; on success the lock is held until end_operation. */
static shoal_status begin_operation(struct nccl *nccl, enum call_kind kind, size_t n)
{
    struct device *device = nccl->comm->device;
    shoal_status status;

    note_issue(nccl->comm, kind, n);
    pthread_mutex_lock(&nccl->lock);
    SHOAL_TRY_GOTO(nccl->is_gone ? comm_nccl_aborted(nccl) : SHOAL_OK, err_unlock);
    SHOAL_TRY_GOTO(wait_for_room(nccl), err_unlock);
    struct pending *pending = &nccl->pending[nccl->issued % MAX_PENDING];

    pending->kind = kind;
    pending->n = n;
    SHOAL_TRY_GOTO(device->ops->event_record(device, pending->begin, QUEUE_COMM), err_unlock);
    return SHOAL_OK;

err_unlock:
    pthread_mutex_unlock(&nccl->lock);
    return status;
}

static shoal_status end_operation(struct nccl *nccl, shoal_status status)
{
    struct device *device = nccl->comm->device;

    if (status == SHOAL_OK)
        status = device->ops->event_record(device, nccl->pending[nccl->issued % MAX_PENDING].end,
                                           QUEUE_COMM);
    if (status == SHOAL_OK)
        nccl->issued++;
    pthread_mutex_unlock(&nccl->lock);
    return status;
}

static shoal_status settle(struct nccl *nccl, enum nccl_use use, ncclResult_t result)
{
    return comm_nccl_settle(nccl, use, result, wait_limit_s(nccl->comm),
                            use == NCCL_GATHER ? "all-gather" : "reduce-scatter");
}

shoal_status comm_nccl_all_gather(struct comm *comm, const void *shard, void *full,
                                  size_t shard_bytes)
{
    struct nccl *nccl = comm->nccl;

    SHOAL_TRY(comm_device_check(comm, "all-gather", full, (size_t)comm->size * shard_bytes, true));
    SHOAL_TRY(begin_operation(nccl, CALL_ALL_GATHER, shard_bytes));
    return end_operation(nccl, settle(nccl, NCCL_GATHER,
                                      ncclAllGather(shard, full, shard_bytes, ncclUint8,
                                                    nccl->comms[NCCL_GATHER], nccl->stream)));
}

/* A chunk of a tree sum: elements [begin, begin + m) of every shard of n. */
struct chunk {
    const float *full;
    float *scratch;
    size_t n, begin, m;
};

/* Where this rank's elements for `rank` lie. */
static const float *part_for(const struct chunk *chunk, int rank)
{
    return chunk->full + (size_t)rank * chunk->n + chunk->begin;
}

/* Among all but `own`, the place of number k. */
static size_t place_of(int k, int own)
{
    return (size_t)(k < own ? k : k - 1);
}

static void keep_first(ncclResult_t *first, ncclResult_t result)
{
    if (*first == ncclSuccess || *first == ncclInProgress)
        *first = result;
}

static void swap(struct nccl *nccl, int rank, const float *send, float *receive, size_t m,
                 ncclResult_t *first)
{
    ncclComm_t on = nccl->comms[NCCL_REDUCE];

    keep_first(first, ncclSend(send, m, ncclFloat32, rank, on, nccl->stream));
    keep_first(first, ncclRecv(receive, m, ncclFloat32, rank, on, nccl->stream));
}

/* A group must be closed even if a call in it failed. */
static shoal_status close_group(struct nccl *nccl, ncclResult_t first)
{
    keep_first(&first, ncclGroupEnd());
    return settle(nccl, NCCL_REDUCE, first);
}

/*
 * Level one, as on the host: the ranks of a host sum what is for the ranks of the same local
 * number on all hosts; to each of them one partial sum goes.
 */
static shoal_status reduce_on_host(struct nccl *nccl, const struct chunk *chunk, float *out)
{
    const struct comm *comm = nccl->comm;
    int L = comm->local_size, H = comm->host_count, own = comm->local_rank;
    ncclResult_t first = ncclSuccess;

    if (L > 1) {
        SHOAL_TRY(comm_nccl_check(ncclGroupStart(), NULL, "open a group"));
        for (int l = 0; l < L; l++)
            for (int h = 0; l != own && h < H; h++)
                swap(nccl, leader_of(comm, comm->host) + l, part_for(chunk, leader_of(comm, h) + l),
                     chunk->scratch + (place_of(l, own) * (size_t)H + (size_t)h) * chunk->m,
                     chunk->m, &first);
        SHOAL_TRY(close_group(nccl, first));
    }
    for (int h = 0; h < H; h++) {
        struct tree_inputs in = {.blocks = chunk->scratch + (size_t)h * chunk->m,
                                 .own = part_for(chunk, leader_of(comm, h) + own),
                                 .stride = (size_t)H * chunk->m,
                                 .own_index = own,
                                 .count = L};

        SHOAL_TRY(
            nccl->platform->tree_sum(nccl->stream, &in, chunk->m, out + (size_t)h * chunk->m));
    }
    return SHOAL_OK;
}

/* Level two: the partial sums of all hosts; `partial` holds one for each host. */
static shoal_status reduce_over_hosts(struct nccl *nccl, const struct chunk *chunk,
                                      const float *partial, size_t stride, float *out)
{
    const struct comm *comm = nccl->comm;
    int H = comm->host_count, own = comm->host;
    float *remote = chunk->scratch + nccl->layout.remote;
    ncclResult_t first = ncclSuccess;

    SHOAL_TRY(comm_nccl_check(ncclGroupStart(), NULL, "open a group"));
    for (int h = 0; h < H; h++)
        if (h != own)
            swap(nccl, leader_of(comm, h) + comm->local_rank, partial + (size_t)h * stride,
                 remote + place_of(h, own) * chunk->m, chunk->m, &first);
    SHOAL_TRY(close_group(nccl, first));
    struct tree_inputs in = {.blocks = remote,
                             .own = partial + (size_t)own * stride,
                             .stride = chunk->m,
                             .own_index = own,
                             .count = H};

    return nccl->platform->tree_sum(nccl->stream, &in, chunk->m, out);
}

static shoal_status reduce_chunk(struct nccl *nccl, const struct chunk *chunk, float *out)
{
    const struct comm *comm = nccl->comm;
    float *partial = chunk->scratch + nccl->layout.partial;

    if (comm->host_count == 1)
        return reduce_on_host(nccl, chunk, out);
    if (comm->local_size == 1)
        return reduce_over_hosts(nccl, chunk, part_for(chunk, 0), chunk->n, out);
    SHOAL_TRY(reduce_on_host(nccl, chunk, partial));
    return reduce_over_hosts(nccl, chunk, partial, chunk->m, out);
}

static shoal_status reduce_by_tree(struct nccl *nccl, const float *full, float *out, size_t n)
{
    size_t most = nccl->layout.chunk > 0 ? nccl->layout.chunk : n;

    for (size_t begin = 0; begin < n; begin += most) {
        struct chunk chunk = {.full = full,
                              .scratch = (float *)(void *)nccl->comm->on_device.scratch,
                              .n = n,
                              .begin = begin,
                              .m = n - begin < most ? n - begin : most};

        SHOAL_TRY(reduce_chunk(nccl, &chunk, out + begin));
    }
    return SHOAL_OK;
}

shoal_status comm_nccl_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n)
{
    struct nccl *nccl = comm->nccl;
    shoal_status status;

    SHOAL_TRY(comm_device_check(comm, "reduce-scatter", full, (size_t)comm->size * n * sizeof *full,
                                false));
    SHOAL_TRY(begin_operation(nccl, CALL_REDUCE_SCATTER, n));
    if (comm->ring)
        status = settle(nccl, NCCL_REDUCE,
                        ncclReduceScatter(full, out, n, ncclFloat32, ncclSum,
                                          nccl->comms[NCCL_REDUCE], nccl->stream));
    else
        status = reduce_by_tree(nccl, full, out, n);
    return end_operation(nccl, status);
}

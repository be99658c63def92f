#include "comm/transport_internal.h"

#include <stdlib.h>
#include <string.h>

/*
 * Bulk on devices by way of the host: a piece of the device's memory is fetched into the host's
 * window, the ranks exchange it there by the host's own algorithm, the result is delivered.  Sums
 * are taken element by element over the ranks, so that cutting into pieces changes no bit.
 *
 * The window of a host holds, in this order:
 *
 *   shared part   four slots, each room for one piece of every rank's shard
 *   own part      two pieces of every rank's shard to be summed; then two pieces of the sum
 *
 * While the host exchanges piece k, the COMM queue delivers piece k - 1 and fetches piece k + 1:
 *
 *   queue   F0 F1 | D0 F2 | D1 F3 | D2 F4 ...
 *   host    wait F0, exchange 0 | wait F1, exchange 1 | wait F2, exchange 2 ...
 *
 * The queue is in order: who has waited for the fetch of piece k has delivered all up to k - 2.
 *
 * - Gathers use the slots in turns, counted over all calls.  Every rank has waited before it enters
 *   exchange k, and none leaves it before all have entered: then nobody delivers from the slot of
 *   piece k - 2 any more, and piece k + 2 may be fetched into it.
 * - Who leaves exchange k of a sum is read by no peer any more: piece k + 2 may be fetched over k.
 *   Its sum goes where that of k - 2 was, which has been delivered.
 *
 * A call ends, also by a failure, when its queue is through.
 */

enum {
    SLOTS = 4,
    DEPTH = 2,                    /* pieces fetched ahead */
    STAGE_BYTES = 4 * 1024 * 1024 /* of a slot, and of a piece to be summed */
};

struct staged {
    char *slots[SLOTS];
    size_t slot_bytes;
    size_t turn; /* pieces gathered so far */
    char *parts[DEPTH], *sums[DEPTH];
    size_t parts_bytes;
    struct device_event *fetched[DEPTH]; /* NULL on a device without queues */
};

/* A bulk operation, cut into pieces of every rank's shard. */
struct bulk {
    struct comm *comm;
    const char *from;
    char *to;
    size_t shard_bytes, piece_bytes, n_pieces;
    shoal_status (*fetch)(const struct bulk *bulk, size_t k);
    shoal_status (*exchange)(const struct bulk *bulk, size_t k);
    shoal_status (*deliver)(const struct bulk *bulk, size_t k);
};

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Room for at least one cache line of every rank. */
static size_t stage_bytes(int ranks, size_t most)
{
    size_t least = (size_t)ranks * CACHE_LINE, n = min_size(STAGE_BYTES, most);

    return round_to_page(n > least ? n : least);
}

void comm_staged_sizes(int ranks, struct window_sizes *sizes)
{
    size_t parts = stage_bytes(ranks, sizes->own);

    sizes->host_shared = SLOTS * stage_bytes(ranks, sizes->shared);
    sizes->host_own = DEPTH * (parts + round_to_page(parts / (size_t)ranks));
}

static shoal_status make_events(const struct comm *comm)
{
    struct device *device = comm->device;

    for (int i = 0; device_has_queues(device) && i < DEPTH; i++)
        SHOAL_TRY(device->ops->event_create(device, &comm->staged->fetched[i]));
    return SHOAL_OK;
}

static shoal_status attach(struct comm *comm)
{
    struct staged *staged = calloc(1, sizeof *staged);

    if (staged == NULL)
        return fail(SHOAL_ERR_NOMEM, "transport staged: out of memory");
    comm->staged = staged;
    staged->slot_bytes = comm->window_shared_bytes / SLOTS;
    for (size_t i = 0; i < SLOTS; i++)
        staged->slots[i] = comm->window.base + i * staged->slot_bytes;
    staged->parts_bytes = stage_bytes(comm->size, comm->on_device.own_bytes);
    size_t sum_bytes = comm->window_own_bytes / DEPTH - staged->parts_bytes;
    for (size_t i = 0; i < DEPTH; i++) {
        staged->parts[i] = window_own(comm, comm->local_rank) + i * staged->parts_bytes;
        staged->sums[i] =
            window_own(comm, comm->local_rank) + DEPTH * staged->parts_bytes + i * sum_bytes;
    }
#ifdef SHOAL_WITH_CUDA
    if (strcmp(comm->device->ops->name, "cuda") == 0)
        comm_staged_pin(comm->window.base, comm->window.n_bytes);
#endif
    return make_events(comm);
}

static bool stop(struct comm *comm, shoal_status status)
{
    struct staged *staged = comm->staged;

    (void)status;
    if (staged == NULL)
        return true;
#ifdef SHOAL_WITH_CUDA
    if (strcmp(comm->device->ops->name, "cuda") == 0)
        comm_staged_unpin(comm->window.base);
#endif
    for (int i = 0; i < DEPTH; i++)
        if (staged->fetched[i] != NULL)
            comm->device->ops->event_destroy(comm->device, staged->fetched[i]);
    free(staged);
    comm->staged = NULL;
    return true;
}

static shoal_status copy(const struct bulk *bulk, void *to, const void *from, size_t n_bytes)
{
    return device_copy(bulk->comm->device, QUEUE_COMM, to, from, n_bytes);
}

/* ---- pieces ---- */

static size_t begin_of(const struct bulk *bulk, size_t k)
{
    return k * bulk->piece_bytes;
}

static size_t bytes_of(const struct bulk *bulk, size_t k)
{
    return min_size(bulk->piece_bytes, bulk->shard_bytes - begin_of(bulk, k));
}

static shoal_status issue_fetch(const struct bulk *bulk, size_t k)
{
    struct device *device = bulk->comm->device;
    struct device_event *fetched = bulk->comm->staged->fetched[k % DEPTH];

    SHOAL_TRY(bulk->fetch(bulk, k));
    return fetched != NULL ? device->ops->event_record(device, fetched, QUEUE_COMM) : SHOAL_OK;
}

static shoal_status wait_for_fetch(const struct bulk *bulk, size_t k)
{
    struct device *device = bulk->comm->device;
    struct device_event *fetched = bulk->comm->staged->fetched[k % DEPTH];

    return fetched != NULL ? device->ops->event_sync(device, fetched) : SHOAL_OK;
}

static shoal_status run_pieces(const struct bulk *bulk)
{
    for (size_t k = 0; k < min_size(DEPTH, bulk->n_pieces); k++)
        SHOAL_TRY(issue_fetch(bulk, k));
    for (size_t k = 0; k < bulk->n_pieces; k++) {
        SHOAL_TRY(wait_for_fetch(bulk, k));
        SHOAL_TRY(bulk->exchange(bulk, k));
        SHOAL_TRY(bulk->deliver(bulk, k));
        if (k + DEPTH < bulk->n_pieces)
            SHOAL_TRY(issue_fetch(bulk, k + DEPTH));
    }
    return SHOAL_OK;
}

/* Until nothing of the window is read or written by the device, whatever has happened. */
static shoal_status run(struct bulk *bulk, size_t room_bytes)
{
    struct device *device = bulk->comm->device;

    bulk->piece_bytes = room_bytes / (size_t)bulk->comm->size / CACHE_LINE * CACHE_LINE;
    bulk->n_pieces = (bulk->shard_bytes + bulk->piece_bytes - 1) / bulk->piece_bytes;
    shoal_status status = run_pieces(bulk);

    if (device->ops->queue_sync == NULL)
        return status;
    shoal_status end = device->ops->queue_sync(device, QUEUE_COMM);
    return end != SHOAL_OK ? end : status;
}

/* ---- all-gather ---- */

static char *gather_slot(const struct bulk *bulk, size_t k)
{
    const struct staged *staged = bulk->comm->staged;

    return staged->slots[(staged->turn + k) % SLOTS];
}

static shoal_status gather_fetch(const struct bulk *bulk, size_t k)
{
    size_t n = bytes_of(bulk, k);

    return copy(bulk, gather_slot(bulk, k) + (size_t)bulk->comm->rank * n,
                bulk->from + begin_of(bulk, k), n);
}

static shoal_status gather_exchange(const struct bulk *bulk, size_t k)
{
    size_t n = bytes_of(bulk, k);
    char *slot = gather_slot(bulk, k);

    return comm_host_all_gather(bulk->comm, slot + (size_t)bulk->comm->rank * n, slot, n);
}

static shoal_status gather_deliver(const struct bulk *bulk, size_t k)
{
    size_t n = bytes_of(bulk, k), begin = begin_of(bulk, k);

    for (size_t r = 0; r < (size_t)bulk->comm->size; r++) {
        char *to = bulk->to + r * bulk->shard_bytes + begin;

        if (to != bulk->from + begin)
            SHOAL_TRY(copy(bulk, to, gather_slot(bulk, k) + r * n, n));
    }
    return SHOAL_OK;
}

static shoal_status staged_all_gather(struct comm *comm, const void *shard, void *full,
                                      size_t shard_bytes)
{
    struct bulk bulk = {.comm = comm,
                        .from = shard,
                        .to = full,
                        .shard_bytes = shard_bytes,
                        .fetch = gather_fetch,
                        .exchange = gather_exchange,
                        .deliver = gather_deliver};

    SHOAL_TRY(comm_device_check(comm, "all-gather", full, (size_t)comm->size * shard_bytes, true));
    SHOAL_TRY(run(&bulk, comm->staged->slot_bytes));
    comm->staged->turn += bulk.n_pieces;
    return SHOAL_OK;
}

/* ---- reduce-scatter ---- */

static shoal_status reduce_fetch(const struct bulk *bulk, size_t k)
{
    size_t n = bytes_of(bulk, k);

    for (size_t r = 0; r < (size_t)bulk->comm->size; r++)
        SHOAL_TRY(copy(bulk, bulk->comm->staged->parts[k % DEPTH] + r * n,
                       bulk->from + r * bulk->shard_bytes + begin_of(bulk, k), n));
    return SHOAL_OK;
}

static shoal_status reduce_exchange(const struct bulk *bulk, size_t k)
{
    const struct staged *staged = bulk->comm->staged;

    return comm_host_reduce_scatter(
        bulk->comm, (const float *)(const void *)staged->parts[k % DEPTH],
        (float *)(void *)staged->sums[k % DEPTH], bytes_of(bulk, k) / sizeof(float));
}

static shoal_status reduce_deliver(const struct bulk *bulk, size_t k)
{
    return copy(bulk, bulk->to + begin_of(bulk, k), bulk->comm->staged->sums[k % DEPTH],
                bytes_of(bulk, k));
}

static shoal_status staged_reduce_scatter(struct comm *comm, const float *full, float *out,
                                          size_t n)
{
    struct bulk bulk = {.comm = comm,
                        .from = (const char *)full,
                        .to = (char *)out,
                        .shard_bytes = n * sizeof *full,
                        .fetch = reduce_fetch,
                        .exchange = reduce_exchange,
                        .deliver = reduce_deliver};

    SHOAL_TRY(comm_device_check(comm, "reduce-scatter", full, (size_t)comm->size * n * sizeof *full,
                                false));
    return run(&bulk, comm->staged->parts_bytes);
}

const struct transport comm_transport_staged = {.id = COMM_STAGED,
                                                .name = "staged",
                                                .is_on_device = true,
                                                .attach = attach,
                                                .stop = stop,
                                                .all_gather = staged_all_gather,
                                                .reduce_scatter = staged_reduce_scatter};

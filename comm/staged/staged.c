#include "comm/transport_internal.h"

#include <stdlib.h>
#include <string.h>

/*
 * Bulk on devices by way of the host: a piece of the device's memory is copied into the host's
 * window, the host's own algorithm runs on it, the result is copied back.  Sums are taken element
 * by element over the ranks, so that cutting into pieces changes no bit.
 *
 * The window of a host holds, in this order:
 *
 *   shared part   two halves, each room for one piece of every rank's shard
 *   own part      one piece of every rank's shard to be summed; then the piece of the sum
 *
 * All-gathers use the halves in turns: who fills half k % 2 for piece k + 2 has left piece k + 1,
 * which every rank entered after it had copied piece k to its device.
 */

enum { STAGE_BYTES = 8 * 1024 * 1024 }; /* of a half, and of what is summed */

struct staged {
    char *half[2];
    size_t half_bytes;
    unsigned turn;
    float *parts, *sum;
    size_t parts_bytes;
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

    sizes->host_shared = 2 * stage_bytes(ranks, sizes->shared);
    sizes->host_own = parts + round_to_page(parts / (size_t)ranks);
}

static shoal_status attach(struct comm *comm)
{
    struct staged *staged = calloc(1, sizeof *staged);

    if (staged == NULL)
        return fail(SHOAL_ERR_NOMEM, "transport staged: out of memory");
    staged->half_bytes = comm->window_shared_bytes / 2;
    staged->half[0] = comm->window.base;
    staged->half[1] = comm->window.base + staged->half_bytes;
    staged->parts_bytes = stage_bytes(comm->size, comm->on_device.own_bytes);
    staged->parts = (float *)(void *)window_own(comm, comm->local_rank);
    staged->sum = staged->parts + staged->parts_bytes / sizeof(float);
    comm->staged = staged;
#ifdef SHOAL_WITH_CUDA
    if (strcmp(comm->device->ops->name, "cuda") == 0)
        comm_staged_pin(comm->window.base, comm->window.n_bytes);
#endif
    return SHOAL_OK;
}

static bool stop(struct comm *comm, shoal_status status)
{
    (void)status;
#ifdef SHOAL_WITH_CUDA
    if (comm->staged != NULL && strcmp(comm->device->ops->name, "cuda") == 0)
        comm_staged_unpin(comm->window.base);
#endif
    free(comm->staged);
    comm->staged = NULL;
    return true;
}

static shoal_status copy(struct comm *comm, void *to, const void *from, size_t n_bytes)
{
    return device_copy(comm->device, QUEUE_COMM, to, from, n_bytes);
}

/* Until the copies are done; before the first one it lets the queue's earlier work finish. */
static shoal_status sync(struct comm *comm)
{
    return comm->device->ops->queue_sync != NULL
               ? comm->device->ops->queue_sync(comm->device, QUEUE_COMM)
               : SHOAL_OK;
}

/* Bytes [begin, begin + n) of every shard, through one half of the shared part. */
static shoal_status gather_piece(struct comm *comm, const char *shard, char *full,
                                 size_t shard_bytes, size_t begin, size_t n)
{
    struct staged *staged = comm->staged;
    char *half = staged->half[staged->turn++ & 1];
    char *place = half + (size_t)comm->rank * n;

    SHOAL_TRY(copy(comm, place, shard + begin, n));
    SHOAL_TRY(sync(comm));
    SHOAL_TRY(comm_host_all_gather(comm, place, half, n));
    for (size_t r = 0; r < (size_t)comm->size; r++) {
        char *to = full + r * shard_bytes + begin;

        if (to != shard + begin)
            SHOAL_TRY(copy(comm, to, half + r * n, n));
    }
    return sync(comm);
}

static shoal_status staged_all_gather(struct comm *comm, const void *shard, void *full,
                                      size_t shard_bytes)
{
    size_t piece = comm->staged->half_bytes / (size_t)comm->size / CACHE_LINE * CACHE_LINE;
    size_t begin = 0;

    SHOAL_TRY(comm_device_check(comm, "all-gather", full, (size_t)comm->size * shard_bytes, true));
    do {
        size_t n = min_size(piece, shard_bytes - begin);

        SHOAL_TRY(gather_piece(comm, shard, full, shard_bytes, begin, n));
        begin += n;
    } while (begin < shard_bytes);
    return SHOAL_OK;
}

/* Elements [begin, begin + m) of every shard of n. */
static shoal_status reduce_piece(struct comm *comm, const float *full, float *out, size_t n,
                                 size_t begin, size_t m)
{
    struct staged *staged = comm->staged;

    for (size_t r = 0; r < (size_t)comm->size; r++)
        SHOAL_TRY(copy(comm, staged->parts + r * m, full + r * n + begin, m * sizeof *full));
    SHOAL_TRY(sync(comm));
    SHOAL_TRY(comm_host_reduce_scatter(comm, staged->parts, staged->sum, m));
    SHOAL_TRY(copy(comm, out + begin, staged->sum, m * sizeof *out));
    return sync(comm);
}

static shoal_status staged_reduce_scatter(struct comm *comm, const float *full, float *out,
                                          size_t n)
{
    size_t piece =
        comm->staged->parts_bytes / (size_t)comm->size / CACHE_LINE * CACHE_LINE / sizeof(float);
    size_t begin = 0;

    SHOAL_TRY(comm_device_check(comm, "reduce-scatter", full, (size_t)comm->size * n * sizeof *full,
                                false));
    do {
        size_t m = min_size(piece, n - begin);

        SHOAL_TRY(reduce_piece(comm, full, out, n, begin, m));
        begin += m;
    } while (begin < n);
    return SHOAL_OK;
}

const struct transport comm_transport_staged = {.id = COMM_STAGED,
                                                .name = "staged",
                                                .is_on_device = true,
                                                .attach = attach,
                                                .stop = stop,
                                                .all_gather = staged_all_gather,
                                                .reduce_scatter = staged_reduce_scatter};

#include "comm/transport_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The device of a rank: which transport fits, and the memory that stands for the window. */

enum { DEVICE_ID_BYTES = 64 };

/* What every rank tells of its device. */
struct device_entry {
    int32_t is_separate, can_nccl;
    char name[16];
    char id[DEVICE_ID_BYTES]; /* unique on a machine; of those that NCCL can work with */
};

static const struct transport *transport_of(enum comm_transport id)
{
    switch (id) {
    case COMM_STAGED:
        return &comm_transport_staged;
    case COMM_NCCL:
#ifdef SHOAL_WITH_CUDA
        return &comm_transport_nccl;
#else
        return NULL;
#endif
    case COMM_SELF:
        return &comm_transport_self;
    case COMM_AUTO:
    case COMM_MPI:
        break;
    }
    return &comm_transport_mpi;
}

/* ---- choice ---- */

static void describe(struct device *device, struct device_entry *entry)
{
    *entry = (struct device_entry){.is_separate = device_is_separate(device)};
    snprintf(entry->name, sizeof entry->name, "%s", device->ops->name);
#ifdef SHOAL_WITH_CUDA
    entry->can_nccl = comm_nccl_identify(device, entry->id, sizeof entry->id);
#endif
}

/* The first rank that is on the same device as a lower one, or -1. */
static int first_sharer(const struct comm *comm, const struct device_entry *entries, int *other)
{
    for (int r = 1; r < comm->size; r++)
        for (int q = 0; q < r; q++)
            if (comm->ranks[r].node == comm->ranks[q].node &&
                strcmp(entries[r].id, entries[q].id) == 0) {
                *other = q;
                return r;
            }
    return -1;
}

static shoal_status check_nccl(const struct comm *comm, const struct device_entry *entries)
{
    int other = 0;

    for (int r = 0; r < comm->size; r++)
        if (!entries[r].can_nccl) {
            fail(SHOAL_ERR_UNAVAILABLE, "transport nccl: rank %d works on device %s", r,
                 entries[r].name);
#ifdef SHOAL_WITH_CUDA
            return fail_hint(SHOAL_ERR_UNAVAILABLE, "let the transport be auto");
#else
            return fail_hint(SHOAL_ERR_UNAVAILABLE, "this build is without CUDA and NCCL");
#endif
        }
    int rank = first_sharer(comm, entries, &other);
    if (rank < 0)
        return SHOAL_OK;
    fail(SHOAL_ERR_UNAVAILABLE, "transport nccl: ranks %d and %d share GPU %s of %s", other, rank,
         entries[rank].id, comm->ranks[rank].host_name);
    fail_why(SHOAL_ERR_UNAVAILABLE, "NCCL wants a GPU per rank");
    return fail_hint(SHOAL_ERR_UNAVAILABLE, "let the transport be auto or staged");
}

static shoal_status check_same(const struct comm *comm, const struct device_entry *entries)
{
    for (int r = 1; r < comm->size; r++)
        if (strcmp(entries[r].name, entries[0].name) != 0)
            return fail(SHOAL_ERR_UNAVAILABLE,
                        "devices differ: rank 0 works on %s, rank %d (%s) on %s", entries[0].name,
                        r, comm->ranks[r].host_name, entries[r].name);
    return SHOAL_OK;
}

/* From what all ranks told, so that all choose alike. */
static shoal_status choose(struct comm *comm, const struct device_entry *entries,
                           enum comm_transport *id_out)
{
    enum comm_transport id = comm->wanted;
    int other = 0;

    SHOAL_TRY(check_same(comm, entries));
    if (id == COMM_AUTO && !entries[0].is_separate)
        id = COMM_MPI;
    else if (id == COMM_AUTO && comm->size == 1)
        id = COMM_SELF;
    else if (id == COMM_AUTO)
        id = entries[0].can_nccl && first_sharer(comm, entries, &other) < 0 ? COMM_NCCL
                                                                            : COMM_STAGED;
    if (id == COMM_NCCL)
        SHOAL_TRY(check_nccl(comm, entries));
    if (id == COMM_MPI && entries[0].is_separate) {
        fail(SHOAL_ERR_CONFIG, "transport mpi moves host memory, the ranks work on device %s",
             entries[0].name);
        return fail_hint(SHOAL_ERR_CONFIG, "let the transport be auto");
    }
    if (id == COMM_SELF && comm->size > 1)
        return fail(SHOAL_ERR_CONFIG, "transport self is for one rank, this run has %d",
                    comm->size);
    *id_out = id;
    return SHOAL_OK;
}

/* Of each part of a window that the first exchange goes through, over all ranks. */
enum { FIRST_BYTES = 16 << 20 };

/* Through a window that goes again, so that the run's is asked for when connections have theirs. */
static shoal_status first_exchange(struct comm *comm)
{
    struct window_sizes sizes = comm_window_sizes(comm->transport->id, comm->ring, comm->size,
                                                  comm->local_size, FIRST_BYTES, FIRST_BYTES);
    shoal_status status = comm_agree(comm, comm_device_take(comm, &sizes));

    if (status == SHOAL_OK)
        status = comm_agree(comm, comm->transport->warm_up(comm));
    comm_device_give(comm);
    return status;
}

/* Of devices without an identity a machine has one. */
static int count_sharers(const struct comm *comm, const struct device_entry *entries)
{
    const struct device_entry *own = &entries[comm->rank];
    int n = 0;

    for (int r = 0; r < comm->size; r++)
        n += comm->ranks[r].node == comm->ranks[comm->rank].node &&
             strcmp(entries[r].id, own->id) == 0;
    return n;
}

shoal_status comm_use_device(struct comm *comm, struct device *device)
{
    struct device_entry own, *entries;
    enum comm_transport id = COMM_MPI;

    if (comm->device != NULL || comm->window.base != NULL)
        return fail(SHOAL_ERR_INTERNAL, "comm_use_device: called %s",
                    comm->device != NULL ? "twice" : "after comm_window_create");
    entries = calloc((size_t)comm->size, sizeof *entries);
    shoal_status status =
        comm_agree(comm, entries == NULL ? fail(SHOAL_ERR_NOMEM, "table of devices: out of memory")
                                         : SHOAL_OK);
    describe(device, &own);
    if (status == SHOAL_OK)
        status = comm_all_gather_bytes(comm, &own, sizeof own, entries);
    if (status == SHOAL_OK)
        status = choose(comm, entries, &id);
    if (status == SHOAL_OK)
        comm->device_ranks = count_sharers(comm, entries);
    free(entries);
    SHOAL_TRY(status);
    comm->device = device;
    comm->transport = transport_of(id);
    if (comm->transport->start != NULL)
        SHOAL_TRY(comm->transport->start(comm));
    return comm->transport->warm_up != NULL ? first_exchange(comm) : SHOAL_OK;
}

/* ---- memory ---- */

struct window_sizes comm_window_sizes(enum comm_transport transport, bool ring, int ranks,
                                      int ranks_per_host, size_t own_bytes, size_t shared_bytes)
{
    struct window_sizes sizes = {.own = round_to_page(own_bytes),
                                 .shared = round_to_page(shared_bytes)};

    if (transport == COMM_MPI || transport == COMM_AUTO) {
        sizes.host_own = sizes.own;
        sizes.host_shared = sizes.shared;
    }
    if (transport == COMM_STAGED)
        comm_staged_sizes(ranks, &sizes);
    if (transport == COMM_NCCL && !ring)
        sizes.scratch = round_to_page(comm_nccl_scratch(ranks, ranks_per_host, sizes.own));
    return sizes;
}

struct comm_memory comm_memory_of(enum comm_transport transport, bool ring, int ranks,
                                  int ranks_per_host, size_t own_bytes, size_t shared_bytes)
{
    struct window_sizes sizes =
        comm_window_sizes(transport, ring, ranks, ranks_per_host, own_bytes, shared_bytes);
    struct comm_memory memory = {.scratch_bytes = sizes.scratch};

    if (transport != COMM_MPI && transport != COMM_AUTO)
        memory.device_bytes = sizes.own + sizes.shared + sizes.scratch;
    memory.window_bytes = sizes.host_shared + sizes.host_own * (size_t)ranks_per_host;
    return memory;
}

shoal_status comm_device_take(struct comm *comm, const struct window_sizes *sizes)
{
    struct device *device = comm->device;
    struct device_memory memory = {.own_bytes = sizes->own,
                                   .shared_bytes = sizes->shared,
                                   .scratch_bytes = sizes->scratch,
                                   .n_bytes = sizes->own + sizes->shared + sizes->scratch};
    void *base = NULL;

    if (memory.n_bytes == 0)
        memory.n_bytes = PAGE_BYTES;
    SHOAL_TRY(device->ops->alloc(device, "window", memory.n_bytes, &base));
    memory.own = base;
    memory.shared = memory.own + memory.own_bytes;
    memory.scratch = memory.shared + memory.shared_bytes;
    comm->on_device = memory;
    SHOAL_TRY(device->ops->zero(device, base, memory.n_bytes));
    return comm->transport->attach != NULL ? comm->transport->attach(comm) : SHOAL_OK;
}

void comm_device_give(struct comm *comm)
{
    if (comm->on_device.own != NULL)
        comm->device->ops->free(comm->device, comm->on_device.own, comm->on_device.n_bytes);
    comm->on_device = (struct device_memory){0};
}

shoal_status comm_device_check(const struct comm *comm, const char *what, const void *full,
                               size_t n_bytes, bool is_shared)
{
    const struct device_memory *memory = &comm->on_device;
    size_t offset;

    return comm_window_offset(what, full, n_bytes, is_shared ? memory->shared : memory->own,
                              is_shared ? memory->shared_bytes : memory->own_bytes, &offset);
}

/* ---- transports without a folder of their own ---- */

const struct transport comm_transport_mpi = {.id = COMM_MPI,
                                             .name = "mpi",
                                             .all_gather = comm_host_all_gather,
                                             .reduce_scatter = comm_host_reduce_scatter};

static shoal_status self_copy(struct comm *comm, void *to, const void *from, size_t n_bytes)
{
    return to == from ? SHOAL_OK : device_copy(comm->device, QUEUE_COMM, to, from, n_bytes);
}

static shoal_status self_all_gather(struct comm *comm, const void *shard, void *full,
                                    size_t shard_bytes)
{
    SHOAL_TRY(comm_device_check(comm, "all-gather", full, shard_bytes, true));
    return self_copy(comm, full, shard, shard_bytes);
}

static shoal_status self_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n)
{
    SHOAL_TRY(comm_device_check(comm, "reduce-scatter", full, n * sizeof *full, false));
    return self_copy(comm, out, full, n * sizeof *full);
}

const struct transport comm_transport_self = {.id = COMM_SELF,
                                              .name = "self",
                                              .is_on_device = true,
                                              .all_gather = self_all_gather,
                                              .reduce_scatter = self_reduce_scatter};

/* ---- questions ---- */

enum comm_transport comm_transport(const struct comm *comm)
{
    return comm->transport->id;
}

const char *comm_transport_name(enum comm_transport transport)
{
    static const char *const names[] = {[COMM_AUTO] = "auto",
                                        [COMM_MPI] = "mpi",
                                        [COMM_STAGED] = "staged",
                                        [COMM_NCCL] = "nccl",
                                        [COMM_SELF] = "self"};

    return names[transport];
}

int comm_device_ranks(const struct comm *comm)
{
    return comm->device_ranks;
}

bool comm_shared_per_rank(const struct comm *comm)
{
    return comm->transport->is_on_device;
}

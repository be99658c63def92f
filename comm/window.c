#include "comm/transport_internal.h"
#include "runtime/base/host.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The data window: [shared part][own part of local rank 0][own part of local rank 1]... */

/* More than any machine has; below it neither rounding nor the host's total can wrap. */
#define MAX_PART_BYTES ((size_t)1 << 46)

static shoal_status check_sizes(size_t own_bytes, size_t shared_bytes)
{
    if (own_bytes > MAX_PART_BYTES || shared_bytes > MAX_PART_BYTES)
        return fail(SHOAL_ERR_NOMEM, "window: %zu bytes per rank and %zu shared, at most %zu each",
                    own_bytes, shared_bytes, MAX_PART_BYTES);
    return SHOAL_OK;
}

/* What each rank tells of its window; equal everywhere but for the descriptor. */
struct window_plan {
    uint64_t own_bytes, shared_bytes;
    int64_t fd; /* of a leader */
};

static shoal_status make_window(struct comm *comm, size_t n_bytes)
{
    uint64_t available = host_memory_available_bytes();

    if (n_bytes > available) {
        fail(SHOAL_ERR_NOMEM, "shared window: %zu bytes needed, host %s has %llu bytes available",
             n_bytes, comm->ranks[comm->rank].host_name, (unsigned long long)available);
        return fail_hint(SHOAL_ERR_NOMEM,
                         "use a higher stage, a lower tier, or fewer ranks per host");
    }
    return comm_memory_make("shoal-window", n_bytes, &comm->window);
}

static shoal_status check_plans(const struct comm *comm, const struct window_plan *plans)
{
    for (int r = 1; r < comm->size; r++)
        if (plans[r].own_bytes != plans[0].own_bytes ||
            plans[r].shared_bytes != plans[0].shared_bytes)
            return fail(
                SHOAL_ERR_INTERNAL,
                "window: rank %d asks for %llu + %llu bytes, rank 0 for %llu + %llu", r,
                (unsigned long long)plans[r].own_bytes, (unsigned long long)plans[r].shared_bytes,
                (unsigned long long)plans[0].own_bytes, (unsigned long long)plans[0].shared_bytes);
    return SHOAL_OK;
}

static shoal_status attach_window(struct comm *comm, const struct window_plan *plans,
                                  size_t n_bytes)
{
    int leader = leader_of(comm, comm->host);

    SHOAL_TRY(check_plans(comm, plans));
    if (is_leader(comm))
        return SHOAL_OK;
    if (plans[leader].fd < 0)
        return fail(SHOAL_ERR_UNAVAILABLE, "rank %d made no window", leader);
    return comm_memory_attach("shoal-window", comm->ranks[leader].pid, (int)plans[leader].fd,
                              n_bytes, &comm->window);
}

/* The host's window; parts in whole pages. */
static shoal_status create_on_host(struct comm *comm, const struct window_sizes *sizes)
{
    size_t n_bytes = sizes->host_shared + sizes->host_own * (size_t)comm->local_size;
    struct window_plan plan = {.own_bytes = sizes->own, .shared_bytes = sizes->shared, .fd = -1};
    struct window_plan *plans;
    shoal_status made = SHOAL_OK;

    if (n_bytes == 0)
        n_bytes = PAGE_BYTES;
    plans = calloc((size_t)comm->size, sizeof *plans);
    if (plans == NULL)
        made = fail(SHOAL_ERR_NOMEM, "window of %d ranks: out of memory", comm->size);
    else if (is_leader(comm))
        made = make_window(comm, n_bytes);
    if (made == SHOAL_OK && is_leader(comm))
        plan.fd = comm->window.fd;

    shoal_status status = comm_agree(comm, made);
    if (status == SHOAL_OK)
        status = comm_all_gather_bytes(comm, &plan, sizeof plan, plans);
    if (status == SHOAL_OK)
        status = comm_agree(comm, attach_window(comm, plans, n_bytes));
    free(plans);
    if (status != SHOAL_OK) {
        comm_memory_release(&comm->window);
        return status;
    }
    comm->window_own_bytes = sizes->host_own;
    comm->window_shared_bytes = sizes->host_shared;
    return SHOAL_OK;
}

shoal_status comm_window_create(struct comm *comm, size_t own_bytes, size_t shared_bytes)
{
    if (comm->window.base != NULL)
        return fail(SHOAL_ERR_INTERNAL, "window: created already");
    if (comm->device == NULL && comm->wanted != COMM_AUTO && comm->wanted != COMM_MPI)
        return fail(SHOAL_ERR_INTERNAL, "window: transport %s without comm_use_device",
                    comm_transport_name(comm->wanted));
    /* Every rank asks for the same, so that all refuse. */
    SHOAL_TRY(check_sizes(own_bytes, shared_bytes));
    struct window_sizes sizes = comm_window_sizes(comm->transport->id, comm->ring, comm->size,
                                                  comm->local_size, own_bytes, shared_bytes);

    SHOAL_TRY(create_on_host(comm, &sizes));
    if (!comm->transport->is_on_device)
        return SHOAL_OK;
    shoal_status status = comm_agree(comm, comm_device_take(comm, &sizes));
    if (status != SHOAL_OK) {
        comm_device_give(comm);
        comm_memory_release(&comm->window);
    }
    return status;
}

void *comm_window_own(const struct comm *comm)
{
    if (comm->window.base == NULL)
        return NULL;
    return comm->transport->is_on_device ? comm->on_device.own : window_own(comm, comm->local_rank);
}

void *comm_window_shared(const struct comm *comm)
{
    if (comm->window.base == NULL)
        return NULL;
    return comm->transport->is_on_device ? comm->on_device.shared : comm->window.base;
}

uint64_t comm_window_resident_bytes(const struct comm *comm)
{
    struct stat info;

    if (comm->window.base == NULL || fstat(comm->window.fd, &info) != 0)
        return 0;
    return (uint64_t)info.st_blocks * 512;
}

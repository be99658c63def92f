#pragma once

#include "comm/comm_internal.h"

/*
 * A way to move bulk.  `mpi` works on host memory, in the window; the others on device memory.
 */
struct transport {
    enum comm_transport id;
    const char *name;
    bool is_on_device;

    /* Begin, after the device is known.  What it has done so far, `stop` undoes.  NULL: nothing. */
    shoal_status (*start)(struct comm *comm);

    /* Pin, register and the like, after the window and the device memory exist.  NULL: nothing. */
    shoal_status (*attach)(struct comm *comm);

    /*
     * The first exchange, through all of a window that is there for it alone and attached on every
     * rank.  Collective.  NULL: nothing.
     */
    shoal_status (*warm_up)(struct comm *comm);

    /*
     * End, in bounded time; after a good end all ranks have entered comm_close.  False: something
     * still runs that cannot be ended, and the process must end instead.  NULL: nothing.
     */
    bool (*stop)(struct comm *comm, shoal_status status);

    shoal_status (*all_gather)(struct comm *comm, const void *shard, void *full,
                               size_t shard_bytes);
    shoal_status (*reduce_scatter)(struct comm *comm, const float *full, float *out, size_t n);
};

extern const struct transport comm_transport_mpi, comm_transport_self, comm_transport_staged;

/* Sizes in whole pages. */
struct window_sizes {
    size_t own, shared;           /* what was asked for */
    size_t host_own, host_shared; /* of the host's window */
    size_t scratch;               /* of the device */
};

struct window_sizes comm_window_sizes(enum comm_transport transport, bool ring, int ranks,
                                      int ranks_per_host, size_t own_bytes, size_t shared_bytes);

static inline size_t round_to_page(size_t n_bytes)
{
    return (n_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* ---- device.c ---- */

shoal_status comm_device_take(struct comm *comm, const struct window_sizes *sizes);
void comm_device_give(struct comm *comm);

/* Check that both ends of a bulk operation lie where the header says. */
shoal_status comm_device_check(const struct comm *comm, const char *what, const void *full,
                               size_t n_bytes, bool is_shared);

/* ---- staged/ ---- */

/* Host window that staging takes of each part, at most. */
void comm_staged_sizes(int ranks, struct window_sizes *sizes);

#ifdef SHOAL_WITH_CUDA
/* Let the GPU reach this host memory at full speed; best effort. */
void comm_staged_pin(void *base, size_t n_bytes);
void comm_staged_unpin(void *base);
#endif

/* ---- nccl/ ---- */

/* Device scratch of a tree sum over this layout. */
size_t comm_nccl_scratch(int ranks, int ranks_per_host, size_t own_bytes);

#ifdef SHOAL_WITH_CUDA
extern const struct transport comm_transport_nccl;

/* True if NCCL can work with this device; then its identity, unique on a machine, is in id_out. */
bool comm_nccl_identify(struct device *device, char *id_out, size_t n_bytes);
#endif

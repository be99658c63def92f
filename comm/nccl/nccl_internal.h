#pragma once

#include "comm/nccl/tree_layout.h"
#include "comm/nccl/tree_sum.h"
#include "comm/transport_internal.h"

#include <nccl.h>

/*
 * NCCL behind comm.h.
 *
 *   nccl.c       start and end
 *   issue.c      the bulk operations
 *   watch.c      the thread that ends what would hang
 *   platform.c   what it needs of CUDA beside NCCL itself
 *   tree_sum.cu  the sum
 *
 * All-gathers and reduce-scatters have a communicator each, so that neither kind waits for the
 * other inside NCCL.  Both are issued to the COMM queue in the order of the calls, which is the
 * same on every rank: NCCL promises progress for nothing else.
 *
 * NCCL has no time-out of its own: a kernel whose peer is dead spins forever, and with it every
 * wait for the queue.  So calls do not block (blocking = 0), each operation lies between two
 * events, and the watch aborts both communicators when the run's board is set, when NCCL reports an error,
 * or when an operation that has begun does not end in time.  The queue then drains, and whoever
 * waited for it meets the board at the next call.
 */

enum nccl_use { NCCL_GATHER, NCCL_REDUCE, NCCL_USES };

/* The table stands in for CUDA in tests. */
struct nccl_platform {
    const char *name;                           /* of the device */
    shoal_status (*use)(struct device *device); /* in this thread */
    shoal_status (*identify)(struct device *device, char *id_out, size_t n_bytes);
    cudaStream_t (*stream)(const struct device *device);
    shoal_status (*is_done)(struct device *device, struct device_event *event, bool *is_done_out);
    shoal_status (*tree_sum)(cudaStream_t stream, const struct tree_inputs *in, size_t n,
                             float *out);
};

extern const struct nccl_platform comm_nccl_cuda;

/* For tests: another device than CUDA's. */
void comm_nccl_set_platform(const struct nccl_platform *platform);

enum { MAX_PENDING = 256 };

struct pending {
    enum call_kind kind;
    size_t n;
    struct device_event *begin, *end;
};

/* What the watch is to do. */
enum nccl_order { ORDER_WATCH, ORDER_FINALIZE, ORDER_ABORT };

struct nccl {
    struct comm *comm;
    const struct nccl_platform *platform;
    struct tree_layout layout;
    cudaStream_t stream;

    pthread_mutex_t lock; /* guards the rest, and is held in every NCCL call */
    ncclComm_t comms[NCCL_USES];
    bool is_ready;             /* both communicators work */
    bool is_gone;              /* aborted, or finalized at the end */
    uint64_t issued, finished; /* operations; number k lies in pending[k % MAX_PENDING] */
    struct pending pending[MAX_PENDING];
    struct patience patience; /* with the oldest one, and what was then */
    uint64_t watched, progress;
    bool has_begun;

    pthread_t thread;
    bool has_thread;
    _Atomic uint32_t order, has_ended; /* futex words */
};

/* SHOAL_OK, or a failure that names `what` and NCCL's text; `comm` may be NULL. */
shoal_status comm_nccl_check(ncclResult_t result, ncclComm_t comm, const char *what);

/*
 * Wait while `result` is in progress, without the lock.  With the lock; ends as every wait does.
 */
shoal_status comm_nccl_settle(struct nccl *nccl, enum nccl_use use, ncclResult_t result,
                              double limit_s, const char *what);

/* Let others have the lock for a moment, a longer one after the first turns.  With the lock. */
void comm_nccl_nap(struct nccl *nccl, int turn);

/* Whether to go on waiting; to be asked after every nap.  With the lock. */
shoal_status comm_nccl_wait_more(struct nccl *nccl, struct patience *patience, uint64_t *progress,
                                 double limit_s, const char *what);

/* Forget the operations that are done.  With the lock. */
shoal_status comm_nccl_advance(struct nccl *nccl);

/* Abort both communicators, once.  With the lock. */
void comm_nccl_abort(struct nccl *nccl);

/* The failure that made someone abort. */
shoal_status comm_nccl_aborted(const struct nccl *nccl);

shoal_status comm_nccl_all_gather(struct comm *comm, const void *shard, void *full,
                                  size_t shard_bytes);
shoal_status comm_nccl_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n);

shoal_status comm_nccl_watch_start(struct nccl *nccl);

/* Give the last order and wait for its end; false: it did not end in time. */
bool comm_nccl_watch_stop(struct nccl *nccl, enum nccl_order order);

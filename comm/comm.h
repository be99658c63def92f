#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/pool.h"
#include "runtime/base/status.h"
#include "runtime/device/device.h"
#include "runtime/schedule/schedule.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Communication between ranks: one interface; MPI and shared memory, host staging or NCCL behind
 * it.
 *
 * Only two operations move bulk: all-gather and reduce-scatter.  Inside a host they
 * go through one shared window that holds the flat unit buffers themselves: a
 * reduce-scatter reads the peers' buffers in place, an all-gather writes each shard
 * once into the host's single full copy.  Between hosts, rank l of each host talks to
 * rank l of the others in 4 MB pieces (MPI_Ialltoall / MPI_Iallgather).
 *
 * Sums follow one balanced binary tree over the rank index in fp32 (split at the
 * largest power of two below n): the same bits for every layout of ranks on machines.  For that
 * a "host" is an aligned power-of-two block of ranks on one machine, the largest that
 * fits everywhere (or all ranks, on one machine); with odd layouts a machine holds several hosts,
 * down to one rank each.
 *
 * No blocking MPI call is made after comm_open and before comm_close: a communication thread
 * owns all MPI calls (test, yield, short sleep); ranks of a host meet at a futex
 * barrier in the window.  A wait ends early when a peer has failed or has gone
 * silent; it then returns SHOAL_ERR_UNAVAILABLE or the peer's own status with the
 * peer's message.
 *
 * On a device with memory of its own (comm_use_device) the bulk operations move device memory:
 *
 *   staged   through a piece of the host's window and the algorithms above; several ranks may share
 *            a GPU.  A call synchronizes the device's COMM queue and is complete when it returns.
 *   nccl     NCCL; a GPU per rank.  A call returns when its work is in the COMM queue.  Sums by
 *            `tree` are an exchange between the ranks followed by the tree in a kernel.
 *
 * Both give the same bits as the host's memory would (`ring` is the transport's own order
 * everywhere).  Control functions and their arguments stay in host memory.
 *
 * One thread per rank calls these functions (the trainer's); all functions marked
 * Collective must be called by all ranks in the same order.  A failure that comm_agree returns
 * leaves the ranks in step; after any other failure of a collective only comm_fail and comm_close
 * are left.
 */
struct comm;

/* How bulk moves. */
enum comm_transport {
    COMM_AUTO,   /* host memory: mpi.  A device: self for one rank, nccl if it can, else staged */
    COMM_MPI,    /* host memory only */
    COMM_STAGED, /* device memory, by way of the host's */
    COMM_NCCL,   /* device memory, one GPU per rank */
    COMM_SELF /* a single rank on a device: copies in its COMM queue; chosen by COMM_AUTO alone */
};

struct comm_params {
    /*
     * A rank silent or missing for longer ends the run; default 30.  With nccl so does a bulk
     * operation that has begun on one rank and waits longer until the others' queues come to it.
     */
    double timeout_s;
    double heartbeat_s; /* watchdog period; default 0.1 */
    int ranks_per_host; /* 0: as detected; else cut the ranks of a host into such groups (tests) */
    bool ring;          /* reduction: ring, i.e. the library's own reduce-scatter and order */
    enum comm_transport transport;
};

/*
 * Start MPI (a singleton without mpirun), find hosts, start the communication and watchdog
 * threads.  Call once per process, early: arms PR_SET_PDEATHSIG first.  A failure of one rank is that
 * of all, with its message, as from comm_agree.  Collective.
 */
shoal_status comm_open(const struct comm_params *params, struct comm **comm_out);

/*
 * Say which device this rank works on; without this call it is the host.  Chooses the transport,
 * the same on every rank, and starts it; refuses one that cannot work with what the ranks have.
 * Connections are used once, so that the memory that this takes is taken when the call returns.
 * After a failure only comm_close is left.  The device is borrowed until comm_close has returned.
 * At most once, before comm_window_create.  Collective.
 */
shoal_status comm_use_device(struct comm *comm, struct device *device);

/* The transport chosen (never COMM_AUTO), and its name: "mpi", "staged", "nccl", "self". */
enum comm_transport comm_transport(const struct comm *comm);
const char *comm_transport_name(enum comm_transport transport);

/* Ranks that work on this rank's device, this one counted; 0 before comm_use_device. */
int comm_device_ranks(const struct comm *comm);

/*
 * End the run.  With SHOAL_OK: barrier with a deadline, bounded MPI_Finalize.  With
 * an error: all ranks learn it (as by comm_fail) and the call returns in bounded time without
 * waiting for silent peers; where it must end the process instead, it prints the failure first.
 * Frees the window.  Collective.
 *
 * Returns how the run ended: `status`, or, if that is SHOAL_OK, the failure of the last meeting
 * (a peer that closed with an error, died or did not come), as the thread's last error.  A caller
 * whose own work is done must still end as a failure then.  comm may be NULL: returns `status`.
 */
shoal_status comm_close(struct comm *comm, shoal_status status);

int comm_rank(const struct comm *comm);
int comm_size(const struct comm *comm);
int comm_local_rank(const struct comm *comm); /* among the ranks of this host (or group) */
int comm_local_size(const struct comm *comm);
int comm_host(const struct comm *comm); /* index of this host (or group) */
int comm_host_count(const struct comm *comm);
int comm_node_ranks(const struct comm *comm); /* ranks on this machine, for sharing its cores */
int comm_node_rank(const struct comm *comm);
const char *comm_library(const struct comm *comm); /* "MPICH 4.0.2" */

/*
 * Create the window: `own_bytes` per rank that peers can read, and `shared_bytes` once per host.
 * Backed by a memfd, zeroed, huge pages asked for.  The same sizes on every rank.  At most
 * once per comm.  Collective.
 *
 * On a device both parts are memory of the rank's own device, zeroed: processes do not share it, so
 * the shared part is one full copy per rank (comm_shared_per_rank).
 */
shoal_status comm_window_create(struct comm *comm, size_t own_bytes, size_t shared_bytes);
bool comm_shared_per_rank(const struct comm *comm);

/*
 * What comm_window_create takes with these sizes; NCCL's own memory shows only in what the device has
 * left after comm_use_device.  Pure arithmetic: a planner may ask for any number of ranks.
 * `ranks_per_host` as comm_local_size.
 */
struct comm_memory {
    size_t device_bytes;  /* of a rank's device: both parts and scratch; 0 with COMM_MPI */
    size_t scratch_bytes; /* the transport's own share of these */
    size_t window_bytes;  /* of a host's window, once per host */
};
struct comm_memory comm_memory_of(enum comm_transport transport, bool ring, int ranks,
                                  int ranks_per_host, size_t own_bytes, size_t shared_bytes);
void *comm_window_own(const struct comm *comm);
void *comm_window_shared(const struct comm *comm);

/*
 * Private memory of this rank for pieces on their way between hosts, allocated by comm_open and
 * thus in no plan; 0 with one host.
 */
size_t comm_staging_bytes(const struct comm *comm);

/* Bytes of the host's window that are really backed by memory now (fstat of the memfd). */
uint64_t comm_window_resident_bytes(const struct comm *comm);

/*
 * Fill `full` (in the shared part of the window, comm_size * n elements) from every
 * rank's `shard` of n elements.  `shard` may be the rank's own place inside `full`:
 * then nothing is copied.  On return every rank of the host may read `full`; the
 * call first waits until all have arrived, so earlier readers are done.  With nccl and self the
 * order is that of the COMM queue instead.  Collective.
 */
shoal_status comm_all_gather(struct comm *comm, const void *shard, void *full, size_t n,
                             enum dtype dtype);

/*
 * out[i] = tree sum over ranks of their full[rank * n + i], fp32.  `full` lies in the own part of
 * the window at the same offset on every rank and holds comm_size * n elements; `out` is n
 * elements of private or window memory, not overlapping any rank's `full`.  On return peers no
 * longer read this rank's `full`; with nccl and self the order is that of the COMM queue.  With
 * `ring` and in host memory a call that has failed may write to `out` until comm_close.
 * Collective.
 */
shoal_status comm_reduce_scatter(struct comm *comm, const float *full, float *out, size_t n);

/* Element-wise sum over ranks of n int64, modulo 2^64 and thus exact; in place.  Collective. */
shoal_status comm_all_reduce_i64(struct comm *comm, int64_t *values, size_t n);

/* The same with the largest over ranks.  Collective. */
shoal_status comm_all_reduce_max_i64(struct comm *comm, int64_t *values, size_t n);

/* Small blocks: n_bytes from each rank, in rank order, into out (size * n_bytes).  Collective. */
shoal_status comm_all_gather_bytes(struct comm *comm, const void *in, size_t n_bytes, void *out);

/* n_bytes from rank `root` to all.  Collective. */
shoal_status comm_broadcast(struct comm *comm, int root, void *data, size_t n_bytes);

/* Nobody returns before all have called it.  Collective. */
shoal_status comm_barrier(struct comm *comm);

/*
 * Agree on a status: every rank passes its own; all return the same code: the failure
 * of the lowest failing rank, with its message prefixed by "rank N (host): ", or SHOAL_OK.
 * Collective; the way to end a phase that may fail on one rank only.
 */
shoal_status comm_agree(struct comm *comm, shoal_status status);

/*
 * Tell all ranks that this one has failed with the thread's last error; their current or next
 * wait returns that status and message.  Local, returns at once.
 */
void comm_fail(struct comm *comm, shoal_status status);

/*
 * What this rank is doing, for the watchdog's report; text is copied (<= 95 bytes).
 * Progress is counted: "no progress" is judged by these calls and by collectives, so a phase that
 * may last longer than timeout_s on one rank calls this now and then.  Local, cheap.
 */
void comm_note(struct comm *comm, int64_t step, const char *what);

/*
 * Calls and bytes since the last reset, by the volume formulas.  Seconds are those of the calls: of
 * nccl and self thus those of issuing.
 */
struct comm_ledger {
    uint64_t all_gather_calls, all_gather_bytes;         /* bytes received from other ranks */
    uint64_t reduce_scatter_calls, reduce_scatter_bytes; /* bytes read from or sent to others */
    uint64_t small_calls;                                /* all-reduces and the like */
    double all_gather_seconds, reduce_scatter_seconds, small_seconds;
};
struct comm_ledger comm_ledger_read(const struct comm *comm);
void comm_ledger_reset(struct comm *comm);

/* The pool whose threads do local sums and copies; borrowed, NULL: the calling thread alone. */
void comm_use_pool(struct comm *comm, struct pool *pool);

/*
 * ---- operations for schedules ----
 *
 * Bulk operations go to the device's COMM queue where the transport works on a device; make them
 * after comm_use_device.
 */

/* All-gather of a unit: shard and full as in comm_all_gather.  kind is OP_GATHER or OP_PUBLISH. */
shoal_status comm_op_gather(struct schedule *sched, struct comm *comm, enum op_kind kind, int unit,
                            int index, struct slot_ref shard, struct slot_ref full, size_t n,
                            enum dtype dtype);

/* Reduce-scatter of a unit's gradient. */
shoal_status comm_op_reduce(struct schedule *sched, struct comm *comm, int unit, int index,
                            struct slot_ref full, struct slot_ref out, size_t n);

/*
 * All-reduce of n int64 in host memory, in place (slot_ref must lie in host memory also when the
 * units lie on a device).  kind OP_NORM, lane COMM, on the calling thread.
 */
shoal_status comm_op_all_reduce_i64(struct schedule *sched, struct comm *comm, int unit,
                                    struct slot_ref values, size_t n);
shoal_status comm_op_all_reduce_max_i64(struct schedule *sched, struct comm *comm, int unit,
                                        struct slot_ref values, size_t n);

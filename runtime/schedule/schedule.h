#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Schedule: one optimizer step as a flat array of operations, in issue order.
 *
 * The folder that does the work makes the operation (comm_op_gather,
 * model_op_forward, ...) and appends it; this folder only orders, budgets, times
 * and runs operations and knows nothing of what they do.  Three readers: the
 * planner (plan.h part below) sums the slots, the executor runs the operations,
 * and traces show both.
 *
 * Buffers are slots of a plan.  An operation names its slots with an access; its
 * dependencies follow from that (reader after writer, writer after readers), so a
 * builder cannot forget one.
 */

/* ---- plan: every byte of a run, known before anything is allocated ---- */

/* Where a slot lives; all but SPACE_HOST are memory of the rank's device. */
enum space {
    SPACE_PRIVATE, /* this rank's own memory */
    SPACE_WINDOW,  /* this rank's part of the host's shared window: peers may read it */
    SPACE_SHARED,  /* one copy per host, written by all its ranks */
    SPACE_HOST,    /* this rank's host memory beside a device with memory of its own */
    SPACE_COUNT
};

/* The rows of the memory table. */
enum plan_row {
    PLAN_PARAM,      /* weights in compute precision */
    PLAN_MASTER,     /* fp32 master weights */
    PLAN_OPTIM,      /* optimizer state */
    PLAN_GRAD,       /* gradients and their accumulators */
    PLAN_GATHER,     /* gathered units (stage 3) */
    PLAN_ACTIVATION, /* activations kept for backward */
    PLAN_SCRATCH,    /* temporaries of operations */
    PLAN_DATA,       /* token windows */
    PLAN_CACHE,      /* key/value cache for sampling */
    PLAN_ROW_COUNT
};

struct plan;

shoal_status plan_create(struct plan **plan_out);
void plan_destroy(struct plan *plan);

/*
 * Reserve a slot of n_bytes; `name` is copied.  Slots of a space lie one after the
 * other at 4096-byte boundaries, in the order of the calls: the same calls on every
 * rank give the same offsets.  Returns the slot's id in *slot_out.
 */
shoal_status plan_slot(struct plan *plan, const char *name, enum plan_row row, enum space space,
                       size_t n_bytes, int *slot_out);

size_t plan_space_bytes(const struct plan *plan, enum space space);
size_t plan_row_bytes(const struct plan *plan, enum plan_row row, enum space space);
size_t plan_slot_bytes(const struct plan *plan, int slot);
enum space plan_slot_space(const struct plan *plan, int slot);
const char *plan_slot_name(const struct plan *plan, int slot);
int plan_slot_count(const struct plan *plan);
const char *plan_row_name(enum plan_row row);

/* Give a space its memory, which the plan borrows; what it was given, NULL: nothing. */
void plan_bind(struct plan *plan, enum space space, void *base);
void *plan_base(const struct plan *plan, enum space space);

/* Address of byte `offset_bytes` of a slot; only after plan_bind. */
void *plan_ptr(const struct plan *plan, int slot, size_t offset_bytes);

/* A place in a slot: what operations keep instead of an address. */
struct slot_ref {
    int slot; /* -1: none */
    size_t offset_bytes;
};

#define SLOT_NONE ((struct slot_ref){.slot = -1})

static inline struct slot_ref slot_at(int slot, size_t offset_bytes)
{
    return (struct slot_ref){.slot = slot, .offset_bytes = offset_bytes};
}

/* NULL for SLOT_NONE. */
void *plan_ref(const struct plan *plan, struct slot_ref ref);

/* ---- operations ---- */

enum lane {
    LANE_COMPUTE,
    LANE_COMM,
    LANE_H2D,
    LANE_D2H,
    LANE_DISK_READ,
    LANE_DISK_WRITE,
    LANE_HOST,
    LANE_COUNT
};

/* Only labels for traces and reports; nothing branches on them. */
enum op_kind {
    OP_DATA,
    OP_FETCH,
    OP_GATHER,
    OP_FORWARD,
    OP_RELEASE,
    OP_STASH,
    OP_RESTORE,
    OP_BACKWARD,
    OP_ACCUMULATE,
    OP_REDUCE,
    OP_NORM,
    OP_LOAD,
    OP_SNAPSHOT,
    OP_UPDATE,
    OP_STORE,
    OP_PUBLISH,
    OP_DECODE,
    OP_KIND_COUNT
};

enum access { ACCESS_READ, ACCESS_WRITE };

enum { OP_MAX_SLOTS = 16 };

struct op;

/*
 * Do the work of `op` (its own argument is op->arg).  Must not allocate.  On a device with queues
 * an operation of COMPUTE, COMM, H2D or D2H issues its work to the queue of its lane and returns,
 * unless `host` is set.
 */
typedef shoal_status op_run_fn(const struct op *op);

struct op {
    enum op_kind kind;
    enum lane lane;
    int unit;  /* -1: none */
    int index; /* microbatch or chunk, -1: none */
    /*
     * `run` works on the calling thread whatever the lane: its inputs are complete when it starts,
     * its results when it returns.  Always so for the disk lanes and HOST.
     */
    bool host;
    /* `run` issues the same work in every run of the schedule: it may be recorded and replayed. */
    bool steady;
    int n_slots;
    struct {
        int slot;
        enum access access;
    } slots[OP_MAX_SLOTS];
    int n_deps, first_dep; /* into the schedule's table; filled by sched_append */
    uint64_t bytes;        /* moved or touched */
    uint64_t flops;
    op_run_fn *run;
    void *arg; /* from sched_alloc, lives as long as the schedule */
};

/* Note a slot of an operation under construction; SLOT_NONE is ignored. */
void op_uses(struct op *op, struct slot_ref ref, enum access access);

struct schedule;

shoal_status sched_create(const char *name, const struct plan *plan, struct schedule **sched_out);
void sched_destroy(struct schedule *sched);

/* Zeroed memory for an operation's argument; freed with the schedule. */
shoal_status sched_alloc(struct schedule *sched, size_t n_bytes, void **ptr_out);

/* Copy *op to the end; computes its dependencies. */
shoal_status sched_append(struct schedule *sched, const struct op *op);

int sched_count(const struct schedule *sched);
const struct op *sched_op(const struct schedule *sched, int index);
const int *sched_deps(const struct schedule *sched, const struct op *op);
const struct plan *sched_plan(const struct schedule *sched);
const char *op_kind_name(enum op_kind kind);
const char *lane_name(enum lane lane);

/* ---- executor ---- */

struct device;

/*
 * The device whose queues the lanes COMPUTE, COMM, H2D and D2H are; borrowed until sched_destroy.
 * Before exec_prepare; without it, or on a device without queues, lanes are synchronous.
 */
void exec_use_device(struct schedule *sched, struct device *device);

/*
 * From the third exec_run on, steady operations are issued as recordings of the second (CUDA graphs);
 * the first runs them as they are, as libraries set themselves up then.  Before exec_prepare; no
 * effect without queues or where the device cannot record.
 */
void exec_use_graphs(struct schedule *sched);

/*
 * Allocate what a run needs (times and events per operation); once, before the first step.  After a
 * failure nothing is prepared: the next call, or exec_run, tries again.
 */
shoal_status exec_prepare(struct schedule *sched);

/*
 * Run all operations once; all are complete on return.  Operations are issued in order by the
 * calling thread.  Synchronous lanes run them one after the other.  With queues, an
 * operation's dependencies in other queues become waits of its queue, those of an operation
 * on the host waits of the calling thread.
 *
 * On failure the message starts with the operation ("reduce block.3 microbatch 2: ...") and
 * the rest is not run.  Collective if the schedule holds communication.
 */
shoal_status exec_run(struct schedule *sched);

/* Seconds spent in operations of a kind or lane during the last exec_run. */
double exec_kind_seconds(const struct schedule *sched, enum op_kind kind);
double exec_lane_seconds(const struct schedule *sched, enum lane lane);

/*
 * Of the last exec_run: seconds from the first begin to the last end; and those in which COMM ran
 * and COMPUTE did not, the communication that nothing hides.
 */
double exec_span_seconds(const struct schedule *sched);
double exec_exposed_seconds(const struct schedule *sched);

/* Names of units for messages; borrowed. */
void sched_name_units(struct schedule *sched, const char *const *names, int n);

/* The last exec_run as Chrome/Perfetto trace JSON.  Local. */
shoal_status exec_trace_write(const struct schedule *sched, int rank, const char *path);

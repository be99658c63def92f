#pragma once

#include "runtime/schedule/schedule.h"

/* One block of operation arguments; blocks form a list and are freed with the schedule. */
struct arg_block {
    struct arg_block *next;
    size_t used, capacity;
    _Alignas(64) char bytes[];
};

struct schedule {
    char name[32];
    const struct plan *plan;
    struct op *ops;
    int n_ops, cap_ops;
    int *deps;
    int n_deps, cap_deps;
    struct arg_block *args;
    const char *const *unit_names;
    int n_unit_names;

    /* Per slot, while building: the last writer and the readers since, as a list in `readers`. */
    struct slot_state *slot_states;
    int n_slot_states;
    struct reader *readers;
    int n_readers, cap_readers;

    /* The last run. */
    double *begin, *end; /* seconds per operation */

    /* With queues: events around each operation, and one at the start of the run. */
    struct device *device; /* NULL: lanes are synchronous */
    struct device_event **begun, **ended, *origin;
    double origin_seconds;
    bool use_graphs, ran_once;
    struct device_graph **graphs; /* of steady operations, NULL: not recorded yet */
};

/* executor_queues.c: the forms of exec_prepare and exec_run on a device with queues. */
shoal_status queues_prepare(struct schedule *sched);
void queues_release(struct schedule *sched);
shoal_status queues_run(struct schedule *sched);

/* Put the operation's name in front of the failure just recorded. */
shoal_status exec_blame(const struct schedule *sched, const struct op *op, shoal_status status);

struct slot_state {
    int last_writer;  /* operation, -1: none */
    int first_reader; /* in `readers`, -1: none */
};

struct reader {
    int op;
    int next;
};

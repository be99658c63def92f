#include "runtime/base/clock.h"
#include "runtime/device/device.h"
#include "runtime/schedule/schedule_internal.h"

#include <stdlib.h>
#include <string.h>

/*
 * Lanes as queues of a device.  The calling thread issues the operations in order; a queue runs
 * its own in order, so of the dependencies in another queue only the latest needs a wait, and none
 * that this queue (or the calling thread) has waited for before.  An operation on the host
 * is complete when it returns: nobody has to wait for it.
 *
 * After a failure the queues are left as they are: one may wait for a peer that is gone, or be
 * recorded, and the run is over.
 */

enum { ON_HOST = -1 };

/* Per queue the latest operation that was waited for, -1: none. */
struct waits {
    int by_queue[QUEUE_COUNT][QUEUE_COUNT];
    int by_host[QUEUE_COUNT];
    int issued[QUEUE_COUNT];
};

static int queue_of(const struct op *op)
{
    static const int queues[LANE_COUNT] = {
        [LANE_COMPUTE] = QUEUE_COMPUTE, [LANE_COMM] = QUEUE_COMM,   [LANE_H2D] = QUEUE_H2D,
        [LANE_D2H] = QUEUE_D2H,         [LANE_DISK_READ] = ON_HOST, [LANE_DISK_WRITE] = ON_HOST,
        [LANE_HOST] = ON_HOST};

    return op->host ? ON_HOST : queues[op->lane];
}

shoal_status queues_prepare(struct schedule *sched)
{
    struct device *device = sched->device;
    size_t n = (size_t)sched->n_ops + 1;

    sched->begun = calloc(n, sizeof *sched->begun);
    sched->ended = calloc(n, sizeof *sched->ended);
    sched->graphs = calloc(n, sizeof *sched->graphs);
    if (sched->begun == NULL || sched->ended == NULL || sched->graphs == NULL)
        return fail(SHOAL_ERR_NOMEM, "schedule %s: cannot allocate %d events", sched->name,
                    2 * sched->n_ops);
    SHOAL_TRY(device->ops->event_create(device, &sched->origin));
    for (int i = 0; i < sched->n_ops; i++) {
        if (queue_of(&sched->ops[i]) == ON_HOST)
            continue;
        SHOAL_TRY(device->ops->event_create(device, &sched->begun[i]));
        SHOAL_TRY(device->ops->event_create(device, &sched->ended[i]));
    }
    return SHOAL_OK;
}

void queues_release(struct schedule *sched)
{
    struct device *device = sched->device;

    for (int i = 0; sched->begun != NULL && sched->ended != NULL && i < sched->n_ops; i++) {
        if (sched->begun[i] != NULL)
            device->ops->event_destroy(device, sched->begun[i]);
        if (sched->ended[i] != NULL)
            device->ops->event_destroy(device, sched->ended[i]);
    }
    for (int i = 0; sched->graphs != NULL && i < sched->n_ops; i++)
        if (sched->graphs[i] != NULL)
            device->ops->graph_destroy(device, sched->graphs[i]);
    if (sched->origin != NULL)
        device->ops->event_destroy(device, sched->origin);
    free(sched->begun);
    free(sched->ended);
    free(sched->graphs);
    sched->begun = sched->ended = NULL;
    sched->graphs = NULL;
    sched->origin = NULL;
}

/* Per queue the latest dependency of an operation; -1: none. */
static void latest_deps(const struct schedule *sched, const struct op *op, int out[QUEUE_COUNT])
{
    const int *deps = sched_deps(sched, op);

    for (int queue = 0; queue < QUEUE_COUNT; queue++)
        out[queue] = -1;
    for (int i = 0; i < op->n_deps; i++) {
        int queue = queue_of(&sched->ops[deps[i]]);
        if (queue != ON_HOST && deps[i] > out[queue])
            out[queue] = deps[i];
    }
}

/* The rights of an operation: to the slots that it declares, and to no others. */
static int rights_of(const struct plan *plan, const struct op *op,
                     struct device_range ranges[SPACE_COUNT + OP_MAX_SLOTS])
{
    int n = 0;

    for (enum space space = 0; space < SPACE_COUNT; space++)
        if (plan_base(plan, space) != NULL && plan_space_bytes(plan, space) > 0)
            ranges[n++] = (struct device_range){plan_base(plan, space),
                                                plan_space_bytes(plan, space), DEVICE_NO_ACCESS};
    for (enum access access = ACCESS_READ; access <= ACCESS_WRITE; access++)
        for (int i = 0; i < op->n_slots; i++) {
            const int slot = op->slots[i].slot;
            if (op->slots[i].access == access)
                ranges[n++] =
                    (struct device_range){plan_ptr(plan, slot, 0), plan_slot_bytes(plan, slot),
                                          access == ACCESS_READ ? DEVICE_READ : DEVICE_WRITE};
        }
    return n;
}

/* Lanes wait for each other by what operations declare: all that they do beyond it is a race. */
static shoal_status run_limited(struct schedule *sched, const struct op *op)
{
    struct device *device = sched->device;
    struct device_range ranges[SPACE_COUNT + OP_MAX_SLOTS];

    if (device->ops->limit == NULL)
        return op->run(op);
    device->ops->limit(device, ranges, rights_of(sched->plan, op, ranges));
    shoal_status status = op->run(op);
    device->ops->limit(device, NULL, 0);
    return status;
}

static shoal_status run_on_host(struct schedule *sched, int i, struct waits *waits)
{
    const struct op *op = &sched->ops[i];
    struct device *device = sched->device;
    int deps[QUEUE_COUNT];

    latest_deps(sched, op, deps);
    for (int queue = 0; queue < QUEUE_COUNT; queue++)
        if (deps[queue] > waits->by_host[queue]) {
            SHOAL_TRY(device->ops->event_sync(device, sched->ended[deps[queue]]));
            waits->by_host[queue] = deps[queue];
        }
    sched->begin[i] = clock_seconds();
    shoal_status status = run_limited(sched, op);
    sched->end[i] = clock_seconds();
    return status;
}

static shoal_status run_exposed(struct schedule *sched, const struct op *op,
                                enum device_queue queue)
{
    struct device *device = sched->device;

    if (device->ops->expose != NULL)
        device->ops->expose(device, queue, true);
    shoal_status status = run_limited(sched, op);
    if (device->ops->expose != NULL)
        device->ops->expose(device, queue, false);
    return status;
}

static shoal_status run_op(struct schedule *sched, int i, enum device_queue queue)
{
    const struct op *op = &sched->ops[i];
    struct device *device = sched->device;

    if (!op->steady || !sched->use_graphs || !sched->ran_once)
        return run_exposed(sched, op, queue);
    if (sched->graphs[i] == NULL) {
        SHOAL_TRY(device->ops->record_begin(device, queue));
        SHOAL_TRY(run_exposed(sched, op, queue));
        SHOAL_TRY(device->ops->record_end(device, queue, &sched->graphs[i]));
    }
    return device->ops->graph_launch(device, sched->graphs[i], queue);
}

static shoal_status issue(struct schedule *sched, int i, int queue, struct waits *waits)
{
    const struct op *op = &sched->ops[i];
    struct device *device = sched->device;
    int deps[QUEUE_COUNT];

    latest_deps(sched, op, deps);
    for (int other = 0; other < QUEUE_COUNT; other++) {
        if (other == queue || deps[other] <= waits->by_queue[queue][other] ||
            deps[other] <= waits->by_host[other])
            continue;
        SHOAL_TRY(
            device->ops->event_wait(device, sched->ended[deps[other]], (enum device_queue)queue));
        waits->by_queue[queue][other] = deps[other];
    }
    SHOAL_TRY(device->ops->event_record(device, sched->begun[i], (enum device_queue)queue));
    shoal_status status = run_op(sched, i, (enum device_queue)queue);
    waits->issued[queue] = i;
    SHOAL_TRY(status);
    return device->ops->event_record(device, sched->ended[i], (enum device_queue)queue);
}

static shoal_status drain(struct schedule *sched, const struct waits *waits)
{
    shoal_status first = SHOAL_OK;

    for (int queue = 0; queue < QUEUE_COUNT; queue++) {
        if (waits->issued[queue] < 0)
            continue;
        shoal_status status =
            sched->device->ops->queue_sync(sched->device, (enum device_queue)queue);
        if (status != SHOAL_OK && first == SHOAL_OK)
            first = exec_blame(sched, &sched->ops[waits->issued[queue]], status);
    }
    return first;
}

static shoal_status read_times(struct schedule *sched)
{
    struct device *device = sched->device;

    for (int i = 0; i < sched->n_ops; i++) {
        double begin = 0, end = 0;
        if (queue_of(&sched->ops[i]) == ON_HOST)
            continue;
        SHOAL_TRY(device->ops->event_seconds(device, sched->origin, sched->begun[i], &begin));
        SHOAL_TRY(device->ops->event_seconds(device, sched->origin, sched->ended[i], &end));
        sched->begin[i] = sched->origin_seconds + begin;
        sched->end[i] = sched->origin_seconds + end;
    }
    return SHOAL_OK;
}

/* The queues are empty at this point: the event happens at once. */
static shoal_status set_origin(struct schedule *sched)
{
    struct device *device = sched->device;

    SHOAL_TRY(device->ops->event_record(device, sched->origin, QUEUE_COMPUTE));
    SHOAL_TRY(device->ops->event_sync(device, sched->origin));
    sched->origin_seconds = clock_seconds();
    return SHOAL_OK;
}

shoal_status queues_run(struct schedule *sched)
{
    struct waits waits;

    memset(&waits, 0xff, sizeof waits); /* -1 everywhere */
    SHOAL_TRY(set_origin(sched));
    for (int i = 0; i < sched->n_ops; i++) {
        const struct op *op = &sched->ops[i];
        int queue = queue_of(op);

        shoal_status status =
            queue == ON_HOST ? run_on_host(sched, i, &waits) : issue(sched, i, queue, &waits);
        if (status != SHOAL_OK)
            return exec_blame(sched, op, status);
    }
    SHOAL_TRY(drain(sched, &waits));
    sched->ran_once = true;
    return read_times(sched);
}

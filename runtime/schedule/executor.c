#include "runtime/base/clock.h"
#include "runtime/device/device.h"
#include "runtime/schedule/schedule.h"
#include "runtime/schedule/schedule_internal.h"

#include <stdio.h>
#include <stdlib.h>

/* Synchronous lanes, and what a run tells afterwards. */

void exec_use_device(struct schedule *sched, struct device *device)
{
    sched->device = device_has_queues(device) ? device : NULL;
}

void exec_use_graphs(struct schedule *sched)
{
    sched->use_graphs = sched->device != NULL && sched->device->ops->record_begin != NULL;
}

shoal_status exec_prepare(struct schedule *sched)
{
    shoal_status status;

    if (sched->begin != NULL)
        return SHOAL_OK;
    sched->begin = calloc((size_t)sched->n_ops + 1, sizeof *sched->begin);
    sched->end = calloc((size_t)sched->n_ops + 1, sizeof *sched->end);
    if (sched->begin == NULL || sched->end == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "schedule %s: cannot allocate %d operation times",
                      sched->name, sched->n_ops);
        goto err_free;
    }
    if (sched->device != NULL)
        SHOAL_TRY_GOTO(queues_prepare(sched), err_release);
    return SHOAL_OK;

err_release:
    queues_release(sched);
err_free:
    free(sched->begin);
    free(sched->end);
    sched->begin = sched->end = NULL;
    return status;
}

/* "reduce block.3 2: " */
shoal_status exec_blame(const struct schedule *sched, const struct op *op, shoal_status status)
{
    const char *unit = "";
    char index[16] = "";

    if (op->unit >= 0 && op->unit < sched->n_unit_names)
        unit = sched->unit_names[op->unit];
    if (op->index >= 0)
        snprintf(index, sizeof index, " %d", op->index);
    return fail_context(status, "%s%s%s%s", op_kind_name(op->kind), unit[0] != '\0' ? " " : "",
                        unit, index);
}

shoal_status exec_run(struct schedule *sched)
{
    SHOAL_TRY(exec_prepare(sched));
    if (sched->device != NULL)
        return queues_run(sched);
    for (int i = 0; i < sched->n_ops; i++) {
        const struct op *op = &sched->ops[i];

        sched->begin[i] = clock_seconds();
        shoal_status status = op->run(op);
        sched->end[i] = clock_seconds();
        if (status != SHOAL_OK)
            return exec_blame(sched, op, status);
    }
    return SHOAL_OK;
}

double exec_kind_seconds(const struct schedule *sched, enum op_kind kind)
{
    double sum = 0;

    for (int i = 0; sched->begin != NULL && i < sched->n_ops; i++)
        if (sched->ops[i].kind == kind)
            sum += sched->end[i] - sched->begin[i];
    return sum;
}

double exec_lane_seconds(const struct schedule *sched, enum lane lane)
{
    double sum = 0;

    for (int i = 0; sched->begin != NULL && i < sched->n_ops; i++)
        if (sched->ops[i].lane == lane)
            sum += sched->end[i] - sched->begin[i];
    return sum;
}

double exec_span_seconds(const struct schedule *sched)
{
    double first = 0, last = 0;

    for (int i = 0; sched->begin != NULL && i < sched->n_ops; i++) {
        if (i == 0 || sched->begin[i] < first)
            first = sched->begin[i];
        if (i == 0 || sched->end[i] > last)
            last = sched->end[i];
    }
    return last - first;
}

/* The first operation of `lane` at or after i; n_ops: none. */
static int next_of(const struct schedule *sched, enum lane lane, int i)
{
    while (i < sched->n_ops && sched->ops[i].lane != lane)
        i++;
    return i;
}

/* Operations of one lane follow each other, so both lanes are walked once, side by side. */
double exec_exposed_seconds(const struct schedule *sched)
{
    double exposed = 0;
    int compute = 0;

    if (sched->begin == NULL)
        return 0;
    compute = next_of(sched, LANE_COMPUTE, 0);
    for (int i = next_of(sched, LANE_COMM, 0); i < sched->n_ops;
         i = next_of(sched, LANE_COMM, i + 1)) {
        double at = sched->begin[i], end = sched->end[i];
        while (at < end) {
            while (compute < sched->n_ops && sched->end[compute] <= at)
                compute = next_of(sched, LANE_COMPUTE, compute + 1);
            double until =
                compute < sched->n_ops && sched->begin[compute] < end ? sched->begin[compute] : end;
            exposed += until > at ? until - at : 0;
            if (until >= end)
                break;
            at = sched->end[compute];
        }
    }
    return exposed;
}

#include "runtime/base/clock.h"
#include "runtime/schedule/schedule.h"
#include "runtime/schedule/schedule_internal.h"

#include <stdio.h>
#include <stdlib.h>

shoal_status exec_prepare(struct schedule *sched)
{
    if (sched->begin != NULL)
        return SHOAL_OK;
    sched->begin = calloc((size_t)sched->n_ops + 1, sizeof *sched->begin);
    sched->end = calloc((size_t)sched->n_ops + 1, sizeof *sched->end);
    if (sched->begin == NULL || sched->end == NULL)
        return fail(SHOAL_ERR_NOMEM, "schedule %s: cannot allocate %d operation times", sched->name,
                    sched->n_ops);
    return SHOAL_OK;
}

/* "reduce block.3 microbatch 2" */
static void describe(const struct schedule *sched, const struct op *op, char *out, size_t n_bytes)
{
    const char *unit = "";
    int n = 0;

    if (op->unit >= 0 && op->unit < sched->n_unit_names)
        unit = sched->unit_names[op->unit];
    n = snprintf(out, n_bytes, "%s%s%s", op_kind_name(op->kind), unit[0] != '\0' ? " " : "", unit);
    if (op->index >= 0 && n > 0 && (size_t)n < n_bytes)
        snprintf(out + n, n_bytes - (size_t)n, " %d", op->index);
}

shoal_status exec_run(struct schedule *sched)
{
    SHOAL_TRY(exec_prepare(sched));
    for (int i = 0; i < sched->n_ops; i++) {
        const struct op *op = &sched->ops[i];

        atomic_store_explicit(&sched->current, op, memory_order_relaxed);
        sched->begin[i] = clock_seconds();
        shoal_status status = op->run(op);
        sched->end[i] = clock_seconds();
        if (status != SHOAL_OK) {
            char what[96];
            describe(sched, op, what, sizeof what);
            return fail_context(status, "%s", what);
        }
    }
    atomic_store_explicit(&sched->current, NULL, memory_order_relaxed);
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

const struct op *exec_current(const struct schedule *sched)
{
    return atomic_load_explicit(&sched->current, memory_order_relaxed);
}

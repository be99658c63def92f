#include "runtime/schedule/schedule.h"
#include "runtime/schedule/schedule_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * Chrome trace format ("Trace Event Format", JSON object form), which Perfetto reads: one complete
 * event (ph X) per operation, microseconds, a thread per lane, a process per rank.
 */
shoal_status exec_trace_write(const struct schedule *sched, int rank, const char *path)
{
    if (sched->begin == NULL || sched->n_ops == 0)
        return fail(SHOAL_ERR_INTERNAL, "trace %s: nothing was run", path);
    FILE *file = fopen(path, "w");
    if (file == NULL)
        return fail(SHOAL_ERR_CANTCREATE, "trace %s: %s", path, strerror(errno));

    double start = sched->begin[0];
    for (int i = 1; i < sched->n_ops; i++)
        start = sched->begin[i] < start ? sched->begin[i] : start;
    fprintf(file, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n");
    for (int lane = 0; lane < LANE_COUNT; lane++)
        fprintf(file,
                "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"thread_name\",\"args\":{\"name\":"
                "\"%s\"}},\n",
                rank, lane, lane_name((enum lane)lane));
    for (int i = 0; i < sched->n_ops; i++) {
        const struct op *op = &sched->ops[i];
        const char *unit =
            op->unit >= 0 && op->unit < sched->n_unit_names ? sched->unit_names[op->unit] : "";
        fprintf(file,
                "{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"%s %s\","
                "\"args\":{\"index\":%d,\"bytes\":%llu,\"flops\":%llu}}%s\n",
                rank, (int)op->lane, 1e6 * (sched->begin[i] - start),
                1e6 * (sched->end[i] - sched->begin[i]), op_kind_name(op->kind), unit, op->index,
                (unsigned long long)op->bytes, (unsigned long long)op->flops,
                i + 1 < sched->n_ops ? "," : "");
    }
    fprintf(file, "]}\n");
    bool is_cut = ferror(file) != 0;

    if (fclose(file) != 0 || is_cut)
        return fail(SHOAL_ERR_IO, "trace %s: %s", path, strerror(errno));
    return SHOAL_OK;
}

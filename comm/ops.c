#include "comm/transport_internal.h"

/* Collectives as operations of a schedule. */

struct gather_arg {
    struct comm *comm;
    const struct plan *plan;
    struct slot_ref shard, full;
    size_t n;
    enum dtype dtype;
};

struct reduce_arg {
    struct comm *comm;
    const struct plan *plan;
    struct slot_ref full, out;
    size_t n;
};

struct sum_arg {
    struct comm *comm;
    const struct plan *plan;
    struct slot_ref values;
    size_t n;
};

static shoal_status run_gather(const struct op *op)
{
    const struct gather_arg *arg = op->arg;

    return comm_all_gather(arg->comm, plan_ref(arg->plan, arg->shard),
                           plan_ref(arg->plan, arg->full), arg->n, arg->dtype);
}

static shoal_status run_reduce(const struct op *op)
{
    const struct reduce_arg *arg = op->arg;

    return comm_reduce_scatter(arg->comm, plan_ref(arg->plan, arg->full),
                               plan_ref(arg->plan, arg->out), arg->n);
}

static shoal_status run_sum(const struct op *op)
{
    const struct sum_arg *arg = op->arg;

    return comm_all_reduce_i64(arg->comm, plan_ref(arg->plan, arg->values), arg->n);
}

static shoal_status run_max(const struct op *op)
{
    const struct sum_arg *arg = op->arg;

    return comm_all_reduce_max_i64(arg->comm, plan_ref(arg->plan, arg->values), arg->n);
}

shoal_status comm_op_gather(struct schedule *sched, struct comm *comm, enum op_kind kind, int unit,
                            int index, struct slot_ref shard, struct slot_ref full, size_t n,
                            enum dtype dtype)
{
    struct op op = {.kind = kind,
                    .lane = LANE_COMM,
                    .unit = unit,
                    .index = index,
                    .host = !comm->transport->is_on_device,
                    .bytes = (uint64_t)(comm->size - 1) * n * dtype_bytes(dtype),
                    .run = run_gather};

    SHOAL_TRY(sched_alloc(sched, sizeof(struct gather_arg), &op.arg));
    *(struct gather_arg *)op.arg = (struct gather_arg){.comm = comm,
                                                       .plan = sched_plan(sched),
                                                       .shard = shard,
                                                       .full = full,
                                                       .n = n,
                                                       .dtype = dtype};
    op_uses(&op, shard, ACCESS_READ);
    op_uses(&op, full, ACCESS_WRITE);
    return sched_append(sched, &op);
}

shoal_status comm_op_reduce(struct schedule *sched, struct comm *comm, int unit, int index,
                            struct slot_ref full, struct slot_ref out, size_t n)
{
    struct op op = {.kind = OP_REDUCE,
                    .lane = LANE_COMM,
                    .unit = unit,
                    .index = index,
                    .host = !comm->transport->is_on_device,
                    .bytes = (uint64_t)(comm->size - 1) * n * sizeof(float),
                    .flops = (uint64_t)(comm->size - 1) * n,
                    .run = run_reduce};

    SHOAL_TRY(sched_alloc(sched, sizeof(struct reduce_arg), &op.arg));
    *(struct reduce_arg *)op.arg = (struct reduce_arg){
        .comm = comm, .plan = sched_plan(sched), .full = full, .out = out, .n = n};
    op_uses(&op, full, ACCESS_READ);
    op_uses(&op, out, ACCESS_WRITE);
    return sched_append(sched, &op);
}

static shoal_status all_reduce(struct schedule *sched, struct comm *comm, int unit,
                               struct slot_ref values, size_t n, op_run_fn *run)
{
    struct op op = {.kind = OP_NORM,
                    .lane = LANE_COMM,
                    .unit = unit,
                    .index = -1,
                    .host = true,
                    .bytes = (uint64_t)(comm->size - 1) * n * sizeof(int64_t),
                    .run = run};

    SHOAL_TRY(sched_alloc(sched, sizeof(struct sum_arg), &op.arg));
    *(struct sum_arg *)op.arg =
        (struct sum_arg){.comm = comm, .plan = sched_plan(sched), .values = values, .n = n};
    op_uses(&op, values, ACCESS_WRITE);
    return sched_append(sched, &op);
}

shoal_status comm_op_all_reduce_i64(struct schedule *sched, struct comm *comm, int unit,
                                    struct slot_ref values, size_t n)
{
    return all_reduce(sched, comm, unit, values, n, run_sum);
}

shoal_status comm_op_all_reduce_max_i64(struct schedule *sched, struct comm *comm, int unit,
                                        struct slot_ref values, size_t n)
{
    return all_reduce(sched, comm, unit, values, n, run_max);
}

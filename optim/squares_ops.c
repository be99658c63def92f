#include "optim/optim_device.h"
#include "optim/optim_internal.h"

#ifdef SHOAL_WITH_CUDA
#include "optim/cuda/squares.h"
#endif

#include <string.h>

/* Operations of the gradient norm on a device with memory of its own. */

struct squares_arg {
    const struct plan *plan;
    struct device *device;
    struct pool *pool;
    struct slot_ref grad, there; /* the device's sum, or the host's copy of it */
    size_t n;
    bool add;
    struct exact_sum *sum;
};

static shoal_status run_on_cpu(const struct op *op)
{
    const struct squares_arg *arg = op->arg;
    struct exact_sum *sum = plan_ref(arg->plan, arg->there);

    if (!arg->add)
        exact_sum_clear(sum);
    optim_sum_squares(arg->pool, plan_ref(arg->plan, arg->grad), arg->n, sum);
    return SHOAL_OK;
}

#ifdef SHOAL_WITH_CUDA
static shoal_status run_on_cuda(const struct op *op)
{
    const struct squares_arg *arg = op->arg;

    return cuda_sum_squares(device_cuda_stream(arg->device, QUEUE_COMPUTE),
                            plan_ref(arg->plan, arg->grad), arg->n / QUANTUM, arg->add,
                            plan_ref(arg->plan, arg->there));
}
#endif

static op_run_fn *run_for(const struct device *device)
{
#ifdef SHOAL_WITH_CUDA
    if (strcmp(device->ops->name, "cuda") == 0)
        return run_on_cuda;
#endif
    (void)device;
    return run_on_cpu;
}

static shoal_status append(struct schedule *sched, struct op *op, const struct squares_arg *arg)
{
    SHOAL_TRY(sched_alloc(sched, sizeof *arg, &op->arg));
    *(struct squares_arg *)op->arg = *arg;
    return sched_append(sched, op);
}

static shoal_status check_slot(const struct plan *plan, struct slot_ref ref, size_t n_bytes)
{
    if (ref.slot < 0 || ref.offset_bytes + n_bytes > plan_slot_bytes(plan, ref.slot))
        return fail(SHOAL_ERR_INTERNAL, "norm: a slot does not hold %zu bytes", n_bytes);
    return SHOAL_OK;
}

shoal_status optim_op_device_squares(struct schedule *sched, struct device *device,
                                     struct pool *pool, int unit, struct slot_ref grad, size_t n,
                                     bool add, struct slot_ref sum)
{
    const struct squares_arg arg = {.plan = sched_plan(sched),
                                    .device = device,
                                    .pool = pool,
                                    .grad = grad,
                                    .there = sum,
                                    .n = n,
                                    .add = add};
    struct op op = {.kind = OP_NORM,
                    .lane = LANE_COMPUTE,
                    .unit = unit,
                    .index = -1,
                    .bytes = n * sizeof(float),
                    .flops = 2 * (uint64_t)n,
                    .run = run_for(device)};

    if (n % QUANTUM != 0)
        return fail(SHOAL_ERR_INTERNAL, "norm: %zu elements are no multiple of the quantum %d", n,
                    (int)QUANTUM);
    SHOAL_TRY(check_slot(arg.plan, grad, n * sizeof(float)));
    SHOAL_TRY(check_slot(arg.plan, sum, sizeof(struct exact_sum)));
    op_uses(&op, grad, ACCESS_READ);
    op_uses(&op, sum, ACCESS_WRITE);
    return append(sched, &op, &arg);
}

static shoal_status run_take(const struct op *op)
{
    const struct squares_arg *arg = op->arg;

    exact_sum_merge(arg->sum, plan_ref(arg->plan, arg->there));
    return SHOAL_OK;
}

shoal_status optim_op_take_squares(struct schedule *sched, struct slot_ref taken,
                                   struct exact_sum *sum)
{
    const struct squares_arg arg = {.plan = sched_plan(sched), .there = taken, .sum = sum};
    struct op op = {.kind = OP_NORM,
                    .lane = LANE_HOST,
                    .unit = -1,
                    .index = -1,
                    .bytes = sizeof *sum,
                    .run = run_take};

    SHOAL_TRY(check_slot(arg.plan, taken, sizeof *sum));
    op_uses(&op, taken, ACCESS_READ);
    return append(sched, &op, &arg);
}

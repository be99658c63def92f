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
    struct slot_ref grad, sums;
    size_t n_quanta;
    struct exact_sum *sum;
};

static shoal_status run_on_cpu(const struct op *op)
{
    const struct squares_arg *arg = op->arg;

    optim_quantum_squares(arg->pool, plan_ref(arg->plan, arg->grad), arg->n_quanta,
                          plan_ref(arg->plan, arg->sums));
    return SHOAL_OK;
}

#ifdef SHOAL_WITH_CUDA
static shoal_status run_on_cuda(const struct op *op)
{
    const struct squares_arg *arg = op->arg;

    return cuda_quantum_squares(device_cuda_stream(arg->device, QUEUE_COMPUTE),
                                plan_ref(arg->plan, arg->grad), arg->n_quanta,
                                plan_ref(arg->plan, arg->sums));
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

shoal_status optim_op_quantum_squares(struct schedule *sched, struct device *device,
                                      struct pool *pool, int unit, struct slot_ref grad, size_t n,
                                      struct slot_ref sums)
{
    const struct squares_arg arg = {.plan = sched_plan(sched),
                                    .device = device,
                                    .pool = pool,
                                    .grad = grad,
                                    .sums = sums,
                                    .n_quanta = n / QUANTUM};
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
    SHOAL_TRY(check_slot(arg.plan, sums, arg.n_quanta * sizeof(double)));
    op_uses(&op, grad, ACCESS_READ);
    op_uses(&op, sums, ACCESS_WRITE);
    return append(sched, &op, &arg);
}

static shoal_status run_add(const struct op *op)
{
    const struct squares_arg *arg = op->arg;

    optim_add_quanta(arg->pool, plan_ref(arg->plan, arg->sums), arg->n_quanta, arg->sum);
    return SHOAL_OK;
}

shoal_status optim_op_add_squares(struct schedule *sched, struct pool *pool, int unit,
                                  struct slot_ref sums, size_t n_quanta, struct exact_sum *sum)
{
    const struct squares_arg arg = {
        .plan = sched_plan(sched), .pool = pool, .sums = sums, .n_quanta = n_quanta, .sum = sum};
    struct op op = {.kind = OP_NORM,
                    .lane = LANE_HOST,
                    .unit = unit,
                    .index = -1,
                    .bytes = n_quanta * sizeof(double),
                    .run = run_add};

    SHOAL_TRY(check_slot(arg.plan, sums, n_quanta * sizeof(double)));
    op_uses(&op, sums, ACCESS_READ);
    return append(sched, &op, &arg);
}

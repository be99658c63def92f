#include "optim/optim_internal.h"

#include <string.h>

/*
 * Operations for schedules.  An UPDATE is cut into tiles when the schedule is built: pieces of one
 * tensor, at most TILE_ELEMENTS long.  Padding between tensors belongs to no tile and stays zero.
 */

enum { TILE_ELEMENTS = 64 * 1024 };

struct tile {
    int64_t begin; /* from the start of the buffers */
    int32_t n;
    bool decay;
};

struct update_arg {
    const struct plan *plan;
    struct pool *pool;
    const struct optim_rule *rule;
    const struct optim_step *step;
    struct optim_refs refs;
    struct tile *tiles;
    size_t n_tiles;
};

struct update_job {
    const struct update_arg *arg;
    struct optim_extent whole; /* the buffers from their start */
};

static void update_tile(void *job_arg, size_t index, int thread)
{
    const struct update_job *job = job_arg;
    const struct optim_rule *rule = job->arg->rule;
    const struct tile *tile = &job->arg->tiles[index];
    struct optim_extent extent = job->whole;

    (void)thread;
    extent.n = (size_t)tile->n;
    extent.decay = tile->decay;
    extent.grad += tile->begin;
    extent.master += tile->begin;
    for (int i = 0; i < rule->n_states; i++)
        extent.states[i] += tile->begin;
    if (extent.param != NULL)
        extent.param += tile->begin;
    rule->kernel(&job->arg->step->scalars, &extent);
}

static shoal_status run_update(const struct op *op)
{
    const struct update_arg *arg = op->arg;

    if (arg->step->skip)
        return SHOAL_OK;

    struct update_job job = {
        .arg = arg,
        .whole =
            {
                .grad = plan_ref(arg->plan, arg->refs.grad),
                .grad_scale = arg->step->grad_scale,
                .master = plan_ref(arg->plan, arg->refs.master),
                .param = plan_ref(arg->plan, arg->refs.param),
            },
    };

    for (int i = 0; i < arg->rule->n_states; i++)
        job.whole.states[i] = plan_ref(arg->plan, arg->refs.states[i]);
    pool_run(arg->pool, arg->n_tiles, update_tile, &job);
    return SHOAL_OK;
}

/*
 * Cut the tensors of `unit` that lie in `range` into tiles; returns their number.  `tiles` may be
 * NULL to count only.
 */
static size_t cut_tiles(const struct layout *layout, int unit, struct shard origin,
                        struct shard range, struct tile *tiles)
{
    const struct unit *u = &layout->units[unit];
    size_t count = 0;

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++) {
        const struct tensor *tensor = &layout->tensors[t];
        const struct shard part = layout_tensor_part(tensor, range);

        for (int64_t begin = part.begin; begin < part.end; begin += TILE_ELEMENTS) {
            const int64_t rest = part.end - begin;

            if (tiles != NULL)
                tiles[count] = (struct tile){
                    .begin = tensor->offset + begin - origin.begin,
                    .n = (int32_t)(rest < TILE_ELEMENTS ? rest : TILE_ELEMENTS),
                    .decay = tensor->decay,
                };
            count++;
        }
    }
    return count;
}

/* The slot of a buffer must exist and hold n elements of the given size from its offset on. */
static shoal_status check_ref(const struct plan *plan, struct slot_ref ref, const char *kind,
                              size_t n, size_t element_bytes)
{
    if (ref.slot < 0)
        return fail(SHOAL_ERR_INTERNAL, "optimizer buffer %s: no slot was given", kind);
    if (ref.offset_bytes + n * element_bytes > plan_slot_bytes(plan, ref.slot))
        return fail(SHOAL_ERR_INTERNAL,
                    "optimizer buffer %s: needs %zu bytes from %zu on, slot %s holds %zu", kind,
                    n * element_bytes, ref.offset_bytes, plan_slot_name(plan, ref.slot),
                    plan_slot_bytes(plan, ref.slot));
    return SHOAL_OK;
}

static shoal_status check_update(const struct plan *plan, const struct optim_rule *rule,
                                 struct shard origin, struct shard range,
                                 const struct optim_refs *refs)
{
    if (rule->needs != OPTIM_NEEDS_ELEMENTS)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer %s: it needs more than single elements, which updates of slices of "
                    "a unit cannot give",
                    rule->name);
    if (range.begin < origin.begin || range.end < range.begin || range.end > origin.end)
        return fail(SHOAL_ERR_INTERNAL,
                    "update: range [%lld, %lld) is not inside the slice [%lld, %lld)",
                    (long long)range.begin, (long long)range.end, (long long)origin.begin,
                    (long long)origin.end);

    const size_t n = (size_t)(range.end - origin.begin);
    SHOAL_TRY(check_ref(plan, refs->grad, "grad", n, sizeof(float)));
    SHOAL_TRY(check_ref(plan, refs->master, "master", n, sizeof(float)));
    for (int i = 0; i < rule->n_states; i++)
        SHOAL_TRY(check_ref(plan, refs->states[i], rule->state_names[i], n, sizeof(float)));
    if (refs->param.slot >= 0)
        SHOAL_TRY(check_ref(plan, refs->param, "param", n, sizeof(bf16_t)));
    return SHOAL_OK;
}

/*
 * Bytes read and written per element: gradient in, weights and states in and out, copy out.  They
 * are the whole cost: an element-wise rule never waits for its arithmetic, so flops stay 0.
 */
static size_t update_bytes(const struct optim_rule *rule, const struct optim_refs *refs)
{
    return sizeof(float) * (1 + 2 + 2 * (size_t)rule->n_states) +
           (refs->param.slot >= 0 ? sizeof(bf16_t) : 0);
}

shoal_status optim_op_update(struct schedule *sched, struct pool *pool,
                             const struct optim_rule *rule, const struct layout *layout, int unit,
                             int index, struct shard origin, struct shard range,
                             const struct optim_refs *refs, const struct optim_step *step)
{
    const struct plan *plan = sched_plan(sched);
    void *arg_memory = NULL;
    void *tile_memory = NULL;

    SHOAL_TRY(check_update(plan, rule, origin, range, refs));

    const size_t n_tiles = cut_tiles(layout, unit, origin, range, NULL);
    SHOAL_TRY(sched_alloc(sched, sizeof(struct update_arg), &arg_memory));
    SHOAL_TRY(sched_alloc(sched, n_tiles * sizeof(struct tile), &tile_memory));
    cut_tiles(layout, unit, origin, range, tile_memory);

    struct update_arg *arg = arg_memory;
    *arg = (struct update_arg){
        .plan = plan,
        .pool = pool,
        .rule = rule,
        .step = step,
        .refs = *refs,
        .tiles = tile_memory,
        .n_tiles = n_tiles,
    };

    struct op op = {
        .kind = OP_UPDATE,
        .lane = LANE_COMPUTE,
        .unit = unit,
        .index = index,
        .bytes = (uint64_t)(range.end - range.begin) * update_bytes(rule, refs),
        .run = run_update,
        .arg = arg,
    };
    op_uses(&op, refs->grad, ACCESS_READ);
    op_uses(&op, refs->master, ACCESS_WRITE);
    for (int i = 0; i < rule->n_states; i++)
        op_uses(&op, refs->states[i], ACCESS_WRITE);
    op_uses(&op, refs->param, ACCESS_WRITE);
    return sched_append(sched, &op);
}

struct norm_arg {
    const struct plan *plan;
    struct pool *pool;
    struct slot_ref grad;
    size_t n;
    struct exact_sum *sum;
};

static shoal_status run_sum_squares(const struct op *op)
{
    const struct norm_arg *arg = op->arg;

    optim_sum_squares(arg->pool, plan_ref(arg->plan, arg->grad), arg->n, arg->sum);
    return SHOAL_OK;
}

shoal_status optim_op_sum_squares(struct schedule *sched, struct pool *pool, int unit,
                                  struct slot_ref grad, size_t n, struct exact_sum *sum)
{
    const struct plan *plan = sched_plan(sched);
    void *arg_memory = NULL;

    if (n % QUANTUM != 0)
        return fail(SHOAL_ERR_INTERNAL, "norm: %zu elements are no multiple of the quantum %d", n,
                    (int)QUANTUM);
    SHOAL_TRY(check_ref(plan, grad, "grad", n, sizeof(float)));
    SHOAL_TRY(sched_alloc(sched, sizeof(struct norm_arg), &arg_memory));

    struct norm_arg *arg = arg_memory;
    *arg = (struct norm_arg){.plan = plan, .pool = pool, .grad = grad, .n = n, .sum = sum};

    struct op op = {
        .kind = OP_NORM,
        .lane = LANE_COMPUTE,
        .unit = unit,
        .index = -1,
        .bytes = n * sizeof(float),
        .flops = 2 * (uint64_t)n,
        .run = run_sum_squares,
        .arg = arg,
    };
    op_uses(&op, grad, ACCESS_READ);
    return sched_append(sched, &op);
}

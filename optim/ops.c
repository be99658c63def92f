#include "optim/optim_internal.h"
#include "optim/tiles.h"
#include "optim/update_parts.h"
#include "runtime/device/device.h"

#ifdef SHOAL_WITH_CUDA
#include "optim/cuda/update.h"
#endif

#include <string.h>

/* Operations for schedules; their tiles are cut when the schedule is built. */

struct update_arg {
    const struct plan *plan;
    struct pool *pool;
    const struct optim_setup *setup;
    const struct optim_step *step;
    struct optim_refs refs;
    struct tile *tiles;
    size_t n_tiles;
};

static void apply(const struct tile_work *work, const struct tile *tile, size_t at,
                  const struct optim_extent *extent)
{
    const struct optim_step *step = work->step;
    const struct optim_tensor *tensor = &work->buffers.setup->tensors[tile->tensor];
    const struct optim_scalars *scalars = &step->scalars[tensor->scalars];
    float *vectors[STATS_MAX_VECTORS];

    if (tensor->stats == NULL) {
        tensor->rule->kernel(scalars, extent);
        return;
    }

    const struct optim_stats_step stats_step = {
        .scalars = *scalars, .grad_scale = step->grad_scale, .grad_squares = step->grad_squares};
    tile_vectors(&work->buffers, tile->tensor, vectors);
    optim_stats_apply(tensor->stats, &stats_step, extent, tile->begin + (int64_t)at,
                      (const float *const *)vectors);
}

static void update_tile(void *work_arg, size_t index, int thread)
{
    const struct tile_work *work = work_arg;
    const struct tile_buffers *buffers = &work->buffers;
    const struct tile *tile = &work->tiles[index];
    const size_t n = (size_t)tile->n;
    const size_t length = tile_in_place(buffers, tile) ? n : OPTIM_PIECE;
    const uint64_t key = master_key(work->step->seed, work->step->update,
                                    work->first_tensor + (uint64_t)tile->tensor);
    struct tile_piece piece;

    (void)thread;
    for (size_t at = 0; at < n; at += length) {
        const size_t part = n - at < length ? n - at : length;
        struct optim_extent extent;

        tile_decode(buffers, tile, at, part, SCALES_BEFORE, &piece, &extent);
        extent.grad_scale = work->step->grad_scale;
        apply(work, tile, at, &extent);
        tile_encode(buffers, tile, at, part, key, &piece);
    }
}

void tiles_update(struct tile_work *work)
{
    pool_run(work->pool, work->n_tiles, update_tile, work);
}

static shoal_status run_update(const struct op *op)
{
    const struct update_arg *arg = op->arg;
    struct tile_work work = {
        .step = arg->step, .pool = arg->pool, .tiles = arg->tiles, .n_tiles = arg->n_tiles};

    if (arg->step->skip)
        return SHOAL_OK;
    tile_buffers_init(&work.buffers, arg->plan, arg->setup, &arg->refs);
    tiles_update(&work);
    return SHOAL_OK;
}

#ifdef SHOAL_WITH_CUDA
static shoal_status run_update_on_cuda(const struct op *op)
{
    const struct update_arg *arg = op->arg;
    cudaStream_t stream = device_cuda_stream(arg->refs.device, QUEUE_COMPUTE);
    struct tile_buffers buffers;
    struct update_work work;

    if (arg->step->skip)
        return SHOAL_OK;
    tile_buffers_init(&buffers, arg->plan, arg->setup, &arg->refs);
    for (size_t i = 0; i < arg->n_tiles; i += WORK_PARTS) {
        const size_t left = arg->n_tiles - i;

        update_work_fill(&buffers, arg->step, arg->tiles + i, left < WORK_PARTS ? left : WORK_PARTS,
                         &work);
        SHOAL_TRY(cuda_update(stream, &work));
    }
    return SHOAL_OK;
}
#endif

/* Tiles, and who works on them. */
static shoal_status cut_tiles(struct schedule *sched, struct update_arg *arg, int unit,
                              struct shard origin, struct shard range, op_run_fn **run_out)
{
    size_t (*cut)(const struct optim_setup *, int, struct shard, struct shard, struct shard,
                  struct tile *) = tiles_cut;
    void *memory = NULL;

    *run_out = run_update;
#ifdef SHOAL_WITH_CUDA
    if (arg->refs.device != NULL && strcmp(arg->refs.device->ops->name, "cuda") == 0) {
        *run_out = run_update_on_cuda;
        cut = tiles_cut_long;
        if (update_uses_maps(arg->setup, unit))
            SHOAL_TRY(cuda_update_maps());
    }
#endif
    arg->n_tiles = cut(arg->setup, unit, origin, origin, range, NULL);
    SHOAL_TRY(sched_alloc(sched, arg->n_tiles * sizeof(struct tile), &memory));
    arg->tiles = memory;
    cut(arg->setup, unit, origin, origin, range, arg->tiles);
    return SHOAL_OK;
}

static shoal_status check_update(const struct plan *plan, const struct optim_setup *setup, int unit,
                                 struct shard origin, struct shard range,
                                 const struct optim_refs *refs)
{
    const struct unit *u = &setup->layout->units[unit];
    const size_t bits = (size_t)setup->master->bits;
    const size_t n_vectors = optim_vectors_bytes(setup, unit);

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++)
        if (setup->tensors[t].rule->needs == OPTIM_NEEDS_MATRIX)
            return fail(SHOAL_ERR_CONFIG,
                        "optimizer %s: it needs whole matrices, which updates of slices of a unit "
                        "cannot give",
                        setup->tensors[t].rule->name);
    if (refs->device != NULL)
        for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++)
            SHOAL_TRY(optim_check_device(refs->device->ops->name, setup->tensors[t].rule));
    if (range.begin < origin.begin || range.end < range.begin || range.end > origin.end ||
        range.begin % QUANTUM != 0)
        return fail(SHOAL_ERR_INTERNAL,
                    "update: range [%lld, %lld) is not inside the slice [%lld, %lld) or does not "
                    "begin at a quantum",
                    (long long)range.begin, (long long)range.end, (long long)origin.begin,
                    (long long)origin.end);

    const size_t n = (size_t)(range.end - origin.begin);
    SHOAL_TRY(tile_check_ref(plan, refs->grad, "grad", n * sizeof(float)));
    if (bits > 0)
        SHOAL_TRY(tile_check_ref(plan, refs->master, "master", n * bits / 8));
    if (refs->param.slot >= 0 || bits < 32)
        SHOAL_TRY(tile_check_ref(plan, refs->param, "param", n * sizeof(bf16_t)));
    if (n_vectors > 0)
        SHOAL_TRY(tile_check_ref(plan, refs->vectors, "vectors", n_vectors));
    for (int kind = 0; kind < setup->n_kinds; kind++) {
        const size_t n_bytes = optim_kind_bytes(setup, unit, kind, origin);

        if (n_bytes > 0)
            SHOAL_TRY(tile_check_ref(plan, refs->kinds[kind], setup->kinds[kind], n_bytes));
    }
    return SHOAL_OK;
}

/*
 * Bytes read and written: gradient in, weights and states in and out, copy out.  They are the
 * whole cost: an element-wise rule never waits for its arithmetic, so flops stay 0.
 */
static uint64_t update_bytes(const struct optim_setup *setup, int unit, struct shard range,
                             const struct optim_refs *refs)
{
    const uint64_t n = (uint64_t)(range.end - range.begin);
    const uint64_t bits = (uint64_t)setup->master->bits;
    uint64_t bytes = n * (sizeof(float) + bits / 8 * 2);

    if (refs->param.slot >= 0)
        bytes += n * sizeof(bf16_t) * (bits < 32 ? 2 : 1);
    for (int kind = 0; kind < setup->n_kinds; kind++)
        bytes += 2 * optim_kind_bytes(setup, unit, kind, range);
    return bytes;
}

shoal_status optim_op_update(struct schedule *sched, struct pool *pool,
                             const struct optim_setup *setup, int unit, int index,
                             struct shard origin, struct shard range, const struct optim_refs *refs,
                             const struct optim_step *step)
{
    const struct plan *plan = sched_plan(sched);
    void *arg_memory = NULL;
    op_run_fn *run = NULL;

    SHOAL_TRY(check_update(plan, setup, unit, origin, range, refs));
    SHOAL_TRY(sched_alloc(sched, sizeof(struct update_arg), &arg_memory));

    struct update_arg *arg = arg_memory;
    *arg = (struct update_arg){
        .plan = plan,
        .pool = pool,
        .setup = setup,
        .step = step,
        .refs = *refs,
    };
    SHOAL_TRY(cut_tiles(sched, arg, unit, origin, range, &run));

    struct op op = {
        .kind = OP_UPDATE,
        .lane = LANE_COMPUTE,
        .unit = unit,
        .index = index,
        .bytes = update_bytes(setup, unit, range, refs),
        .run = run,
        .arg = arg,
    };
    op_uses(&op, refs->grad, ACCESS_READ);
    op_uses(&op, refs->master, ACCESS_WRITE);
    op_uses(&op, refs->param, ACCESS_WRITE);
    op_uses(&op, refs->vectors, ACCESS_READ);
    for (int kind = 0; kind < setup->n_kinds; kind++)
        op_uses(&op, refs->kinds[kind], ACCESS_WRITE);
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
    SHOAL_TRY(tile_check_ref(plan, grad, "grad", n * sizeof(float)));
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

#include "optim/optim_internal.h"
#include "optim/tiles.h"
#include "optim/update_parts.h"
#include "runtime/device/device.h"

#ifdef SHOAL_WITH_CUDA
#include "optim/cuda/update.h"
#endif

#include <string.h>

/*
 * Sums over tensors, for rules that need them, and maxima: each thread has limbs of its own, which
 * are then joined.  They are integers, so no order or cut changes them.
 */

struct sums_arg {
    const struct plan *plan;
    struct pool *pool;
    const struct optim_setup *setup;
    const struct optim_step *step;
    struct optim_refs refs;
    int unit, pass;
    size_t begin, end; /* this unit's limbs */
    struct tile *tiles;
    size_t n_tiles;
};

enum { FINISH_ITEMS = 1024 }; /* rows, columns or elements of a tile of the pool */

struct sums_job {
    const struct tile_work *work;
    int pass;
    int64_t *limbs;
};

static struct optim_stats_step stats_step(const struct optim_step *step,
                                          const struct optim_tensor *tensor)
{
    return (struct optim_stats_step){.scalars = step->scalars[tensor->scalars],
                                     .grad_scale = step->grad_scale,
                                     .grad_squares = step->grad_squares};
}

static void sum_tile(void *job_arg, size_t index, int thread)
{
    const struct sums_job *job = job_arg;
    const struct tile_buffers *buffers = &job->work->buffers;
    const struct tile *tile = &job->work->tiles[index];
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    float *vectors[STATS_MAX_VECTORS];
    struct tile_piece piece;

    if (tensor->stats == NULL || tensor->stats->n_limbs[job->pass] == 0)
        return;

    const struct optim_stats_step step = stats_step(job->work->step, tensor);
    tile_vectors(buffers, tile->tensor, vectors);
    for (size_t at = 0; at < (size_t)tile->n; at += OPTIM_PIECE) {
        const size_t left = (size_t)tile->n - at;
        struct optim_extent extent;

        tile_decode(buffers, tile, at, left < OPTIM_PIECE ? left : OPTIM_PIECE, SCALES_NOW, &piece,
                    &extent);
        extent.grad_scale = job->work->step->grad_scale;
        optim_stats_accumulate(tensor->stats, &step, job->pass, &extent, tile->begin + (int64_t)at,
                               (const float *const *)vectors,
                               job->limbs + (size_t)thread * buffers->setup->n_limbs +
                                   tensor->limbs_at);
    }
}

/* Limbs of two threads, as comm does with those of two ranks. */
static void join(int64_t *limbs, const int64_t *other, size_t n, int pass)
{
    for (size_t i = 0; i < n; i++) {
        if (pass != STATS_PASS_MAXIMA)
            limbs[i] += other[i];
        else if (other[i] > limbs[i])
            limbs[i] = other[i];
    }
}

void tiles_sum(const struct tile_work *work, int pass, size_t begin, size_t end, int64_t *limbs)
{
    struct sums_job job = {.work = work, .pass = pass, .limbs = limbs};
    const size_t n_limbs = work->buffers.setup->n_limbs;
    const int n_threads = work->pool == NULL ? 1 : pool_size(work->pool);

    for (int thread = 0; thread < n_threads; thread++)
        memset(limbs + (size_t)thread * n_limbs + begin, 0, (end - begin) * sizeof *limbs);
    if (work->step->skip)
        return;
    pool_run(work->pool, work->n_tiles, sum_tile, &job);
    for (int thread = 1; thread < n_threads; thread++)
        join(limbs + begin, limbs + (size_t)thread * n_limbs + begin, end - begin, pass);
}

/* ---- vectors of the sums ---- */

struct finish_job {
    const struct tile_work *work;
    int first, pass, stage;
    int64_t *limbs;
};

static int64_t finish_items(const struct finish_job *job, int tensor)
{
    const struct optim_stats *stats = job->work->buffers.setup->tensors[tensor].stats;

    return stats == NULL ? 0 : optim_stats_finish_items(stats, job->pass, job->stage);
}

static size_t finish_tiles(const struct finish_job *job, int tensor)
{
    return (size_t)(finish_items(job, tensor) + FINISH_ITEMS - 1) / FINISH_ITEMS;
}

static void finish_tile(void *job_arg, size_t index, int thread)
{
    const struct finish_job *job = job_arg;
    const struct tile_buffers *buffers = &job->work->buffers;
    float *vectors[STATS_MAX_VECTORS];
    int tensor = job->first;

    (void)thread;
    for (size_t n = finish_tiles(job, tensor); index >= n; n = finish_tiles(job, tensor)) {
        index -= n;
        tensor++;
    }

    const struct optim_tensor *t = &buffers->setup->tensors[tensor];
    const struct optim_stats_step step = stats_step(job->work->step, t);
    const struct optim_finish finish = {.stats = t->stats,
                                        .step = &step,
                                        .pass = job->pass,
                                        .limbs = job->limbs + t->limbs_at,
                                        .vectors = vectors};
    const int64_t begin = (int64_t)index * FINISH_ITEMS, n = finish_items(job, tensor);

    tile_vectors(buffers, tensor, vectors);
    optim_stats_finish_part(&finish, job->stage, begin,
                            begin + FINISH_ITEMS < n ? begin + FINISH_ITEMS : n);
}

void tiles_sum_finish(const struct tile_work *work, int first, int n, int pass, int64_t *limbs)
{
    struct finish_job job = {.work = work, .first = first, .pass = pass, .limbs = limbs};

    for (; job.stage < STATS_FINISH_STAGES; job.stage++) {
        size_t n_tiles = 0;

        for (int t = first; t < first + n; t++)
            n_tiles += finish_tiles(&job, t);
        pool_run(work->pool, n_tiles, finish_tile, &job);
    }
}

/* ---- operations ---- */

static shoal_status run_sums(const struct op *op)
{
    const struct sums_arg *arg = op->arg;
    struct tile_work work = {
        .step = arg->step, .pool = arg->pool, .tiles = arg->tiles, .n_tiles = arg->n_tiles};

    tile_buffers_init(&work.buffers, arg->plan, arg->setup, &arg->refs);
    tiles_sum(&work, arg->pass, arg->begin, arg->end, plan_ref(arg->plan, arg->refs.limbs));
    return SHOAL_OK;
}

#ifdef SHOAL_WITH_CUDA
static shoal_status run_sums_on_cuda(const struct op *op)
{
    const struct sums_arg *arg = op->arg;
    cudaStream_t stream = device_cuda_stream(arg->refs.device, QUEUE_COMPUTE);
    struct tile_buffers buffers;
    struct sums_work sums = {.buffers = &buffers,
                             .step = arg->step,
                             .pass = arg->pass,
                             .tiles = arg->tiles,
                             .n_tiles = arg->n_tiles,
                             .limbs = plan_ref(arg->plan, arg->refs.limbs)};
    struct update_work work;

    tile_buffers_init(&buffers, arg->plan, arg->setup, &arg->refs);
    SHOAL_TRY(cuda_check(cudaMemsetAsync(sums.limbs + arg->begin, 0,
                                         (arg->end - arg->begin) * sizeof *sums.limbs, stream),
                         "zero sums over tensors"));
    while (!arg->step->skip && sums_work_fill(&sums, &work))
        SHOAL_TRY(cuda_update_sums(stream, &work));
    return SHOAL_OK;
}
#endif

static shoal_status run_finish(const struct op *op)
{
    const struct sums_arg *arg = op->arg;
    const struct unit *unit = &arg->setup->layout->units[arg->unit];
    struct tile_work work = {.step = arg->step, .pool = arg->pool};

    if (arg->step->skip)
        return SHOAL_OK;
    tile_buffers_init(&work.buffers, arg->plan, arg->setup, &arg->refs);
    tiles_sum_finish(&work, unit->first_tensor, unit->n_tensors, arg->pass,
                     plan_ref(arg->plan, arg->refs.limbs));
    return SHOAL_OK;
}

/* The limbs of a unit's tensors lie together; false: none are used in this pass. */
static bool unit_limbs(const struct optim_setup *setup, int unit, int pass, size_t *begin_out,
                       size_t *end_out)
{
    const struct unit *u = &setup->layout->units[unit];
    bool first = true, used = false;

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++) {
        const struct optim_tensor *tensor = &setup->tensors[t];

        if (tensor->stats == NULL)
            continue;
        if (first)
            *begin_out = tensor->limbs_at;
        *end_out = tensor->limbs_at + (size_t)optim_stats_limbs(tensor->stats);
        first = false;
        used = used || tensor->stats->n_limbs[pass] > 0;
    }
    return used;
}

/* What a pass reads of the tensors in `range`: gradients, and states and weights where it asks. */
static uint64_t sums_bytes(const struct sums_arg *arg, struct shard range)
{
    const struct optim_setup *setup = arg->setup;
    const struct unit *u = &setup->layout->units[arg->unit];
    uint64_t bytes = 0;

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++) {
        const struct optim_stats *stats = setup->tensors[t].stats;
        const struct shard part = layout_tensor_part(&setup->layout->tensors[t], range);
        const int64_t n = part.end - part.begin;

        if (stats == NULL || stats->n_limbs[arg->pass] == 0)
            continue;
        bytes += (uint64_t)n * sizeof(float);
        if (stats->reads[arg->pass] & STATS_READS_MASTER)
            bytes += (uint64_t)n * (uint64_t)setup->master->bits / 8;
        if (stats->reads[arg->pass] & STATS_READS_STATES)
            for (int kind = 0; kind < setup->n_kinds; kind++)
                bytes += optim_kind_tensor_bytes(setup, t, kind, n);
    }
    return bytes;
}

static bool is_cuda(const struct optim_refs *refs)
{
    return refs->device != NULL && strcmp(refs->device->ops->name, "cuda") == 0;
}

static shoal_status append(struct schedule *sched, uint64_t bytes, int n_threads,
                           const struct sums_arg *like, op_run_fn *run)
{
    const struct optim_setup *setup = like->setup;
    const bool finishes = run == run_finish;
    void *memory = NULL;

    SHOAL_TRY(tile_check_ref(sched_plan(sched), like->refs.limbs, "limbs",
                             (size_t)n_threads * setup->n_limbs * sizeof(int64_t)));
    SHOAL_TRY(tile_check_ref(sched_plan(sched), like->refs.vectors, "vectors",
                             optim_vectors_bytes(setup, like->unit)));
    SHOAL_TRY(sched_alloc(sched, sizeof *like, &memory));
    memcpy(memory, like, sizeof *like);

    struct op op = {.kind = OP_NORM,
                    .lane = LANE_COMPUTE,
                    .unit = like->unit,
                    .index = like->pass,
                    .host = finishes,
                    .bytes = bytes,
                    .run = run,
                    .arg = memory};
    op_uses(&op, like->refs.limbs, ACCESS_WRITE);
    op_uses(&op, like->refs.vectors, finishes ? ACCESS_WRITE : ACCESS_READ);
    if (!finishes) {
        op_uses(&op, like->refs.grad, ACCESS_READ);
        op_uses(&op, like->refs.master, ACCESS_READ);
        op_uses(&op, like->refs.param, ACCESS_READ);
        for (int kind = 0; kind < setup->n_kinds; kind++)
            op_uses(&op, like->refs.kinds[kind], ACCESS_READ);
    }
    return sched_append(sched, &op);
}

/* Tiles, and who works on them. */
static shoal_status cut_tiles(struct schedule *sched, struct sums_arg *arg,
                              struct shard grad_origin, struct shard origin, struct shard range,
                              op_run_fn **run_out)
{
    size_t (*cut)(const struct optim_setup *, int, struct shard, struct shard, struct shard,
                  struct tile *) = tiles_cut;
    void *memory = NULL;

    *run_out = run_sums;
#ifdef SHOAL_WITH_CUDA
    if (is_cuda(&arg->refs)) {
        *run_out = run_sums_on_cuda;
        cut = tiles_cut_long;
        if (update_uses_maps(arg->setup, arg->unit))
            SHOAL_TRY(cuda_update_maps());
    }
#endif
    arg->n_tiles = cut(arg->setup, arg->unit, grad_origin, origin, range, NULL);
    SHOAL_TRY(sched_alloc(sched, arg->n_tiles * sizeof(struct tile), &memory));
    arg->tiles = memory;
    cut(arg->setup, arg->unit, grad_origin, origin, range, arg->tiles);
    return SHOAL_OK;
}

shoal_status optim_op_sums(struct schedule *sched, struct pool *pool,
                           const struct optim_setup *setup, int unit, int pass,
                           struct shard grad_origin, struct shard origin, struct shard range,
                           const struct optim_refs *refs, const struct optim_step *step)
{
    struct sums_arg arg = {.plan = sched_plan(sched),
                           .pool = pool,
                           .setup = setup,
                           .step = step,
                           .refs = *refs,
                           .unit = unit,
                           .pass = pass};
    const int n_threads = is_cuda(refs) || pool == NULL ? 1 : pool_size(pool);
    op_run_fn *run = NULL;

    if (!unit_limbs(setup, unit, pass, &arg.begin, &arg.end))
        return SHOAL_OK;
    SHOAL_TRY(cut_tiles(sched, &arg, grad_origin, origin, range, &run));
    return append(sched, sums_bytes(&arg, range), n_threads, &arg, run);
}

shoal_status optim_op_sums_finish(struct schedule *sched, struct pool *pool,
                                  const struct optim_setup *setup, int unit, int pass,
                                  const struct optim_refs *refs, const struct optim_step *step)
{
    struct sums_arg arg = {.plan = sched_plan(sched),
                           .pool = pool,
                           .setup = setup,
                           .step = step,
                           .refs = *refs,
                           .unit = unit,
                           .pass = pass};

    if (!unit_limbs(setup, unit, pass, &arg.begin, &arg.end))
        return SHOAL_OK;
    return append(sched, 0, 1, &arg, run_finish);
}

#include "launch/train/train_internal.h"

#include <string.h>

/*
 * Rules that train other weights than those to use (schedule_free: y, and the average x).  Where
 * compute reads, x takes the place of y for evaluations and samples.  Masters beside bf16 weights of
 * their own are left alone, so that y is rounded from them again; else y waits meanwhile, bit for
 * bit, where the step keeps the shard of its gradient, which nothing needs between two steps.
 *
 * Checkpoints hold x as "master", as it is what everybody wants who opens one, and y as "y".
 */

/* Elements at a time: for a device each piece is three or four copies that wait for one another. */
enum { PART = 32 * 1024 };

static bool averages(const struct build *build, int tensor)
{
    return build->setup->tensors[tensor].rule->average != NULL;
}

bool average_is_used(const struct trainer *trainer)
{
    for (int t = 0; t < trainer->build->layout->n_tensors; t++)
        if (averages(trainer->build, t))
            return true;
    return false;
}

/* The rule's first state of elements [begin, begin + n); begin is at a quantum, n at most PART. */
static shoal_status read_state(const struct trainer *trainer, int t, int64_t begin, size_t n,
                               float *x)
{
    const struct build *build = trainer->build;
    const struct tensor *tensor = &build->layout->tensors[t];
    const struct optim_tensor *state = &build->setup->tensors[t];
    const struct optim_codec *codec = state->codecs[0];
    const struct shard owned = build_owned(build, tensor->unit);
    const size_t before = (size_t)(begin - layout_tensor_part(tensor, owned).begin);
    const int kinds[2] = {state->codes[0], state->scales[0]};
    const size_t offsets[2] = {codec_code_bytes(codec, before), codec_scale_bytes(codec, before)};
    const size_t n_bytes[2] = {codec_code_bytes(codec, n), codec_scale_bytes(codec, n)};
    _Alignas(64) char planes[2][PART * sizeof(float)];

    for (int plane = 0; plane < 2; plane++) {
        if (kinds[plane] < 0)
            continue;
        const char *from =
            plan_ref(build->plan, build->kinds[tensor->unit * OPTIM_MAX_KINDS + kinds[plane]]);
        SHOAL_TRY(trainer->device->ops->copy(
            trainer->device, planes[plane],
            from + optim_kind_offset(build->setup, t, kinds[plane], owned) + offsets[plane],
            n_bytes[plane]));
    }
    codec->decode[state->rule->state_unsigned[0]](planes[0], planes[1], n, x);
    return SHOAL_OK;
}

shoal_status average_read(const struct trainer *trainer, int tensor, int64_t begin, size_t n,
                          float *x)
{
    const struct optim_setup *setup = trainer->build->setup;
    const struct optim_tensor *state = &setup->tensors[tensor];
    const struct optim_hyper *hyper = &setup->groups[state->group].hyper;
    float decoded[PART];

    while (n > 0) {
        const int64_t from = begin - begin % QUANTUM;
        const size_t skip = (size_t)(begin - from);
        const size_t part = n < PART - skip ? n : PART - skip;

        SHOAL_TRY(weights_move(trainer, tensor, begin, part, x, false));
        SHOAL_TRY(read_state(trainer, tensor, from, skip + part, decoded));
        state->rule->average(hyper, part, decoded + skip, x);
        begin += (int64_t)part;
        x += part;
        n -= part;
    }
    return SHOAL_OK;
}

/* ---- x in place of y, and back ---- */

/* The weights that compute reads are all that is left of y, or a part of it. */
static bool must_save(const struct build *build)
{
    return build->policy.compute == DTYPE_F32 || build->setup->master->bits < 32;
}

struct swap {
    const struct trainer *trainer;
    int unit;
    struct shard range; /* of the unit: what tiles of PART elements are cut from */
    _Atomic(shoal_status) status;
};

static struct shard tile_of(const struct swap *swap, size_t tile)
{
    const int64_t begin = swap->range.begin + (int64_t)tile * PART;

    return (struct shard){begin, begin + PART < swap->range.end ? begin + PART : swap->range.end};
}

/* The weights that compute reads of elements of a unit that this rank owns. */
static char *weights_at(const struct build *build, int unit, int64_t element)
{
    return (char *)plan_ref(build->plan, build_own_param(build, unit)) +
           (size_t)(element - build_owned(build, unit).begin) * dtype_bytes(build->policy.compute);
}

/* Where y waits: elements of the shard. */
static char *saved_at(const struct build *build, int unit, int64_t element)
{
    return (char *)plan_ref(build->plan, build->streams[unit].result) +
           (size_t)(element - build_stored(build, unit).begin) * dtype_bytes(build->policy.compute);
}

/* To or from the shard's saved y. */
static shoal_status copy_saved(const struct swap *swap, struct shard part, bool to_saved)
{
    const struct build *build = swap->trainer->build;
    struct device *device = swap->trainer->device;
    const size_t n = (size_t)(part.end - part.begin) * dtype_bytes(build->policy.compute);
    char *weights = weights_at(build, swap->unit, part.begin);
    char *saved = saved_at(build, swap->unit, part.begin);

    return to_saved ? device->ops->copy(device, saved, weights, n)
                    : device->ops->copy(device, weights, saved, n);
}

static shoal_status put_average(const struct swap *swap, int t, struct shard part)
{
    const struct build *build = swap->trainer->build;
    struct device *device = swap->trainer->device;
    const size_t n = (size_t)(part.end - part.begin);
    char *to = weights_at(build, swap->unit, build->layout->tensors[t].offset + part.begin);
    float x[PART];
    bf16_t rounded[PART];

    SHOAL_TRY(average_read(swap->trainer, t, part.begin, n, x));
    if (build->policy.compute == DTYPE_F32)
        return device->ops->copy(device, to, x, n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        rounded[i] = bf16_from_f32(x[i]);
    return device->ops->copy(device, to, rounded, n * sizeof *rounded);
}

static shoal_status enter_range(const struct swap *swap, struct shard range)
{
    const struct build *build = swap->trainer->build;
    const struct unit *unit = &build->layout->units[swap->unit];
    const struct shard stored = build_stored(build, swap->unit);
    const struct shard mine = {range.begin > stored.begin ? range.begin : stored.begin,
                               range.end < stored.end ? range.end : stored.end};

    if (must_save(build) && mine.begin < mine.end)
        SHOAL_TRY(copy_saved(swap, mine, true));
    for (int t = unit->first_tensor; t < unit->first_tensor + unit->n_tensors; t++) {
        const struct shard part = layout_tensor_part(&build->layout->tensors[t], range);

        if (averages(build, t) && part.begin < part.end)
            SHOAL_TRY(put_average(swap, t, part));
    }
    return SHOAL_OK;
}

static void enter_tile(void *arg, size_t tile, int thread)
{
    struct swap *swap = arg;
    const shoal_status status = enter_range(swap, tile_of(swap, tile));

    (void)thread;
    if (status != SHOAL_OK)
        swap->status = status;
}

static void restore_tile(void *arg, size_t tile, int thread)
{
    struct swap *swap = arg;
    const shoal_status status = copy_saved(swap, tile_of(swap, tile), false);

    (void)thread;
    if (status != SHOAL_OK)
        swap->status = status;
}

/* Run `tile` over what this rank owns (or stores) of all units. */
static shoal_status over_units(struct trainer *trainer, pool_fn *tile)
{
    const struct build *build = trainer->build;

    for (int unit = 0; unit < build->n_units; unit++) {
        struct swap swap = {.trainer = trainer,
                            .unit = unit,
                            .range = tile == restore_tile ? build_stored(build, unit)
                                                          : build_owned(build, unit)};
        const size_t n = (size_t)(swap.range.end - swap.range.begin);

        pool_run(trainer->pool, (n + PART - 1) / PART, tile, &swap);
        if (swap.status != SHOAL_OK)
            return fail(swap.status, "%s: cannot exchange weights and their average",
                        build->layout->units[unit].name);
    }
    return SHOAL_OK;
}

shoal_status average_enter(struct trainer *trainer)
{
    if (!average_is_used(trainer))
        return SHOAL_OK;
    SHOAL_TRY(comm_agree(trainer->comm, over_units(trainer, enter_tile)));
    return state_publish_shards(trainer);
}

/* Whole weights on every rank, of which each saved its shard. */
static shoal_status restore_whole(struct trainer *trainer)
{
    const struct build *build = trainer->build;
    const enum dtype dtype = build->policy.compute;
    struct device *device = trainer->device;

    for (int unit = 0; unit < build->n_units; unit++) {
        void *all = plan_ref(build->plan, build->grad_all);
        const size_t n_bytes = build_unit_elements(build, unit) * dtype_bytes(dtype);

        SHOAL_TRY(comm_all_gather(trainer->comm, plan_ref(build->plan, build->streams[unit].result),
                                  all, build_shard_elements(build, unit), dtype));
        SHOAL_TRY(comm_agree(trainer->comm, train_device_sync(trainer)));
        SHOAL_TRY(comm_agree(
            trainer->comm,
            device->ops->copy(device, plan_ref(build->plan, build->param[unit]), all, n_bytes)));
    }
    return SHOAL_OK;
}

shoal_status average_leave(struct trainer *trainer)
{
    const struct policy *policy = &trainer->policy;

    if (!average_is_used(trainer))
        return SHOAL_OK;
    if (!must_save(trainer->build))
        return state_publish(trainer);
    if (!policy->shards_states && policy->n_ranks > 1)
        return restore_whole(trainer);
    SHOAL_TRY(comm_agree(trainer->comm, over_units(trainer, restore_tile)));
    return state_publish_shards(trainer);
}

#include "tests/optim/world.h"

#include "optim/stats.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    enum tensor_role role;
    int64_t rows, cols; /* cols 0: one dimension */
    bool decay;
} TENSORS[] = {
    {"wte", ROLE_EMBEDDING, 131, 41, true}, {"attn.qkv", ROLE_QKV, 96, 71, true},
    {"attn.bias", ROLE_BIAS, 96, 0, false}, {"mlp.up", ROLE_UP, 150, 67, true},
    {"mlp.down", ROLE_DOWN, 21, 479, true}, {"small", ROLE_O, 31, 30, true},
    {"norm", ROLE_NORM, 5, 0, false},
};

enum { N_TENSORS = sizeof TENSORS / sizeof TENSORS[0], UNIT = 0 };

static struct layout *make_layout(void)
{
    struct layout *layout = NULL;

    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    cr_assert_eq(layout_add_unit(layout, "block.0"), SHOAL_OK);
    for (int i = 0; i < N_TENSORS; i++) {
        struct tensor tensor = {.role = TENSORS[i].role,
                                .ndim = TENSORS[i].cols == 0 ? 1 : 2,
                                .shape = {TENSORS[i].rows, TENSORS[i].cols},
                                .decay = TENSORS[i].decay};

        if (tensor.role == ROLE_QKV) { /* four query heads of 12 rows, two key and value heads */
            tensor.head_size = 12;
            tensor.heads = 4;
            tensor.kv_heads = 2;
            tensor.n_splits = 3;
            tensor.splits[0] = 48;
            tensor.splits[1] = tensor.splits[2] = 24;
        }
        snprintf(tensor.name, sizeof tensor.name, "%s", TENSORS[i].name);
        cr_assert_eq(layout_add_tensor(layout, &tensor), SHOAL_OK);
    }
    return layout;
}

static struct optim_setup *make_setup(const struct layout *layout,
                                      const struct world_params *params)
{
    const struct master_codec *master = NULL;
    struct optim_setup *setup = NULL;
    struct optim_group groups[2] = {0}, base = {.match = "*", .lr_scale = 1};
    int n = 0;

    base.hyper = (struct optim_hyper){.beta1 = 0.9,
                                      .beta2 = 0.95,
                                      .eps = 1e-8,
                                      .weight_decay = 0.1,
                                      .momentum = 0.9,
                                      .beta3 = 0.999,
                                      .alpha = 5,
                                      .gamma = 0.025,
                                      .scale_parameter = params->scale_parameter,
                                      .cautious = params->cautious,
                                      .tensor_clip = params->tensor_clip};
    cr_assert_eq(optim_find(params->rule, &base.rule), SHOAL_OK);
    cr_assert_eq(codec_find(params->state, &base.state), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(master_codec_find(params->master, &master), SHOAL_OK, "%s", shoal_last_error());
    if (params->add_group != NULL)
        cr_assert_eq(optim_group_parse(params->add_group, &base, &groups[n++]), SHOAL_OK, "%s",
                     shoal_last_error());
    groups[n++] = base;
    cr_assert_eq(optim_setup_create(layout, groups, n, master, &setup), SHOAL_OK, "%s",
                 shoal_last_error());
    return setup;
}

static struct slot_ref slot(struct world *world, size_t n_bytes)
{
    int id = -1;

    if (n_bytes == 0)
        return SLOT_NONE;
    cr_assert_eq(plan_slot(world->plan, "x", PLAN_OPTIM, SPACE_PRIVATE, n_bytes, &id), SHOAL_OK);
    return slot_at(id, 0);
}

static void make_slots(struct world *world)
{
    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, UNIT, rank, world->n_ranks);
        struct optim_refs *refs = &world->refs[rank];

        refs->device = world->device;
        refs->grad = slot(world, world->shard * sizeof(float));
        refs->master = slot(world, world->shard * (size_t)world->setup->master->bits / 8);
        refs->param = slot(world, world->shard * sizeof(bf16_t));
        for (int kind = 0; kind < OPTIM_MAX_KINDS; kind++)
            refs->kinds[kind] = kind < world->setup->n_kinds
                                    ? slot(world, optim_kind_bytes(world->setup, UNIT, kind, shard))
                                    : SLOT_NONE;
        refs->vectors = slot(world, optim_vectors_bytes(world->setup, UNIT));
        refs->limbs = slot(world, (size_t)world->n_threads * world->setup->n_limbs * 8);
    }
}

/* Initial weights are bf16 numbers, so that every master codec starts from the same ones. */
static void init_weights(struct world *world)
{
    for (int t = 0; t < N_TENSORS; t++) {
        const struct tensor *tensor = &world->layout->tensors[t];

        for (int rank = 0; rank < world->n_ranks; rank++) {
            const struct shard shard = layout_shard(world->layout, UNIT, rank, world->n_ranks);
            const struct shard part = layout_tensor_part(tensor, shard);
            const size_t n = (size_t)(part.end - part.begin);
            const size_t at = (size_t)(tensor->offset + part.begin - shard.begin);
            const size_t bits = (size_t)world->setup->master->bits;
            char *low = plan_ref(world->plan, world->refs[rank].master);
            bf16_t *param = plan_ref(world->plan, world->refs[rank].param);
            float *x = malloc((n + 1) * sizeof *x);

            rng_fill_normal(7, 1, (uint64_t)t, (uint64_t)part.begin, n, 0.1f, x);
            for (size_t i = 0; i < n; i++)
                x[i] = bf16_to_f32(bf16_from_f32(x[i]));
            if (n > 0)
                world->setup->master->encode(x, n, 1, (uint64_t)part.begin, param + at,
                                             low == NULL ? NULL : low + at * bits / 8);
            free(x);
        }
    }
}

static void make_updates(struct world *world)
{
    cr_assert_eq(sched_create("update", world->plan, &world->sched), SHOAL_OK);
    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, UNIT, rank, world->n_ranks);
        int index = 0;

        for (int64_t begin = shard.begin; begin < shard.end; begin += world->chunk) {
            const int64_t end = begin + world->chunk < shard.end ? begin + world->chunk : shard.end;

            cr_assert_eq(optim_op_update(world->sched, world->pool, world->setup, UNIT, index++,
                                         shard, (struct shard){begin, end}, &world->refs[rank],
                                         &world->step),
                         SHOAL_OK, "%s", shoal_last_error());
        }
    }
}

static void make_sums(struct world *world, int pass)
{
    cr_assert_eq(sched_create("sums", world->plan, &world->sums[pass]), SHOAL_OK);
    cr_assert_eq(sched_create("finish", world->plan, &world->finish[pass]), SHOAL_OK);
    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, UNIT, rank, world->n_ranks);

        cr_assert_eq(optim_op_sums(world->sums[pass], world->pool, world->setup, UNIT, pass, shard,
                                   shard, shard, &world->refs[rank], &world->step),
                     SHOAL_OK, "%s", shoal_last_error());
        cr_assert_eq(optim_op_sums_finish(world->finish[pass], world->pool, world->setup, UNIT,
                                          pass, &world->refs[rank], &world->step),
                     SHOAL_OK, "%s", shoal_last_error());
    }
}

/* What the all-reduce between the passes does. */
static void join_limbs(struct world *world, int pass)
{
    int64_t *first = plan_ref(world->plan, world->refs[0].limbs);

    for (int rank = 1; rank < world->n_ranks; rank++) {
        const int64_t *limbs = plan_ref(world->plan, world->refs[rank].limbs);

        for (size_t i = 0; i < world->setup->n_limbs; i++) {
            if (pass != STATS_PASS_MAXIMA)
                first[i] += limbs[i];
            else if (limbs[i] > first[i])
                first[i] = limbs[i];
        }
    }
    for (int rank = 1; rank < world->n_ranks; rank++)
        memcpy(plan_ref(world->plan, world->refs[rank].limbs), first,
               world->setup->n_limbs * sizeof *first);
}

void world_open(struct world *world, const struct world_params *params)
{
    *world = (struct world){.n_ranks = params->n_ranks > 0 ? params->n_ranks : 1,
                            .n_threads = params->n_threads > 0 ? params->n_threads : 1,
                            .chunk = params->chunk > 0 ? params->chunk : 1 << 20,
                            .device = params->device};
    world->layout = make_layout();
    world->setup = make_setup(world->layout, params);
    world->shard = (size_t)layout_shard_elements(world->layout, UNIT, world->n_ranks);
    cr_assert_eq(plan_create(&world->plan), SHOAL_OK);
    make_slots(world);

    const size_t n_bytes = plan_space_bytes(world->plan, SPACE_PRIVATE);
    world->memory = aligned_alloc(4096, (n_bytes + 4095) / 4096 * 4096);
    memset(world->memory, 0, n_bytes);
    plan_bind(world->plan, SPACE_PRIVATE, world->memory);
    cr_assert_eq(pool_create(world->n_threads, -1, &world->pool), SHOAL_OK);
    init_weights(world);
    make_updates(world);
    for (int pass = 0; pass < world->setup->n_passes; pass++)
        make_sums(world, pass);
}

void world_close(struct world *world)
{
    sched_destroy(world->sched);
    for (int pass = 0; pass < WORLD_MAX_PASSES; pass++) {
        sched_destroy(world->sums[pass]);
        sched_destroy(world->finish[pass]);
    }
    pool_destroy(world->pool);
    plan_destroy(world->plan);
    free(world->memory);
    optim_setup_destroy(world->setup);
    layout_destroy(world->layout);
}

/* Past the unit's end: how much there is depends on the ranks, and the norm counts what is there. */
static void clear_padding(const struct world *world, int rank, float *grad)
{
    const struct shard shard = layout_shard(world->layout, UNIT, rank, world->n_ranks);
    const int64_t n = world->layout->units[UNIT].n_elements - shard.begin;
    const size_t from = n < 0 ? 0 : (size_t)n;

    for (size_t i = from; i < world->shard; i++)
        grad[i] = 0;
}

void world_begin(struct world *world, int64_t update, double lr)
{
    struct exact_sum squares;

    exact_sum_clear(&squares);
    for (int rank = 0; rank < world->n_ranks; rank++) {
        float *grad = plan_ref(world->plan, world->refs[rank].grad);

        rng_fill_normal(8, 1, (uint64_t)update, (uint64_t)rank * world->shard, world->shard, 0.05f,
                        grad);
        clear_padding(world, rank, grad);
        optim_sum_squares(world->pool, grad, world->shard, &squares);
    }
    world->step.grad_scale = 0.7f;
    world->step.grad_squares = exact_sum_value(&squares);
    optim_step_begin(world->setup, lr, 1.0 / (double)update, 11, update, &world->step);
}

void world_finish(struct world *world, int pass)
{
    join_limbs(world, pass);
    cr_assert_eq(exec_run(world->finish[pass]), SHOAL_OK, "%s", shoal_last_error());
}

void world_run(struct world *world)
{
    for (int pass = 0; pass < world->setup->n_passes; pass++) {
        cr_assert_eq(exec_run(world->sums[pass]), SHOAL_OK, "%s", shoal_last_error());
        world_finish(world, pass);
    }
    cr_assert_eq(exec_run(world->sched), SHOAL_OK, "%s", shoal_last_error());
}

void world_update(struct world *world, int64_t update, double lr)
{
    world_begin(world, update, lr);
    world_run(world);
}

const char *world_kind(const struct world *world, int index)
{
    const int n = world->setup->n_kinds;

    if (index < n)
        return world->setup->kinds[index];
    return index == n ? "param" : index == n + 1 ? "master" : index == n + 2 ? "vectors" : NULL;
}

/* The padding past the unit's end is left out: how much there is depends on the ranks. */
static size_t rank_bytes(const struct world *world, const char *kind, int rank,
                         struct slot_ref *ref)
{
    const struct shard shard = layout_shard(world->layout, UNIT, rank, world->n_ranks);
    const int64_t left = world->layout->units[UNIT].n_elements - shard.begin;
    const size_t n = left < 0 ? 0 : left < (int64_t)world->shard ? (size_t)left : world->shard;

    if (strcmp(kind, "param") == 0) {
        *ref = world->refs[rank].param;
        return n * sizeof(bf16_t);
    }
    if (strcmp(kind, "master") == 0) {
        *ref = world->refs[rank].master;
        return n * (size_t)world->setup->master->bits / 8;
    }
    if (strcmp(kind, "vectors") == 0) {
        *ref = world->refs[rank].vectors;
        return rank == 0 ? optim_vectors_bytes(world->setup, UNIT) : 0;
    }
    for (int k = 0; k < world->setup->n_kinds; k++) {
        if (strcmp(world->setup->kinds[k], kind) == 0) {
            *ref = world->refs[rank].kinds[k];
            return optim_kind_bytes(world->setup, UNIT, k, shard);
        }
    }
    cr_assert_fail("no kind %s", kind);
    return 0;
}

unsigned char *world_bytes(const struct world *world, const char *kind, size_t *n_out)
{
    unsigned char *all = NULL;
    size_t n = 0;

    for (int rank = 0; rank < world->n_ranks; rank++) {
        struct slot_ref ref = SLOT_NONE;
        const size_t more = rank_bytes(world, kind, rank, &ref);

        all = realloc(all, n + more + 1);
        if (more > 0)
            memcpy(all + n, plan_ref(world->plan, ref), more);
        n += more;
    }
    *n_out = n;
    return all;
}

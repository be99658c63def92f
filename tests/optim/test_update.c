#include "optim/optim.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The operations of schedules: a unit of five tensors with padding between them, updated in one
 * piece by the scalar form, tensor by tensor, against every way of cutting it.
 */

enum { UNIT = 0, STEP = 4 };

static const struct {
    int64_t n;
    bool decay;
} TENSORS[] = {{1000, true}, {256, false}, {150001, true}, {5, false}, {700, true}};

enum { N_TENSORS = sizeof TENSORS / sizeof TENSORS[0] };

static struct layout *layout;
static const struct optim_rule *adamw;
static struct optim_setup *setup;
static size_t n_unit; /* with padding for up to 3 ranks */

static const struct optim_hyper hyper = {
    .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};

/* All kinds of one unit; `base` backs the plan's private space. */
struct state {
    struct plan *plan;
    void *base;
    int slots[5];
    struct optim_refs refs;
    float *grad, *master, *m, *v;
    bf16_t *param;
};

static void build_layout(void)
{
    struct optim_group group = {.match = "*", .hyper = hyper, .lr_scale = 1};
    const struct master_codec *master = NULL;

    cr_assert_eq(optim_find("adamw", &adamw), SHOAL_OK);
    cr_assert_eq(codec_find("fp32", &group.state), SHOAL_OK);
    cr_assert_eq(master_codec_find("fp32", &master), SHOAL_OK);
    group.rule = adamw;
    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    cr_assert_eq(layout_add_unit(layout, "block.0"), SHOAL_OK);
    for (int i = 0; i < N_TENSORS; i++) {
        struct tensor tensor = {
            .role = ROLE_UP, .ndim = 1, .shape = {TENSORS[i].n}, .decay = TENSORS[i].decay};

        snprintf(tensor.name, sizeof tensor.name, "t%d", i);
        cr_assert_eq(layout_add_tensor(layout, &tensor), SHOAL_OK);
    }
    n_unit = (size_t)layout->units[UNIT].n_elements + 3 * QUANTUM;
    cr_assert_eq(optim_setup_create(layout, &group, 1, master, &setup), SHOAL_OK);
}

static void free_layout(void)
{
    optim_setup_destroy(setup);
    layout_destroy(layout);
}

TestSuite(update, .init = build_layout, .fini = free_layout);

/* Same contents each time: random in tensors, zero in padding. */
static void state_init(struct state *s)
{
    static const char *const names[] = {"grad", "master", "exp_avg", "exp_avg_sq", "param"};

    cr_assert_eq(plan_create(&s->plan), SHOAL_OK);
    for (int k = 0; k < 5; k++)
        cr_assert_eq(plan_slot(s->plan, names[k], PLAN_OPTIM, SPACE_PRIVATE,
                               n_unit * (k == 4 ? 2 : 4), &s->slots[k]),
                     SHOAL_OK);

    const size_t n_bytes = plan_space_bytes(s->plan, SPACE_PRIVATE);
    s->base = aligned_alloc(4096, (n_bytes + 4095) / 4096 * 4096);
    memset(s->base, 0, n_bytes);
    plan_bind(s->plan, SPACE_PRIVATE, s->base);
    s->grad = plan_ptr(s->plan, s->slots[0], 0);
    s->master = plan_ptr(s->plan, s->slots[1], 0);
    s->m = plan_ptr(s->plan, s->slots[2], 0);
    s->v = plan_ptr(s->plan, s->slots[3], 0);
    s->param = plan_ptr(s->plan, s->slots[4], 0);

    for (int t = 0; t < N_TENSORS; t++) {
        const size_t offset = (size_t)layout->tensors[t].offset;
        const size_t n = (size_t)TENSORS[t].n;

        rng_fill_normal(1, 1, 0, offset, n, 0.1f, s->grad + offset);
        rng_fill_normal(1, 1, 1, offset, n, 1.0f, s->master + offset);
        rng_fill_normal(1, 1, 2, offset, n, 0.1f, s->m + offset);
        rng_fill_normal(1, 1, 3, offset, n, 0.1f, s->v + offset);
        for (size_t i = offset; i < offset + n; i++)
            s->v[i] *= s->v[i];
    }
}

static void state_fini(struct state *s)
{
    plan_destroy(s->plan);
    free(s->base);
}

/* References to the slice that starts at element `begin` of the unit. */
static struct optim_refs refs_from(const struct state *s, int64_t begin)
{
    const size_t at = (size_t)begin;

    struct optim_refs refs = {
        .grad = slot_at(s->slots[0], 4 * at),
        .master = slot_at(s->slots[1], 4 * at),
        .param = slot_at(s->slots[4], 2 * at),
        .kinds = {slot_at(s->slots[2], 4 * at), slot_at(s->slots[3], 4 * at)},
    };

    for (int kind = 2; kind < OPTIM_MAX_KINDS; kind++)
        refs.kinds[kind] = SLOT_NONE;
    return refs;
}

static void assert_same_bytes(const struct state *got, const struct state *want)
{
    cr_assert_arr_eq(got->base, want->base, plan_space_bytes(want->plan, SPACE_PRIVATE));
}

/* What all cuts must give: the scalar form over whole tensors, padding left alone. */
static void update_plainly(struct state *s, const struct optim_step *step)
{
    for (int t = 0; t < N_TENSORS; t++) {
        const size_t offset = (size_t)layout->tensors[t].offset;
        const struct optim_extent extent = {
            .n = (size_t)TENSORS[t].n,
            .grad = s->grad + offset,
            .grad_scale = step->grad_scale,
            .decay = TENSORS[t].decay,
            .master = s->master + offset,
            .states = {s->m + offset, s->v + offset},
            .param = s->param + offset,
        };

        adamw->kernel_scalar(&step->scalars[0], &extent);
    }
}

/* One UPDATE per chunk of each of n_ranks shards, all in one schedule. */
static void update_by_schedule(struct state *s, const struct optim_step *step, int n_threads,
                               int n_ranks, int64_t chunk)
{
    struct pool *pool = NULL;
    struct schedule *sched = NULL;

    cr_assert_eq(pool_create(n_threads, -1, &pool), SHOAL_OK);
    cr_assert_eq(sched_create("test", s->plan, &sched), SHOAL_OK);
    for (int rank = 0; rank < n_ranks; rank++) {
        const struct shard shard = layout_shard(layout, UNIT, rank, n_ranks);
        const struct optim_refs refs = refs_from(s, shard.begin);
        int index = 0;

        for (int64_t begin = shard.begin; begin < shard.end; begin += chunk) {
            const int64_t end = begin + chunk < shard.end ? begin + chunk : shard.end;

            cr_assert_eq(optim_op_update(sched, pool, setup, UNIT, index++, shard,
                                         (struct shard){begin, end}, &refs, step),
                         SHOAL_OK, "%s", shoal_last_error());
        }
    }
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    sched_destroy(sched);
    pool_destroy(pool);
}

static struct optim_step step_now(void)
{
    struct optim_step step = {.grad_scale = 0.3f};

    optim_step_begin(setup, hyper.lr, 0, 1, STEP, &step);
    return step;
}

Test(update, gives_the_same_bytes_for_all_shards_chunks_and_threads)
{
    const int64_t chunks[] = {QUANTUM, 7 * QUANTUM, 1000 * QUANTUM};
    const struct optim_step step = step_now();
    struct state want;

    state_init(&want);
    update_plainly(&want, &step);
    for (int n_ranks = 1; n_ranks <= 3; n_ranks++) {
        for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
            for (int c = 0; c < 3; c++) {
                struct state got;

                state_init(&got);
                update_by_schedule(&got, &step, n_threads, n_ranks, chunks[c]);
                assert_same_bytes(&got, &want);
                state_fini(&got);
            }
        }
    }
    state_fini(&want);
}

Test(update, leaves_padding_alone_even_when_gradients_there_are_not_zero)
{
    const struct optim_step step = step_now();
    const size_t padding = (size_t)TENSORS[0].n; /* right after the first tensor */
    struct state s;

    state_init(&s);
    s.grad[padding] = 5.0f;
    update_by_schedule(&s, &step, 1, 1, 1000 * QUANTUM);
    cr_assert_eq(s.master[padding], 0.0f);
    cr_assert_eq(s.m[padding], 0.0f);
    cr_assert_eq(s.v[padding], 0.0f);
    cr_assert_neq(s.param[padding - 1], 0);
    cr_assert_eq(s.param[padding], 0);
    state_fini(&s);
}

Test(update, leaves_every_byte_when_the_step_is_skipped)
{
    struct optim_step step = step_now();
    struct state want;
    struct state got;

    state_init(&want);
    state_init(&got);
    step.skip = true;
    update_by_schedule(&got, &step, 2, 1, 7 * QUANTUM);
    assert_same_bytes(&got, &want);
    state_fini(&got);
    state_fini(&want);
}

Test(update, refuses_missing_and_short_slots_and_ranges_outside_the_slice)
{
    const struct optim_step step = step_now();
    const struct shard all = layout_shard(layout, UNIT, 0, 1);
    struct schedule *sched = NULL;
    struct pool *pool = NULL;
    struct state s;

    state_init(&s);
    cr_assert_eq(pool_create(1, -1, &pool), SHOAL_OK);
    cr_assert_eq(sched_create("test", s.plan, &sched), SHOAL_OK);

    struct optim_refs refs = refs_from(&s, 0);
    refs.kinds[1] = SLOT_NONE;
    cr_assert_eq(optim_op_update(sched, pool, setup, UNIT, 0, all, all, &refs, &step),
                 SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "exp_avg_sq"));

    refs = refs_from(&s, (int64_t)n_unit / 2);
    cr_assert_eq(optim_op_update(sched, pool, setup, UNIT, 0, all, all, &refs, &step),
                 SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "holds"));

    refs = refs_from(&s, 0);
    cr_assert_eq(optim_op_update(sched, pool, setup, UNIT, 0, all, (struct shard){0, all.end + 1},
                                 &refs, &step),
                 SHOAL_ERR_INTERNAL);
    cr_assert_eq(sched_count(sched), 0);

    struct optim_rule matrix_rule = *adamw;
    matrix_rule.needs = OPTIM_NEEDS_MATRIX;
    setup->tensors[1].rule = &matrix_rule;
    cr_assert_eq(optim_op_update(sched, pool, setup, UNIT, 0, all, all, &refs, &step),
                 SHOAL_ERR_CONFIG);

    sched_destroy(sched);
    pool_destroy(pool);
    state_fini(&s);
}

Test(update, names_its_slots_and_bytes_for_the_planner)
{
    const struct optim_step step = step_now();
    const struct shard all = layout_shard(layout, UNIT, 0, 1);
    struct schedule *sched = NULL;
    struct pool *pool = NULL;
    struct state s;

    state_init(&s);
    cr_assert_eq(pool_create(1, -1, &pool), SHOAL_OK);
    cr_assert_eq(sched_create("test", s.plan, &sched), SHOAL_OK);
    const struct optim_refs refs = refs_from(&s, 0);
    cr_assert_eq(optim_op_update(sched, pool, setup, UNIT, 3, all, all, &refs, &step), SHOAL_OK);

    const struct op *op = sched_op(sched, 0);
    cr_assert_eq(op->kind, OP_UPDATE);
    cr_assert_eq(op->unit, UNIT);
    cr_assert_eq(op->index, 3);
    cr_assert_eq(op->n_slots, 5);
    cr_assert_eq(op->bytes, (uint64_t)all.end * 30);

    sched_destroy(sched);
    pool_destroy(pool);
    state_fini(&s);
}

Test(norm, adds_the_squares_of_a_slot_to_the_sum)
{
    struct schedule *sched = NULL;
    struct pool *pool = NULL;
    struct exact_sum got;
    struct exact_sum want;
    struct state s;

    build_layout();
    state_init(&s);
    exact_sum_clear(&got);
    exact_sum_clear(&want);
    cr_assert_eq(pool_create(2, -1, &pool), SHOAL_OK);
    cr_assert_eq(sched_create("test", s.plan, &sched), SHOAL_OK);
    cr_assert_eq(optim_op_sum_squares(sched, pool, UNIT, slot_at(s.slots[0], 0), n_unit, &got),
                 SHOAL_OK);
    cr_assert_eq(optim_op_sum_squares(sched, pool, UNIT, slot_at(s.slots[0], 0), n_unit - 1, &got),
                 SHOAL_ERR_INTERNAL);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    optim_sum_squares(pool, s.grad, n_unit, &want);
    cr_assert_gt(exact_sum_value(&want), 0.0);
    cr_assert_arr_eq(&got, &want, sizeof want);

    sched_destroy(sched);
    pool_destroy(pool);
    state_fini(&s);
    free_layout();
}

#include "optim/element_rules.h"
#include "optim/optim.h"
#include "optim/stats.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * FINISH of a unit by the pool against that of whole tensors one by one: tensors of more rows,
 * columns, heads and elements than a tile of the pool has, and some of few.
 */

static const struct {
    const char *name;
    enum tensor_role role;
    int64_t rows, cols; /* cols 0: one dimension */
} TENSORS[] = {
    {"bias", ROLE_BIAS, 2500, 0}, {"up", ROLE_UP, 2049, 3},   {"norm", ROLE_NORM, 40, 0},
    {"down", ROLE_DOWN, 5, 3100}, {"qkv", ROLE_QKV, 1504, 7}, {"o", ROLE_O, 1024, 1024},
};

enum { N_TENSORS = sizeof TENSORS / sizeof TENSORS[0], N_UPDATES = 3 };

/* What is finished of one rule. */
struct unit_of_one {
    struct layout *layout;
    struct optim_setup *setup;
    struct plan *plan;
    struct pool *pool;
    struct schedule *finish[STATS_MAX_PASSES];
    struct optim_refs refs;
    struct optim_step step;
    size_t vector_bytes;
    void *memory;
};

static void add_tensors(struct layout *layout)
{
    cr_assert_eq(layout_add_unit(layout, "block"), SHOAL_OK);
    for (int i = 0; i < N_TENSORS; i++) {
        struct tensor tensor = {.role = TENSORS[i].role,
                                .ndim = TENSORS[i].cols == 0 ? 1 : 2,
                                .shape = {TENSORS[i].rows, TENSORS[i].cols}};

        if (tensor.role == ROLE_QKV) {
            tensor.head_size = 2;
            tensor.heads = tensor.kv_heads = 1;
            tensor.n_splits = 3;
            tensor.splits[0] = tensor.splits[1] = 2; /* two blocks */
            tensor.splits[2] = 1500;
        }
        strcpy(tensor.name, TENSORS[i].name);
        cr_assert_eq(layout_add_tensor(layout, &tensor), SHOAL_OK);
    }
}

static struct slot_ref slot(struct plan *plan, size_t n_bytes)
{
    int id = -1;

    cr_assert_eq(plan_slot(plan, "x", PLAN_OPTIM, SPACE_PRIVATE, n_bytes, &id), SHOAL_OK);
    return slot_at(id, 0);
}

static void open_unit(struct unit_of_one *u, const struct optim_group *group, int n_threads)
{
    const struct master_codec *master = NULL;

    *u = (struct unit_of_one){.step = {.grad_scale = 0.5f, .grad_squares = 3e5}};
    cr_assert_eq(layout_create(&u->layout), SHOAL_OK);
    add_tensors(u->layout);
    cr_assert_eq(master_codec_find("fp32", &master), SHOAL_OK);
    cr_assert_eq(optim_setup_create(u->layout, group, 1, master, &u->setup), SHOAL_OK, "%s",
                 shoal_last_error());
    cr_assert_eq(plan_create(&u->plan), SHOAL_OK);
    u->vector_bytes = optim_vectors_bytes(u->setup, 0);
    u->refs.vectors = slot(u->plan, u->vector_bytes);
    u->refs.limbs = slot(u->plan, u->setup->n_limbs * sizeof(int64_t));

    const size_t n_bytes = plan_space_bytes(u->plan, SPACE_PRIVATE);
    u->memory = aligned_alloc(4096, (n_bytes + 4095) / 4096 * 4096);
    memset(u->memory, 0, n_bytes);
    plan_bind(u->plan, SPACE_PRIVATE, u->memory);
    cr_assert_eq(pool_create(n_threads, -1, &u->pool), SHOAL_OK);
    for (int pass = 0; pass < u->setup->n_passes; pass++) {
        cr_assert_eq(sched_create("finish", u->plan, &u->finish[pass]), SHOAL_OK);
        cr_assert_eq(
            optim_op_sums_finish(u->finish[pass], u->pool, u->setup, 0, pass, &u->refs, &u->step),
            SHOAL_OK, "%s", shoal_last_error());
    }
}

static void close_unit(struct unit_of_one *u)
{
    for (int pass = 0; pass < u->setup->n_passes; pass++)
        sched_destroy(u->finish[pass]);
    pool_destroy(u->pool);
    plan_destroy(u->plan);
    free(u->memory);
    optim_setup_destroy(u->setup);
    layout_destroy(u->layout);
}

/* Sums of every size; those of struct exact_sum have them at their start and no other limbs. */
static void fill_limbs(struct unit_of_one *u, int pass, int64_t update)
{
    int64_t *limbs = plan_ref(u->plan, u->refs.limbs);

    for (size_t i = 0; i < u->setup->n_limbs; i++)
        limbs[i] =
            pass == 0 || pass >= 2 ? (int64_t)((i + (size_t)update) * 2654435761u % 999331) : 0;
}

static float *vector_of(const struct unit_of_one *u, int tensor, int v)
{
    return (float *)(void *)((char *)plan_ref(u->plan, u->refs.vectors) +
                             optim_vector_offset(u->setup, tensor, v));
}

static void finish_one_by_one(struct unit_of_one *u, int pass)
{
    for (int t = 0; t < N_TENSORS; t++) {
        const struct optim_tensor *tensor = &u->setup->tensors[t];
        float *vectors[STATS_MAX_VECTORS];

        if (tensor->stats == NULL)
            continue;

        const struct optim_stats_step step = {.scalars = u->step.scalars[tensor->scalars],
                                              .grad_scale = u->step.grad_scale,
                                              .grad_squares = u->step.grad_squares};
        const struct optim_finish finish = {.stats = tensor->stats,
                                            .step = &step,
                                            .pass = pass,
                                            .limbs = (int64_t *)plan_ref(u->plan, u->refs.limbs) +
                                                     tensor->limbs_at,
                                            .vectors = vectors};

        for (int v = 0; v < STATS_MAX_VECTORS; v++)
            vectors[v] = vector_of(u, t, v);
        optim_stats_finish(&finish);
    }
}

static struct optim_group group_of(const char *rule, const char *state)
{
    struct optim_group group = {.match = "*", .lr_scale = 1, .state_forced = true};

    group.hyper = (struct optim_hyper){.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    cr_assert_eq(optim_find(rule, &group.rule), SHOAL_OK);
    cr_assert_eq(codec_find(state, &group.state), SHOAL_OK);
    return group;
}

static void check(const char *rule, const char *state, int n_threads)
{
    const struct optim_group group = group_of(rule, state);
    struct unit_of_one one, many;

    open_unit(&one, &group, 1);
    open_unit(&many, &group, n_threads);
    for (int64_t update = 1; update <= N_UPDATES; update++) {
        optim_step_begin(one.setup, 1e-3, 1, 1, update, &one.step);
        optim_step_begin(many.setup, 1e-3, 1, 1, update, &many.step);
        for (int pass = 0; pass < one.setup->n_passes; pass++) {
            fill_limbs(&one, pass, update);
            finish_one_by_one(&one, pass);
            fill_limbs(&many, pass, update);
            cr_assert_eq(exec_run(many.finish[pass]), SHOAL_OK, "%s", shoal_last_error());
            cr_assert_arr_eq(plan_ref(many.plan, many.refs.vectors),
                             plan_ref(one.plan, one.refs.vectors), one.vector_bytes,
                             "%s %s, %d threads, update %d, pass %d", rule, state, n_threads,
                             (int)update, pass);
        }
    }
    close_unit(&one);
    close_unit(&many);
}

Test(stats_finish, gives_the_vectors_of_whole_tensors_with_every_number_of_threads)
{
    for (int n_threads = 1; n_threads <= 4; n_threads += 3) {
        check("adam_mini", "fp32", n_threads);
        check("adafactor", "fp32", n_threads);
        check("came", "fp32", n_threads);
        check("adamw", "lpmm4_rank1", n_threads);
    }
}

/* came has no bound on its residuals then. */
Test(stats_finish, makes_the_averages_of_came_nan_where_its_sums_are_not_finite)
{
    const struct optim_group group = group_of("came", "fp32");
    struct unit_of_one u;

    open_unit(&u, &group, 2);
    optim_step_begin(u.setup, 1e-3, 1, 1, 1, &u.step);
    for (int pass = 0; pass < u.setup->n_passes; pass++) {
        fill_limbs(&u, pass, 1);
        if (pass == 1)
            for (size_t i = 0; i < u.setup->n_limbs; i++)
                ((int64_t *)plan_ref(u.plan, u.refs.limbs))[i] = 1; /* a term of them, too */
        cr_assert_eq(exec_run(u.finish[pass]), SHOAL_OK, "%s", shoal_last_error());
    }
    for (int t = 0; t < N_TENSORS; t++) {
        for (int64_t i = 0; TENSORS[t].cols > 0 && i < TENSORS[t].rows; i++)
            cr_assert(isnan(vector_of(&u, t, CAME_ROW)[i]));
        for (int64_t i = 0; i < TENSORS[t].cols; i++)
            cr_assert(isnan(vector_of(&u, t, CAME_COL)[i]));
    }
    close_unit(&u);
}

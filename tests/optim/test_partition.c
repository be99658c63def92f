#include "tests/optim/stats.h"

/*
 * Which elements share a second moment under adam_mini, and which rules refuse which tensors.
 */

static const struct optim_hyper ordinary = {
    .lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};

Test(partition, biases_under_adam_mini_are_adamw_bit_for_bit)
{
    const struct optim_rule *adamw = find_rule("adamw");
    const struct tensor tensor = make_tensor(ROLE_BIAS, 1300, 0);
    struct trained t;
    float *master;
    float *m;
    float *v;

    trained_init(&t, "adam_mini", &tensor, &ordinary);
    t.decay = true;
    rng_fill_normal(7, RNG_STREAM_INIT, 0, 0, (size_t)t.n, 0.5f, t.master);
    master = zeros(t.n, sizeof(float));
    m = zeros(t.n, sizeof(float));
    v = zeros(t.n, sizeof(float));
    memcpy(master, t.master, (size_t)t.n * sizeof(float));
    for (int64_t step = 1; step <= 20; step++) {
        const struct optim_scalars scalars = adamw->scalars(&ordinary, step);

        rng_fill_normal(7, RNG_STREAM_SAMPLE, (uint64_t)step, 0, (size_t)t.n, 0.1f, t.grad);
        const struct optim_extent all = {.n = (size_t)t.n,
                                         .grad = t.grad,
                                         .grad_scale = 0.75f,
                                         .decay = true,
                                         .master = master,
                                         .states = {m, v}};

        adamw->kernel(&scalars, &all);
        train(&t, step, &(struct cut){3, 2, 256, "scalar", true}, 0.75f);
    }
    cr_assert_arr_eq(t.master, master, (size_t)t.n * sizeof(float));
    cr_assert_arr_eq(t.states[0], m, (size_t)t.n * sizeof(float));
    cr_assert_arr_eq(t.vectors[1][0], v, (size_t)t.n * sizeof(float));
    free(master);
    free(m);
    free(v);
    trained_fini(&t);
}

/* The block that an element shares with others, found by moving its gradient alone. */
static void check_blocks(const struct tensor *tensor, int64_t n_blocks,
                         int64_t (*block_of)(int64_t))
{
    struct trained t;

    trained_init(&t, "adam_mini", tensor, &ordinary);
    cr_assert_eq(t.stats.vector_elements[0], n_blocks, "%lld blocks",
                 (long long)t.stats.vector_elements[0]);
    for (int64_t i = 0; i < t.n; i++) {
        const int64_t block = block_of(i);

        memset(t.grad, 0, (size_t)t.n * sizeof(float));
        memset(t.vectors[0][0], 0, (size_t)n_blocks * sizeof(float));
        t.grad[i] = 1.0f;
        train(&t, 1, &uncut, 1.0f);
        for (int64_t b = 0; b < n_blocks; b++)
            cr_assert_eq(t.vectors[0][0][b] != 0.0f, b == block, "element %lld, block %lld",
                         (long long)i, (long long)b);
    }
    trained_fini(&t);
}

/* 3 query heads and 1 key head of 2 rows, 2 value rows; rows of 5. */
static int64_t qkv_block(int64_t i)
{
    const int64_t row = i / 5;

    return row < 8 ? row / 2 : 4 + (row - 8);
}

static int64_t row_block(int64_t i)
{
    return i / 5;
}

static int64_t only_block(int64_t i)
{
    (void)i;
    return 0;
}

static int64_t own_block(int64_t i)
{
    return i;
}

Test(partition, blocks_of_adam_mini_follow_the_roles)
{
    static const enum tensor_role by_row[] = {ROLE_EMBEDDING, ROLE_POSITION, ROLE_O,   ROLE_GATE_UP,
                                              ROLE_UP,        ROLE_DOWN,     ROLE_HEAD};
    struct tensor tensor = make_qkv(3, 1, 2, 5);

    check_blocks(&tensor, 6, qkv_block);
    for (size_t k = 0; k < sizeof by_row / sizeof by_row[0]; k++) {
        tensor = make_tensor(by_row[k], 7, 5);
        check_blocks(&tensor, 7, row_block);
    }
    tensor = make_tensor(ROLE_NORM, 9, 0);
    check_blocks(&tensor, 1, only_block);
    tensor = make_tensor(ROLE_BIAS, 9, 0);
    check_blocks(&tensor, 9, own_block);
}

static void check_refused(const char *rule, const struct tensor *tensor, const char *says)
{
    struct optim_stats stats = {.n_elements = -7};

    cr_assert_eq(optim_stats_init(find_rule(rule), &ordinary, tensor, -1, &stats), SHOAL_ERR_CONFIG,
                 "%s took %s", rule, says);
    cr_assert_not_null(strstr(shoal_last_error(), says), "%s", shoal_last_error());
    cr_assert_eq(stats.n_elements, -7);
}

Test(partition, tensors_that_a_rule_cannot_treat_are_refused)
{
    struct tensor tensor = make_qkv(6, 2, 4, 37);

    tensor.heads = 5;
    check_refused("adam_mini", &tensor, "query heads");
    tensor = make_qkv(6, 2, 4, 37);
    tensor.n_splits = 0;
    check_refused("adam_mini", &tensor, "query heads");
    tensor = make_tensor(ROLE_UP, 100, 0);
    check_refused("adam_mini", &tensor, "expected rows");
    tensor = make_tensor(ROLE_NORM, ((int64_t)1 << 30) + 1, 0);
    check_refused("adam_mini", &tensor, "can be summed");
    tensor = make_tensor(ROLE_UP, 4, 6);
    tensor.ndim = 3;
    check_refused("adafactor", &tensor, "3 dimensions");
    check_refused("came", &tensor, "3 dimensions");
    tensor = make_tensor(ROLE_UP, ((int64_t)1 << 23) + 1, 4);
    check_refused("adafactor", &tensor, "can be summed");
    tensor = make_tensor(ROLE_UP, 4, ((int64_t)1 << 30) + 1);
    check_refused("came", &tensor, "can be summed");
    tensor = make_tensor(ROLE_UP, (int64_t)1 << 20, ((int64_t)1 << 18) + 1);
    check_refused("adafactor", &tensor, "elements");
    tensor = make_tensor(ROLE_BIAS, 0, 0);
    check_refused("adam_mini", &tensor, "elements");
}

Test(partition, an_element_wise_rule_without_options_has_no_statistics)
{
    const struct tensor tensor = make_tensor(ROLE_UP, 4, 6);
    struct optim_hyper hyper = ordinary;
    struct optim_stats stats;

    hyper.tensor_clip = true; /* of mars alone */
    cr_assert_null(optim_stats_of(find_rule("adamw"), &hyper, -1));
    cr_assert_eq(optim_stats_init(find_rule("adamw"), &hyper, &tensor, -1, &stats),
                 SHOAL_ERR_INTERNAL);
}

Test(partition, rules_that_cannot_be_cautious_are_refused)
{
    static const char *const rules[] = {"adam", "sgd", "adam_mini", "adafactor", "came"};
    const struct tensor tensor = make_tensor(ROLE_UP, 4, 6);
    struct optim_hyper hyper = ordinary;
    struct optim_stats stats;

    hyper.cautious = true;
    for (size_t k = 0; k < sizeof rules / sizeof rules[0]; k++) {
        cr_assert_eq(optim_stats_init(find_rule(rules[k]), &hyper, &tensor, -1, &stats),
                     SHOAL_ERR_CONFIG, "%s", rules[k]);
        cr_assert_not_null(strstr(shoal_last_error(), "cautious"));
    }
}

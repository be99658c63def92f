#include "tests/optim/stats.h"
#include "tests/tolerance.h"

#include <stdio.h>

/*
 * Rules over statistics: bytes must not depend on any cut or instruction set, blocks are those of
 * the roles, limbs do not overflow, and what an element-wise rule promises holds here too.
 */

enum { STEPS = 4 };

static const struct optim_hyper ordinary = {.lr = 3e-3,
                                            .beta1 = 0.9,
                                            .beta2 = 0.95,
                                            .beta3 = 0.99,
                                            .alpha = 5.0,
                                            .gamma = 0.025,
                                            .eps = 1e-8,
                                            .weight_decay = 0.1};

static const struct {
    const char *rule;
    bool scale_parameter, cautious, tensor_clip;
} RULES[] = {
    {.rule = "adam_mini"},
    {.rule = "adafactor"},
    {.rule = "adafactor", .scale_parameter = true},
    {.rule = "came"},
    {.rule = "adamw", .cautious = true},
    {.rule = "adam_atan2", .cautious = true},
    {.rule = "ademamix", .cautious = true},
    {.rule = "adopt", .cautious = true},
    {.rule = "lion", .cautious = true},
    {.rule = "mars", .tensor_clip = true},
    {.rule = "mars", .cautious = true, .tensor_clip = true},
};

enum { N_RULES = sizeof RULES / sizeof RULES[0], N_TENSORS = 12 };

static struct optim_hyper hyper_of(int k)
{
    struct optim_hyper hyper = ordinary;

    hyper.scale_parameter = RULES[k].scale_parameter;
    hyper.cautious = RULES[k].cautious;
    hyper.tensor_clip = RULES[k].tensor_clip;
    return hyper;
}

/* Rows and columns of all kinds of odd lengths, most of them no multiple of anything. */
static struct tensor tensor_of(int i)
{
    switch (i) {
    case 0:
        return make_qkv(6, 2, 4, 37);
    case 1:
        return make_tensor(ROLE_O, 37, 24);
    case 2:
        return make_tensor(ROLE_DOWN, 101, 37);
    case 3:
        return make_tensor(ROLE_EMBEDDING, 300, 3);
    case 4:
        return make_tensor(ROLE_HEAD, 5, 1031);
    case 5:
        return make_tensor(ROLE_UP, 1, 700);
    case 6:
        return make_tensor(ROLE_GATE_UP, 600, 1);
    case 7:
        return make_tensor(ROLE_NORM, 777, 0);
    case 8:
        return make_tensor(ROLE_BIAS, 1300, 0);
    case 9:
        return make_tensor(ROLE_BIAS, 1, 0);
    case 10:
        return make_tensor(ROLE_POSITION, 4, 256);
    default:
        return make_tensor(ROLE_HEAD, 3, 5000);
    }
}

/* Gradients whose rows and columns differ by orders of magnitude. */
static void fill_grads(struct trained *t, uint64_t seed)
{
    const int64_t cols = t->stats.cols > 0 ? t->stats.cols : 1;

    rng_fill_normal(seed, RNG_STREAM_SAMPLE, 1, 0, (size_t)t->n, 0.1f, t->grad);
    for (int64_t i = 0; i < t->n; i++)
        t->grad[i] *= ldexpf(1.0f, (int)((i / cols) % 11 - (i % cols) % 5));
}

static void start(struct trained *t, int k, int i)
{
    const struct optim_hyper hyper = hyper_of(k);
    const struct tensor tensor = tensor_of(i);

    trained_init(t, RULES[k].rule, &tensor, &hyper);
    rng_fill_normal(7, RNG_STREAM_INIT, 0, 0, (size_t)t->n, 0.5f, t->master);
}

static void assert_same_bytes(const struct trained *got, int ranks, const struct trained *want,
                              const char *what)
{
    const size_t n = (size_t)want->n;

    cr_assert_arr_eq(got->master, want->master, n * sizeof(float), "%s", what);
    cr_assert_arr_eq(got->param, want->param, n * sizeof(bf16_t), "%s", what);
    for (int k = 0; k < want->stats.rule->n_states; k++)
        cr_assert_arr_eq(got->states[k], want->states[k], n * sizeof(float), "%s", what);
    for (int k = 0; k < want->stats.how->n_vectors; k++) {
        const size_t bytes = (size_t)want->stats.vector_elements[k] * sizeof(float);

        for (int rank = 0; rank < ranks && bytes > 0; rank++)
            cr_assert_arr_eq(got->vectors[rank][k], want->vectors[0][k], bytes, "%s: %s of rank %d",
                             what, want->stats.how->vectors[k].name, rank);
    }
}

static void train_cut(struct trained *t, int k, int i, const struct cut *cut)
{
    start(t, k, i);
    for (int64_t step = 1; step <= STEPS; step++) {
        fill_grads(t, (uint64_t)step);
        train(t, step, cut, 0.75f);
    }
}

static void check_cut(const struct cut *cut)
{
    for (int k = 0; k < N_RULES; k++) {
        for (int i = 0; i < N_TENSORS; i++) {
            struct trained want;
            struct trained got;
            char what[96];

            snprintf(what, sizeof what, "%s, tensor %d, %d ranks, tiles of %d", RULES[k].rule, i,
                     cut->ranks, (int)cut->tile);
            train_cut(&want, k, i, &uncut);
            train_cut(&got, k, i, cut);
            assert_same_bytes(&got, cut->ranks, &want, what);
            trained_fini(&got);
            trained_fini(&want);
        }
    }
}

Test(stats, bytes_do_not_depend_on_ranks_threads_and_tiles)
{
    static const int ranks[] = {1, 2, 3, 4, 8};
    static const int64_t tiles[] = {256, 768, 4096};

    for (size_t r = 0; r < sizeof ranks / sizeof ranks[0]; r++) {
        for (size_t s = 0; s < sizeof tiles / sizeof tiles[0]; s++) {
            const struct cut cut = {ranks[r], 1 + (int)(r + s) % THREADS_MAX, tiles[s], "scalar",
                                    s % 2 == 0};

            check_cut(&cut);
        }
    }
}

Test(stats, avx2_gives_the_bytes_of_the_scalar_form)
{
    check_cut(&(struct cut){3, 2, 1024, "avx2", true});
}

Test(stats, avx512_gives_the_bytes_of_the_scalar_form)
{
    check_cut(&(struct cut){3, 2, 1024, "avx512", true});
}

/* Any 32 bits, the gradient finite. */
static void fill_corners(struct trained *t, uint64_t seed)
{
    for (int64_t i = 0; i < t->n; i++) {
        uint32_t x[4];

        rng_block(seed, RNG_STREAM_SAMPLE, 0, (uint64_t)i, x);
        t->grad[i] = float_of(x[0]);
        if (!isfinite(t->grad[i]) || x[3] % 4 == 0)
            t->grad[i] = float_of(x[0] & 0x807fffffu);
        t->master[i] = float_of(x[1]);
        for (int k = 0; k < t->stats.rule->n_states; k++)
            t->states[k][i] = float_of(x[2]);
    }
}

static void check_corners(const char *isa)
{
    const struct cut cut = {2, 2, 512, isa, true};

    for (int k = 0; k < N_RULES; k++) {
        for (int i = 0; i < N_TENSORS; i++) {
            struct trained want;
            struct trained got;

            start(&want, k, i);
            start(&got, k, i);
            for (int64_t step = 1; step <= STEPS; step++) {
                fill_corners(&want, (uint64_t)step);
                fill_corners(&got, (uint64_t)step);
                train(&want, step, &uncut, step % 2 == 0 ? 1e-30f : 1.0f);
                train(&got, step, &cut, step % 2 == 0 ? 1e-30f : 1.0f);
            }
            assert_same_bytes(&got, cut.ranks, &want, RULES[k].rule);
            trained_fini(&got);
            trained_fini(&want);
        }
    }
}

Test(stats, avx2_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    check_corners("avx2");
}

Test(stats, avx512_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    check_corners("avx512");
}

/* A copy of the weights is optional. */
Test(stats, weights_are_the_same_without_a_bf16_copy)
{
    for (int k = 0; k < N_RULES; k++) {
        struct trained with;
        struct trained without;

        start(&with, k, 2);
        start(&without, k, 2);
        fill_grads(&with, 1);
        fill_grads(&without, 1);
        train(&with, 1, &uncut, 1.0f);

        /* Statistics of the same step, then apply alone. */
        const struct optim_stats_step step = {.scalars = with.stats.rule->scalars(&with.hyper, 1),
                                              .grad_scale = 1.0f};
        for (int64_t first = 0; first < without.n; first += 256) {
            struct optim_extent tile =
                tile_at(&without, first, without.n - first < 256 ? without.n - first : 256, 1.0f);

            tile.param = NULL;
            optim_stats_apply(&with.stats, &step, &tile, first, rank_vectors(&with, 0));
        }
        cr_assert_arr_eq(without.master, with.master, (size_t)with.n * sizeof(float));
        for (int64_t i = 0; i < with.n; i++) {
            cr_assert_eq(with.param[i], bf16_from_f32(with.master[i]));
            cr_assert_eq(without.param[i], 0);
        }
        trained_fini(&with);
        trained_fini(&without);
    }
}

/* More ranks than quanta: ranks without elements hold the same vectors and the step goes on. */
Test(stats, empty_shards_advance_the_vectors)
{
    const struct cut cut = {8, 1, 4096, "scalar", false};

    for (int k = 0; k < N_RULES; k++) {
        struct trained want;
        struct trained got;

        train_cut(&want, k, 5, &uncut);
        train_cut(&got, k, 5, &cut);
        cr_assert_eq(rank_begin(&got, &cut, 7), got.n, "rank 7 is not empty");
        assert_same_bytes(&got, 8, &want, RULES[k].rule);
        trained_fini(&got);
        trained_fini(&want);
    }
}

Test(stats, gradients_of_zero_leave_weights_without_decay_alone)
{
    for (int k = 0; k < N_RULES; k++) {
        for (int i = 0; i < N_TENSORS; i++) {
            struct trained t;
            float *before;

            start(&t, k, i);
            t.decay = false;
            before = zeros(t.n, sizeof(float));
            memcpy(before, t.master, (size_t)t.n * sizeof(float));
            for (int64_t step = 1; step <= 30; step++)
                train(&t, step, &uncut, 1.0f);
            cr_assert_arr_eq(t.master, before, (size_t)t.n * sizeof(float), "%s, tensor %d",
                             RULES[k].rule, i);
            free(before);
            trained_fini(&t);
        }
    }
}

/* An element without gradient in a block with others moves by its own momentum alone. */
Test(stats, an_element_of_zero_gradients_among_others_never_moves)
{
    for (int k = 0; k < N_RULES; k++) {
        for (int i = 0; i < N_TENSORS; i++) {
            struct trained t;
            float before;

            start(&t, k, i);
            t.decay = false;
            before = t.master[t.n / 2];
            for (int64_t step = 1; step <= STEPS; step++) {
                fill_grads(&t, (uint64_t)step);
                t.grad[t.n / 2] = 0.0f;
                train(&t, step, &uncut, 1.0f);
            }
            cr_assert_eq(bits_of(t.master[t.n / 2]), bits_of(before), "%s, tensor %d",
                         RULES[k].rule, i);
            trained_fini(&t);
        }
    }
}

/* Blocks of one element: what one term adds to limbs, for squares of any size below the norm's. */
Test(stats, terms_are_cut_into_small_limbs_without_loss)
{
    enum { N = 4096 };
    const struct tensor tensor = make_tensor(ROLE_GATE_UP, N, 1);
    int64_t *limbs = zeros(3 * N, sizeof *limbs);
    struct trained t;
    double bound = 8.0;

    trained_init(&t, "adam_mini", &tensor, &ordinary);
    for (int64_t i = 0; i < N; i++) {
        uint32_t x[4];

        rng_block(5, RNG_STREAM_SAMPLE, 0, (uint64_t)i, x);
        t.grad[i] = ldexpf(1.0f + ldexpf((float)(x[0] >> 9), -23), -(int)(x[1] % 30));
    }
    t.grad[0] = float_of(0x3fffffff);
    const struct optim_stats_step step = {.grad_scale = 1.0f, .grad_squares = grad_squares(&t)};
    while (bound < 8.0 * step.grad_squares)
        bound *= 2.0;
    const struct optim_extent tile = tile_at(&t, 0, N, 1.0f);
    optim_stats_accumulate(&t.stats, &step, 0, &tile, 0, rank_vectors(&t, 0), limbs);

    for (int64_t i = 0; i < N; i++) {
        const double square = (double)t.grad[i] * (double)t.grad[i];
        const __int128 base = (__int128)1 << 40;
        const __int128 value = (limbs[i] * base + limbs[N + i]) * base + limbs[2 * N + i];
        const double exact = ldexp(square / bound, 120); /* an integer here */

        cr_assert(limbs[i] >= 0 && limbs[i] <= (int64_t)1 << 37, "limb 0 of %d", (int)i);
        cr_assert(llabs(limbs[N + i]) <= (int64_t)1 << 39, "limb 1 of %d", (int)i);
        cr_assert(llabs(limbs[2 * N + i]) <= (int64_t)1 << 39, "limb 2 of %d", (int)i);
        cr_assert(value == (__int128)exact, "element %d: %g", (int)i, square);
    }
    free(limbs);
    trained_fini(&t);
}

/* The largest that the limbs of a block can be: 2^23 terms, each of 2^39 in the lower limbs. */
Test(stats, sums_of_full_limbs_are_read_exactly)
{
    const struct tensor tensor = make_tensor(ROLE_NORM, 1 << 20, 0);
    struct trained t;
    int64_t limbs[3] = {((int64_t)1 << 40) - 1, (int64_t)1 << 62, -((int64_t)1 << 62)};
    struct optim_stats_step step = {.grad_scale = 1.0f, .grad_squares = 0x0.8p0};

    trained_init(&t, "adam_mini", &tensor, &(struct optim_hyper){.lr = 1.0, .beta2 = 0.0});
    step.scalars = t.stats.rule->scalars(&t.hyper, 1);
    optim_stats_finish(&(struct optim_finish){
        .stats = &t.stats, .step = &step, .limbs = limbs, .vectors = t.vectors[0]});

    /* 0.5 < 2^0: the bound is 2^3.  2^40 - 1 + 2^62 / 2^40 - 2^62 / 2^80. */
    const double sum = (0x1p40 - 1.0 + 0x1p22 - 0x1p-18) * 0x1p-37;
    cr_assert_eq(bits_of(t.vectors[0][0][0]), bits_of((float)(sum / 0x1p20)));
    trained_fini(&t);
}

/* Rows far below the norm keep their mean: the resolution is 2^-116 of the squared norm. */
Test(stats, rows_of_tiny_gradients_are_resolved)
{
    enum { ROWS = 4, COLS = 300 };
    static const double size[ROWS] = {1.0, 1e-5, 1e-10, 1e-15};
    const struct tensor tensor = make_tensor(ROLE_UP, ROWS, COLS);
    struct trained t;

    trained_init(&t, "adam_mini", &tensor, &(struct optim_hyper){.lr = 1.0, .beta2 = 0.0});
    for (int i = 0; i < ROWS * COLS; i++)
        t.grad[i] = (float)(size[i / COLS] * (1.0 + 0.5 * sin(i)));
    train(&t, 1, &uncut, 0.3f);
    for (int row = 0; row < ROWS; row++) {
        double want = 0.0;

        for (int i = row * COLS; i < (row + 1) * COLS; i++) {
            const double g = (double)(t.grad[i] * 0.3f);

            want += g * g / COLS;
        }
        /* A row of 300 has 3 terms at most in quanta, each off by half the resolution. */
        const double bound = 16.0 * 0.09 * grad_squares(&t);
        const double tolerance = TOL_F32_ROUND * want + 1.5 * 0x1p-120 * bound / COLS;
        cr_assert_leq(fabs((double)t.vectors[0][0][row] - want), tolerance, "row %d: %g, %g", row,
                      (double)t.vectors[0][0][row], want);
        cr_assert_lt(tolerance, 1e-4 * want);
    }
    trained_fini(&t);
}

Test(stats, vectors_have_names_that_checkpoints_can_hold)
{
    for (int k = 0; k < N_RULES; k++) {
        const struct optim_hyper hyper = hyper_of(k);
        const struct optim_stats_rule *how = optim_stats_of(find_rule(RULES[k].rule), &hyper, -1);

        for (int i = 0; i < how->n_vectors; i++) {
            cr_assert_leq(strlen(how->vectors[i].name), 23);
            for (int j = 0; j < i; j++)
                cr_assert_neq(strcmp(how->vectors[i].name, how->vectors[j].name), 0);
        }
    }
}

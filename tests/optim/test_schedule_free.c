#include "tests/fixtures/schedule_free_torch.h"
#include "tests/optim/num.h"
#include "tests/optim/rules.h"
#include "tests/tolerance.h"

#include "runtime/shoal.h"

#include <stdlib.h>

/*
 * Schedule-free AdamW.  What all rules have in common is tested with them; here are the weights of
 * the average, the average itself, and trajectories: by hand, in double by the paper's formulas,
 * which hold x, y and z, and of the authors' own code.
 */

enum { STEPS = 50, WARMUP = 10 };

/* The step of one element on everything: fp32 as the kernel does it, with its bounds. */
struct element {
    struct num p, ahead, v;
    double x, y, z, square; /* by the paper */
};

/* The rates of a run that warms up, holds and decays. */
static double rate(int64_t t)
{
    return 3e-3 * fmin(1.0, (double)t / WARMUP) * (t > 40 ? 0.25 : 1.0);
}

/* The paper's algorithm 1 with Adam's denominator and decay at y; c is the weight of z in x. */
static void paper_step(struct element *r, const struct optim_hyper *h, int64_t t, double g,
                       double c)
{
    r->square = h->beta2 * r->square + (1.0 - h->beta2) * g * g;
    const double root = sqrt(r->square / (1.0 - pow(h->beta2, (double)t)));

    r->z -= h->lr * (g / (root + h->eps) + h->weight_decay * r->y);
    r->x = (1.0 - c) * r->x + c * r->z;
    r->y = (1.0 - h->beta1) * r->z + h->beta1 * r->x;
}

static void bounded_step(struct element *r, const struct optim_hyper *h, int64_t t, struct num g,
                         double c)
{
    r->v = add(mul(r->v, scalar(h->beta2)), mul(mul(g, scalar(1.0 - h->beta2)), g));
    const struct num denom =
        add(mul(root(r->v), scalar(1.0 / sqrt(1.0 - pow(h->beta2, (double)t)))), scalar(h->eps));
    const struct num u = add(divide(g, denom), mul(r->p, scalar(h->weight_decay)));
    const struct num drift = mul(u, scalar(h->lr * h->beta1));
    const struct num step = mul(u, scalar(h->lr * (1.0 - h->beta1 * (1.0 - c))));

    r->p = add(add(r->p, mul(r->ahead, scalar(c))), minus(step));
    r->ahead = mul(add(r->ahead, minus(drift)), scalar(1.0 - c));
}

static void begin(struct element *r, float weight)
{
    *r = (struct element){.p = {(double)weight, 0.0}};
    r->x = r->y = r->z = r->p.x;
}

static void check_close(double got, double want, double bound, const char *what, int i)
{
    cr_assert_leq(fabs(got - want), bound, "%s[%d]: %.9g, expected %.9g within %.2g", what, i, got,
                  want, bound);
}

Test(schedule_free, takes_three_steps_as_by_hand)
{
    const struct optim_rule *rule = find_rule("schedule_free");
    const double rates[] = {0.125, 0.25, 0.25};
    const float grads[] = {2.0f, -2.0f, 2.0f};
    /* Weights 1/64, 4/64, 4/64 in the average; z is 7/8, 9/8, 7/8, x 7/8, 1.075, 0.98611. */
    const double shares[] = {1.0, 0.8, 4.0 / 9.0};
    const double y[] = {0.875, 1.1, 0.93055556};
    const double z_minus_y[] = {0.0, 0.025, -0.05555556};
    const double x[] = {0.875, 1.075, 0.98611111};
    const double v[] = {1.0, 1.75, 2.3125};
    struct optim_average average = {0};
    float p = 1.0f, states[2] = {0.0f, 0.0f};

    for (int t = 0; t < 3; t++) {
        struct optim_hyper hyper = {.lr = rates[t], .beta1 = 0.5, .beta2 = 0.75};

        hyper.average_share = optim_average_add(&average, rates[t]);
        cr_assert_leq(fabs(hyper.average_share - shares[t]), 1e-15);
        const struct optim_scalars scalars = rule->scalars(&hyper, t + 1);
        const struct optim_extent extent = {.n = 1,
                                            .grad = &grads[t],
                                            .grad_scale = 1.0f,
                                            .decay = true,
                                            .master = &p,
                                            .states = {&states[0], &states[1]}};
        rule->kernel(&scalars, &extent);
        float used = p;
        rule->average(&hyper, 1, &states[0], &used);
        check_close((double)p, y[t], TOL_BLOCKS_BY_HAND, "y", t);
        check_close((double)states[0], z_minus_y[t], TOL_BLOCKS_BY_HAND, "z - y", t);
        check_close((double)states[1], v[t], TOL_BLOCKS_BY_HAND, "v", t);
        check_close((double)used, x[t], TOL_BLOCKS_BY_HAND, "x", t);
    }
}

Test(schedule_free, follows_the_papers_formulas_in_double_for_fifty_steps)
{
    static struct buffers b;
    static struct element ref[N];
    const struct optim_rule *rule = find_rule("schedule_free");
    struct optim_average average = {0};
    struct optim_hyper hyper = ordinary;
    double lr_max = 0.0, sum = 0.0;
    int narrow = 0;

    fill_ordinary(&b, 9);
    memset(b.states, 0, sizeof b.states);
    for (int i = 0; i < N; i++)
        begin(&ref[i], b.master[i]);
    for (int64_t t = 1; t <= STEPS; t++) {
        const struct optim_extent extent = extent_at(&b, 0, N);

        hyper.lr = rate(t);
        lr_max = fmax(lr_max, hyper.lr);
        sum += lr_max * lr_max;
        hyper.average_share = optim_average_add(&average, hyper.lr);
        const struct optim_scalars scalars = rule->scalars(&hyper, t);
        rng_fill_normal(9, RNG_STREAM_SAMPLE, (uint64_t)t, 0, N, 0.1f, b.grad);
        rule->kernel(&scalars, &extent);
        for (int i = 0; i < N; i++) {
            const struct num g = rounded(0.75 * (double)b.grad[i], 0.0);

            paper_step(&ref[i], &hyper, t, g.x, lr_max * lr_max / sum);
            bounded_step(&ref[i], &hyper, t, g, lr_max * lr_max / sum);
        }
    }
    for (int i = 0; i < N; i++) {
        float x = b.master[i];

        rule->average(&hyper, 1, &b.states[0][i], &x);
        check_close((double)b.master[i], ref[i].y, TOL_RULE_ORDER * ref[i].p.e, "y", i);
        check_close((double)b.states[0][i], ref[i].z - ref[i].y, TOL_RULE_ORDER * ref[i].ahead.e,
                    "z - y", i);
        check_close((double)b.states[1][i], ref[i].square, TOL_RULE_ORDER * ref[i].v.e, "v", i);
        check_close((double)x, ref[i].x, TOL_RULE_ORDER * (ref[i].p.e + ref[i].ahead.e), "x", i);
        narrow += ref[i].p.e < 0.01 * 3e-3;
    }
    cr_assert_gt(narrow, N * 9 / 10, "only %d of %d bounds are below lr / 100", narrow, N);
}

/* Both sides round, the authors' once more to x and back in z - y: three times the error of one. */
Test(schedule_free, agrees_with_the_authors_code_after_twenty_steps)
{
    const struct optim_rule *rule = find_rule("schedule_free");
    struct optim_average average = {0};
    struct optim_hyper hyper = {.beta1 = TORCH_BETA1,
                                .beta2 = TORCH_BETA2,
                                .eps = TORCH_EPS,
                                .weight_decay = TORCH_WEIGHT_DECAY};
    float y[TORCH_N], states[2][TORCH_N] = {{0}};
    struct element ref[TORCH_N];

    memcpy(y, torch_start, sizeof y);
    for (int i = 0; i < TORCH_N; i++)
        begin(&ref[i], y[i]);
    for (int t = 1; t <= TORCH_STEPS; t++) {
        float grad[TORCH_N];
        const struct optim_extent extent = {.n = TORCH_N,
                                            .grad = grad,
                                            .grad_scale = 1.0f,
                                            .decay = true,
                                            .master = y,
                                            .states = {states[0], states[1]}};

        memcpy(grad, torch_grads + TORCH_N * (t - 1), sizeof grad);
        hyper.lr = TORCH_LR * fmin(1.0, (double)t / TORCH_WARMUP);
        hyper.average_share = optim_average_add(&average, hyper.lr);
        const struct optim_scalars scalars = rule->scalars(&hyper, t);
        rule->kernel(&scalars, &extent);
        for (int i = 0; i < TORCH_N; i++)
            bounded_step(&ref[i], &hyper, t, (struct num){(double)grad[i], 0.0},
                         hyper.average_share);
    }
    for (int i = 0; i < TORCH_N; i++) {
        const double p_bound = 3 * TOL_RULE_ORDER * ref[i].p.e;
        float x = y[i];

        rule->average(&hyper, 1, &states[0][i], &x);
        check_close((double)y[i], (double)float_of(torch_y[i]), p_bound, "y", i);
        check_close((double)states[0][i] + (double)y[i], (double)float_of(torch_z[i]), p_bound, "z",
                    i);
        check_close((double)x, (double)float_of(torch_x[i]), p_bound, "x", i);
        check_close((double)states[1][i], (double)float_of(torch_exp_avg_sq[i]),
                    2 * TOL_RULE_ORDER * ref[i].v.e, "v", i);
    }
}

Test(schedule_free, weighs_steps_by_the_largest_rate_so_far)
{
    struct optim_average average = {0};

    cr_assert_eq(optim_average_add(&average, 0.0), 0.0); /* nothing to average yet */
    cr_assert_eq(optim_average_add(&average, 0.25), 1.0);
    cr_assert_eq(optim_average_add(&average, 0.5), 0.8);
    cr_assert_eq(optim_average_add(&average, 0.125), 4.0 / 9.0);
    cr_assert_eq(average.lr_max, 0.5);
    cr_assert_eq(average.weight_sum, 9.0 / 16.0);
}

static void expect_refusal(struct shoal_optim_params params, const char *said)
{
    struct shoal_optim *optim = NULL;

    params.size = sizeof params;
    params.rule = "schedule_free";
    params.n_elements = 4;
    cr_assert_eq(shoal_optim_create(&params, &optim), SHOAL_ERR_CONFIG);
    cr_assert_not_null(strstr(shoal_last_error(), said), "%s", shoal_last_error());
}

Test(schedule_free, refuses_a_first_beta_of_zero_and_to_be_cautious)
{
    expect_refusal((struct shoal_optim_params){.beta2 = 0.9}, "above 0");
    expect_refusal((struct shoal_optim_params){.beta1 = 0.9, .beta2 = 0.9, .cautious = 1},
                   "cannot be cautious");
}

/* Through the installed header: coded states, 24-bit weights, more than one piece. */
Test(schedule_free, gives_callers_the_average)
{
    enum { MANY = 3001, CALLS = 5 };
    struct shoal_optim_params params = {.size = sizeof params,
                                        .rule = "schedule_free",
                                        .state = "int8",
                                        .master = "ecc8",
                                        .n_elements = MANY,
                                        .beta1 = 0.9,
                                        .beta2 = 0.95,
                                        .eps = 1e-8};
    static float weights[MANY], grad[MANY], y[MANY], x[MANY], ahead[MANY];
    static uint8_t low[MANY];
    static uint16_t param[MANY];
    const struct optim_codec *codec = NULL;
    struct shoal_optim *optim = NULL;
    void *states[8] = {NULL};
    double sum_of_squares = 0.0;

    cr_assert_eq(shoal_optim_create(&params, &optim), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(shoal_optim_state_count(optim), 4);
    cr_assert_str_eq(shoal_optim_state_name(optim, 0), "z_minus_y");
    cr_assert_str_eq(shoal_optim_state_name(optim, 1), "z_minus_y.scale");
    for (int i = 0; i < 4; i++)
        states[i] = calloc(1, shoal_optim_state_bytes(optim, i));
    rng_fill_normal(4, RNG_STREAM_INIT, 0, 0, MANY, 0.1f, weights);
    cr_assert_eq(shoal_optim_set_weights(optim, weights, low, param), SHOAL_OK);
    for (int64_t t = 1; t <= CALLS; t++) {
        const struct shoal_optim_update update = {.size = sizeof update,
                                                  .step = t,
                                                  .lr = 1e-2,
                                                  .grad = grad,
                                                  .master = low,
                                                  .param = param,
                                                  .states = states};

        rng_fill_normal(5, RNG_STREAM_SAMPLE, (uint64_t)t, 0, MANY, 0.1f, grad);
        cr_assert_eq(shoal_optim_step(optim, &update), SHOAL_OK, "%s", shoal_last_error());
    }
    cr_assert_eq(shoal_optim_get_average(optim, low, param, states, x), SHOAL_OK, "%s",
                 shoal_last_error());
    cr_assert_eq(shoal_optim_get_weights(optim, low, param, y), SHOAL_OK);
    cr_assert_eq(codec_find("int8", &codec), SHOAL_OK);
    codec->decode[CODEC_SIGNED](states[0], states[1], MANY, ahead);
    for (int i = 0; i < MANY; i++) {
        cr_assert_eq(bits_of(x[i]), bits_of(y[i] - ahead[i] * (float)(1.0 / 0.9 - 1.0)));
        sum_of_squares += (double)ahead[i] * (double)ahead[i];
    }
    cr_assert_gt(sqrt(sum_of_squares / MANY), 1e-3, "the average is where the weights are");
    cr_assert_eq(shoal_optim_get_average(optim, low, param, NULL, x), SHOAL_ERR_USAGE);
    for (int i = 0; i < 4; i++) {
        free(states[i]);
        states[i] = NULL;
    }
    cr_assert_eq(shoal_optim_get_average(optim, low, param, states, x), SHOAL_ERR_USAGE);
    shoal_optim_destroy(optim);
}

/* Without a share the API takes one rate for granted. */
Test(schedule_free, takes_equal_shares_from_callers_who_give_none)
{
    struct shoal_optim_params params = {.size = sizeof params,
                                        .rule = "schedule_free",
                                        .n_elements = 1,
                                        .beta1 = 0.9,
                                        .beta2 = 0.95,
                                        .eps = 1e-8};
    struct shoal_optim *optim = NULL;
    float y[2] = {1.0f, 1.0f}, states[2][2] = {{0}};

    cr_assert_eq(shoal_optim_create(&params, &optim), SHOAL_OK, "%s", shoal_last_error());
    for (int64_t t = 1; t <= 4; t++) {
        const float grad = t % 2 == 0 ? -0.5f : 1.0f;

        for (int given = 0; given <= 1; given++) {
            void *pointers[] = {&states[given][0], &states[given][1]};
            const struct shoal_optim_update update = {.size = sizeof update,
                                                      .step = t,
                                                      .lr = 1e-2,
                                                      .grad = &grad,
                                                      .master = &y[given],
                                                      .states = pointers,
                                                      .average_share = given / (double)t};

            cr_assert_eq(shoal_optim_step(optim, &update), SHOAL_OK, "%s", shoal_last_error());
        }
    }
    cr_assert_eq(bits_of(y[0]), bits_of(y[1]));
    cr_assert_neq(y[0], 1.0f);

    void *pointers[] = {&states[0][0], &states[0][1]};
    const struct shoal_optim_update bad = {.size = sizeof bad,
                                           .step = 5,
                                           .lr = 1e-2,
                                           .grad = y,
                                           .master = &y[1],
                                           .states = pointers,
                                           .average_share = 1.5};
    cr_assert_eq(shoal_optim_step(optim, &bad), SHOAL_ERR_USAGE);
    cr_assert_not_null(strstr(shoal_last_error(), "average_share"), "%s", shoal_last_error());
    shoal_optim_destroy(optim);
}

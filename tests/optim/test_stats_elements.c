#include "tests/optim/stats.h"

/*
 * Options by which element-wise rules look at whole tensors: the order of operations that the top of
 * stats_elements.c and mars.c promises, written a second time, and figures worked out by hand.
 */

enum { N = 1031, STEPS = 12 };

static const struct optim_hyper ordinary = {
    .lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .gamma = 0.025, .eps = 1e-8, .weight_decay = 0.1};

static const struct cut some_cut = {3, 2, 256, "scalar", true};

struct plain {
    float master[N], m[N], v[N], prev[N], u[N];
};

static float clip_of(const struct plain *r, const struct trained *t, float correction)
{
    struct exact_sum sum;
    double partial = 0.0;

    /* The order inside a quantum is another, which rounding to fp32 hides on these gradients. */
    exact_sum_clear(&sum);
    for (int i = 0; i < N; i++) {
        const float g = t->grad[i] * 0.75f;
        const float change = (g - r->prev[i]) * correction;
        const float c = g + change;

        partial += (double)c * (double)c;
    }
    exact_sum_add(&sum, partial);
    const double norm = sqrt(exact_sum_value(&sum));
    return norm <= 1.0 ? 1.0f : (float)(1.0 / norm);
}

/* One step of adamw, or of mars where clip tells; leaves the step in u. */
static void adamw_step(struct plain *r, const struct trained *t, int64_t step, float clip)
{
    const struct optim_hyper *h = &t->hyper;
    const double b1 = 1.0 - pow(h->beta1, (double)step);
    const double b2 = 1.0 - pow(h->beta2, (double)step);
    const bool mars = strcmp(t->stats.rule->name, "mars") == 0;
    const double share = mars && step > 1 ? h->gamma * h->beta1 / (1.0 - h->beta1) : 0.0;

    for (int i = 0; i < N; i++) {
        const float g = t->grad[i] * 0.75f;
        const float change = (g - r->prev[i]) * (float)share;
        const float sum = g + change;
        const float c = sum * clip;
        const float m0 = r->m[i] * (float)h->beta1;
        const float v0 = r->v[i] * (float)h->beta2;
        const float scaled = c * (float)(1.0 - h->beta2);

        r->m[i] = m0 + c * (float)(1.0 - h->beta1);
        r->v[i] = v0 + scaled * c;
        r->prev[i] = g;
        const float root = sqrtf(r->v[i]) * (float)(1.0 / sqrt(b2));
        const float quotient = r->m[i] / (root + (float)h->eps);
        r->u[i] = quotient * (float)(h->lr / b1);
    }
}

static void move(struct plain *r, const struct trained *t, bool cautious)
{
    const float decay = (float)(1.0 - t->hyper.lr * t->hyper.weight_decay);
    int kept = 0;

    for (int i = 0; i < N; i++)
        kept += (double)r->u[i] * (double)t->grad[i] > 0.0;
    const float factor = (float)(1.0 / fmax((double)kept / N, 1e-3));
    for (int i = 0; i < N; i++) {
        float u = r->u[i];

        if (cautious)
            u = (double)u * (double)t->grad[i] > 0.0 ? u * factor : 0.0f;
        r->master[i] = r->master[i] * decay - u;
    }
}

static void check(const char *rule, bool cautious, bool clip, float size)
{
    static struct plain want;
    struct optim_hyper hyper = ordinary;
    const struct tensor tensor = make_tensor(ROLE_UP, 1, N);
    struct trained t;

    hyper.cautious = cautious;
    hyper.tensor_clip = clip;
    memset(&want, 0, sizeof want);
    trained_init(&t, rule, &tensor, &hyper);
    rng_fill_normal(3, RNG_STREAM_INIT, 0, 0, N, 0.5f, t.master);
    memcpy(want.master, t.master, sizeof want.master);
    for (int64_t step = 1; step <= STEPS; step++) {
        const float correction =
            step > 1 ? (float)(hyper.gamma * hyper.beta1 / (1.0 - hyper.beta1)) : 0.0f;

        rng_fill_normal(3, RNG_STREAM_SAMPLE, (uint64_t)step, 0, N, size, t.grad);
        adamw_step(&want, &t, step, clip ? clip_of(&want, &t, correction) : 1.0f);
        move(&want, &t, cautious);
        train(&t, step, &some_cut, 0.75f);
        cr_assert_arr_eq(t.master, want.master, sizeof want.master, "%s, step %d", rule, (int)step);
        cr_assert_arr_eq(t.states[0], want.m, sizeof want.m);
        cr_assert_arr_eq(t.states[1], want.v, sizeof want.v);
    }
    trained_fini(&t);
}

Test(stats_elements, cautious_adamw_follows_its_order_of_operations)
{
    check("adamw", true, false, 0.1f);
}

/* Of norms above and below 1. */
Test(stats_elements, clipped_mars_follows_its_order_of_operations)
{
    check("mars", false, true, 0.1f);
    check("mars", false, true, 0.01f);
    check("mars", true, true, 0.1f);
}

/*
 * c = g / 2: all four agree, share 1.  Then m = 0.5 and c = 0.25 + g / 2 = 0.125, -0.75, 0.75, 0.25:
 * the first goes against its gradient, the last has none, the others are doubled.
 */
Test(stats_elements, cautious_lion_takes_two_steps_as_by_hand)
{
    static const float grads[2][4] = {{1, 1, 1, 1}, {-0.25f, -2, 1, 0}};
    static const float want[4] = {-1, 1, -3, -1};
    const struct optim_hyper hyper = {.lr = 1.0, .beta1 = 0.5, .beta2 = 0.5, .cautious = true};
    const struct tensor tensor = make_tensor(ROLE_NORM, 4, 0);
    struct trained t;

    trained_init(&t, "lion", &tensor, &hyper);
    for (int64_t step = 1; step <= 2; step++) {
        memcpy(t.grad, grads[step - 1], sizeof grads[0]);
        train(&t, step, &uncut, 1.0f);
    }
    cr_assert_arr_eq(t.master, want, sizeof want);
    trained_fini(&t);
}

/* No element agrees: the least share is 1e-3, and nothing moves but by decay. */
Test(stats_elements, cautious_weights_stay_where_no_step_agrees)
{
    const struct optim_hyper hyper = {.lr = 1.0, .beta1 = 0.9, .beta2 = 0.9, .cautious = true};
    const struct tensor tensor = make_tensor(ROLE_NORM, 4, 0);
    struct trained t;

    trained_init(&t, "lion", &tensor, &hyper);
    for (int i = 0; i < 4; i++) {
        t.states[0][i] = 1.0f;
        t.grad[i] = -0.5f;
    }
    train(&t, 1, &uncut, 1.0f);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(t.master[i], 0.0f);
    cr_assert_eq(t.vectors[0][1][0], 1000.0f);
    trained_fini(&t);
}

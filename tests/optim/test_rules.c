#include "tests/optim/rules.h"
#include "tests/tolerance.h"

/*
 * All rules but AdamW, which has a file of its own: the order of operations that the top of
 * <rule>.c promises, written a second time, one element at a time; the forms for each instruction
 * set; cuts; and what is special about a rule.
 */

/* One element at a step: gradient, decay or not, weight and states in and out. */
typedef void contract_fn(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p,
                         float *states);

static float ema(float average, double beta, float x)
{
    const float kept = average * (float)beta;

    return kept + x * (float)(1.0 - beta);
}

static float ema_of_square(float average, double beta, float x)
{
    const float kept = average * (float)beta;
    const float share = x * (float)(1.0 - beta);

    return kept + share * x;
}

static float denominator(float v, const struct optim_hyper *h, int64_t t)
{
    const float root = sqrtf(v) * (float)(1.0 / sqrt(1.0 - pow(h->beta2, (double)t)));

    return root + (float)h->eps;
}

static float decayed(float p, const struct optim_hyper *h, bool decay)
{
    return p * (decay ? (float)(1.0 - h->lr * h->weight_decay) : 1.0f);
}

static float with_l2(float g, float p, const struct optim_hyper *h, bool decay)
{
    const float penalty = p * (decay ? (float)h->weight_decay : 0.0f);

    return g + penalty;
}

static void adam(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p, float *s)
{
    g = with_l2(g, *p, h, decay);
    s[0] = ema(s[0], h->beta1, g);
    s[1] = ema_of_square(s[1], h->beta2, g);
    const float quotient = s[0] / denominator(s[1], h, t);
    const float step = quotient * (float)(h->lr / (1.0 - pow(h->beta1, (double)t)));
    *p = *p - step;
}

static float arc_tangent(float y, float x)
{
    const float size = fabsf(y);
    float lo = size;
    float hi = x;

    if (size > x) {
        lo = x;
        hi = size;
    }
    const bool far = lo > hi * 0.41421357f;
    const float above = far ? lo - hi : lo;
    float below = far ? hi + lo : hi;
    if (below == 0.0f)
        below = 1.0f;
    const float ratio = above / below;
    const float z = ratio * ratio;
    float q = 0.08060298f * z;
    q = q - 0.13879846f;
    q = q * z;
    q = q + 0.19977926f;
    q = q * z;
    q = q - 0.33332956f;
    float angle = ratio * z;
    angle = ratio + angle * q;
    if (far)
        angle = angle + (float)(M_PI / 4);
    if (size > x)
        angle = (float)(M_PI / 2) - angle;
    return y < 0.0f ? -angle : angle;
}

static void adam_atan2(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p,
                       float *s)
{
    s[0] = ema(s[0], h->beta1, g);
    s[1] = ema_of_square(s[1], h->beta2, g);
    const float y = s[0] * (float)(1.0 / (1.0 - pow(h->beta1, (double)t)));
    const float x = sqrtf(s[1]) * (float)(1.0 / sqrt(1.0 - pow(h->beta2, (double)t)));
    const float step = arc_tangent(y, x) * (float)(1.27 * h->lr);
    *p = decayed(*p, h, decay) - step;
}

/* beta3 of step t by libm. */
static double slow_beta(const struct optim_hyper *h, int64_t t)
{
    const double part = (double)t / (double)h->slow_warmup_steps;

    if (t >= h->slow_warmup_steps)
        return h->beta3;
    return exp(1.0 / ((1.0 - part) / log(h->beta1) + part / log(h->beta3)));
}

static double slow_alpha(const struct optim_hyper *h, int64_t t)
{
    return t >= h->slow_warmup_steps ? h->alpha
                                     : h->alpha * ((double)t / (double)h->slow_warmup_steps);
}

static void ademamix(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p,
                     float *s)
{
    s[0] = ema(s[0], h->beta1, g);
    s[2] = ema(s[2], slow_beta(h, t), g);
    s[1] = ema_of_square(s[1], h->beta2, g);
    const float fast = s[0] * (float)(1.0 / (1.0 - pow(h->beta1, (double)t)));
    const float both = fast + s[2] * (float)slow_alpha(h, t);
    const float u = both / denominator(s[1], h, t);
    *p = decayed(*p, h, decay) - u * (float)h->lr;
}

static void adopt(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p, float *s)
{
    const float clip = (float)pow((double)(t - 1), 0.25);
    float root = sqrtf(s[1]);

    if (root < (float)h->eps)
        root = (float)h->eps;
    float c = g / root;
    if (c > clip)
        c = clip;
    if (c < -clip)
        c = -clip;
    s[0] = ema(s[0], h->beta1, c);
    *p = decayed(*p, h, decay && t > 1) - s[0] * (float)h->lr;
    if (t > 1)
        s[1] = ema_of_square(s[1], h->beta2, g);
    else
        s[1] = s[1] * (float)h->beta2 + g * g;
}

static void lion(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p, float *s)
{
    const float c = ema(s[0], h->beta1, g);
    float sign = 0.0f;

    (void)t;
    if (c > 0.0f)
        sign = 1.0f;
    if (c < 0.0f)
        sign = -1.0f;
    *p = decayed(*p, h, decay) - sign * (float)h->lr;
    s[0] = ema(s[0], h->beta2, g);
}

static void mars(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p, float *s)
{
    const double share = t > 1 ? h->gamma * h->beta1 / (1.0 - h->beta1) : 0.0;
    const float change = g - s[2];
    const float c = g + change * (float)share;

    s[0] = ema(s[0], h->beta1, c);
    s[1] = ema_of_square(s[1], h->beta2, c);
    s[2] = g;
    const float quotient = s[0] / denominator(s[1], h, t);
    *p = decayed(*p, h, decay) - quotient * (float)(h->lr / (1.0 - pow(h->beta1, (double)t)));
}

static void schedule_free(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p,
                          float *s)
{
    const double c = h->average_share;
    const float ahead = s[0];

    s[1] = ema_of_square(s[1], h->beta2, g);
    const float penalty = *p * (decay ? (float)h->weight_decay : 0.0f);
    const float u = g / denominator(s[1], h, t) + penalty;
    const float drift = u * (float)(h->lr * h->beta1);
    s[0] = (ahead - drift) * (float)(1.0 - c);
    const float nearer = *p + ahead * (float)c;
    *p = nearer - u * (float)(h->lr * (1.0 - h->beta1 * (1.0 - c)));
}

static void sgd(const struct optim_hyper *h, int64_t t, float g, bool decay, float *p, float *s)
{
    (void)t;
    g = with_l2(g, *p, h, decay);
    s[0] = s[0] * (float)h->momentum + g;
    const float u = s[0] * (h->nesterov ? (float)h->momentum : 1.0f);
    const float ahead = u + g * (h->nesterov ? 1.0f : 0.0f);
    *p = *p - ahead * (float)h->lr;
}

static const struct {
    const char *name;
    contract_fn *contract;
    bool nesterov;
} CASES[] = {
    {"adam", adam, false},
    {"adam_atan2", adam_atan2, false},
    {"ademamix", ademamix, false},
    {"adopt", adopt, false},
    {"lion", lion, false},
    {"mars", mars, false},
    {"sgd", sgd, false},
    {"sgd", sgd, true},
    {"schedule_free", schedule_free, false},
};

enum { N_CASES = sizeof CASES / sizeof CASES[0] };

static struct optim_hyper hyper_of(int k)
{
    return CASES[k].nesterov ? with_nesterov(ordinary) : ordinary;
}

static float stored(float x)
{
    return isnan(x) ? float_of(0x7fc00000) : x;
}

static void update_by_the_contract(int k, const struct optim_hyper *hyper, int64_t t,
                                   const struct optim_extent *e)
{
    const int n_states = find_rule(CASES[k].name)->n_states;

    for (size_t i = 0; i < e->n; i++) {
        float p = e->master[i];
        float s[MAX_STATES] = {0};

        for (int j = 0; j < n_states; j++)
            s[j] = e->states[j][i];
        CASES[k].contract(hyper, t, e->grad[i] * e->grad_scale, e->decay, &p, s);
        for (int j = 0; j < n_states; j++)
            e->states[j][i] = stored(s[j]);
        e->master[i] = stored(p);
        if (e->param != NULL)
            e->param[i] = bf16_from_f32(stored(p));
    }
}

Test(rules, scalar_kernels_follow_the_order_written_at_the_top_of_their_files)
{
    static struct buffers got;
    static struct buffers want;

    for (int k = 0; k < N_CASES; k++) {
        const struct optim_rule *rule = find_rule(CASES[k].name);
        const struct optim_hyper hyper = hyper_of(k);

        for (int64_t t = 1; t <= 1000; t = t * 3 + 1) {
            for (int decay = 0; decay <= 1; decay++) {
                const struct optim_scalars scalars = rule->scalars(&hyper, t);
                struct optim_extent got_extent = extent_at(&got, 0, N);
                struct optim_extent want_extent = extent_at(&want, 0, N);

                (t % 2 == 0 ? fill_ordinary : fill_corners)(&got, (uint64_t)t);
                want = got;
                got_extent.decay = want_extent.decay = decay == 1;
                rule->kernel_scalar(&scalars, &got_extent);
                update_by_the_contract(k, &hyper, t, &want_extent);
                cr_assert_arr_eq(&got, &want, sizeof got, "%s, step %d", rule->name, (int)t);
            }
        }
    }
}

Test(rules, avx2_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    for (int k = 0; k < N_CASES; k++) {
        const struct optim_hyper hyper = hyper_of(k);

        check_form(find_rule(CASES[k].name), &hyper, "avx2");
    }
}

Test(rules, avx512_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    for (int k = 0; k < N_CASES; k++) {
        const struct optim_hyper hyper = hyper_of(k);

        check_form(find_rule(CASES[k].name), &hyper, "avx512");
    }
}

Test(rules, bytes_do_not_depend_on_how_the_extent_is_cut)
{
    for (int k = 0; k < N_CASES; k++) {
        const struct optim_hyper hyper = hyper_of(k);

        check_cuts(find_rule(CASES[k].name), &hyper);
    }
}

/* Codes that are not 0 for 0, or sign(0) = 1, would let unused weights drift. */
Test(rules, weights_without_decay_and_gradients_never_move)
{
    static struct buffers b;
    static struct buffers before;

    for (int k = 0; k < N_CASES; k++) {
        const struct optim_rule *rule = find_rule(CASES[k].name);
        const struct optim_hyper hyper = hyper_of(k);
        struct optim_extent extent = extent_at(&b, 0, N);

        fill_ordinary(&b, 1);
        memset(b.grad, 0, sizeof b.grad);
        memset(b.states, 0, sizeof b.states);
        before = b;
        extent.decay = false;
        extent.param = NULL;
        for (int64_t t = 1; t <= 30; t++) {
            const struct optim_scalars scalars = rule->scalars(&hyper, t);

            rule->kernel(&scalars, &extent);
        }
        cr_assert_arr_eq(&b, &before, sizeof b, "%s", rule->name);
    }
}

Test(rules, adopt_takes_its_first_step_to_set_the_second_moment_alone)
{
    static struct buffers b;
    static struct buffers before;
    const struct optim_rule *rule = find_rule("adopt");
    const struct optim_scalars scalars = rule->scalars(&ordinary, 1);
    struct optim_extent extent = extent_at(&b, 0, N);

    fill_ordinary(&b, 2);
    memset(b.states, 0, sizeof b.states);
    before = b;
    extent.param = NULL;
    extent.grad_scale = 1.0f;
    rule->kernel(&scalars, &extent);
    cr_assert_arr_eq(b.master, before.master, sizeof b.master);
    cr_assert_arr_eq(b.states[0], before.states[0], sizeof b.states[0]);
    for (int i = 0; i < N; i++)
        cr_assert_eq(bits_of(b.states[1][i]), bits_of(b.grad[i] * b.grad[i]));
}

Test(rules, mars_is_adamw_at_its_first_step_and_remembers_the_gradient)
{
    static struct buffers got;
    static struct buffers want;
    const struct optim_rule *rule = find_rule("mars");
    const struct optim_rule *adamw = find_rule("adamw");
    const struct optim_scalars got_scalars = rule->scalars(&ordinary, 1);
    const struct optim_scalars want_scalars = adamw->scalars(&ordinary, 1);
    const struct optim_extent got_extent = extent_at(&got, 0, N);
    const struct optim_extent want_extent = extent_at(&want, 0, N);

    fill_ordinary(&got, 2);
    memset(got.states, 0, sizeof got.states);
    want = got;
    rule->kernel(&got_scalars, &got_extent);
    adamw->kernel(&want_scalars, &want_extent);
    for (int i = 0; i < N; i++)
        want.states[2][i] = 0.75f * want.grad[i];
    cr_assert_arr_eq(&got, &want, sizeof got);
}

/* Our ln and exp against libm's, at both ends of what beta1 may be. */
Test(rules, ademamix_raises_beta3_from_any_first_beta)
{
    enum { ADEMAMIX = 2 };
    static const double first[] = {0.0, 1e-9, 0.3, 0.70711, 0.9, 0.999, 0.999999};
    static struct buffers got;
    static struct buffers want;
    const struct optim_rule *rule = find_rule(CASES[ADEMAMIX].name);

    for (size_t j = 0; j < sizeof first / sizeof first[0]; j++) {
        struct optim_hyper hyper = ordinary;

        hyper.beta1 = first[j];
        hyper.beta3 = 0.9999;
        for (int64_t t = 1; t <= 21; t += 4) {
            const struct optim_scalars scalars = rule->scalars(&hyper, t);
            const struct optim_extent got_extent = extent_at(&got, 0, N);
            const struct optim_extent want_extent = extent_at(&want, 0, N);

            fill_ordinary(&got, (uint64_t)t);
            want = got;
            rule->kernel(&scalars, &got_extent);
            update_by_the_contract(ADEMAMIX, &hyper, t, &want_extent);
            cr_assert_arr_eq(&got, &want, sizeof got, "beta1 %g, step %d", first[j], (int)t);
        }
    }
}

/* A kernel with lr such that a weight of 0 becomes minus the angle. */
Test(rules, adam_atan2_computes_the_arc_tangent_in_all_octants)
{
    static struct buffers b;
    const struct optim_rule *rule = find_rule("adam_atan2");
    const struct optim_hyper hyper = {.lr = 1.0 / 1.27, .beta1 = 0.0, .beta2 = 0.5};
    const struct optim_scalars scalars = rule->scalars(&hyper, 60);
    struct optim_extent extent = extent_at(&b, 0, N);

    /* m = g; v = v0 / 2 + g * g / 2, so that |y| <= sqrt(2) x; beyond, with v0 negative. */
    fill_ordinary(&b, 6);
    extent.decay = false;
    extent.grad_scale = 1.0f;
    for (int i = 0; i < N; i++) {
        const float square = b.grad[i] * b.grad[i];

        b.master[i] = 0.0f;
        b.states[1][i] = square * (i % 2 == 0 ? (float)(i + 1) * 0.1f : -(float)i / N);
    }
    rule->kernel(&scalars, &extent);
    int steep = 0;
    for (int i = 0; i < N; i++) {
        const double want = atan2((double)b.grad[i], sqrt((double)b.states[1][i]));

        steep += fabs(want) > 1.2;
        cr_assert_leq(fabs(-(double)b.master[i] - want), TOL_ATAN2 * fabs(want),
                      "element %d: %.9g, expected %.9g", i, -(double)b.master[i], want);
    }
    cr_assert_gt(steep, 20);
}

#include "tests/fixtures/rules_torch.h"
#include "tests/optim/num.h"
#include "tests/optim/rules.h"
#include "tests/tolerance.h"

/*
 * All rules against their papers' formulas in double, over 50 steps, and against PyTorch.  The
 * tolerance is a running error analysis: each number of the reference carries a bound on what fp32
 * arithmetic, one rounding per operation, can be off by then.
 */

enum { STEPS = 50 };

/* Of an element: the weight and up to three states. */
struct element {
    struct num p, s[MAX_STATES];
};

typedef void reference_fn(struct element *r, const struct optim_hyper *h, int64_t t, struct num g);

static double b_of(double beta, int64_t t)
{
    return 1.0 - pow(beta, (double)t);
}

static struct num ema(struct num average, double beta, struct num x)
{
    return add(mul(average, scalar(beta)), mul(x, scalar(1.0 - beta)));
}

static struct num corrected_root(struct num v, const struct optim_hyper *h, int64_t t)
{
    return mul(root(v), scalar(1.0 / sqrt(b_of(h->beta2, t))));
}

static struct num adam_quotient(struct element *r, const struct optim_hyper *h, int64_t t)
{
    const struct num m = mul(r->s[0], scalar(1.0 / b_of(h->beta1, t)));

    return divide(m, add(corrected_root(r->s[1], h, t), scalar(h->eps)));
}

static void moments(struct element *r, const struct optim_hyper *h, struct num g)
{
    r->s[0] = ema(r->s[0], h->beta1, g);
    r->s[1] = ema(r->s[1], h->beta2, mul(g, g));
}

static void move(struct element *r, const struct optim_hyper *h, struct num u)
{
    r->p = add(r->p, minus(mul(scalar(h->lr), u)));
}

static void decay_and_move(struct element *r, const struct optim_hyper *h, struct num u)
{
    r->p = mul(r->p, scalar(1.0 - h->lr * h->weight_decay));
    move(r, h, u);
}

static void adamw(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    moments(r, h, g);
    decay_and_move(r, h, adam_quotient(r, h, t));
}

static void adam(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    moments(r, h, add(g, mul(scalar(h->weight_decay), r->p)));
    move(r, h, adam_quotient(r, h, t));
}

static void adam_atan2(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    moments(r, h, g);
    const struct num y = mul(r->s[0], scalar(1.0 / b_of(h->beta1, t)));
    const struct num x = corrected_root(r->s[1], h, t);
    const double length = hypot(x.x, y.x) - hypot(x.e, y.e);
    const double angle = atan2(y.x, x.x);
    const double e = (fabs(x.x) * y.e + fabs(y.x) * x.e) / (length * length);

    decay_and_move(r, h, mul(scalar(1.27), (struct num){angle, e + TOL_ATAN2 * fabs(angle)}));
}

/* The half-life of beta3 grows linearly from that of beta1, as the authors' code has it. */
static double slow_beta(const struct optim_hyper *h, double part)
{
    const double begin = log(0.5) / log(h->beta1) - 1.0;
    const double end = log(0.5) / log(h->beta3) - 1.0;

    return pow(0.5, 1.0 / ((1.0 - part) * begin + part * end + 1.0));
}

static void ademamix(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    const double part = fmin(1.0, (double)t / (double)h->slow_warmup_steps);

    moments(r, h, g);
    r->s[2] = ema(r->s[2], slow_beta(h, part), g);
    const struct num fast = mul(r->s[0], scalar(1.0 / b_of(h->beta1, t)));
    const struct num both = add(fast, mul(scalar(part * h->alpha), r->s[2]));
    decay_and_move(r, h, divide(both, add(corrected_root(r->s[1], h, t), scalar(h->eps))));
}

static void adopt(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    if (t == 1) {
        r->s[1] = mul(g, g);
        return;
    }
    const double limit = pow((double)(t - 1), 0.25);
    struct num below = root(r->s[1]);

    below.x = fmax(below.x, h->eps);
    struct num c = divide(g, below);
    c.x = fmin(fmax(c.x, -limit), limit);
    c.e += TOL_F32_ROUND * limit;
    r->s[0] = ema(r->s[0], h->beta1, c);
    decay_and_move(r, h, r->s[0]);
    r->s[1] = ema(r->s[1], h->beta2, mul(g, g));
}

/* A sign that rounding may change can be off by 2. */
static void lion(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    const struct num c = ema(r->s[0], h->beta1, g);

    (void)t;
    decay_and_move(r, h,
                   (struct num){(c.x > 0.0) - (c.x < 0.0), fabs(c.x) > 2.0 * c.e ? 0.0 : 2.0});
    r->s[0] = ema(r->s[0], h->beta2, g);
}

static void mars(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    const struct num change = add(g, minus(r->s[2]));
    const double share = t == 1 ? 0.0 : h->gamma * h->beta1 / (1.0 - h->beta1);

    moments(r, h, add(g, mul(scalar(share), change)));
    r->s[2] = g;
    decay_and_move(r, h, adam_quotient(r, h, t));
}

static void sgd(struct element *r, const struct optim_hyper *h, int64_t t, struct num g)
{
    g = add(g, mul(scalar(h->weight_decay), r->p));
    r->s[0] = t == 1 ? g : add(mul(scalar(h->momentum), r->s[0]), g);
    move(r, h, h->nesterov ? add(g, mul(scalar(h->momentum), r->s[0])) : r->s[0]);
}

static const struct {
    const char *name;
    reference_fn *step;
    bool nesterov;
} CASES[] = {
    {"adamw", adamw, false},       {"adam", adam, false},   {"adam_atan2", adam_atan2, false},
    {"ademamix", ademamix, false}, {"adopt", adopt, false}, {"lion", lion, false},
    {"mars", mars, false},         {"sgd", sgd, false},     {"sgd", sgd, true},
};

enum { N_CASES = sizeof CASES / sizeof CASES[0] };

static void check_close(double got, struct num want, double factor, const char *what, int i)
{
    const double tolerance = factor * want.e;

    cr_assert_leq(fabs(got - want.x), tolerance, "%s[%d]: %.9g, expected %.9g within %.2g", what, i,
                  got, want.x, tolerance);
}

/* How much of the tolerance of weights is used, and how wide it is: a bound that bounds nothing
 * would pass everything. */
static void check_bounds_are_narrow(const char *name, const struct element *ref, double lr)
{
    int narrow = 0;

    for (int i = 0; i < N; i++)
        narrow += ref[i].p.e < 0.01 * lr;
    cr_assert_gt(narrow, N * 9 / 10, "%s: only %d of %d bounds are below lr / 100", name, narrow,
                 N);
}

Test(rules_reference, every_rule_follows_a_trajectory_in_double)
{
    static struct buffers b;
    static struct element ref[N];

    for (int k = 0; k < N_CASES; k++) {
        const struct optim_rule *rule = find_rule(CASES[k].name);
        const struct optim_hyper hyper = CASES[k].nesterov ? with_nesterov(ordinary) : ordinary;

        fill_ordinary(&b, 8);
        memset(b.states, 0, sizeof b.states);
        memset(ref, 0, sizeof ref);
        for (int i = 0; i < N; i++)
            ref[i].p.x = (double)b.master[i];
        for (int64_t t = 1; t <= STEPS; t++) {
            const struct optim_scalars scalars = rule->scalars(&hyper, t);
            struct optim_extent extent = extent_at(&b, 0, N);

            rng_fill_normal(8, RNG_STREAM_SAMPLE, (uint64_t)t, 0, N, 0.1f, b.grad);
            rule->kernel(&scalars, &extent);
            for (int i = 0; i < N; i++)
                CASES[k].step(&ref[i], &hyper, t, rounded(0.75 * (double)b.grad[i], 0.0));
        }
        for (int i = 0; i < N; i++) {
            for (int j = 0; j < rule->n_states; j++)
                check_close((double)b.states[j][i], ref[i].s[j], TOL_RULE_ORDER,
                            rule->state_names[j], i);
            check_close((double)b.master[i], ref[i].p, TOL_RULE_ORDER, rule->name, i);
            cr_assert_eq(b.param[i], bf16_from_f32(b.master[i]));
        }
        check_bounds_are_narrow(rule->name, ref, hyper.lr);
    }
}

struct torch_run {
    float master[TORCH_N], states[2][TORCH_N];
    struct element ref[TORCH_N];
};

static void run_as_torch(const char *name, reference_fn *step, const struct optim_hyper *hyper,
                         struct torch_run *run)
{
    const struct optim_rule *rule = find_rule(name);

    memset(run, 0, sizeof *run);
    memcpy(run->master, torch_start, sizeof run->master);
    for (int i = 0; i < TORCH_N; i++)
        run->ref[i].p.x = (double)run->master[i];
    for (int t = 1; t <= TORCH_STEPS; t++) {
        const struct optim_scalars scalars = rule->scalars(hyper, t);
        float grad[TORCH_N];
        const struct optim_extent extent = {.n = TORCH_N,
                                            .grad = grad,
                                            .grad_scale = 1.0f,
                                            .decay = true,
                                            .master = run->master,
                                            .states = {run->states[0], run->states[1]}};

        memcpy(grad, torch_grads + TORCH_N * (t - 1), sizeof grad);
        rule->kernel(&scalars, &extent);
        for (int i = 0; i < TORCH_N; i++)
            step(&run->ref[i], hyper, t, (struct num){(double)grad[i], 0.0});
    }
}

/* Both sides round: twice the error of one. */
static void check_torch(const float *got, const uint32_t *torch, const struct num *bound,
                        size_t stride, const char *what)
{
    for (int i = 0; i < TORCH_N; i++) {
        const struct num *reference =
            (const struct num *)(const void *)((const char *)bound + (size_t)i * stride);
        const struct num want = {(double)float_of(torch[i]), reference->e};

        check_close((double)got[i], want, 2 * TOL_RULE_ORDER, what, i);
    }
}

Test(rules_reference, adam_agrees_with_pytorch_after_twenty_steps)
{
    static struct torch_run run;
    const struct optim_hyper hyper = {.lr = TORCH_ADAM_LR,
                                      .beta1 = TORCH_BETA1,
                                      .beta2 = TORCH_BETA2,
                                      .eps = TORCH_EPS,
                                      .weight_decay = TORCH_WEIGHT_DECAY};
    const size_t stride = sizeof run.ref[0];

    run_as_torch("adam", adam, &hyper, &run);
    check_torch(run.master, torch_adam_param, &run.ref[0].p, stride, "p");
    check_torch(run.states[0], torch_adam_exp_avg, &run.ref[0].s[0], stride, "exp_avg");
    check_torch(run.states[1], torch_adam_exp_avg_sq, &run.ref[0].s[1], stride, "exp_avg_sq");
}

Test(rules_reference, sgd_agrees_with_pytorch_with_and_without_nesterov)
{
    static struct torch_run run;
    struct optim_hyper hyper = {
        .lr = TORCH_SGD_LR, .weight_decay = TORCH_WEIGHT_DECAY, .momentum = TORCH_MOMENTUM};
    const size_t stride = sizeof run.ref[0];

    run_as_torch("sgd", sgd, &hyper, &run);
    check_torch(run.master, torch_sgd_param, &run.ref[0].p, stride, "p");
    check_torch(run.states[0], torch_sgd_momentum_buffer, &run.ref[0].s[0], stride, "buffer");

    hyper.nesterov = true;
    run_as_torch("sgd", sgd, &hyper, &run);
    check_torch(run.master, torch_nesterov_param, &run.ref[0].p, stride, "nesterov p");
}

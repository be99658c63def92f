#include "tests/optim/rules.h"
#include "tests/tolerance.h"

/*
 * AdamW by the conventions of other software: the order of operations and the scalars that the top
 * of adamw_<convention>.c promises, written a second time; three steps by hand; and what sets each
 * apart from PyTorch's convention, "adamw".
 */

/* One element: hyper-parameters are floats from the start. */
struct hyper32 {
    float lr, beta1, beta2, eps, weight_decay;
};

typedef void contract_fn(const struct hyper32 *h, int64_t t, float g, bool decay, float *p,
                         float *m, float *v);

static float power32(float beta, int64_t t)
{
    return (float)pow((double)beta, (double)t);
}

static void torch_fused(const struct hyper32 *h, int64_t t, float g, bool decay, float *p, float *m,
                        float *v)
{
    const float b1 = 1.0f - power32(h->beta1, t);
    const float b2 = 1.0f - power32(h->beta2, t);
    const float root_b2 = sqrtf(b2);
    const float step_size = h->lr / b1;
    const float decay_rate = decay ? h->lr * h->weight_decay : 0.0f;
    const float square = g * g;

    const float lost = decay_rate * *p;
    *p = *p - lost;
    const float new_m = fmaf(-h->beta1, g, g);
    *m = fmaf(h->beta1, *m, new_m);
    const float new_v = fmaf(-h->beta2, square, square);
    *v = fmaf(h->beta2, *v, new_v);
    float denom = sqrtf(*v);
    denom = denom / root_b2;
    denom = denom + h->eps;
    const float scaled = step_size * *m;
    *p = *p - scaled / denom;
}

static float running_product(float beta, int64_t t)
{
    float product = 1.0f;

    while (t-- > 0)
        product = product * beta;
    return product;
}

static void deepspeed(const struct hyper32 *h, int64_t t, float g, bool decay, float *p, float *m,
                      float *v)
{
    const float b1 = 1.0f - running_product(h->beta1, t);
    const float b2 = 1.0f - running_product(h->beta2, t);
    const float rsqrt_b2 = (float)(1.0 / sqrt((double)b2));
    const float square = g * g;

    *m = *m * h->beta1;
    *m = fmaf(g, 1.0f - h->beta1, *m);
    *v = *v * h->beta2;
    *v = fmaf(square, 1.0f - h->beta2, *v);
    const float denom = fmaf(sqrtf(*v), rsqrt_b2, h->eps);
    const float u = *m / denom;
    *p = fmaf(*p, decay ? -h->lr * h->weight_decay : 0.0f, *p);
    *p = fmaf(u, -h->lr / b1, *p);
}

static void apex(const struct hyper32 *h, int64_t t, float g, bool decay, float *p, float *m,
                 float *v)
{
    const float b1 = (float)(1.0 - pow((double)h->beta1, (double)t));
    const float b2 = (float)(1.0 - pow((double)h->beta2, (double)t));

    const float kept_m = h->beta1 * *m;
    *m = kept_m + (1.0f - h->beta1) * g;
    const float kept_v = h->beta2 * *v;
    const float new_v = (1.0f - h->beta2) * g;
    *v = kept_v + new_v * g;
    const float m_hat = *m / b1;
    const float v_hat = *v / b2;
    const float denom = sqrtf(v_hat) + h->eps;
    float u = m_hat / denom;
    u = u + (decay ? h->weight_decay : 0.0f) * *p;
    *p = *p - h->lr * u;
}

static void bnb(const struct hyper32 *h, int64_t t, float g, bool decay, float *p, float *m,
                float *v)
{
    const float b1 = 1.0f - power32(h->beta1, t);
    const float root_b2 = sqrtf(1.0f - power32(h->beta2, t));
    const float step_size = -h->lr * root_b2 / b1;
    const float square = g * g;

    const float kept_m = *m * h->beta1;
    *m = kept_m + (1.0f - h->beta1) * g;
    const float kept_v = *v * h->beta2;
    *v = kept_v + (1.0f - h->beta2) * square;
    const float denom = sqrtf(*v) + h->eps * root_b2;
    const float u = *m / denom;
    *p = *p + step_size * u;
    if (decay)
        *p = *p * (1.0f - h->lr * h->weight_decay);
}

static const struct {
    const char *name;
    contract_fn *contract;
} CASES[] = {{"adamw_torch_fused", torch_fused},
             {"adamw_deepspeed", deepspeed},
             {"adamw_apex", apex},
             {"adamw_bnb", bnb}};

enum { N_CASES = sizeof CASES / sizeof CASES[0], BNB = 3 };

static float stored(float x)
{
    return isnan(x) ? float_of(0x7fc00000) : x;
}

static void update_by_the_contract(int k, const struct optim_hyper *h, int64_t t,
                                   const struct optim_extent *e)
{
    const struct hyper32 h32 = {(float)h->lr, (float)h->beta1, (float)h->beta2, (float)h->eps,
                                (float)h->weight_decay};

    for (size_t i = 0; i < e->n; i++) {
        float p = e->master[i], m = e->states[0][i], v = e->states[1][i];

        CASES[k].contract(&h32, t, e->grad[i] * e->grad_scale, e->decay, &p, &m, &v);
        e->states[0][i] = stored(m);
        e->states[1][i] = stored(v);
        e->master[i] = stored(p);
        if (e->param != NULL)
            e->param[i] = bf16_from_f32(stored(p));
    }
}

Test(rules_compat, scalar_kernels_follow_the_order_written_at_the_top_of_their_files)
{
    static struct buffers got;
    static struct buffers want;

    for (int k = 0; k < N_CASES; k++) {
        const struct optim_rule *rule = find_rule(CASES[k].name);

        for (int64_t t = 1; t <= 3000; t = t * 3 + 1) {
            struct optim_hyper hyper = ordinary;

            hyper.beta2 = t % 3 == 0 ? 0.95 : 0.999;
            for (int decay = 0; decay <= 1; decay++) {
                const struct optim_scalars scalars = rule->scalars(&hyper, t);
                struct optim_extent got_extent = extent_at(&got, 0, N);
                struct optim_extent want_extent = extent_at(&want, 0, N);

                (t % 2 == 0 ? fill_ordinary : fill_corners)(&got, (uint64_t)t);
                /* An infinite weight has no product with a decay of 0. */
                for (int i = 0; i < N; i++)
                    got.master[i] = isinf(got.master[i]) ? 1.0f : got.master[i];
                want = got;
                got_extent.decay = want_extent.decay = decay == 1;
                rule->kernel_scalar(&scalars, &got_extent);
                update_by_the_contract(k, &hyper, t, &want_extent);
                cr_assert_arr_eq(&got, &want, sizeof got, "%s, step %d", rule->name, (int)t);
            }
        }
    }
}

Test(rules_compat, avx2_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    for (int k = 0; k < N_CASES; k++)
        check_form(find_rule(CASES[k].name), &ordinary, "avx2");
}

Test(rules_compat, avx512_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    for (int k = 0; k < N_CASES; k++)
        check_form(find_rule(CASES[k].name), &ordinary, "avx512");
}

/* The last elements of an extent get the same fma as the others. */
Test(rules_compat, bytes_do_not_depend_on_how_the_extent_is_cut)
{
    for (int k = 0; k < N_CASES; k++)
        check_cuts(find_rule(CASES[k].name), &ordinary);
}

/* ---- by hand ---- */

enum { BY_HAND = 3 };

static void three_steps(const char *name, const struct optim_hyper *hyper, const float *grads,
                        float p_out[BY_HAND], float *m_out, float *v_out)
{
    const struct optim_rule *rule = find_rule(name);
    float p = 1.0f, m = 0.0f, v = 0.0f;

    for (int t = 1; t <= BY_HAND; t++) {
        const struct optim_scalars scalars = rule->scalars(hyper, t);
        const struct optim_extent one = {.n = 1,
                                         .grad = &grads[t - 1],
                                         .grad_scale = 1.0f,
                                         .decay = true,
                                         .master = &p,
                                         .states = {&m, &v}};

        rule->kernel(&scalars, &one);
        p_out[t - 1] = p;
    }
    *m_out = m;
    *v_out = v;
}

static void near(double got, double want, const char *rule, int step)
{
    cr_assert_leq(fabs(got - want), TOL_COMPAT_BY_HAND, "%s, step %d: %.9g, expected %.9g", rule,
                  step, got, want);
}

/*
 * A gradient of 1 makes both corrected moments 1, whatever the betas: with eps = 1 every step is
 * lr / 2, with lr = 0.1 and a weight decay of 0.5
 *     before, p <- 0.95 p - 0.05:     0.9, 0.805, 0.71475
 *     after, p <- 0.95 (p - 0.05):    0.9025, 0.809875, 0.72188125
 */
Test(rules_compat, take_three_steps_of_a_constant_gradient_as_by_hand)
{
    static const double before[] = {0.9, 0.805, 0.71475}, after[] = {0.9025, 0.809875, 0.72188125};
    static const float grads[] = {1, 1, 1};
    const struct optim_hyper hyper = {
        .lr = 0.1, .beta1 = 0.5, .beta2 = 0.75, .eps = 1, .weight_decay = 0.5};
    float p[BY_HAND], torch[BY_HAND], m, v;

    three_steps("adamw", &hyper, grads, torch, &m, &v);
    for (int k = 0; k < N_CASES; k++) {
        three_steps(CASES[k].name, &hyper, grads, p, &m, &v);
        for (int t = 0; t < BY_HAND; t++) {
            near(torch[t], before[t], "adamw", t + 1);
            near(p[t], k == BNB ? after[t] : before[t], CASES[k].name, t + 1);
        }
        cr_assert_eq(m, 0.875f);
        cr_assert_eq(v, 0.578125f);
    }

    /* Decay after the update: lr * weight_decay * u = 0.0025 at step 1, then 0.95 of it more. */
    near(p[0] - torch[0], 0.0025, "adamw_bnb - adamw", 1);
    near(p[1] - torch[1], 0.004875, "adamw_bnb - adamw", 2);
    near(p[2] - torch[2], 0.00713125, "adamw_bnb - adamw", 3);
}

/*
 * Gradients 4, -2, 1 with betas 1/2, 3/4, eps = 1/2, lr = 1/4 and a weight decay of 1/2:
 *     m = 2, 0, 1/2; v = 4, 4, 13/4; b1 = 1/2, 3/4, 7/8; b2 = 1/4, 7/16, 37/64
 *     u = 4 / 4.5, 0, (4/7) / (sqrt(208/37) + 1/2) = 0.199034965
 */
Test(rules_compat, take_three_steps_of_changing_gradients_as_by_hand)
{
    static const double before[] = {47.0 / 72, 329.0 / 576, 0.450024245},
                        after[] = {49.0 / 72, 343.0 / 576, 0.477511449};
    static const float grads[] = {4, -2, 1};
    const struct optim_hyper hyper = {
        .lr = 0.25, .beta1 = 0.5, .beta2 = 0.75, .eps = 0.5, .weight_decay = 0.5};
    float p[BY_HAND], m, v;

    three_steps("adamw", &hyper, grads, p, &m, &v);
    for (int t = 0; t < BY_HAND; t++)
        near(p[t], before[t], "adamw", t + 1);
    for (int k = 0; k < N_CASES; k++) {
        three_steps(CASES[k].name, &hyper, grads, p, &m, &v);
        for (int t = 0; t < BY_HAND; t++)
            near(p[t], k == BNB ? after[t] : before[t], CASES[k].name, t + 1);
        cr_assert_eq(m, 0.5f, "%s", CASES[k].name);
        cr_assert_eq(v, 3.25f, "%s", CASES[k].name);
    }
}

/*
 * 1 - 0.999 in fp32 is 16777 * 2^-24 = 9.9998713e-4: the second moment is off by 1.287e-5 of itself
 * from step 1 on.  "adamw" takes the difference in double.
 */
Test(rules_compat, lose_the_last_digits_of_a_beta_near_one_as_that_software_does)
{
    static const float grads[] = {1, 0, 0};
    struct optim_hyper hyper = {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    float p[BY_HAND], m, v, exact;

    cr_assert_eq(1.0f - 0.999f, 0x1.0624p-10f);
    three_steps("adamw", &hyper, grads, p, &m, &exact);
    for (int k = 0; k < N_CASES; k++) {
        three_steps(CASES[k].name, &hyper, grads, p, &m, &v);
        cr_assert_leq(fabs(((double)v - (double)exact) / (double)exact + 1.287e-5), 4e-7,
                      "%s: %.9g", CASES[k].name, (double)v);
    }
}

/* The running product drifts from the power, and the corrections with it. */
Test(rules_compat, deepspeed_multiplies_its_powers_up)
{
    const struct optim_hyper hyper = {.lr = 1, .beta1 = 0.999, .beta2 = 0.999, .eps = 1};
    const float by_steps = running_product(0.999f, 1000);
    const float at_once = power32(0.999f, 1000);
    const struct optim_rule *rule = find_rule("adamw_deepspeed");
    const struct optim_scalars scalars = rule->scalars(&hyper, 1000);
    float grad = 0, p = 0, m = 1.0f / 0.999f, v = 0;
    const struct optim_extent one = {
        .n = 1, .grad = &grad, .grad_scale = 1, .master = &p, .states = {&m, &v}};

    cr_assert_neq(bits_of(by_steps), bits_of(at_once));
    rule->kernel(&scalars, &one); /* v = 0, eps = 1: p = -m lr / b1 */
    cr_assert_eq(bits_of(p), bits_of(fmaf(m, -1.0f / (1.0f - by_steps), 0.0f)));
    cr_assert_neq(bits_of(p), bits_of(fmaf(m, -1.0f / (1.0f - at_once), 0.0f)));
}

/* The same mathematics in another order: other bits, but nothing beyond rounding. */
Test(rules_compat, differ_from_pytorchs_convention_in_bits_and_by_rounding_alone)
{
    enum { STEPS = 20 };
    static struct buffers torch, b;
    const struct optim_rule *adamw = find_rule("adamw");

    for (int k = 0; k < BNB; k++) {
        const struct optim_rule *rule = find_rule(CASES[k].name);
        int different = 0;

        fill_ordinary(&b, 8);
        memset(b.states, 0, sizeof b.states);
        torch = b;
        for (int64_t t = 1; t <= STEPS; t++) {
            const struct optim_extent torch_extent = extent_at(&torch, 0, N);
            const struct optim_extent extent = extent_at(&b, 0, N);
            const struct optim_scalars torch_scalars = adamw->scalars(&ordinary, t);
            const struct optim_scalars scalars = rule->scalars(&ordinary, t);

            rng_fill_normal(8, RNG_STREAM_SAMPLE, (uint64_t)t, 0, N, 0.1f, b.grad);
            memcpy(torch.grad, b.grad, sizeof b.grad);
            adamw->kernel(&torch_scalars, &torch_extent);
            rule->kernel(&scalars, &extent);
        }
        for (int i = 0; i < N; i++) {
            const double p = (double)torch.master[i];

            different += bits_of(b.master[i]) != bits_of(torch.master[i]);
            cr_assert_leq(fabs((double)b.master[i] - p), TOL_COMPAT_P(STEPS, fabs(p), ordinary.lr),
                          "%s: %.9g, adamw %.9g", rule->name, (double)b.master[i], p);
        }
        cr_assert_gt(different, N / 10, "%s: %d", rule->name, different);
    }
}

Test(rules_compat, keep_the_states_of_adamw)
{
    const struct optim_rule *adamw = find_rule("adamw");

    for (int k = 0; k < N_CASES; k++) {
        const struct optim_rule *rule = find_rule(CASES[k].name);

        cr_assert_eq(rule->n_states, adamw->n_states);
        for (int s = 0; s < rule->n_states; s++) {
            cr_assert_str_eq(rule->state_names[s], adamw->state_names[s]);
            cr_assert_eq(rule->state_unsigned[s], adamw->state_unsigned[s]);
        }
        cr_assert(rule->compat);
    }
}

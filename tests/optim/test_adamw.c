#include "tests/fixtures/adamw_torch.h"
#include "tests/optim/rules.h"
#include "tests/tolerance.h"

static const struct optim_rule *adamw;

static void find_adamw(void)
{
    cr_assert_eq(optim_find("adamw", &adamw), SHOAL_OK);
}

TestSuite(adamw, .init = find_adamw);

static float stored(float x)
{
    return isnan(x) ? float_of(0x7fc00000) : x;
}

/* The order of operations that optim.h promises, written a second time, one element at a time. */
static void update_by_the_contract(const struct optim_hyper *h, int64_t step,
                                   const struct optim_extent *e)
{
    const double b1 = 1.0 - pow(h->beta1, (double)step);
    const double b2 = 1.0 - pow(h->beta2, (double)step);

    for (size_t i = 0; i < e->n; i++) {
        float g = e->grad[i];
        float m = e->states[0][i];
        float v = e->states[1][i];
        float p = e->master[i];

        g = g * e->grad_scale;
        m = m * (float)h->beta1;
        m = m + g * (float)(1.0 - h->beta1);
        v = v * (float)h->beta2;
        v = v + (g * (float)(1.0 - h->beta2)) * g;
        float denom = sqrtf(v);
        denom = denom * (float)(1.0 / sqrt(b2));
        denom = denom + (float)h->eps;
        if (e->decay)
            p = p * (float)(1.0 - h->lr * h->weight_decay);
        float u = m / denom;
        u = u * (float)(h->lr / b1);
        p = p - u;

        e->states[0][i] = stored(m);
        e->states[1][i] = stored(v);
        e->master[i] = stored(p);
        if (e->param != NULL)
            e->param[i] = bf16_from_f32(stored(p));
    }
}

Test(adamw, scalar_kernel_follows_the_order_written_in_the_header)
{
    static struct buffers got;
    static struct buffers want;

    for (int64_t step = 1; step <= 1000; step = step * 3 + 1) {
        for (int decay = 0; decay <= 1; decay++) {
            const struct optim_scalars scalars = adamw->scalars(&ordinary, step);
            struct optim_extent got_extent = extent_at(&got, 0, N);
            struct optim_extent want_extent = extent_at(&want, 0, N);

            fill_corners(&got, (uint64_t)step);
            fill_corners(&want, (uint64_t)step);
            got_extent.decay = want_extent.decay = decay == 1;
            adamw->kernel_scalar(&scalars, &got_extent);
            update_by_the_contract(&ordinary, step, &want_extent);
            cr_assert_arr_eq(&got, &want, sizeof got, "step %d", (int)step);
        }
    }
}

Test(adamw, avx2_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    check_form(adamw, &ordinary, "avx2");
}

Test(adamw, avx512_gives_the_bytes_of_the_scalar_form_on_all_inputs)
{
    check_form(adamw, &ordinary, "avx512");
}

Test(adamw, bytes_do_not_depend_on_how_the_extent_is_cut)
{
    check_cuts(adamw, &ordinary);
}

Test(adamw, zero_gradient_and_state_move_the_weight_by_decay_alone)
{
    static struct buffers b;
    const struct optim_scalars scalars = adamw->scalars(&ordinary, 1);
    struct optim_extent extent = extent_at(&b, 0, N);

    fill_ordinary(&b, 1);
    memset(b.grad, 0, sizeof b.grad);
    memset(b.states, 0, sizeof b.states);
    const float before = b.master[7];
    adamw->kernel(&scalars, &extent);
    cr_assert_eq(bits_of(b.master[7]), bits_of(before * (float)(1.0 - 3e-3 * 0.1)));

    const float decayed = b.master[7];
    extent.decay = false;
    adamw->kernel(&scalars, &extent);
    cr_assert_eq(bits_of(b.master[7]), bits_of(decayed));
    cr_assert_eq(bits_of(b.states[0][7]), 0);
    cr_assert_eq(bits_of(b.states[1][7]), 0);
}

/* AdamW as the paper writes it, in double, with bias-corrected moments. */
struct reference {
    double p, m, v, largest_grad;
};

static void reference_step(struct reference *r, const struct optim_hyper *h, int64_t step, double g)
{
    r->m = h->beta1 * r->m + (1.0 - h->beta1) * g;
    r->v = h->beta2 * r->v + (1.0 - h->beta2) * g * g;
    const double m_hat = r->m / (1.0 - pow(h->beta1, (double)step));
    const double v_hat = r->v / (1.0 - pow(h->beta2, (double)step));
    r->p = r->p - h->lr * h->weight_decay * r->p - h->lr * m_hat / (sqrt(v_hat) + h->eps);
    r->largest_grad = fmax(r->largest_grad, fabs(g));
}

static void check_close(double got, double want, double tolerance, const char *what, int i)
{
    cr_assert_leq(fabs(got - want), tolerance, "%s[%d]: %.9g, expected %.9g within %.2g", what, i,
                  got, want, tolerance);
}

Test(adamw, follows_a_trajectory_in_double)
{
    enum { STEPS = 100 };
    static struct buffers b;
    static struct reference ref[N];

    fill_ordinary(&b, 8);
    memset(b.states, 0, sizeof b.states);
    for (int i = 0; i < N; i++)
        ref[i].p = b.master[i];
    for (int64_t step = 1; step <= STEPS; step++) {
        const struct optim_scalars scalars = adamw->scalars(&ordinary, step);
        struct optim_extent extent = extent_at(&b, 0, N);

        rng_fill_normal(8, RNG_STREAM_SAMPLE, (uint64_t)step, 0, N, 0.1f, b.grad);
        extent.grad_scale = 0.5f;
        adamw->kernel(&scalars, &extent);
        for (int i = 0; i < N; i++)
            reference_step(&ref[i], &ordinary, step, 0.5 * b.grad[i]);
    }
    for (int i = 0; i < N; i++) {
        const struct reference *r = &ref[i];

        check_close(b.states[0][i], r->m, TOL_ADAMW_M * r->largest_grad, "m", i);
        check_close(b.states[1][i], r->v, TOL_ADAMW_V(STEPS) * r->v, "v", i);
        check_close(b.master[i], r->p, TOL_ADAMW_P(STEPS, fabs(r->p), ordinary.lr), "p", i);
        cr_assert_eq(b.param[i], bf16_from_f32(b.master[i]));
    }
}

Test(adamw, agrees_with_pytorch_after_twenty_steps)
{
    const struct optim_hyper torch_hyper = {.lr = TORCH_LR,
                                            .beta1 = TORCH_BETA1,
                                            .beta2 = TORCH_BETA2,
                                            .eps = TORCH_EPS,
                                            .weight_decay = TORCH_WEIGHT_DECAY};
    float master[TORCH_N];
    float m[TORCH_N] = {0};
    float v[TORCH_N] = {0};

    memcpy(master, torch_start, sizeof master);
    for (int step = 1; step <= TORCH_STEPS; step++) {
        const struct optim_scalars scalars = adamw->scalars(&torch_hyper, step);
        float grad[TORCH_N];
        const struct optim_extent extent = {.n = TORCH_N,
                                            .grad = grad,
                                            .grad_scale = 1.0f,
                                            .decay = true,
                                            .master = master,
                                            .states = {m, v}};

        memcpy(grad, torch_grads + TORCH_N * (step - 1), sizeof grad);
        adamw->kernel(&scalars, &extent);
    }
    for (int i = 0; i < TORCH_N; i++) {
        const double p = float_of(torch_param[i]);
        double largest_grad = 0.0;

        for (int step = 0; step < TORCH_STEPS; step++)
            largest_grad = fmax(largest_grad, fabs(float_of(torch_grads[TORCH_N * step + i])));
        /* Both sides round: twice the error of one. */
        check_close(m[i], float_of(torch_exp_avg[i]), 2 * TOL_ADAMW_M * largest_grad, "m", i);
        check_close(v[i], float_of(torch_exp_avg_sq[i]),
                    2 * TOL_ADAMW_V(TORCH_STEPS) * float_of(torch_exp_avg_sq[i]), "v", i);
        check_close(master[i], p, 2 * TOL_ADAMW_P(TORCH_STEPS, fabs(p), TORCH_LR), "p", i);
    }
}

Test(optim_find, names_the_nearest_rule)
{
    const struct optim_rule *rule = NULL;

    cr_assert_eq(optim_find("admw", &rule), SHOAL_ERR_CONFIG);
    cr_assert_null(rule);
    cr_assert_not_null(strstr(shoal_last_error(), "\"admw\""));
    cr_assert_not_null(strstr(shoal_last_error(), "did you mean \"adamw\"?"));
}

Test(optim_find, offers_the_kernel_of_the_instruction_set_asked_for)
{
    const struct optim_rule *rule = NULL;

    cr_assert_eq(optim_find("adamw", &rule), SHOAL_OK);
    cr_assert_eq(optim_kernel_for(rule, "scalar"), rule->kernel_scalar);
    cr_assert_null(optim_kernel_for(rule, "avx1024"));
}

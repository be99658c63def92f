#include "optim/optim.h"

#include <criterion/criterion.h>
#include <math.h>

static void check_lr(const struct lr_params *params, int64_t step, double want)
{
    const double got = lr_at(params, step);

    /* A handful of operations in double. */
    cr_assert_leq(fabs(got - want), 1e-15 * params->lr, "step %lld: %.17g, expected %.17g",
                  (long long)step, got, want);
}

/*
 * nanoGPT's get_lr(it) at it = step with learning_rate 6e-4, min_lr 6e-5, warmup_iters 10,
 * lr_decay_iters 110; the cosine of multiples of 18 degrees in closed form.
 */
Test(lr, cosine_takes_the_values_of_nanogpt)
{
    const struct lr_params params = {
        .schedule = LR_COSINE, .lr = 6e-4, .min_lr = 6e-5, .warmup_steps = 10, .total_steps = 110};

    check_lr(&params, 1, 6e-5);
    check_lr(&params, 5, 3e-4);
    check_lr(&params, 10, 6e-4);
    check_lr(&params, 30, 6e-5 + 5.4e-4 * 0.5 * (1.0 + (1.0 + sqrt(5.0)) / 4.0));
    check_lr(&params, 35, 6e-5 + 5.4e-4 * 0.5 * (1.0 + M_SQRT1_2));
    check_lr(&params, 60, 3.3e-4);
    check_lr(&params, 85, 6e-5 + 5.4e-4 * 0.5 * (1.0 - M_SQRT1_2));
    check_lr(&params, 110, 6e-5);
    check_lr(&params, 111, 6e-5);
    check_lr(&params, 100000, 6e-5);
}

Test(lr, cosine_agrees_with_the_formula_at_every_step)
{
    const struct lr_params params = {.schedule = LR_COSINE,
                                     .lr = 3e-4,
                                     .min_lr = 3e-5,
                                     .warmup_steps = 371,
                                     .total_steps = 9973};

    for (int64_t step = 1; step <= 9973; step++) {
        const double ratio = (double)(step - 371) / (9973 - 371);
        const double cosine = 3e-5 + 0.5 * (1.0 + cos(M_PI * ratio)) * (3e-4 - 3e-5);

        check_lr(&params, step, step < 371 ? 3e-4 * (double)step / 371 : cosine);
    }
}

Test(lr, linear_falls_in_equal_steps)
{
    const struct lr_params params = {
        .schedule = LR_LINEAR, .lr = 1e-3, .min_lr = 2e-4, .warmup_steps = 4, .total_steps = 12};
    const double want[] = {2.5e-4, 5e-4, 7.5e-4, 1e-3, 9e-4, 8e-4, 7e-4,
                           6e-4,   5e-4, 4e-4,   3e-4, 2e-4, 2e-4};

    for (int64_t step = 1; step <= 13; step++)
        check_lr(&params, step, want[step - 1]);
}

Test(lr, constant_stays_after_warm_up)
{
    const struct lr_params params = {
        .schedule = LR_CONSTANT, .lr = 1e-3, .min_lr = 1e-5, .warmup_steps = 2, .total_steps = 5};

    check_lr(&params, 1, 5e-4);
    check_lr(&params, 2, 1e-3);
    check_lr(&params, 5, 1e-3);
    check_lr(&params, 50, 1e-3);
}

Test(lr, wsd_is_stable_and_then_decays_over_the_last_fraction)
{
    struct lr_params params = {.schedule = LR_WSD,
                               .lr = 1e-3,
                               .min_lr = 1e-4,
                               .warmup_steps = 10,
                               .total_steps = 100,
                               .decay_fraction = 0.3};

    check_lr(&params, 5, 5e-4);
    check_lr(&params, 10, 1e-3);
    check_lr(&params, 70, 1e-3);
    check_lr(&params, 80, 7e-4);
    check_lr(&params, 90, 4e-4);
    check_lr(&params, 100, 1e-4);
    check_lr(&params, 101, 1e-4);

    params.decay_fraction = 0.0; /* the default, a fifth */
    check_lr(&params, 80, 1e-3);
    check_lr(&params, 90, 5.5e-4);

    params.decay_fraction = 1.0; /* decay cannot start before warm-up has ended */
    check_lr(&params, 10, 1e-3);
    check_lr(&params, 55, 5.5e-4);
}

Test(lr, runs_without_or_shorter_than_warm_up_are_defined)
{
    struct lr_params params = {
        .schedule = LR_COSINE, .lr = 1e-3, .min_lr = 1e-4, .warmup_steps = 0, .total_steps = 4};

    check_lr(&params, 2, 5.5e-4);
    check_lr(&params, 4, 1e-4);

    params.warmup_steps = 10;
    check_lr(&params, 4, 4e-4);
    check_lr(&params, 9, 9e-4);
    check_lr(&params, 11, 1e-4);
}

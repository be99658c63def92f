#include "optim/optim_internal.h"

#include <math.h>

/*
 * AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137): AdamW with a second, slow average of
 * gradients that is not bias-corrected.  The paper's defaults are betas 0.9, 0.999, beta3 0.9999,
 * alpha 5 and eps 1e-8.  Uses beta3, alpha and slow_warmup_steps.
 *
 *     g     = grad * grad_scale
 *     m     = m * [beta1] + g * [1 - beta1]
 *     s     = s * [beta3] + g * [1 - beta3]
 *     v     = v * [beta2] + (g * [1 - beta2]) * g
 *     denom = sqrt(v) * [1 / sqrt(b2)] + [eps]
 *     u     = (m * [1 / b1] + s * [alpha]) / denom
 *     p     = master * [decay ? 1 - lr * weight_decay : 1] - u * [lr]
 *
 * For t < T = slow_warmup_steps alpha is t / T of its value, and beta3 rises from beta1 such that
 * its half-life grows linearly: 1 / ln(beta3(t)) goes from 1 / ln(beta1) to 1 / ln(beta3).
 */

/*
 * ln and exp of our own, as with optim_power: libm's bits depend on the CPU, and ranks of a mixed
 * cluster would drift apart.
 */

/* 1 / ln(x) for x in [0, 1).  With x = m 2^e and m near 1, ln(m) is 2 atanh((m - 1) / (m + 1)). */
static double inverse_ln(double x)
{
    int e = 0;
    double m = frexp(x, &e);
    double series = 0.0;

    if (x <= 0.0)
        return 0.0;
    if (m < 0.70710678118654752440) {
        m *= 2.0;
        e--;
    }
    const double y = (m - 1.0) / (m + 1.0); /* |y| < 0.172: 14 terms reach below 2^-64 */
    for (int k = 13; k >= 0; k--)
        series = series * (y * y) + 1.0 / (2 * k + 1);
    return 1.0 / (e * 0.69314718055994530942 + 2.0 * y * series);
}

/* exp(x) for x <= 0, as the 1024th power of exp(x / 1024); below 1e-17 it is 0. */
static double exp_falling(double x)
{
    const double z = x / 1024.0;
    double series = 1.0;

    if (x < -40.0)
        return 0.0;
    for (int k = 10; k > 0; k--)
        series = 1.0 + series * z / k;
    return optim_power(series, 1024);
}

/* The decay rate whose half-life is `part` of the way from that of `begin` to that of `end`. */
static double beta_between(double begin, double end, double part)
{
    const double inverse = (1.0 - part) * inverse_ln(begin) + part * inverse_ln(end);

    return inverse < 0.0 ? exp_falling(1.0 / inverse) : 0.0;
}

static struct optim_scalars ademamix_scalars(const struct optim_hyper *hyper, int64_t step)
{
    struct optim_scalars scalars = optim_adamw_scalars(hyper, step);
    const bool warming = step < hyper->slow_warmup_steps;
    const double part = warming ? (double)step / (double)hyper->slow_warmup_steps : 1.0;
    const double beta3 = warming ? beta_between(hyper->beta1, hyper->beta3, part) : hyper->beta3;

    scalars.f[SCALAR_STEP_SIZE] = (float)hyper->lr;
    scalars.f[ADEMAMIX_INV_B1] = (float)(1.0 / (1.0 - optim_power(hyper->beta1, step)));
    scalars.f[ADEMAMIX_BETA3] = (float)beta3;
    scalars.f[ADEMAMIX_ONE_MINUS_BETA3] = (float)(1.0 - beta3);
    scalars.f[ADEMAMIX_ALPHA] = (float)(hyper->alpha * part);
    return scalars;
}

struct optim_rule_forms optim_ademamix = {
    .rule =
        {
            .name = "ademamix",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 3,
            .state_names = {"exp_avg", "exp_avg_sq", "exp_avg_slow"},
            .state_unsigned = {false, true, false},
            .state_slow = {false, false, true},
            .scalars = ademamix_scalars,
            .kernel_scalar = optim_ademamix_scalar,
        },
    .kernels = {optim_ademamix_scalar, optim_ademamix_avx2, optim_ademamix_avx512},
};

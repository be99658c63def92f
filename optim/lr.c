#include "optim/optim.h"

/*
 * cos(pi x) for x in [0, 1], as the sine of pi (1/2 - x) by its Taylor series (the first term left
 * out is below 2e-18).  Not libm's cos(): its bits depend on the CPU, and ranks of a mixed cluster
 * would drift apart.
 */
static double cos_pi(double x)
{
    const double z = 3.14159265358979323846 * (0.5 - x);
    double series = 1.0;

    for (int k = 10; k > 0; k--)
        series = 1.0 - series * (z * z) / (2 * k * (2 * k + 1));
    return z * series;
}

/* How far `step` is from `begin` to `end`, within [0, 1]. */
static double progress(double begin, double end, double step)
{
    if (step >= end)
        return 1.0;
    return step <= begin ? 0.0 : (step - begin) / (end - begin);
}

double lr_at(const struct lr_params *params, int64_t step)
{
    const double now = (double)step;
    const double total = (double)params->total_steps;
    const double warmup = (double)params->warmup_steps;
    const double fall = params->lr - params->min_lr;
    const double fraction = params->decay_fraction > 0.0 ? params->decay_fraction : 0.2;
    const double stable_end = total - fraction * total;

    if (step < params->warmup_steps)
        return params->lr * now / warmup;

    switch (params->schedule) {
    case LR_COSINE:
        return params->min_lr + fall * 0.5 * (1.0 + cos_pi(progress(warmup, total, now)));
    case LR_LINEAR:
        return params->lr - fall * progress(warmup, total, now);
    case LR_WSD:
        return params->lr - fall * progress(stable_end > warmup ? stable_end : warmup, total, now);
    case LR_CONSTANT:
        break;
    }
    return params->lr;
}

#include "optim/optim_internal.h"

#include <math.h>

double optim_power(double base, int64_t exponent)
{
    double result = 1.0;

    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2 == 1)
            result *= base;
        base *= base;
    }
    return result;
}

struct optim_scalars optim_adamw_scalars(const struct optim_hyper *hyper, int64_t step)
{
    const double b1 = 1.0 - optim_power(hyper->beta1, step);
    const double b2 = 1.0 - optim_power(hyper->beta2, step);
    struct optim_scalars scalars = {0};

    scalars.f[SCALAR_BETA1] = (float)hyper->beta1;
    scalars.f[SCALAR_ONE_MINUS_BETA1] = (float)(1.0 - hyper->beta1);
    scalars.f[SCALAR_BETA2] = (float)hyper->beta2;
    scalars.f[SCALAR_ONE_MINUS_BETA2] = (float)(1.0 - hyper->beta2);
    scalars.f[SCALAR_RSQRT_B2] = (float)(1.0 / sqrt(b2));
    scalars.f[SCALAR_EPS] = (float)hyper->eps;
    scalars.f[SCALAR_DECAY] = (float)(1.0 - hyper->lr * hyper->weight_decay);
    scalars.f[SCALAR_STEP_SIZE] = (float)(hyper->lr / b1);
    return scalars;
}

struct optim_rule_forms optim_adamw = {
    .rule =
        {
            .name = "adamw",
            .needs = OPTIM_NEEDS_ELEMENTS,
            .n_states = 2,
            .state_names = {"exp_avg", "exp_avg_sq"},
            .state_unsigned = {false, true},
            .scalars = optim_adamw_scalars,
            .kernel_scalar = optim_adamw_scalar,
        },
    .kernels = {optim_adamw_scalar, optim_adamw_avx2, optim_adamw_avx512},
};

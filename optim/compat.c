#include "optim/optim_internal.h"

/* What the rules that follow other software share: their scalars are computed in fp32. */

struct optim_scalars optim_compat_scalars(const struct optim_hyper *hyper)
{
    struct optim_scalars scalars = {0};

    scalars.f[SCALAR_BETA1] = (float)hyper->beta1;
    scalars.f[SCALAR_ONE_MINUS_BETA1] = 1.0f - (float)hyper->beta1;
    scalars.f[SCALAR_BETA2] = (float)hyper->beta2;
    scalars.f[SCALAR_ONE_MINUS_BETA2] = 1.0f - (float)hyper->beta2;
    scalars.f[SCALAR_EPS] = (float)hyper->eps;
    return scalars;
}

float optim_compat_power(double beta, int64_t step)
{
    return (float)optim_power((double)(float)beta, step);
}

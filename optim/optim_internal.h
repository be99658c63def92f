#pragma once

#include "optim/optim.h"

/* A rule with the forms of its kernel, in the order of enum isa. */
struct optim_rule_forms {
    struct optim_rule rule;
    optim_kernel_fn *kernels[3];
};

/* One line per rule here, and one in the table of rules.c. */
extern struct optim_rule_forms optim_adamw;

/* optim_scalars.f of AdamW, each rounded once from double. */
enum adamw_scalar {
    ADAMW_BETA1,
    ADAMW_ONE_MINUS_BETA1,
    ADAMW_BETA2,
    ADAMW_ONE_MINUS_BETA2,
    ADAMW_RSQRT_B2, /* 1 / sqrt(1 - beta2^t) */
    ADAMW_EPS,
    ADAMW_DECAY_FACTOR, /* 1 - lr * weight_decay */
    ADAMW_STEP_SIZE,    /* lr / (1 - beta1^t) */
};

optim_kernel_fn optim_adamw_scalar;
optim_kernel_fn optim_adamw_avx2;
optim_kernel_fn optim_adamw_avx512;

/*
 * sums[q] = sum of squares of quantum q, in double: lane l of 16 adds the squares of elements
 * l, l + 16, ... in order (each square is exact), then lanes l and l + 8 are added, then l and
 * l + 4, and so on.
 */
typedef void optim_squares_fn(const float *grad, size_t n_quanta, double *sums);

optim_squares_fn optim_squares_scalar;
optim_squares_fn optim_squares_avx2;
optim_squares_fn optim_squares_avx512;

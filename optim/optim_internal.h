#pragma once

#include "optim/optim.h"

/* A rule with the forms of its kernel, in the order of enum isa. */
struct optim_rule_forms {
    struct optim_rule rule;
    optim_kernel_fn *kernels[3];
};

/* One line per rule here, and one in the table of rules.c. */
extern struct optim_rule_forms optim_adam, optim_adam_atan2, optim_adamw, optim_ademamix,
    optim_adopt, optim_lion, optim_mars, optim_sgd;

/* groups.c: whether a group takes a tensor. */
bool optim_group_matches(const struct optim_group *group, const struct tensor *tensor);
/* Rules over statistics: without kernels of their own, see stats_internal.h. */
extern struct optim_rule_forms optim_adafactor, optim_adam_mini, optim_came;

/* Indices into optim_scalars.f.  From SCALAR_OWN on each rule has its own. */
enum optim_scalar {
    SCALAR_BETA1,
    SCALAR_ONE_MINUS_BETA1,
    SCALAR_BETA2,
    SCALAR_ONE_MINUS_BETA2,
    SCALAR_RSQRT_B2, /* 1 / sqrt(1 - beta2^t) */
    SCALAR_EPS,
    SCALAR_DECAY, /* factor of the weights, or weight_decay itself where it joins the gradient */
    SCALAR_STEP_SIZE,
    SCALAR_OWN,

    ADAM_ATAN2_INV_B1 = SCALAR_OWN, /* 1 / (1 - beta1^t) */

    ADEMAMIX_INV_B1 = SCALAR_OWN,
    ADEMAMIX_BETA3,
    ADEMAMIX_ONE_MINUS_BETA3,
    ADEMAMIX_ALPHA,

    ADOPT_CLIP = SCALAR_OWN,

    MARS_CORRECTION = SCALAR_OWN, /* gamma * beta1 / (1 - beta1) */
    MARS_CLIP,                    /* factor of the corrected gradient, 1 without tensor_clip */

    SGD_MOMENTUM = SCALAR_OWN,
    SGD_BUFFER_SHARE, /* of the momentum buffer and of the gradient in the update */
    SGD_GRAD_SHARE,

    FACTORED_LR = SCALAR_OWN, /* adafactor and came: SCALAR_BETA2 is beta2 of the step */
    FACTORED_WEIGHT_DECAY,
    FACTORED_THRESHOLD,
    CAME_BETA3,
    CAME_ONE_MINUS_BETA3 = SCALAR_RSQRT_B2, /* no bias correction there */
};

/*
 * The scalars of AdamW, each rounded once from double; the other rules replace what differs.
 * SCALAR_DECAY is 1 - lr * weight_decay, SCALAR_STEP_SIZE lr / (1 - beta1^t).
 */
struct optim_scalars optim_adamw_scalars(const struct optim_hyper *hyper, int64_t step);

/* base^exponent by squaring: unlike pow(), the same bits with every libm and CPU. */
double optim_power(double base, int64_t exponent);

optim_kernel_fn optim_adam_scalar, optim_adam_avx2, optim_adam_avx512;
optim_kernel_fn optim_adam_atan2_scalar, optim_adam_atan2_avx2, optim_adam_atan2_avx512;
optim_kernel_fn optim_adamw_scalar, optim_adamw_avx2, optim_adamw_avx512;
optim_kernel_fn optim_ademamix_scalar, optim_ademamix_avx2, optim_ademamix_avx512;
optim_kernel_fn optim_adopt_scalar, optim_adopt_avx2, optim_adopt_avx512;
optim_kernel_fn optim_lion_scalar, optim_lion_avx2, optim_lion_avx512;
optim_kernel_fn optim_mars_scalar, optim_mars_avx2, optim_mars_avx512;
optim_kernel_fn optim_sgd_scalar, optim_sgd_avx2, optim_sgd_avx512;

/*
 * sums[q] = sum of squares of quantum q, in double: lane l of 16 adds the squares of elements
 * l, l + 16, ... in order (each square is exact), then lanes l and l + 8 are added, then l and
 * l + 4, and so on.
 */
typedef void optim_squares_fn(const float *grad, size_t n_quanta, double *sums);

optim_squares_fn optim_squares_scalar;
optim_squares_fn optim_squares_avx2;
optim_squares_fn optim_squares_avx512;

/* The two parts of optim_sum_squares: one double per quantum, and their exact sum. */
void optim_quantum_squares(struct pool *pool, const float *grad, size_t n_quanta, double *sums);
void optim_add_quanta(struct pool *pool, const double *sums, size_t n_quanta,
                      struct exact_sum *sum);

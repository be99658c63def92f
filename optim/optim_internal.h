#pragma once

#include "optim/element_rules.h"
#include "optim/optim.h"

#include <math.h>

/* A rule with the forms of its kernel, in the order of enum isa. */
struct optim_rule_forms {
    struct optim_rule rule;
    optim_kernel_fn *kernels[3];
};

/* One line per rule here, and one in the table of rules.c. */
extern struct optim_rule_forms optim_adam, optim_adam_atan2, optim_adamw, optim_ademamix,
    optim_adopt, optim_lion, optim_mars, optim_schedule_free, optim_sgd;

/* groups.c: whether a group takes a tensor. */
bool optim_group_matches(const struct optim_group *group, const struct tensor *tensor);
/* Rules over statistics: without kernels of their own, see stats_internal.h. */
extern struct optim_rule_forms optim_adafactor, optim_adam_mini, optim_came;
/* AdamW by the conventions of other software. */
extern struct optim_rule_forms optim_adamw_apex, optim_adamw_bnb, optim_adamw_deepspeed,
    optim_adamw_torch_fused;

/*
 * The scalars of AdamW, each rounded once from double; the other rules replace what differs.
 * SCALAR_DECAY is 1 - lr * weight_decay, SCALAR_STEP_SIZE lr / (1 - beta1^t).
 */
struct optim_scalars optim_adamw_scalars(const struct optim_hyper *hyper, int64_t step);

/* compat.c: betas, 1 - betas and eps in fp32, each rounded before it is used; beta^step in fp32. */
struct optim_scalars optim_compat_scalars(const struct optim_hyper *hyper);
float optim_compat_power(double beta, int64_t step);

/* The table of a rule that is AdamW by another convention. */
#define OPTIM_COMPAT_RULE(forms, text, scalars_fn)                                                 \
    struct optim_rule_forms forms = {                                                              \
        .rule = {.name = text,                                                                     \
                 .needs = OPTIM_NEEDS_ELEMENTS,                                                    \
                 .n_states = 2,                                                                    \
                 .state_names = {"exp_avg", "exp_avg_sq"},                                         \
                 .state_unsigned = {false, true},                                                  \
                 .scalars = scalars_fn,                                                            \
                 .kernel_scalar = forms##_scalar,                                                  \
                 .compat = true},                                                                  \
        .kernels = {forms##_scalar, forms##_avx2, forms##_avx512},                                 \
    }

/* base^exponent by squaring: unlike pow(), the same bits with every libm and CPU. */
double optim_power(double base, int64_t exponent);

optim_kernel_fn optim_adam_scalar, optim_adam_avx2, optim_adam_avx512;
optim_kernel_fn optim_adam_atan2_scalar, optim_adam_atan2_avx2, optim_adam_atan2_avx512;
optim_kernel_fn optim_adamw_scalar, optim_adamw_avx2, optim_adamw_avx512;
optim_kernel_fn optim_adamw_apex_scalar, optim_adamw_apex_avx2, optim_adamw_apex_avx512;
optim_kernel_fn optim_adamw_bnb_scalar, optim_adamw_bnb_avx2, optim_adamw_bnb_avx512;
optim_kernel_fn optim_adamw_deepspeed_scalar, optim_adamw_deepspeed_avx2,
    optim_adamw_deepspeed_avx512;
optim_kernel_fn optim_adamw_torch_fused_scalar, optim_adamw_torch_fused_avx2,
    optim_adamw_torch_fused_avx512;
optim_kernel_fn optim_ademamix_scalar, optim_ademamix_avx2, optim_ademamix_avx512;
optim_kernel_fn optim_adopt_scalar, optim_adopt_avx2, optim_adopt_avx512;
optim_kernel_fn optim_lion_scalar, optim_lion_avx2, optim_lion_avx512;
optim_kernel_fn optim_mars_scalar, optim_mars_avx2, optim_mars_avx512;
optim_kernel_fn optim_schedule_free_scalar, optim_schedule_free_avx2, optim_schedule_free_avx512;
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

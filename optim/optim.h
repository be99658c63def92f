#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/exact_sum.h"
#include "runtime/base/pool.h"
#include "runtime/base/status.h"
#include "runtime/layout/layout.h"
#include "runtime/schedule/schedule.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Optimizers: rules (the update) over extents of a shard.  Extent in, extent out,
 * one pass: the bits of an element depend on its own inputs alone, never on where
 * its extent starts, on the number of threads or on the width of the vector unit.
 *
 * A rule declares what it needs; all rules here need elements only.  Scalars (1 - beta,
 * bias corrections, lr / b1) are computed once per step in double on the host and
 * rounded once to fp32.
 *
 * AdamW ("adamw"; states exp_avg m, exp_avg_sq v) in PyTorch's convention: decay first,
 * scaled by lr, and epsilon outside the root.  With b1 = 1 - beta1^t and b2 = 1 - beta2^t,
 * each operation is one IEEE fp32 operation, no fma, in exactly this order on every device:
 *
 *     g     = grad * grad_scale
 *     m     = m * [beta1] + g * [1 - beta1]
 *     v     = v * [beta2] + (g * [1 - beta2]) * g
 *     denom = sqrt(v) * [1 / sqrt(b2)] + [eps]
 *     p     = master * (decay ? [1 - lr * weight_decay] : 1)
 *     p     = p - (m / denom) * [lr / b1]
 *
 * [x] is a scalar of the step.  m, v and p are stored with every NaN replaced by
 * 0x7fc00000: hardware does not agree on the bits of a NaN.  The division precedes the
 * product with the step size, so that a small m is not lost among the subnormals.
 *
 * The other rules keep the same promises; the order of their operations, their source and the
 * paper's defaults stand at the top of <rule>.c.  Their states, and what sets them apart:
 *
 *     adam           exp_avg, exp_avg_sq                 decay as L2 regularization
 *     adam_atan2     exp_avg, exp_avg_sq                 bounded steps, no eps
 *     ademamix       exp_avg, exp_avg_sq, exp_avg_slow   beta3, alpha, slow_warmup_steps
 *     adopt          exp_avg, exp_avg_sq                 clipped by the step, no bias correction
 *     lion           exp_avg                             steps of one size
 *     mars           exp_avg, exp_avg_sq, prev_grad      gamma
 *     sgd            momentum_buffer                     momentum, nesterov; decay as L2
 *
 * States start as zeros; what a rule does differently at its first step is in its scalars.
 */

enum { OPTIM_MAX_STATES = 4 };

/* What a rule must see at once. */
enum optim_need { OPTIM_NEEDS_ELEMENTS, OPTIM_NEEDS_BLOCK_SUMS, OPTIM_NEEDS_MATRIX };

/* What a rule does not name at the top of its file it ignores. */
struct optim_hyper {
    double lr, beta1, beta2, eps, weight_decay;
    double momentum;           /* sgd; 0: none */
    bool nesterov;             /* sgd */
    double beta3, alpha;       /* ademamix: decay rate and weight of the slow average; 0: AdamW */
    int64_t slow_warmup_steps; /* ademamix: steps in which beta3 and alpha rise; 0: none */
    double gamma;              /* mars: share of the change of the gradient; 0: AdamW */
};

/* Scalars of one step, ready for kernels.  Opaque to callers but copyable. */
struct optim_scalars {
    float f[12];
};

/* A contiguous run of elements of one tensor (or of several with the same decay). */
struct optim_extent {
    size_t n;
    const float *grad;
    float grad_scale; /* clip factor */
    bool decay;
    float *master; /* fp32 weights, updated */
    float *states[OPTIM_MAX_STATES];
    bf16_t *param; /* bf16 copy of master, rounded to nearest even; NULL: none */
};

/* A kernel: the whole rule over one extent, on the calling thread. */
typedef void optim_kernel_fn(const struct optim_scalars *scalars,
                             const struct optim_extent *extent);

struct optim_rule {
    const char *name;
    enum optim_need needs;
    int n_states;
    const char *state_names[OPTIM_MAX_STATES]; /* as stored in checkpoints */
    struct optim_scalars (*scalars)(const struct optim_hyper *hyper, int64_t step); /* step >= 1 */
    optim_kernel_fn *kernel_scalar; /* the specification */
    optim_kernel_fn *kernel;        /* the fastest form for this CPU; the same bytes */
};

/* The rule called `name` ("adamw", "lion", ...), or SHOAL_ERR_CONFIG with the nearest match. */
shoal_status optim_find(const char *name, const struct optim_rule **rule_out);

/*
 * The form of a rule's kernel for an instruction set ("scalar", "avx2", "avx512"); NULL if this
 * CPU does not have it (or SHOAL_ISA forbids it).
 */
optim_kernel_fn *optim_kernel_for(const struct optim_rule *rule, const char *isa);

/* ---- learning rate ---- */

enum lr_schedule { LR_COSINE, LR_LINEAR, LR_CONSTANT, LR_WSD };

struct lr_params {
    enum lr_schedule schedule;
    double lr, min_lr;
    int64_t warmup_steps, total_steps;
    double decay_fraction; /* WSD: the last part of the run decays (linear); 0 means 0.2 */
};

/*
 * Learning rate of step `step` (1-based), a pure function of it: linear warm-up
 * lr * step / warmup_steps, then cosine lr -> min_lr at total_steps, linear, constant, or WSD
 * (Hu et al. 2024, MiniCPM, sec. 4).  From total_steps on all but constant stay at min_lr.
 *
 * The cosine is nanoGPT's get_lr(it) with it = step.  Its warm-up was lr * it / warmup first and
 * is lr * (it + 1) / (warmup + 1) since 2024; as its `it` counts from 0, ours is between the
 * two: step 1 trains at lr / warmup_steps, step warmup_steps at lr.
 */
double lr_at(const struct lr_params *params, int64_t step);

/* ---- gradient norm ---- */

/*
 * Add the sum of squares of n gradient elements (n a multiple of the quantum; padding is
 * zero) to *sum: one double per quantum, summed inside in a fixed order, then exact.
 * Non-finite elements are counted in sum->nonfinite.
 */
void optim_sum_squares(struct pool *pool, const float *grad, size_t n, struct exact_sum *sum);

/* ---- operations for schedules ---- */

/* Host scalars of the step, owned by the trainer, read when operations run. */
struct optim_step {
    struct optim_scalars scalars;
    float grad_scale; /* clip factor, after NORM */
    bool skip;        /* weights and states stay untouched */
};

/*
 * UPDATE of elements [range) of a unit: buffers are those of the slice `origin` (the rank's shard,
 * or the whole unit at stage 0), whose first element is origin.begin.  Decay follows the tensors;
 * padding between and after them is left alone.
 */
struct optim_refs {
    struct slot_ref grad, master, param /* bf16 copy or SLOT_NONE */, states[OPTIM_MAX_STATES];
};
shoal_status optim_op_update(struct schedule *sched, struct pool *pool,
                             const struct optim_rule *rule, const struct layout *layout, int unit,
                             int index, struct shard origin, struct shard range,
                             const struct optim_refs *refs, const struct optim_step *step);

/* NORM, local part: adds the squares of a shard of n elements to *sum (host memory). */
shoal_status optim_op_sum_squares(struct schedule *sched, struct pool *pool, int unit,
                                  struct slot_ref grad, size_t n, struct exact_sum *sum);

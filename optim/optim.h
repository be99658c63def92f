#pragma once

#include "optim/codec.h"
#include "runtime/base/dtype.h"
#include "runtime/base/exact_sum.h"
#include "runtime/base/pool.h"
#include "runtime/base/status.h"
#include "runtime/layout/layout.h"
#include "runtime/schedule/schedule.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct device;

/*
 * Optimizers: rules (the update) over extents of a shard.  Extent in, extent out,
 * one pass: the bits of an element depend on its own inputs alone, never on where
 * its extent starts, on the number of threads or on the width of the vector unit.
 *
 * A rule declares what it needs: elements only, or sums over blocks (stats.h).  Scalars (1 - beta,
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
 *     schedule_free  z_minus_y, exp_avg_sq               trains y; the weights to use are an average
 *     sgd            momentum_buffer                     momentum, nesterov; decay as L2
 *
 * AdamW by the conventions of other software, to go on with its runs: the same mathematics but
 * for adamw_bnb, which decays after the update, in another order and with scalars in fp32:
 *
 *     adamw_torch_fused  PyTorch's fused kernel      adamw_deepspeed  DeepSpeed's CPUAdam
 *     adamw_apex         Apex, Transformer Engine    adamw_bnb        bitsandbytes, 32 bits
 *
 * and over sums, with vectors beside the states:
 *
 *     adam_mini      exp_avg                             a second moment for each block
 *     adafactor                                          a second moment of rank one
 *     came           exp_avg                             adafactor, averaged and damped
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
    double average_share;      /* schedule_free: of this step in the average; optim_step_begin's */
    double gamma;              /* mars: share of the change of the gradient; 0: AdamW */
    double clip_threshold;     /* adafactor, came: largest rms of an update; 0: 1 */
    bool scale_parameter;      /* adafactor: lr is relative to the rms of the tensor */
    bool relative_step;        /* adafactor: min(1e-2, 1 / sqrt(step)) instead of lr */
    bool cautious;             /* element-wise rules with decoupled decay: see stats_elements.c */
    bool tensor_clip;          /* mars: the corrected gradient of a tensor has norm 1 at most */
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

/* `weights`, trained, become those to use; `state` is the rule's first. */
typedef void optim_average_fn(const struct optim_hyper *hyper, size_t n, const float *state,
                              float *weights);

struct optim_rule {
    const char *name;
    enum optim_need needs;
    int n_states;
    const char *state_names[OPTIM_MAX_STATES]; /* as stored in checkpoints */
    bool state_unsigned[OPTIM_MAX_STATES];     /* never negative: a mean of squares */
    bool state_slow[OPTIM_MAX_STATES]; /* moves too little for codecs that are coarse: int8 there */
    struct optim_scalars (*scalars)(const struct optim_hyper *hyper, int64_t step); /* step >= 1 */
    optim_kernel_fn *kernel_scalar;       /* the specification */
    optim_kernel_fn *kernel;              /* the fastest form for this CPU; the same bytes */
    const struct optim_stats_rule *stats; /* OPTIM_NEEDS_BLOCK_SUMS: instead of kernels; stats.h */
    optim_average_fn *average;            /* NULL: the weights to use are those that are trained */
    bool decay_in_gradient;               /* weight decay joins the gradient (L2) */
    bool compat;                          /* another software's convention: takes no options */
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

/* ---- groups: which tensor gets which rule, rate, decay and codec ---- */

enum { OPTIM_MAX_GROUPS = 16, OPTIM_MAX_KINDS = 12, OPTIM_KIND_BYTES = 24 };

/* What the tensors that match get. */
struct optim_group {
    char match
        [128]; /* roles ("norm,bias") or name patterns ("*.mlp.*"), comma-separated; "*": all */
    const struct optim_rule *rule;
    struct optim_hyper hyper; /* lr is ignored: the schedule's rate times lr_scale is used */
    double lr_scale;
    const struct optim_codec *state;
    bool state_forced; /* also for tensors that keep fp32 states otherwise */
    bool decay_forced; /* hyper.weight_decay also for norms and biases */
};

/*
 * A group from its text, "MATCH: key=value ...", with keys rule, lr_scale, weight_decay, betas
 * (as b1,b2), eps, momentum and state; what it does not name is as in `base`.  SHOAL_ERR_CONFIG
 * names the word.
 */
shoal_status optim_group_parse(const char *text, const struct optim_group *base,
                               struct optim_group *group_out);

/*
 * What every tensor of a layout gets: the first group that matches, by role or name.  Embeddings,
 * heads, tensors of one dimension and those below 4096 elements keep fp32 states (Dettmers et al.
 * 2022, sec. 2.3 and its code's min_8bit_size) unless their group says otherwise.
 *
 * A kind is an array that rests per unit: a state's codes ("exp_avg") and, for codecs of blocks,
 * their scales ("exp_avg.scale").  A rank's part of a unit holds, tensor after tensor, a fixed
 * number of bytes per quantum; tensors without that kind hold none.  So bytes depend on the tensor
 * and the place in it, never on where a shard begins.
 *
 * Rules that need sums over a tensor also keep vectors, fp32, whole and alike on every rank.
 */
struct optim_tensor {
    const struct optim_rule *rule;
    int group;
    int scalars; /* index into optim_step.scalars */
    bool decay;
    const struct optim_codec *codecs[OPTIM_MAX_STATES];
    int codes[OPTIM_MAX_STATES], scales[OPTIM_MAX_STATES]; /* kinds; -1: none */
    int rank1; /* the state whose scales are among the vectors, by row and column; -1: none */
    struct optim_stats *stats; /* of a rule that needs sums over the tensor, else NULL (stats.h) */
    size_t vectors_at;         /* bytes into the unit's vectors */
    size_t limbs_at;           /* int64 into the step's limbs */
};

struct optim_setup {
    const struct layout *layout;
    int n_groups;
    struct optim_group groups[OPTIM_MAX_GROUPS];
    const struct master_codec *master;
    struct optim_tensor *tensors; /* as in the layout */
    int n_kinds;
    char kinds[OPTIM_MAX_KINDS][OPTIM_KIND_BYTES];
    int n_scalars;
    struct {
        const struct optim_rule *rule;
        int group;
    } scalars[OPTIM_MAX_GROUPS];
    int n_passes;   /* of sums over tensors in a step; 0: none */
    size_t n_limbs; /* int64 that such a pass adds up over all ranks */
};

/*
 * `groups` are tried in order; the last must match everything.  The layout is borrowed.
 * SHOAL_ERR_CONFIG where a group matches no tensor, or a codec does not suit a rule.
 */
shoal_status optim_setup_create(const struct layout *layout, const struct optim_group *groups,
                                int n_groups, const struct master_codec *master,
                                struct optim_setup **setup_out);
void optim_setup_destroy(struct optim_setup *setup);

/* Bytes of a kind for the slice `range` of a unit; where in them the part of a tensor begins. */
size_t optim_kind_bytes(const struct optim_setup *setup, int unit, int kind, struct shard range);
size_t optim_kind_offset(const struct optim_setup *setup, int tensor, int kind, struct shard range);

/* Bytes of a kind that n elements of a tensor take: exactly what encoders write. */
size_t optim_kind_tensor_bytes(const struct optim_setup *setup, int tensor, int kind, int64_t n);

/* Bytes of the vectors of a unit's tensors, and of one vector of a tensor within them. */
size_t optim_vectors_bytes(const struct optim_setup *setup, int unit);
size_t optim_vector_offset(const struct optim_setup *setup, int tensor, int vector);

/* The scales of a tensor with rank1, in the vectors of its unit. */
void optim_rank1_vectors(const struct optim_setup *setup, int tensor, void *unit_vectors,
                         float **row_out, float **col_out);

/* Whether any tensor adds something up in this pass. */
bool optim_pass_is_used(const struct optim_setup *setup, int pass);

/* State bytes per parameter over the whole layout, without the master weights. */
double optim_state_bytes_per_parameter(const struct optim_setup *setup);

/* ---- operations for schedules ---- */

/* Host scalars of the step, owned by the trainer, read when operations run. */
struct optim_step {
    struct optim_scalars scalars[OPTIM_MAX_GROUPS];
    uint64_t seed; /* of the run: stochastic rounding is keyed by (seed, update, tensor, element) */
    int64_t update;      /* 1-based */
    float grad_scale;    /* clip factor, after NORM */
    double grad_squares; /* sum of the squares of all gradients before grad_scale, after NORM */
    bool skip;           /* weights and states stay untouched */
};

/*
 * What an average over the updates so far depends on, zeros before the first.  With rates that a
 * user changes between runs, and updates that were skipped, it follows from no step number: it goes
 * into checkpoints.  Factors of groups (lr_scale) cancel out of shares.
 */
struct optim_average {
    double lr_max, weight_sum;
};

/* Enter an update at the schedule's learning rate; returns its share in the average. */
double optim_average_add(struct optim_average *average, double lr);

/*
 * Scalars of update number `update` at the schedule's learning rate; `share` is that of
 * optim_average_add.
 */
void optim_step_begin(const struct optim_setup *setup, double lr, double share, uint64_t seed,
                      int64_t update, struct optim_step *step);

/*
 * UPDATE of elements [range) of a unit: buffers are those of the slice `origin` (the rank's shard,
 * or the whole unit at stage 0), whose first element is origin.begin.  Decay follows the tensors;
 * padding between and after them is left alone.  range.begin is at a tile: see OPTIM_PIECE.
 *
 * One pass over memory: pieces of OPTIM_PIECE elements are decoded, updated and encoded in the
 * cache; states in fp32 are updated in place.  No copy of a tensor is made.  On a cuda device the
 * work is issued to its queue of computations, and gives the same bytes.
 */
enum { OPTIM_PIECE = 512 };

struct optim_refs {
    struct slot_ref grad;
    struct slot_ref master;                 /* fp32, or the part below bf16 of the master codec */
    struct slot_ref param;                  /* bf16 weights, or SLOT_NONE with fp32 compute */
    struct slot_ref kinds[OPTIM_MAX_KINDS]; /* SLOT_NONE where the unit has none */
    struct slot_ref vectors;                /* of the unit's tensors; SLOT_NONE: none */
    struct slot_ref limbs; /* int64 [threads, 1 on cuda][setup->n_limbs], shared by all units */
    struct device *device; /* whose memory the slots are; NULL: the host's */
};

/* SHOAL_ERR_UNAVAILABLE if a device of this name has no kernels for the rule. */
shoal_status optim_check_device(const char *device, const struct optim_rule *rule);

shoal_status optim_op_update(struct schedule *sched, struct pool *pool,
                             const struct optim_setup *setup, int unit, int index,
                             struct shard origin, struct shard range, const struct optim_refs *refs,
                             const struct optim_step *step);

/*
 * One pass of sums over the tensors of a unit, before its UPDATE: the elements [range) are added
 * to the first n_limbs of refs->limbs, which the caller then adds up over the ranks, once for all
 * units; FINISH makes vectors of them on every rank.  refs->grad is that of the slice
 * `grad_origin`.  Without such rules in the unit nothing is appended.
 *
 * FINISH works on the host, by the pool.  With a device whose memory is separate its refs->limbs and
 * refs->vectors are slots of the host's: the caller copies the limbs there, and the vectors, which
 * FINISH keeps from step to step, to the device's, where SUMS and UPDATE read them.
 */
shoal_status optim_op_sums(struct schedule *sched, struct pool *pool,
                           const struct optim_setup *setup, int unit, int pass,
                           struct shard grad_origin, struct shard origin, struct shard range,
                           const struct optim_refs *refs, const struct optim_step *step);
shoal_status optim_op_sums_finish(struct schedule *sched, struct pool *pool,
                                  const struct optim_setup *setup, int unit, int pass,
                                  const struct optim_refs *refs, const struct optim_step *step);

/* NORM, local part: adds the squares of a shard of n elements to *sum (host memory). */
shoal_status optim_op_sum_squares(struct schedule *sched, struct pool *pool, int unit,
                                  struct slot_ref grad, size_t n, struct exact_sum *sum);

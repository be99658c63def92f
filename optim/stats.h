#pragma once

#include "optim/optim.h"

/*
 * Statistics: what a rule of OPTIM_NEEDS_BLOCK_SUMS (adam_mini, adafactor, came) must know about
 * more than one element, and an element-wise rule with an option that looks at whole tensors
 * (cautious, mars with tensor_clip, states of rank-1 scales), as pure functions over tiles.  The
 * caller makes operations of them.
 *
 * A step has up to STATS_MAX_PASSES passes.  In each every tile of a tensor adds integers to limbs;
 * limbs are summed over threads and ranks in any order; finish turns the sums into small fp32
 * vectors, which all ranks hold whole and alike.  Then apply updates the tiles.  For one tensor:
 *
 *     for each pass p with n_limbs[p] > 0:
 *         every thread zeroes n_limbs[p] limbs of its own and calls accumulate on its tiles
 *         limbs are added up, int64 by int64, over the threads and then over the ranks
 *             (in the pass of maxima: the largest of them is taken)
 *         finish on every rank, stage by stage
 *     apply on every tile of this rank
 *
 * Every element is given to accumulate once, by the one rank that owns it, and its extents and states
 * stay the same until apply.  A rank without elements of the tensor only adds zeros and calls finish.  All of it is skipped if
 * the gradient norm is not finite.  The caller allocates, per tensor: for each vector k
 * vector_elements[k] floats (those of saved vectors hold zeros before step 1 and outlive the step;
 * the others may be shared by tensors that are not between their first pass and apply); per thread
 * the largest of n_limbs[] int64, and on each rank the same again for the sum.
 *
 * A tile is up to STATS_TILE_ELEMENTS elements of one tensor from a multiple of QUANTUM on (a
 * multiple of QUANTUM long unless it ends the tensor); its extent is that of an element-wise rule:
 * states decoded to fp32.  accumulate writes nothing of the extent; in it `param` is unused, and
 * states and master may be NULL in a pass that does not read them.
 *
 * Bits of vectors, weights and states depend on neither ranks, shard cuts, tiles, threads nor
 * instruction set: sums inside one quantum have one order, everything beyond is integer.
 *
 * Threading: accumulate and apply run on any number of threads at once (own limbs, own tiles).
 * finish has stages of independent items: those of one stage on any number of threads, in any cut,
 * the next stage when all are done.  Nothing here allocates.
 */

enum {
    STATS_TILE_ELEMENTS = 4096,
    STATS_MAX_PASSES = 4,
    STATS_PASS_MAXIMA = 3, /* the last: its limbs are not added up, the largest counts */
    STATS_MAX_VECTORS = 12,
    STATS_MAX_PARTS = 3,
    STATS_FINISH_STAGES = 3,
};

/* Vectors of a state with rank-1 scales: the largest of each row and of each column. */
#define STATS_ROW_MAX "exp_avg_sq.row_max"
#define STATS_COL_MAX "exp_avg_sq.col_max"

/* What accumulate reads of a tile beside the gradient: bits of optim_stats.reads[pass]. */
enum { STATS_READS_STATES = 1, STATS_READS_MASTER = 2 };

/* Elements [begin, end) of a tensor, cut into blocks of block_elements. */
struct optim_part {
    int64_t begin, end, block_elements;
    int64_t first_block;
};

/* The statistics of one tensor under one rule; no memory of its own, valid as long as the rule. */
struct optim_stats {
    const struct optim_rule *rule;
    const struct optim_stats_rule *how;        /* passes, vectors */
    const struct optim_stats_kernels *kernels; /* of this CPU */

    /* The shape that the rule sees; cols = 0: single elements, no blocks, rows or columns. */
    int64_t n_elements, rows, cols;
    int rank1;   /* an element-wise rule's state whose scales are of rank 1 (codec.h); -1: none */
    int n_parts; /* adam_mini's blocks */
    struct optim_part parts[STATS_MAX_PARTS];
    bool scale_parameter;            /* adafactor */
    optim_kernel_fn *element_kernel; /* of an element-wise rule */

    /* Vectors in the order of how->vectors; 0 where this tensor has none, or adds none. */
    int64_t vector_elements[STATS_MAX_VECTORS];
    int64_t n_limbs[STATS_MAX_PASSES];
    unsigned reads[STATS_MAX_PASSES];
};

/* One step, the same for all tensors and on all ranks. */
struct optim_stats_step {
    struct optim_scalars scalars; /* rule->scalars(hyper, step) */
    float grad_scale;             /* clip factor, in [0, inf); that of every extent */
    double grad_squares;          /* finite sum of squares of all gradients before grad_scale */
};

/* One pass of a tensor that is to be finished; the limbs are used up. */
struct optim_finish {
    const struct optim_stats *stats;
    const struct optim_stats_step *step;
    int pass;
    int64_t *limbs;
    float *const *vectors;
};

struct optim_stats_kernels;

struct optim_vector {
    const char *name; /* at most 23 characters */
    bool saved;       /* state, stored in checkpoints; otherwise scratch of the step */
};

/* What a rule of OPTIM_NEEDS_BLOCK_SUMS adds to struct optim_rule; the same for all tensors. */
struct optim_stats_rule {
    int n_vectors;
    struct optim_vector vectors[STATS_MAX_VECTORS];
    const struct optim_stats_kernels *kernels[3]; /* by enum isa */
    /* Fill the shape, vector_elements, n_limbs and reads; the members above them are set. */
    shoal_status (*init)(const struct optim_hyper *hyper, const struct tensor *tensor,
                         struct optim_stats *stats);
    int64_t (*finish_items)(const struct optim_stats *stats, int pass, int stage);
    void (*finish)(const struct optim_finish *finish, int stage, int64_t begin, int64_t end);
};

/*
 * Passes and vectors of a rule with these options, and with a state of rank-1 scales (-1: none);
 * NULL: element-wise, update it by its kernel.
 */
const struct optim_stats_rule *optim_stats_of(const struct optim_rule *rule,
                                              const struct optim_hyper *hyper, int rank1);

/*
 * The statistics of `tensor` under `rule`.  SHOAL_ERR_INTERNAL if it has none, SHOAL_ERR_CONFIG if the rule cannot treat the tensor:
 * too large for limbs that must not overflow, not the shape its role says, or
 * the rule does not go with an option.
 */
shoal_status optim_stats_init(const struct optim_rule *rule, const struct optim_hyper *hyper,
                              const struct tensor *tensor, int rank1,
                              struct optim_stats *stats_out);

/* The limbs of the pass that has most. */
int64_t optim_stats_limbs(const struct optim_stats *stats);

/* Use the kernels for `isa` instead ("scalar", "avx2", "avx512"); false if this CPU has none. */
bool optim_stats_use(struct optim_stats *stats, const char *isa);

/* Add elements [first, first + tile->n) of the tensor to the limbs of one pass. */
void optim_stats_accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                            int pass, const struct optim_extent *tile, int64_t first,
                            const float *const *vectors, int64_t *limbs);

/*
 * Compute the vectors that the sums of a pass give: items [begin, end) of one stage, of which there
 * are finish_items (0: nothing is to be done), or all of it.
 */
int64_t optim_stats_finish_items(const struct optim_stats *stats, int pass, int stage);
void optim_stats_finish_part(const struct optim_finish *finish, int stage, int64_t begin,
                             int64_t end);
void optim_stats_finish(const struct optim_finish *finish);

/* Update weights, states and bf16 copy of elements [first, first + tile->n). */
void optim_stats_apply(const struct optim_stats *stats, const struct optim_stats_step *step,
                       const struct optim_extent *tile, int64_t first, const float *const *vectors);

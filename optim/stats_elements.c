#include "optim/stats_internal.h"

#include <math.h>

/*
 * Options by which an element-wise rule looks at whole tensors.
 *
 * tensor_clip (mars only): pass 0 sums the squares of the corrected gradient, see mars.c.
 *
 * cautious (Liang et al. 2024, arXiv 2411.16085, algorithm 1), for rules with decoupled decay: the
 * step u that the rule would take from the weights is kept where it agrees with the gradient, and
 * scaled by the inverse of the tensor's kept share, which pass 1 counts:
 *
 *     u    = 0 - (the rule's p for master 0, without decay)
 *     kept = u and grad are both above or both below 0
 *     s    = 1 / max(share of kept elements, 1e-3)
 *     p    = master * [decay ? 1 - lr * weight_decay : 1] - (kept ? u * [s] : 0)
 *
 * States change as without the options.
 *
 * A state of rank-1 scales (codec.h): its codes are read with the largest of rows and columns of the
 * step before and written with those of this one, for which pass STATS_PASS_MAXIMA runs the rule on
 * copies.
 */

bool stats_clips(const struct optim_rule *rule, const struct optim_hyper *hyper)
{
    return hyper->tensor_clip && rule == &optim_mars.rule;
}

static shoal_status elements_init(const struct optim_hyper *hyper, const struct tensor *tensor,
                                  struct optim_stats *stats)
{
    if (stats->rank1 >= 0) {
        int64_t *n = stats->vector_elements;

        stats->rows = n[ELEMENTS_ROW] = n[ELEMENTS_ROW_BEFORE] = tensor->shape[0];
        stats->cols = n[ELEMENTS_COL] = n[ELEMENTS_COL_BEFORE] = tensor->shape[1];
        stats->n_limbs[STATS_PASS_MAXIMA] = stats->rows + stats->cols;
        stats->reads[STATS_PASS_MAXIMA] = STATS_READS_STATES | STATS_READS_MASTER;
    }
    if (stats_clips(stats->rule, hyper)) {
        stats->n_limbs[ELEMENTS_CLIP] = EXACT_LIMBS;
        stats->reads[ELEMENTS_CLIP] = STATS_READS_STATES;
        stats->vector_elements[ELEMENTS_CLIP] = 1;
    }
    if (hyper->cautious) {
        stats->n_limbs[ELEMENTS_MASK] = 1;
        stats->reads[ELEMENTS_MASK] = STATS_READS_STATES;
        stats->vector_elements[ELEMENTS_MASK] = 1;
    }
    return SHOAL_OK;
}

/* `limbs` hold the bits of maxima. */
static void take_maxima(const int64_t *limbs, int64_t begin, int64_t end, float *largest,
                        float *before)
{
    for (int64_t i = begin; i < end; i++) {
        before[i] = largest[i];
        largest[i] = float_of((uint32_t)limbs[i]);
    }
}

/* Rows, and then columns. */
static void finish_maxima(const struct optim_finish *finish, int64_t begin, int64_t end)
{
    const int64_t rows = finish->stats->rows;
    float *const *vectors = finish->vectors;

    take_maxima(finish->limbs, begin, end < rows ? end : rows, vectors[ELEMENTS_ROW],
                vectors[ELEMENTS_ROW_BEFORE]);
    take_maxima(finish->limbs + rows, begin > rows ? begin - rows : 0, end - rows,
                vectors[ELEMENTS_COL], vectors[ELEMENTS_COL_BEFORE]);
}

static int64_t elements_finish_items(const struct optim_stats *stats, int pass, int stage)
{
    if (stage > 0)
        return 0;
    return pass == STATS_PASS_MAXIMA ? stats->rows + stats->cols : 1;
}

static void elements_finish(const struct optim_finish *finish, int stage, int64_t begin,
                            int64_t end)
{
    float *const *vectors = finish->vectors;

    (void)stage;
    if (finish->pass == ELEMENTS_CLIP) {
        const struct exact_sum *sum = (const struct exact_sum *)(const void *)finish->limbs;
        const double norm = sqrt(exact_sum_value(sum));

        vectors[ELEMENTS_CLIP][0] = norm <= 1.0 ? 1.0f : (float)(1.0 / norm); /* NaN stays */
    } else if (finish->pass == STATS_PASS_MAXIMA) {
        finish_maxima(finish, begin, end);
    } else {
        const double share = (double)finish->limbs[0] / (double)finish->stats->n_elements;

        vectors[ELEMENTS_MASK][0] = (float)(1.0 / fmax(share, 1e-3));
    }
}

const struct optim_stats_rule optim_elements_stats = {
    .n_vectors = ELEMENTS_VECTORS,
    .vectors =
        {
            [ELEMENTS_CLIP] = {"clip", false},
            [ELEMENTS_MASK] = {"mask_factor", false},
            [ELEMENTS_ROW] = {STATS_ROW_MAX, true},
            [ELEMENTS_COL] = {STATS_COL_MAX, true},
            [ELEMENTS_ROW_BEFORE] = {"row_max_before", false},
            [ELEMENTS_COL_BEFORE] = {"col_max_before", false},
        },
    .kernels = {&optim_elements_scalar, &optim_elements_avx2, &optim_elements_avx512},
    .init = elements_init,
    .finish_items = elements_finish_items,
    .finish = elements_finish,
};

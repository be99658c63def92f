#pragma once

#include "optim/cuda/codecs.cuh"
#include "optim/element_rules.h"

/* What launchers of UPDATE and its sums refuse. */

static bool good_states(const update_part *part)
{
    bool good = part->n_states >= 0 && part->n_states <= WORK_STATES;

    for (int k = 0; good && k < part->n_states; k++)
        good = part->codes[k] != NULL && part->codec[k] >= 0 && part->codec[k] < CODE_COUNT &&
               (part->scales[k] != NULL || part->codec[k] <= CODE_BF16 || k == part->rank1);
    return good;
}

/* What a state of rank-1 scales needs. */
static bool good_rank1(const update_part *part)
{
    return part->rank1 < 0 ||
           (part->rank1 < part->n_states && part->codec[part->rank1] == CODE_LPMM4 &&
            part->cols > 0 && part->row != NULL && part->col != NULL && part->new_row != NULL &&
            part->new_col != NULL);
}

static bool good_part(const update_part *part)
{
    return part->n > 0 && part->grad != NULL && part->rule >= 0 && part->rule < RULE_COUNT &&
           part->master >= 0 && part->master < MASTER_COUNT && good_states(part) &&
           good_rank1(part) && part->begin % QUANTUM_THREADS == 0 &&
           (part->low != NULL || part->master == MASTER_BF16SR) &&
           (part->param != NULL || part->master == MASTER_FP32);
}

/* The vectors that the rule cannot do without. */
static bool good_vectors(const update_part *part)
{
    const float *const *v = part->vectors;

    switch (part->rule) {
    case RULE_ADAM_MINI:
        return v[MINI_DENOMINATOR] != NULL;
    case RULE_ADAFACTOR:
    case RULE_CAME:
        if (v[FACTORED_STEP] == NULL || part->cols == 0)
            return v[FACTORED_STEP] != NULL && v[FACTORED_ELEMENT] != NULL;
        return v[FACTORED_ROW_FACTOR] != NULL && v[FACTORED_COL_FACTOR] != NULL &&
               (part->rule == RULE_ADAFACTOR ||
                (v[CAME_ROW_FACTOR] != NULL && v[CAME_COL_FACTOR] != NULL));
    default:
        return true;
    }
}

static bool good_sum(const update_part *part)
{
    const bool by_blocks = part->sum == SUM_BLOCKS, by_columns = part->sum == SUM_COLUMNS;

    return part->limbs != NULL && part->value >= 0 && part->value < VALUE_COUNT && part->sum >= 0 &&
           part->sum < SUM_COUNT && (part->sum == SUM_ELEMENTS) == (part->value == VALUE_AGREES) &&
           (part->sum == SUM_MAXIMA) == (part->value == VALUE_MOMENT) &&
           (part->sum != SUM_MAXIMA || part->rank1 >= 0) && (!by_columns || part->cols > 0) &&
           (!(by_blocks || by_columns) || part->n_sums > 0) &&
           part->n_blocks >= (by_blocks ? 1 : 0) && part->n_blocks <= WORK_BLOCKS;
}

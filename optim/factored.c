#include "optim/stats_internal.h"

#include <math.h>
#include <string.h>

/* What adafactor and came share: the formulas stand at the top of adafactor.c. */

static const double EPS1 = 1e-30;      /* joins g^2 */
static const double EPS2 = 1e-3;       /* least rms of the weights that lr is scaled with */
static const float LARGEST = 0x1p126f; /* of an average, as stats_mean has it */

shoal_status factored_init(const struct optim_hyper *hyper, const struct tensor *tensor,
                           struct optim_stats *stats)
{
    const char *name = stats->rule->name;

    if (tensor->ndim > 2)
        return fail(SHOAL_ERR_CONFIG, "optimizer %s: tensor %s has %d dimensions, expected 1 or 2",
                    name, tensor->name, tensor->ndim);
    stats->scale_parameter = hyper->scale_parameter;
    if (tensor->ndim == 2) {
        stats->rows = tensor->shape[0];
        stats->cols = tensor->shape[1];
        if (stats->rows > STATS_MAX_TERMS || stats->cols > STATS_MAX_BLOCK)
            return fail(SHOAL_ERR_CONFIG,
                        "optimizer %s: tensor %s is %lld x %lld, at most %d x %d can be summed",
                        name, tensor->name, (long long)stats->rows, (long long)stats->cols,
                        (int)STATS_MAX_TERMS, (int)STATS_MAX_BLOCK);
    }

    const int64_t rows = stats->rows;
    const int64_t cols = stats->cols;

    stats->vector_elements[FACTORED_ROW] = stats->vector_elements[FACTORED_ROW_FACTOR] = rows;
    stats->vector_elements[FACTORED_COL] = stats->vector_elements[FACTORED_COL_FACTOR] = cols;
    stats->vector_elements[FACTORED_ELEMENT] = cols == 0 ? stats->n_elements : 0;
    stats->vector_elements[FACTORED_STEP] = FACTORED_STEP_VALUES;
    stats->n_limbs[0] = stats->scale_parameter ? EXACT_LIMBS : 0;
    stats->n_limbs[0] += cols == 0 ? stats->n_elements : LIMBS * (rows + cols);
    stats->reads[0] = stats->scale_parameter ? STATS_READS_MASTER : 0;
    stats->n_limbs[1] = EXACT_LIMBS;
    return SHOAL_OK;
}

static float average_of(const struct factored_side *side, float average, int64_t *limbs,
                        int64_t count, int64_t terms)
{
    const double sum = stats_sum(limbs, count, side->scale);
    const float mean = stats_mean(sum, terms, side->eps);

    return stats_average(average, side->kept, mean, side->share);
}

/* Items [begin, end): rows, and then columns. */
static void average_means(const struct optim_finish *finish, const struct factored_side *side,
                          int64_t begin, int64_t end)
{
    const int64_t rows = finish->stats->rows, cols = finish->stats->cols;
    int64_t *limbs = finish->limbs, *col_limbs = limbs + LIMBS * rows;

    for (int64_t i = begin; i < end && i < rows; i++)
        side->row[i] = average_of(side, side->row[i], limbs + i, rows, cols);
    for (int64_t c = begin > rows ? begin - rows : 0; c < end - rows; c++) {
        side->col[c] = average_of(side, side->col[c], col_limbs + c, cols, rows);
        side->col_factor[c] = (float)(1.0 / sqrt((double)side->col[c]));
    }
}

/* The mean of rows, in their order, waits where the first one's limb was. */
void factored_average(const struct optim_finish *finish, const struct factored_side *side,
                      int stage, int64_t begin, int64_t end)
{
    const int64_t rows = finish->stats->rows;
    double mean = 0.0;

    if (stage == FINISH_MEANS) {
        average_means(finish, side, begin, end);
    } else if (stage == FINISH_WHOLE) {
        for (int64_t i = 0; i < rows; i++)
            mean += (double)side->row[i];
        mean /= (double)rows;
        memcpy(finish->limbs, &mean, sizeof mean);
    } else {
        memcpy(&mean, finish->limbs, sizeof mean);
        for (int64_t i = begin; i < end; i++)
            side->row_factor[i] = (float)sqrt(mean / (double)side->row[i]);
    }
}

int64_t factored_finish_items(const struct optim_stats *stats, int pass, int stage)
{
    if (stage == FINISH_WHOLE)
        return 1;
    if (pass == 1)
        return 0;
    if (stage == FINISH_ROWS)
        return stats->rows;
    return stats->cols == 0 ? stats->n_elements : stats->rows + stats->cols;
}

/* Limbs hold the bits of g * g, see adam_mini.c. */
static void average_elements(const struct optim_scalars *scalars, const int64_t *limbs,
                             int64_t begin, int64_t end, float *restrict average)
{
    for (int64_t i = begin; i < end; i++) {
        const uint32_t bits = (uint32_t)limbs[i];
        float square;

        memcpy(&square, &bits, sizeof square);
        square = square < LARGEST ? square + (float)EPS1 : LARGEST;
        average[i] = stats_average(average[i], scalars->f[SCALAR_BETA2], square,
                                   scalars->f[SCALAR_ONE_MINUS_BETA2]);
    }
}

static float param_scale(const struct optim_stats *stats, const int64_t *limbs)
{
    const struct exact_sum *sum = (const struct exact_sum *)(const void *)limbs;
    double rms = 0.0;

    if (!stats->scale_parameter)
        return 1.0f;
    rms = sqrt(exact_sum_value(sum) / (double)stats->n_elements);
    return (float)(rms < EPS2 ? EPS2 : rms);
}

void factored_finish_squares(const struct optim_finish *finish, int stage, int64_t begin,
                             int64_t end)
{
    const struct optim_stats *stats = finish->stats;
    const struct optim_scalars *scalars = &finish->step->scalars;
    float *const *vectors = finish->vectors;
    const struct factored_side side = {
        .row = vectors[FACTORED_ROW],
        .col = vectors[FACTORED_COL],
        .row_factor = vectors[FACTORED_ROW_FACTOR],
        .col_factor = vectors[FACTORED_COL_FACTOR],
        .eps = EPS1,
        .scale = stats_grad_scale(finish->step),
        .kept = scalars->f[SCALAR_BETA2],
        .share = scalars->f[SCALAR_ONE_MINUS_BETA2],
    };

    if (stage == FINISH_WHOLE)
        vectors[FACTORED_STEP][STEP_PARAM_SCALE] =
            param_scale(stats, finish->limbs + stats->n_limbs[0] - EXACT_LIMBS);
    if (stats->cols > 0)
        factored_average(finish, &side, stage, begin, end);
    else if (stage == FINISH_MEANS)
        average_elements(scalars, finish->limbs, begin, end, vectors[FACTORED_ELEMENT]);
}

void factored_finish_update(const struct optim_finish *finish)
{
    const struct exact_sum *sum = (const struct exact_sum *)(const void *)finish->limbs;
    const float *scalars = finish->step->scalars.f;
    float *values = finish->vectors[FACTORED_STEP];
    const double rms = sqrt(exact_sum_value(sum) / (double)finish->stats->n_elements);
    const double excess = rms / (double)scalars[FACTORED_THRESHOLD];
    const double clip = excess <= 1.0 ? 1.0 : excess; /* NaN stays */
    const double lr = (double)scalars[FACTORED_LR] * (double)values[STEP_PARAM_SCALE];

    values[STEP_CLIP] = (float)(1.0 / clip);
    values[STEP_SIZE] = (float)(lr / clip);
    values[STEP_DECAY] = (float)(1.0 - lr * (double)scalars[FACTORED_WEIGHT_DECAY]);
}

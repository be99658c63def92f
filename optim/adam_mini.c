#include "optim/stats_internal.h"

#include <math.h>
#include <string.h>

/*
 * Adam-mini (Zhang et al. 2024, arXiv 2406.16793): AdamW with one second moment for a block of
 * weights, see partition.c.  The defaults are those of AdamW.  State exp_avg; vector block_avg_sq.
 *
 *     g     = grad * grad_scale
 *     m     = m * [beta1] + g * [1 - beta1]
 *     v     = v * [beta2] + mean(g^2) * [1 - beta2]             v, mean and denom of a block
 *     denom = sqrt(v) * [1 / sqrt(b2)] + [eps]
 *     p     = master * [decay ? 1 - lr * weight_decay : 1] - (m / denom) * [lr / b1]
 *
 * The mean is computed in double and rounded once, at most 2^126.  Biases have a block per element,
 * with v = v * [beta2] + (g * [1 - beta2]) * g: AdamW, bit for bit.  Their limbs hold no sums but
 * the bits of (g * [1 - beta2]) * g, which the owner of an element adds to zeros of the other ranks.
 */

static shoal_status adam_mini_init(const struct optim_hyper *hyper, const struct tensor *tensor,
                                   struct optim_stats *stats)
{
    (void)hyper;
    SHOAL_TRY(stats_partition(tensor, stats));

    const bool elements = stats->cols == 0;
    const int64_t n_blocks = elements ? stats->n_elements : stats_blocks(stats);

    stats->vector_elements[MINI_AVG_SQ] = n_blocks;
    stats->vector_elements[MINI_DENOMINATOR] = n_blocks;
    stats->n_limbs[0] = elements ? n_blocks : LIMBS * n_blocks;
    return SHOAL_OK;
}

static float bits_to_float(int64_t limb)
{
    const uint32_t bits = (uint32_t)limb;
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static void finish_elements(const struct optim_scalars *scalars, const int64_t *limbs,
                            int64_t begin, int64_t end, float *restrict avg_sq,
                            float *restrict denom)
{
    for (int64_t i = begin; i < end; i++) {
        const float v = avg_sq[i] * scalars->f[SCALAR_BETA2] + bits_to_float(limbs[i]);

        avg_sq[i] = isnan(v) ? bits_to_float(0x7fc00000) : v;
        denom[i] = sqrtf(v) * scalars->f[SCALAR_RSQRT_B2] + scalars->f[SCALAR_EPS];
    }
}

static int64_t adam_mini_finish_items(const struct optim_stats *stats, int pass, int stage)
{
    (void)pass;
    return stage == FINISH_MEANS ? stats->vector_elements[MINI_AVG_SQ] : 0;
}

static void adam_mini_finish(const struct optim_finish *finish, int stage, int64_t begin,
                             int64_t end)
{
    const struct optim_stats *stats = finish->stats;
    const struct optim_scalars *scalars = &finish->step->scalars;
    const struct optim_part *part = stats->parts;
    float *avg_sq = finish->vectors[MINI_AVG_SQ];
    float *denom = finish->vectors[MINI_DENOMINATOR];

    (void)stage;
    if (stats->cols == 0) {
        finish_elements(scalars, finish->limbs, begin, end, avg_sq, denom);
        return;
    }

    const double scale = stats_grad_scale(finish->step);
    const int64_t n_blocks = stats->vector_elements[MINI_AVG_SQ];

    for (int64_t b = begin; b < end; b++) {
        while (part < &stats->parts[stats->n_parts - 1] && b >= part[1].first_block)
            part++;

        const double sum = stats_sum(finish->limbs + b, n_blocks, scale);
        const float mean = stats_mean(sum, part->block_elements, 0.0);

        avg_sq[b] = stats_average(avg_sq[b], scalars->f[SCALAR_BETA2], mean,
                                  scalars->f[SCALAR_ONE_MINUS_BETA2]);
        denom[b] = sqrtf(avg_sq[b]) * scalars->f[SCALAR_RSQRT_B2] + scalars->f[SCALAR_EPS];
    }
}

static const struct optim_stats_rule adam_mini_stats = {
    .n_vectors = MINI_VECTORS,
    .vectors =
        {
            [MINI_AVG_SQ] = {"block_avg_sq", true},
            [MINI_DENOMINATOR] = {"denominator", false},
        },
    .kernels = {&optim_adam_mini_scalar, &optim_adam_mini_avx2, &optim_adam_mini_avx512},
    .init = adam_mini_init,
    .finish_items = adam_mini_finish_items,
    .finish = adam_mini_finish,
};

struct optim_rule_forms optim_adam_mini = {
    .rule =
        {
            .name = "adam_mini",
            .needs = OPTIM_NEEDS_BLOCK_SUMS,
            .n_states = 1,
            .state_names = {"exp_avg"},
            .scalars = optim_adamw_scalars,
            .stats = &adam_mini_stats,
        },
};

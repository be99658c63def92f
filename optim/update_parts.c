#include "optim/update_parts.h"

#include "optim/stats_internal.h"

#include <assert.h>
#include <string.h>

/* UPDATE and its sums for devices that are told addresses and numbers: see update_work.h. */

static_assert(sizeof(struct update_work) <= 4096, "what kernels take by value");
static_assert(sizeof(((struct update_part *)NULL)->f) == sizeof(struct optim_scalars), "scalars");
static_assert((int)WORK_VECTORS == STATS_MAX_VECTORS, "vectors");
static_assert((int)WORK_BLOCKS == STATS_MAX_PARTS, "blocks");

/* The rules, and what f[SCALAR_DECAY] is for a tensor that does not decay. */
static const struct {
    const struct optim_rule_forms *forms;
    float no_decay;
} RULES[RULE_COUNT] = {
    [RULE_ADAMW] = {&optim_adamw, 1},
    [RULE_ADAM] = {&optim_adam, 0},
    [RULE_ADAM_ATAN2] = {&optim_adam_atan2, 1},
    [RULE_ADEMAMIX] = {&optim_ademamix, 1},
    [RULE_ADOPT] = {&optim_adopt, 1},
    [RULE_LION] = {&optim_lion, 1},
    [RULE_MARS] = {&optim_mars, 1},
    [RULE_SGD] = {&optim_sgd, 0},
    [RULE_SCHEDULE_FREE] = {&optim_schedule_free, 0},
    [RULE_ADAMW_APEX] = {&optim_adamw_apex, 0},
    [RULE_ADAMW_BNB] = {&optim_adamw_bnb, 1},
    [RULE_ADAMW_DEEPSPEED] = {&optim_adamw_deepspeed, 0},
    [RULE_ADAMW_TORCH_FUSED] = {&optim_adamw_torch_fused, 0},
    [RULE_ADAM_MINI] = {&optim_adam_mini, 1},
    [RULE_ADAFACTOR] = {&optim_adafactor, 1},
    [RULE_CAME] = {&optim_came, 1},
};

static const char *const CODECS[CODE_COUNT] = {
    [CODE_FP32] = "fp32", [CODE_BF16] = "bf16", [CODE_INT8] = "int8",
    [CODE_INT4] = "int4", [CODE_FP8] = "fp8",   [CODE_BNB8] = "bnb8",
    [CODE_AO8] = "ao8",   [CODE_AO4] = "ao4",   [CODE_LPMM4] = "lpmm4",
};

static const char *const MASTERS[MASTER_COUNT] = {
    [MASTER_FP32] = "fp32",
    [MASTER_SPLIT16] = "split16",
    [MASTER_ECC8] = "ecc8",
    [MASTER_BF16SR] = "bf16sr",
};

/* -1: none. */
static int rule_number(const struct optim_rule *rule)
{
    for (int i = 0; i < RULE_COUNT; i++)
        if (&RULES[i].forms->rule == rule)
            return i;
    return -1;
}

/* -1, which launchers refuse: not among the names. */
static int number_of(const char *name, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

/* What sets rank-1 scales apart is no codec of a device. */
static int codec_number(const struct optim_codec *codec)
{
    return codec->encode_scaled != NULL ? CODE_LPMM4 : number_of(codec->name, CODECS, CODE_COUNT);
}

shoal_status optim_check_device(const char *device, const struct optim_rule *rule)
{
    if (strcmp(device, "cuda") != 0 || rule_number(rule) >= 0)
        return SHOAL_OK;
    fail(SHOAL_ERR_UNAVAILABLE, "optimizer.name: %s: not on cuda yet", rule->name);
    return fail_hint(SHOAL_ERR_UNAVAILABLE, "set run.device=cpu");
}

bool update_uses_maps(const struct optim_setup *setup, int unit)
{
    const struct unit *u = &setup->layout->units[unit];

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++)
        for (int k = 0; k < setup->tensors[t].rule->n_states; k++)
            if (codec_number(setup->tensors[t].codecs[k]) >= CODE_BNB8)
                return true;
    return false;
}

static void fill_states(const struct tile_buffers *buffers, const struct tile *tile,
                        struct update_part *part)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];

    part->n_states = tensor->rule->n_states;
    for (int k = 0; k < part->n_states && k < WORK_STATES; k++) {
        part->codec[k] = codec_number(tensor->codecs[k]);
        part->is_unsigned[k] = tensor->rule->state_unsigned[k];
        part->codes[k] = buffers->kinds[tensor->codes[k]] + tile->codes[k];
        if (tensor->scales[k] >= 0)
            part->scales[k] =
                (float *)(void *)(buffers->kinds[tensor->scales[k]] + tile->scales[k]);
    }
}

static void fill_part(const struct tile_buffers *buffers, const struct optim_step *step,
                      const struct tile *tile, struct update_part *part)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct master_codec *master = buffers->setup->master;
    const struct optim_scalars *scalars = &step->scalars[tensor->scalars];
    const int rule = rule_number(tensor->rule);

    assert(rule >= 0); /* optim_check_device */
    *part = (struct update_part){
        .grad = buffers->grad + tile->grad_at,
        .param = buffers->param == NULL ? NULL : buffers->param + tile->at,
        .key = master_key(step->seed, step->update, (uint64_t)tile->tensor),
        .begin = (uint64_t)tile->begin,
        .n = (uint32_t)tile->n,
        .rule = rule,
        .master = number_of(master->name, MASTERS, MASTER_COUNT),
        .rank1 = tensor->rank1,
        .decay = tensor->decay ? scalars->f[SCALAR_DECAY] : RULES[rule].no_decay,
    };
    if (master->bits > 0)
        part->low = buffers->master + (size_t)tile->at * (size_t)master->bits / 8;
    memcpy(part->f, scalars->f, sizeof part->f);
    fill_states(buffers, tile, part);
}

/* ---- rules over sums ---- */

/* Runs of blocks: adam_mini's, or the rows of a factored matrix. */
static void fill_blocks(const struct optim_stats *stats, struct update_part *part)
{
    part->cols = (uint32_t)stats->cols;
    if (stats->cols == 0)
        return;
    part->n_blocks = stats->n_parts > 0 ? stats->n_parts : 1;
    part->blocks[0].length = (uint32_t)stats->cols;
    for (int k = 0; k < stats->n_parts; k++)
        part->blocks[k] = (struct work_blocks){.begin = (uint64_t)stats->parts[k].begin,
                                               .first = (uint64_t)stats->parts[k].first_block,
                                               .length = (uint32_t)stats->parts[k].block_elements};
}

static void fill_statistics(const struct tile_buffers *buffers, const struct tile *tile,
                            enum tile_scales scales, struct update_part *part)
{
    const bool now = scales == SCALES_NOW;
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct optim_stats *stats = tensor->stats;
    float *vectors[STATS_MAX_VECTORS];

    if (stats == NULL)
        return;
    tile_vectors(buffers, tile->tensor, vectors);
    for (int v = 0; v < stats->how->n_vectors; v++)
        part->vectors[v] = stats->vector_elements[v] > 0 ? vectors[v] : NULL;
    part->decays = tensor->decay;
    if (stats->rank1 >= 0) {
        part->row = vectors[now ? ELEMENTS_ROW : ELEMENTS_ROW_BEFORE];
        part->col = vectors[now ? ELEMENTS_COL : ELEMENTS_COL_BEFORE];
        part->new_row = vectors[ELEMENTS_ROW];
        part->new_col = vectors[ELEMENTS_COL];
    }
    fill_blocks(stats, part);
    if (stats->how == &optim_elements_stats && stats->n_limbs[ELEMENTS_MASK] > 0) {
        part->weight_decay = part->decay;
        part->decay = RULES[part->rule].no_decay;
    }
}

void update_work_fill(const struct tile_buffers *buffers, const struct optim_step *step,
                      const struct tile *tiles, size_t n, struct update_work *work)
{
    *work = (struct update_work){.n_parts = (int32_t)n, .grad_scale = step->grad_scale};
    for (size_t i = 0; i < n; i++) {
        fill_part(buffers, step, &tiles[i], &work->parts[i]);
        fill_statistics(buffers, &tiles[i], SCALES_BEFORE, &work->parts[i]);
    }
}

/* One of the sums that a pass makes of a tensor, from limb `at` of the tensor on. */
struct part_sum {
    enum element_value value;
    enum element_sum sum;
    int64_t at, n_sums;
};

static int factored_squares(const struct optim_stats *stats, struct part_sum out[WORK_SUMS])
{
    int n = 0;

    if (stats->cols == 0) {
        out[n++] = (struct part_sum){VALUE_SQUARE, SUM_BITS, 0, 0};
    } else {
        out[n++] = (struct part_sum){VALUE_GRAD, SUM_BLOCKS, 0, stats->rows};
        out[n++] = (struct part_sum){VALUE_GRAD, SUM_COLUMNS, LIMBS * stats->rows, stats->cols};
    }
    if (stats->scale_parameter)
        out[n++] = (struct part_sum){VALUE_WEIGHT, SUM_TENSOR, stats->n_limbs[0] - EXACT_LIMBS, 0};
    return n;
}

static int came_sums(const struct optim_stats *stats, int pass, struct part_sum out[WORK_SUMS])
{
    if (pass == 1) {
        out[0] = (struct part_sum){VALUE_UPDATE, SUM_TENSOR, 0, 0};
        out[1] = (struct part_sum){VALUE_AVERAGE, SUM_TENSOR, EXACT_LIMBS, 0};
        return stats->cols > 0 ? 2 : 1;
    }
    out[0] = (struct part_sum){VALUE_RESIDUAL, SUM_BLOCKS, 0, stats->rows};
    out[1] = (struct part_sum){VALUE_RESIDUAL, SUM_COLUMNS, LIMBS * stats->rows, stats->cols};
    return 2;
}

/* What accumulate adds up in a pass that has limbs. */
static int sums_of(const struct optim_stats *stats, int pass, struct part_sum out[WORK_SUMS])
{
    switch (rule_number(stats->rule)) {
    case RULE_ADAM_MINI:
        out[0] = stats->cols == 0 ? (struct part_sum){VALUE_SHARE, SUM_BITS, 0, 0}
                                  : (struct part_sum){VALUE_GRAD, SUM_BLOCKS, 0,
                                                      stats->vector_elements[MINI_AVG_SQ]};
        return 1;
    case RULE_ADAFACTOR:
    case RULE_CAME:
        if (pass == 0)
            return factored_squares(stats, out);
        if (stats->rule == &optim_came.rule)
            return came_sums(stats, pass, out);
        out[0] = (struct part_sum){VALUE_UPDATE, SUM_TENSOR, 0, 0};
        return 1;
    default:
        out[0] = pass == ELEMENTS_CLIP ? (struct part_sum){VALUE_CORRECTED, SUM_TENSOR, 0, 0}
                 : pass == ELEMENTS_MASK
                     ? (struct part_sum){VALUE_AGREES, SUM_ELEMENTS, 0, 0}
                     : (struct part_sum){VALUE_MOMENT, SUM_MAXIMA, 0, stats->rows};
        return 1;
    }
}

static void fill_sum(const struct sums_work *sums, const struct tile *tile,
                     const struct part_sum *sum, struct update_part *part)
{
    const struct optim_step *step = sums->step;
    const struct optim_tensor *tensor = &sums->buffers->setup->tensors[tile->tensor];
    const struct optim_stats_step stats_step = {.grad_scale = step->grad_scale,
                                                .grad_squares = step->grad_squares};

    fill_part(sums->buffers, step, tile, part);
    fill_statistics(sums->buffers, tile, SCALES_NOW, part);
    part->value = (int32_t)sum->value;
    part->sum = (int32_t)sum->sum;
    part->limbs = sums->limbs + tensor->limbs_at + sum->at;
    part->n_sums = (uint64_t)sum->n_sums;
    part->scale = stats_grad_scale(&stats_step);
}

bool sums_work_fill(struct sums_work *sums, struct update_work *work)
{
    *work = (struct update_work){.grad_scale = sums->step->grad_scale};
    for (; sums->next < sums->n_tiles; sums->next++) {
        const struct tile *tile = &sums->tiles[sums->next];
        const struct optim_stats *stats = sums->buffers->setup->tensors[tile->tensor].stats;
        struct part_sum of_tile[WORK_SUMS];
        int n = 0;

        if (stats != NULL && stats->n_limbs[sums->pass] > 0)
            n = sums_of(stats, sums->pass, of_tile);
        if (work->n_parts + n > WORK_PARTS)
            break;
        for (int i = 0; i < n; i++)
            fill_sum(sums, tile, &of_tile[i], &work->parts[work->n_parts++]);
    }
    return work->n_parts > 0;
}

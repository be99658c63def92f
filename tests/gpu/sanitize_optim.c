#include "optim/codec.h"
#include "optim/cuda/squares.h"
#include "optim/cuda/update.h"
#include "optim/element_rules.h"
#include "optim/element_sums.h"
#include "optim/optim.h"
#include "runtime/base/exact_sum.h"
#include "tests/gpu/sanitize.h"

/* UPDATE, its sums and the squares of quanta: a part of a matrix from its second quantum to its end. */

enum { ROWS = 70, COLS = 131, BEGIN = QUANTUM, N = ROWS * COLS - BEGIN };

static const char *const RULES[RULE_COUNT] = {
    [RULE_ADAMW] = "adamw",
    [RULE_ADAM] = "adam",
    [RULE_ADAM_ATAN2] = "adam_atan2",
    [RULE_ADEMAMIX] = "ademamix",
    [RULE_ADOPT] = "adopt",
    [RULE_LION] = "lion",
    [RULE_MARS] = "mars",
    [RULE_SGD] = "sgd",
    [RULE_SCHEDULE_FREE] = "schedule_free",
    [RULE_ADAMW_APEX] = "adamw_apex",
    [RULE_ADAMW_BNB] = "adamw_bnb",
    [RULE_ADAMW_DEEPSPEED] = "adamw_deepspeed",
    [RULE_ADAMW_TORCH_FUSED] = "adamw_torch_fused",
    [RULE_ADAM_MINI] = "adam_mini",
    [RULE_ADAFACTOR] = "adafactor",
    [RULE_CAME] = "came",
};

static const char *const CODECS[CODE_COUNT] = {
    [CODE_FP32] = "fp32", [CODE_BF16] = "bf16", [CODE_INT8] = "int8",
    [CODE_INT4] = "int4", [CODE_FP8] = "fp8",   [CODE_BNB8] = "bnb8",
    [CODE_AO8] = "ao8",   [CODE_AO4] = "ao4",   [CODE_LPMM4] = "lpmm4",
};

static const size_t LOW_BYTES[MASTER_COUNT] = {
    [MASTER_FP32] = 4, [MASTER_SPLIT16] = 2, [MASTER_ECC8] = 1, [MASTER_BF16SR] = 0};

static struct update_part part_of(enum element_rule rule, enum element_codec code,
                                  enum element_master master)
{
    const struct optim_codec *codec = NULL;
    const struct optim_rule *how = NULL;

    expect(optim_find(RULES[rule], &how), RULES[rule]);
    expect(codec_find(CODECS[code], &codec), CODECS[code]);

    struct update_part part = {.grad = array(DTYPE_F32, N),
                               .low = scratch(N * LOW_BYTES[master]),
                               .param = array(DTYPE_BF16, N),
                               .key = 3,
                               .begin = BEGIN,
                               .n = N,
                               .rule = (int32_t)rule,
                               .master = (int32_t)master,
                               .n_states = how->n_states,
                               .rank1 = -1,
                               .decay = 0.5f,
                               .cols = COLS};

    for (int k = 0; k < how->n_states; k++) {
        part.codec[k] = (int32_t)code;
        part.is_unsigned[k] = how->state_unsigned[k];
        part.codes[k] = scratch(codec_code_bytes(codec, N));
        part.scales[k] = scratch(codec_scale_bytes(codec, N));
    }
    for (int i = 0; i < 12; i++)
        part.f[i] = 0.5f;
    return part;
}

/* What rules over sums read: one vector for all of them, as long as the longest. */
static void give_vectors(struct update_part *part, uint32_t cols)
{
    const float *vector = array(DTYPE_F32, cols > 0 ? ROWS + COLS : BEGIN + N);

    for (int v = 0; v < WORK_VECTORS; v++)
        part->vectors[v] = vector;
    part->cols = cols;
    part->n_blocks = cols > 0 ? 1 : 0;
    part->blocks[0].length = cols;
}

/* A state whose scales are of rows and columns. */
static void give_maxima(struct update_part *part, int state)
{
    part->rank1 = state;
    part->row = array(DTYPE_F32, ROWS);
    part->col = array(DTYPE_F32, COLS);
    part->new_row = array(DTYPE_F32, ROWS);
    part->new_col = array(DTYPE_F32, COLS);
}

static void update(const struct update_part *part)
{
    const struct update_work work = {.n_parts = 1, .grad_scale = 1, .parts = {*part}};

    expect(cuda_update(NULL, &work), RULES[part->rule]);
    done(RULES[part->rule]);
}

static void updates(enum element_rule rule, enum element_codec code, enum element_master master)
{
    struct update_part part = part_of(rule, code, master);

    if (rule >= RULE_ADAM_MINI)
        give_vectors(&part, code % 2 == 0 ? COLS : 0);
    update(&part);
    if (rule >= RULE_ADAM_MINI)
        return;

    part = part_of(rule, code, master);
    part.vectors[ELEMENTS_MASK] = array(DTYPE_F32, 1); /* cautious */
    part.vectors[ELEMENTS_CLIP] = rule == RULE_MARS ? part.vectors[ELEMENTS_MASK] : NULL;
    if (code == CODE_LPMM4 && rule != RULE_LION && rule != RULE_SGD)
        give_maxima(&part, 1);
    update(&part);
}

/* ---- sums ---- */

static const struct {
    enum element_rule rule;
    enum element_value value;
    enum element_sum sum;
    bool elements; /* no rows and columns */
} SUMS[] = {
    {RULE_ADAM_MINI, VALUE_GRAD, SUM_BLOCKS, false},
    {RULE_ADAM_MINI, VALUE_SHARE, SUM_BITS, true},
    {RULE_ADAFACTOR, VALUE_GRAD, SUM_COLUMNS, false},
    {RULE_ADAFACTOR, VALUE_WEIGHT, SUM_TENSOR, false},
    {RULE_ADAFACTOR, VALUE_SQUARE, SUM_BITS, true},
    {RULE_ADAFACTOR, VALUE_UPDATE, SUM_TENSOR, false},
    {RULE_CAME, VALUE_UPDATE, SUM_TENSOR, true},
    {RULE_CAME, VALUE_AVERAGE, SUM_TENSOR, false},
    {RULE_CAME, VALUE_RESIDUAL, SUM_BLOCKS, false},
    {RULE_CAME, VALUE_RESIDUAL, SUM_COLUMNS, false},
    {RULE_MARS, VALUE_CORRECTED, SUM_TENSOR, false},
    {RULE_ADAMW, VALUE_AGREES, SUM_ELEMENTS, false},
    {RULE_ADAMW, VALUE_MOMENT, SUM_MAXIMA, false},
};

enum { N_SUMS = sizeof SUMS / sizeof SUMS[0] };

static size_t limbs_of(enum element_sum sum)
{
    switch (sum) {
    case SUM_BLOCKS:
        return LIMBS * ROWS;
    case SUM_COLUMNS:
        return LIMBS * COLS;
    case SUM_TENSOR:
        return EXACT_SUM_LIMBS + 1;
    case SUM_BITS:
        return BEGIN + N;
    case SUM_ELEMENTS:
        return 1;
    default:
        return ROWS + COLS;
    }
}

static void sums(int i, enum element_codec code, enum element_master master)
{
    struct update_part part = part_of(SUMS[i].rule, code, master);
    struct update_work work = {.n_parts = 1, .grad_scale = 1};

    if (part.rule >= RULE_ADAM_MINI)
        give_vectors(&part, SUMS[i].elements ? 0 : COLS);
    if (SUMS[i].sum == SUM_MAXIMA)
        give_maxima(&part, 1);
    part.value = (int32_t)SUMS[i].value;
    part.sum = (int32_t)SUMS[i].sum;
    part.limbs = scratch(limbs_of(SUMS[i].sum) * sizeof(int64_t));
    part.n_sums = SUMS[i].sum == SUM_COLUMNS ? COLS : ROWS;
    part.scale = 1;
    work.parts[0] = part;
    expect(cuda_update_sums(NULL, &work), "sums");
    done("sums");
}

static void squares(size_t n_quanta)
{
    expect(cuda_sum_squares(NULL, array(DTYPE_F32, (int64_t)n_quanta * QUANTUM), n_quanta, false,
                            scratch(sizeof(struct exact_sum))),
           "squares");
    done("squares");
}

void sanitize_optim(void)
{
    const struct optim_codec *any = NULL;

    expect(codec_find("fp32", &any), "codecs"); /* fills the maps */
    expect(cuda_update_maps(), "maps");
    for (int code = 0; code < CODE_COUNT; code++) {
        for (int rule = 0; rule < RULE_COUNT; rule++)
            updates((enum element_rule)rule, (enum element_codec)code,
                    (enum element_master)((rule + code) % MASTER_COUNT));
        for (int i = 0; i < N_SUMS; i++)
            if (SUMS[i].sum != SUM_MAXIMA || code == CODE_LPMM4)
                sums(i, (enum element_codec)code, (enum element_master)((i + code) % MASTER_COUNT));
    }
    squares(1);
    squares(37);
}

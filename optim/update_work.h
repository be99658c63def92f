#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * UPDATE, and the sums before it (stats.h), as a device does them: addresses and scalars of some
 * tensors' parts, given to a kernel by value.  C and C++.
 */

enum element_rule {
    RULE_ADAMW,
    RULE_ADAM,
    RULE_ADAM_ATAN2,
    RULE_ADEMAMIX,
    RULE_ADOPT,
    RULE_LION,
    RULE_MARS,
    RULE_SGD,
    RULE_SCHEDULE_FREE,
    RULE_ADAMW_APEX,
    RULE_ADAMW_BNB,
    RULE_ADAMW_DEEPSPEED,
    RULE_ADAMW_TORCH_FUSED,
    RULE_ADAM_MINI,
    RULE_ADAFACTOR,
    RULE_CAME,
    RULE_COUNT
};

enum element_codec {
    CODE_FP32,
    CODE_BF16,
    CODE_INT8,
    CODE_INT4,
    CODE_FP8,
    CODE_BNB8, /* from here on maps, in the order of enum map_kind */
    CODE_AO8,
    CODE_AO4,
    CODE_LPMM4,
    CODE_COUNT
};

enum element_master { MASTER_FP32, MASTER_SPLIT16, MASTER_ECC8, MASTER_BF16SR, MASTER_COUNT };

enum { WORK_STATES = 3, WORK_PARTS = 8, WORK_VECTORS = 12, WORK_BLOCKS = 3, WORK_SUMS = 3 };

/* What a pass of sums adds up of an element, see the rules' files. */
enum element_value {
    VALUE_GRAD,      /* g */
    VALUE_WEIGHT,    /* the master weight */
    VALUE_SHARE,     /* adam_mini_share */
    VALUE_SQUARE,    /* factored_square */
    VALUE_UPDATE,    /* u of a factored second moment */
    VALUE_AVERAGE,   /* state 0 */
    VALUE_RESIDUAL,  /* came: the clipped u less its average */
    VALUE_CORRECTED, /* mars: the corrected gradient */
    VALUE_AGREES,    /* cautious: whether the step is kept */
    VALUE_MOMENT,    /* the second moment that the step will have, by its magnitude's bits */
    VALUE_COUNT
};

/* Into which limbs. */
enum element_sum {
    SUM_BLOCKS,   /* squares, fixed point, a sum for each block or row */
    SUM_COLUMNS,  /* squares, fixed point, a sum for each column */
    SUM_TENSOR,   /* squares, one exact sum */
    SUM_BITS,     /* no sum: the bits of each element */
    SUM_ELEMENTS, /* how many elements */
    SUM_MAXIMA,   /* no sum: the largest of each row, then of each column */
    SUM_COUNT
};

/* From element `begin` on blocks of `length` elements; `first`: the number of the first. */
struct work_blocks {
    uint64_t begin, first;
    uint32_t length;
};

/* A run of elements of one tensor, from a quantum on. */
struct update_part {
    const float *grad;
    void *low; /* of the master weight; NULL with bf16sr */
    uint16_t *param;
    void *codes[WORK_STATES];
    float *scales[WORK_STATES];
    uint64_t key;         /* of stochastic rounding */
    uint64_t begin;       /* the tensor's element */
    uint32_t n;           /* elements */
    uint32_t first_block; /* of threads, of all of this work; set by launchers */
    int32_t rule, master, n_states;
    int32_t codec[WORK_STATES], is_unsigned[WORK_STATES];
    int32_t rank1; /* the state whose scales are of rows and columns; -1: none */
    float decay;
    float f[12]; /* scalars of the step */

    /* Of rules over sums, else zeros. */
    const float *vectors[WORK_VECTORS]; /* by the rule's indices; NULL: none */
    uint32_t cols;                      /* of a tensor with rows or blocks */
    /* Of rank1: what its codes are read with, and written with. */
    const float *row, *col, *new_row, *new_col;
    int32_t n_blocks; /* runs of blocks of one length */
    struct work_blocks blocks[WORK_BLOCKS];
    float weight_decay; /* cautious: instead of `decay`, which leaves weights alone */
    int32_t decays;     /* factored: by the tensor's vector */

    /* Of sums. */
    int32_t value, sum;
    int64_t *limbs;
    uint64_t n_sums; /* blocks, rows or columns: limb 1 of a sum is so many behind limb 0 */
    double scale;    /* of fixed point */
};

struct update_work {
    int32_t n_parts;
    float grad_scale;
    struct update_part parts[WORK_PARTS];
};

#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * UPDATE as a device does it: addresses and scalars of some tensors' parts, given to a kernel by
 * value.  C and C++.
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

enum { WORK_STATES = 3, WORK_PARTS = 16 };

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
    uint32_t first_block; /* the number of the first quantum, of all of this work */
    int32_t rule, master, n_states;
    int32_t codec[WORK_STATES], is_unsigned[WORK_STATES];
    float decay;
    float f[12]; /* scalars of the step */
};

struct update_work {
    int32_t n_parts;
    uint32_t n_blocks; /* quanta of all parts */
    float grad_scale;
    struct update_part parts[WORK_PARTS];
};

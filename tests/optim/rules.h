#pragma once

/* Every rule with its hyper-parameters, and buffers to run it on: shared by the tests of rules. */

#include "optim/optim.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { N = 1031, MAX_STATES = 3 };

struct buffers {
    float grad[N], master[N], states[MAX_STATES][N];
    bf16_t param[N];
};

/* Paper's values where they are short-lived enough to matter within some tens of steps. */
static const struct optim_hyper ordinary = {
    .lr = 3e-3,
    .beta1 = 0.9,
    .beta2 = 0.95,
    .eps = 1e-8,
    .weight_decay = 0.1,
    .momentum = 0.9,
    .beta3 = 0.999,
    .alpha = 5.0,
    .slow_warmup_steps = 20,
    .average_share = 0.3,
    .gamma = 0.025,
};

static inline struct optim_hyper with_nesterov(struct optim_hyper hyper)
{
    hyper.nesterov = true;
    return hyper;
}

static inline const struct optim_rule *find_rule(const char *name)
{
    const struct optim_rule *rule = NULL;

    cr_assert_eq(optim_find(name, &rule), SHOAL_OK, "%s", shoal_last_error());
    return rule;
}

static inline struct optim_extent extent_at(struct buffers *b, size_t begin, size_t n)
{
    return (struct optim_extent){
        .n = n,
        .grad = b->grad + begin,
        .grad_scale = 0.75f,
        .decay = true,
        .master = b->master + begin,
        .states = {b->states[0] + begin, b->states[1] + begin, b->states[2] + begin},
        .param = b->param + begin,
    };
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Random weights and gradients, random states as of a run under way. */
static inline void fill_ordinary(struct buffers *b, uint64_t seed)
{
    memset(b, 0, sizeof *b);
    rng_fill_normal(seed, RNG_STREAM_INIT, 0, 0, N, 0.1f, b->grad);
    rng_fill_normal(seed, RNG_STREAM_INIT, 1, 0, N, 1.0f, b->master);
    for (int k = 0; k < MAX_STATES; k++)
        rng_fill_normal(seed, RNG_STREAM_INIT, 2 + (uint64_t)k, 0, N, 0.1f, b->states[k]);
    for (int i = 0; i < N; i++)
        b->states[1][i] *= b->states[1][i];
}

/* Any 32 bits, or one of the values where arithmetic has corners. */
static inline float corner_value(uint64_t seed, uint64_t index)
{
    static const uint32_t corners[] = {
        0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x80800000,
        0x3f800000, 0xbf800000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
        0xffc12345, 0x7f800001, 0x1e3ce508, 0x5f000000, 0x2b8cbccc, 0x00012345,
    };
    uint32_t x[4];

    rng_block(seed, RNG_STREAM_SAMPLE, 0, index, x);
    return float_of(x[0] % 3 == 0 ? x[1] : corners[x[2] % (sizeof corners / sizeof corners[0])]);
}

static inline void fill_corners(struct buffers *b, uint64_t seed)
{
    memset(b, 0, sizeof *b);
    for (uint64_t i = 0; i < N; i++) {
        b->grad[i] = corner_value(seed, 5 * i);
        b->master[i] = corner_value(seed, 5 * i + 1);
        for (uint64_t k = 0; k < MAX_STATES; k++)
            b->states[k][i] = corner_value(seed, 5 * i + 2 + k);
    }
}

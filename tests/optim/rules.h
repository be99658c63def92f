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

/* The bytes of the scalar form, on extents of many lengths and places; NaN and infinities too. */
static inline void check_form(const struct optim_rule *rule, const struct optim_hyper *hyper,
                              const char *isa)
{
    static struct buffers got;
    static struct buffers want;
    optim_kernel_fn *kernel = optim_kernel_for(rule, isa);

    if (kernel == NULL)
        cr_skip_test("this CPU has no %s", isa);
    for (uint64_t round = 0; round < 300; round++) {
        const struct optim_scalars scalars = rule->scalars(hyper, (int64_t)round + 1);
        const size_t begin = round % 19;
        const size_t n = round < 100 ? round : N - begin - round % 7;
        struct optim_extent got_extent = extent_at(&got, begin, n);
        struct optim_extent want_extent = extent_at(&want, begin, n);

        (round % 3 == 0 ? fill_ordinary : fill_corners)(&got, round);
        want = got;
        got_extent.decay = want_extent.decay = round % 4 != 0;
        if (round % 5 == 0)
            got_extent.param = want_extent.param = NULL;
        kernel(&scalars, &got_extent);
        rule->kernel_scalar(&scalars, &want_extent);
        cr_assert_arr_eq(&got, &want, sizeof got, "%s: %zu elements from %zu on", rule->name, n,
                         begin);
    }
}

/* The bytes of the whole extent, from pieces of many lengths. */
static inline void check_cuts(const struct optim_rule *rule, const struct optim_hyper *hyper)
{
    static struct buffers whole;
    static struct buffers cut;
    const struct optim_scalars scalars = rule->scalars(hyper, 12);
    const struct optim_extent all = extent_at(&whole, 0, N);

    fill_ordinary(&whole, 3);
    rule->kernel(&scalars, &all);
    for (size_t piece = 1; piece < 70; piece += 3) {
        fill_ordinary(&cut, 3);
        for (size_t begin = 0; begin < N; begin += piece) {
            const size_t rest = N - begin;
            const struct optim_extent part = extent_at(&cut, begin, rest < piece ? rest : piece);

            rule->kernel(&scalars, &part);
        }
        cr_assert_arr_eq(&cut, &whole, sizeof cut, "%s, pieces of %zu", rule->name, piece);
    }
}

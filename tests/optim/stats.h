#pragma once

/* One tensor trained by a rule over statistics, cut over ranks, threads and tiles in any way. */

#include "optim/stats.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RANKS_MAX = 8, THREADS_MAX = 5 };

struct cut {
    int ranks, threads;
    int64_t tile;
    const char *isa;
    bool backwards;
};

static const struct cut uncut = {1, 1, STATS_TILE_ELEMENTS, "scalar", false};

struct trained {
    struct optim_stats stats;
    struct optim_hyper hyper;
    bool decay;
    int64_t n;
    float *grad, *master, *states[OPTIM_MAX_STATES];
    bf16_t *param;
    float *vectors[RANKS_MAX][STATS_MAX_VECTORS]; /* each rank's own */
};

static inline const struct optim_rule *find_rule(const char *name)
{
    const struct optim_rule *rule = NULL;

    cr_assert_eq(optim_find(name, &rule), SHOAL_OK, "%s", shoal_last_error());
    return rule;
}

/* Exactly n elements, so that a sanitizer sees what reaches further. */
static inline void *zeros(int64_t n, size_t element_bytes)
{
    void *p = calloc((size_t)(n > 0 ? n : 1), element_bytes);

    cr_assert_not_null(p);
    return p;
}

static inline void trained_init(struct trained *t, const char *rule, const struct tensor *tensor,
                                const struct optim_hyper *hyper)
{
    memset(t, 0, sizeof *t);
    t->hyper = *hyper;
    t->decay = tensor->decay;
    t->n = tensor->n_elements;
    cr_assert_eq(optim_stats_init(find_rule(rule), hyper, tensor, -1, &t->stats), SHOAL_OK, "%s",
                 shoal_last_error());
    t->grad = zeros(t->n, sizeof *t->grad);
    t->master = zeros(t->n, sizeof *t->master);
    t->param = zeros(t->n, sizeof *t->param);
    for (int k = 0; k < t->stats.rule->n_states; k++)
        t->states[k] = zeros(t->n, sizeof(float));
    for (int r = 0; r < RANKS_MAX; r++) {
        for (int k = 0; k < t->stats.how->n_vectors; k++)
            t->vectors[r][k] = zeros(t->stats.vector_elements[k], sizeof(float));
    }
}

static inline void trained_fini(struct trained *t)
{
    free(t->grad);
    free(t->master);
    free(t->param);
    for (int k = 0; k < OPTIM_MAX_STATES; k++)
        free(t->states[k]);
    for (int r = 0; r < RANKS_MAX; r++) {
        for (int k = 0; k < STATS_MAX_VECTORS; k++)
            free(t->vectors[r][k]);
    }
}

static inline const float *const *rank_vectors(const struct trained *t, int rank)
{
    return (const float *const *)t->vectors[rank];
}

static inline struct optim_extent tile_at(const struct trained *t, int64_t first, int64_t n,
                                          float grad_scale)
{
    struct optim_extent tile = {
        .n = (size_t)n,
        .grad = t->grad + first,
        .grad_scale = grad_scale,
        .decay = t->decay,
        .master = t->master + first,
        .param = t->param + first,
    };

    for (int k = 0; k < t->stats.rule->n_states; k++)
        tile.states[k] = t->states[k] + first;
    return tile;
}

/* Elements that `rank` owns: whole quanta, as layout_shard cuts a unit; may be none. */
static inline int64_t rank_begin(const struct trained *t, const struct cut *cut, int rank)
{
    const int64_t quanta = (t->n + QUANTUM - 1) / QUANTUM;
    const int64_t begin = (quanta + cut->ranks - 1) / cut->ranks * QUANTUM * rank;

    return begin < t->n ? begin : t->n;
}

typedef void tile_fn(struct trained *t, const struct optim_stats_step *step,
                     const struct optim_extent *tile, int64_t first, int rank, int thread,
                     void *arg);

static inline void for_tiles(struct trained *t, const struct optim_stats_step *step,
                             const struct cut *cut, tile_fn *fn, void *arg)
{
    for (int rank = 0; rank < cut->ranks; rank++) {
        const int64_t begin = rank_begin(t, cut, rank);
        const int64_t end = rank_begin(t, cut, rank + 1);
        const int64_t n_tiles = (end - begin + cut->tile - 1) / cut->tile;

        for (int64_t i = 0; i < n_tiles; i++) {
            const int64_t index = cut->backwards ? n_tiles - 1 - i : i;
            const int64_t first = begin + index * cut->tile;
            const int64_t n = end - first < cut->tile ? end - first : cut->tile;
            const struct optim_extent tile = tile_at(t, first, n, step->grad_scale);

            fn(t, step, &tile, first, rank, (int)(i % cut->threads), arg);
        }
    }
}

struct pass {
    int index;
    int64_t *limbs[THREADS_MAX];
};

static inline void accumulate_tile(struct trained *t, const struct optim_stats_step *step,
                                   const struct optim_extent *tile, int64_t first, int rank,
                                   int thread, void *arg)
{
    const struct pass *pass = arg;
    struct optim_extent seen = *tile;

    /* What a pass does not announce it may not touch. */
    if ((t->stats.reads[pass->index] & STATS_READS_MASTER) == 0)
        seen.master = NULL;
    if ((t->stats.reads[pass->index] & STATS_READS_STATES) == 0)
        memset(seen.states, 0, sizeof seen.states);
    seen.param = NULL;
    optim_stats_accumulate(&t->stats, step, pass->index, &seen, first, rank_vectors(t, rank),
                           pass->limbs[thread]);
}

static inline void apply_tile(struct trained *t, const struct optim_stats_step *step,
                              const struct optim_extent *tile, int64_t first, int rank, int thread,
                              void *arg)
{
    (void)thread;
    (void)arg;
    optim_stats_apply(&t->stats, step, tile, first, rank_vectors(t, rank));
}

/* FINISH in parts of `length` items, the last ones first. */
static inline void finish_in_parts(const struct optim_finish *finish, int64_t length)
{
    for (int stage = 0; stage < STATS_FINISH_STAGES; stage++) {
        int64_t end = optim_stats_finish_items(finish->stats, finish->pass, stage);

        for (; end > 0; end -= length < end ? length : end)
            optim_stats_finish_part(finish, stage, end > length ? end - length : 0, end);
    }
}

static inline void run_pass(struct trained *t, const struct optim_stats_step *step,
                            const struct cut *cut, int index)
{
    const int64_t n_limbs = t->stats.n_limbs[index];
    int64_t *sum = zeros(n_limbs, sizeof *sum);
    int64_t *copy = zeros(n_limbs, sizeof *copy);
    struct pass pass = {.index = index};

    for (int i = 0; i < cut->threads; i++)
        pass.limbs[i] = zeros(n_limbs, sizeof *sum);
    for_tiles(t, step, cut, accumulate_tile, &pass);
    for (int i = 0; i < cut->threads; i++) {
        for (int64_t k = 0; k < n_limbs; k++)
            sum[k] += pass.limbs[i][k];
        free(pass.limbs[i]);
    }
    for (int rank = 0; rank < cut->ranks; rank++) {
        memcpy(copy, sum, (size_t)n_limbs * sizeof *sum);
        const struct optim_finish finish = {.stats = &t->stats,
                                            .step = step,
                                            .pass = index,
                                            .limbs = copy,
                                            .vectors = t->vectors[rank]};
        finish_in_parts(&finish, cut->threads == 1 ? INT64_MAX : 7 * cut->threads);
    }
    free(copy);
    free(sum);
}

static inline double grad_squares(const struct trained *t)
{
    struct exact_sum sum;

    exact_sum_clear(&sum);
    for (int64_t i = 0; i < t->n; i++)
        exact_sum_add(&sum, (double)t->grad[i] * (double)t->grad[i]);
    return exact_sum_value(&sum);
}

/* One step on the gradients in t->grad. */
static inline void train(struct trained *t, int64_t index, const struct cut *cut, float grad_scale)
{
    const struct optim_stats_rule *rule = t->stats.how;
    const struct optim_stats_step step = {
        .scalars = t->stats.rule->scalars(&t->hyper, index),
        .grad_scale = grad_scale,
        .grad_squares = grad_squares(t),
    };

    if (!optim_stats_use(&t->stats, cut->isa))
        cr_skip_test("this CPU has no %s", cut->isa);
    /* Scratch begins as NaN: nothing of another tensor or step may be used. */
    for (int rank = 0; rank < cut->ranks; rank++) {
        for (int k = 0; k < rule->n_vectors; k++) {
            for (int64_t i = 0; !rule->vectors[k].saved && i < t->stats.vector_elements[k]; i++)
                t->vectors[rank][k][i] = NAN;
        }
    }
    for (int pass = 0; pass < STATS_MAX_PASSES; pass++) {
        if (t->stats.n_limbs[pass] > 0)
            run_pass(t, &step, cut, pass);
    }
    for_tiles(t, &step, cut, apply_tile, NULL);
}

static inline struct tensor make_tensor(enum tensor_role role, int64_t rows, int64_t cols)
{
    struct tensor tensor = {
        .name = "t",
        .role = role,
        .ndim = cols > 0 ? 2 : 1,
        .shape = {rows, cols},
        .n_elements = cols > 0 ? rows * cols : rows,
        .decay = cols > 0,
    };

    return tensor;
}

static inline struct tensor make_qkv(int heads, int kv_heads, int head_size, int64_t cols)
{
    struct tensor tensor = make_tensor(ROLE_QKV, (heads + 2 * kv_heads) * head_size, cols);

    tensor.heads = heads;
    tensor.kv_heads = kv_heads;
    tensor.head_size = head_size;
    tensor.n_splits = 3;
    tensor.splits[0] = (int64_t)heads * head_size;
    tensor.splits[1] = tensor.splits[2] = (int64_t)kv_heads * head_size;
    return tensor;
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

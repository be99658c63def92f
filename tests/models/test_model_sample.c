#include "models/model.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { V = 5 };

/* Probabilities 0.1, 0.4, 0.05, 0.4, 0.05. */
static const double probabilities[V] = {0.1, 0.4, 0.05, 0.4, 0.05};

static void fill(float *logits)
{
    for (int i = 0; i < V; i++)
        logits[i] = (float)log(probabilities[i]);
}

/* How often each token is drawn. */
static void count(double temperature, double top_p, int n, int *counts)
{
    float logits[V];
    double scratch[V];

    fill(logits);
    for (int i = 0; i < V; i++)
        counts[i] = 0;
    for (int i = 0; i < n; i++)
        counts[model_sample(logits, V, temperature, top_p, 3, (uint64_t)i, scratch)]++;
}

Test(model_sample, temperature_zero_takes_the_lowest_of_equally_likely_tokens)
{
    int counts[V];

    count(0.0, 1.0, 100, counts);
    cr_assert_eq(counts[1], 100);
}

/* 20000 draws: standard error of a share at most 0.0035; five of them allowed. */
Test(model_sample, draws_follow_the_probabilities)
{
    int counts[V];

    count(1.0, 1.0, 20000, counts);
    for (int i = 0; i < V; i++)
        cr_expect_float_eq(counts[i] / 20000.0, probabilities[i], 0.018, "token %d: %d", i,
                           counts[i]);
}

Test(model_sample, a_temperature_sharpens_as_a_power_of_the_probabilities)
{
    int counts[V];
    double total = 0.0;

    count(0.5, 1.0, 20000, counts);
    for (int i = 0; i < V; i++)
        total += probabilities[i] * probabilities[i];
    for (int i = 0; i < V; i++)
        cr_expect_float_eq(counts[i] / 20000.0, probabilities[i] * probabilities[i] / total, 0.018);
}

Test(model_sample, top_p_keeps_the_smallest_set_that_reaches_it)
{
    int counts[V];

    count(1.0, 0.7, 2000, counts); /* 0.4 + 0.4 reach 0.7 */
    cr_expect_eq(counts[0] + counts[2] + counts[4], 0);
    cr_expect_gt(counts[1], 800);
    cr_expect_gt(counts[3], 800);

    count(1.0, 0.39, 100, counts); /* ties go to the lower token */
    cr_expect_eq(counts[1], 100);

    count(1.0, 0.0, 100, counts); /* never empty */
    cr_expect_eq(counts[1], 100);
}

Test(model_sample, a_draw_depends_on_seed_and_index_alone)
{
    float logits[V];
    double scratch[V];
    int differs = 0;

    fill(logits);
    for (uint64_t i = 0; i < 100; i++) {
        int32_t once = model_sample(logits, V, 1.0, 0.95, 9, i, scratch);

        cr_assert_eq(model_sample(logits, V, 1.0, 0.95, 9, i, scratch), once);
        differs += model_sample(logits, V, 1.0, 0.95, 10, i, scratch) != once;
    }
    cr_expect_gt(differs, 10);
}

Test(model_sample, a_token_that_is_not_a_number_is_never_drawn)
{
    float logits[V] = {NAN, 0.0f, NAN, 0.0f, -INFINITY};
    double scratch[V];

    for (uint64_t i = 0; i < 200; i++) {
        int32_t token = model_sample(logits, V, 1.0, 1.0, 1, i, scratch);

        cr_assert(token == 1 || token == 3);
    }
}

/* The sort is our own: order a large vocabulary and see that top_p cuts at the right token. */
Test(model_sample, a_large_vocabulary_is_ordered_correctly)
{
    enum { N = 10007 };
    float *logits = malloc(N * sizeof *logits);
    void *scratch = malloc(N * 8);
    int64_t worst = 0;

    /* token i has rank r = (i * 4999) % N, weight exp(-r / 10000): ranks 0 .. 653 hold 0.1 */
    for (int i = 0; i < N; i++)
        logits[i] = -(float)(((int64_t)i * 4999) % N) * 1e-4f;
    for (uint64_t i = 0; i < 2000; i++) {
        int32_t token = model_sample(logits, N, 1.0, 0.1, 5, i, scratch);
        int64_t rank = ((int64_t)token * 4999) % N;

        cr_assert_leq(rank, 653);
        worst = rank > worst ? rank : worst;
    }
    cr_expect_gt(worst, 600);
    free(logits);
    free(scratch);
}

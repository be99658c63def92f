#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

/*
 * The contract "placement never changes the numbers": for one microbatch size and one global
 * batch every stage, world size, order, recomputation and thread count gives the same losses, gradient
 * norms and final state, bit for bit.
 */

static void compare(const char *directory, int ranks, const char *const *words, const char *what,
                    const char *want_series, const char *want_hash)
{
    char series[RIG_SERIES_BYTES], hash[64];

    int rc = rig_train(directory, "run", ranks, words);
    cr_assert_eq(rc, 0, "%s: exit %d\n%s", what, rc, rig_log());
    rig_series(directory, "run", series);
    rig_hash(directory, "run", hash);
    cr_assert_str_eq(series, want_series, "%s\n%s\nwant\n%s", what, series, want_series);
    cr_assert_str_eq(hash, want_hash, "%s", what);
    char path[128];
    snprintf(path, sizeof path, "%s/run", directory);
    rig_cleanup(path);
}

/* All of stage x order x recompute x threads at one world size. */
static void sweep(const char *directory, int ranks, const char *const *base, const char *series,
                  const char *hash)
{
    static const char *const recompute[] = {"none", "selective", "full"};

    for (int stage = 0; stage <= 3; stage++)
        for (int vertical = 0; vertical <= 1; vertical++)
            for (size_t i = 0; i < sizeof recompute / sizeof *recompute; i++)
                for (int threads = 1; threads <= 2; threads++) {
                    char zero[32], order[40], again[40], count[32], what[160];
                    const char *words[] = {zero, order, again, count, NULL};
                    snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
                    snprintf(order, sizeof order, "parallel.order=%s",
                             vertical ? "vertical" : "horizontal");
                    snprintf(again, sizeof again, "parallel.recompute=%s", recompute[i]);
                    snprintf(count, sizeof count, "run.threads=%d", threads);
                    snprintf(what, sizeof what, "%d ranks %s %s %s %s", ranks, zero, order, again,
                             count);
                    compare(directory, ranks, rig_words(base, words), what, series, hash);
                }
}

static void matrix(const char *const *model, const char *global, int first_ranks, int last_ranks)
{
    const char *directory = rig_directory();
    const char *batch[] = {global, NULL};
    char series[RIG_SERIES_BYTES], hash[64];
    const char *base[64];
    size_t n = 0;

    for (const char *const *w = rig_words(model, batch); *w != NULL; w++)
        base[n++] = *w;
    base[n] = NULL;
    cr_assert_eq(rig_train(directory, "reference", 0, base), 0, "%s", rig_log());
    rig_series(directory, "reference", series);
    rig_hash(directory, "reference", hash);
    for (int ranks = first_ranks; ranks <= last_ranks; ranks *= 2)
        sweep(directory, ranks, base, series, hash);
    rig_cleanup(directory);
}

Test(matrix, tied_gpt_8_microbatches_1_rank)
{
    matrix(rig_gpt, "batch.global=16", 1, 1);
}

Test(matrix, tied_gpt_8_microbatches_2_ranks)
{
    matrix(rig_gpt, "batch.global=16", 2, 2);
}

Test(matrix, tied_gpt_8_microbatches_4_ranks)
{
    matrix(rig_gpt, "batch.global=16", 4, 4);
}

Test(matrix, llama_4_microbatches_2_ranks)
{
    matrix(rig_llama, "batch.global=8", 2, 2);
}

Test(matrix, llama_16_microbatches_4_ranks)
{
    matrix(rig_llama, "batch.global=32", 4, 4);
}

Test(matrix, long_all_models_and_batches)
{
    static const char *const globals[] = {"batch.global=8", "batch.global=16", "batch.global=32"};

    if (!rig_is_long())
        cr_skip_test("only with --long");
    for (int i = 0; i < 3; i++) {
        matrix(rig_llama, globals[i], 1, 4);
        matrix(rig_gpt, globals[i], 1, 4);
    }
}

/* Hosts cut artificially: the two-level exchange gives the bits of the flat one. */
Test(matrix, ranks_on_several_hosts_give_the_same_bits)
{
    const char *directory = rig_directory();
    char series[RIG_SERIES_BYTES], hash[64];

    cr_assert_eq(rig_train(directory, "reference", 0, rig_gpt), 0, "%s", rig_log());
    rig_series(directory, "reference", series);
    rig_hash(directory, "reference", hash);
    for (int per_host = 1; per_host <= 2; per_host++)
        for (int stage = 0; stage <= 3; stage++) {
            char zero[32], hosts[40];
            const char *words[] = {zero, hosts, NULL};
            snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
            snprintf(hosts, sizeof hosts, "comm.ranks_per_host=%d", per_host);
            compare(directory, 4, rig_words(rig_gpt, words), hosts, series, hash);
        }
    rig_cleanup(directory);
}

/* Three ranks: no power of two, but still one result for every stage and order. */
Test(matrix, three_ranks_agree_across_stages_and_orders)
{
    const char *directory = rig_directory();
    char series[RIG_SERIES_BYTES], hash[64];
    const char *first[] = {"batch.global=12", "parallel.zero=0", NULL};

    cr_assert_eq(rig_train(directory, "reference", 3, rig_words(rig_llama, first)), 0, "%s",
                 rig_log());
    rig_series(directory, "reference", series);
    rig_hash(directory, "reference", hash);
    for (int stage = 1; stage <= 3; stage++)
        for (int vertical = 0; vertical <= 1; vertical++) {
            char zero[32];
            const char *words[] = {
                "batch.global=12", zero,
                vertical ? "parallel.order=vertical" : "parallel.order=horizontal", NULL};
            snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
            compare(directory, 3, rig_words(rig_llama, words), zero, series, hash);
        }
    rig_cleanup(directory);
}

/* bf16 compute keeps the contract too. */
Test(matrix, bf16_agrees_across_stages_and_world_sizes)
{
    const char *directory = rig_directory();
    char series[RIG_SERIES_BYTES], hash[64];
    const char *bf16[] = {"precision.compute=bf16", NULL};

    cr_assert_eq(rig_train(directory, "reference", 0, rig_words(rig_llama, bf16)), 0, "%s",
                 rig_log());
    rig_series(directory, "reference", series);
    rig_hash(directory, "reference", hash);
    for (int ranks = 2; ranks <= 4; ranks *= 2)
        for (int stage = 0; stage <= 3; stage++) {
            char zero[32];
            const char *words[] = {"precision.compute=bf16", zero, NULL};
            snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
            compare(directory, ranks, rig_words(rig_llama, words), zero, series, hash);
        }
    rig_cleanup(directory);
}

/* Any rule x any stage: the same bits. */
Test(matrix, every_optimizer_agrees_across_stages)
{
    static const char *const rules[] = {"adam",      "adam_atan2", "ademamix",     "adopt",
                                        "lion",      "mars",       "sgd",          "came",
                                        "adam_mini", "adafactor",  "schedule_free"};
    const char *directory = rig_directory();
    char series[RIG_SERIES_BYTES], hash[64];

    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        char rule[48];
        const char *first[] = {rule, "parallel.zero=0", NULL};
        const char *second[] = {rule, "parallel.zero=3", NULL};
        const char *third[] = {rule, "parallel.zero=1", "parallel.order=vertical", NULL};

        snprintf(rule, sizeof rule, "optimizer.name=%s", rules[i]);
        cr_assert_eq(rig_train(directory, "reference", 0, rig_words(rig_llama, first)), 0, "%s",
                     rig_log());
        rig_series(directory, "reference", series);
        rig_hash(directory, "reference", hash);
        compare(directory, 2, rig_words(rig_llama, second), rule, series, hash);
        compare(directory, 4, rig_words(rig_llama, third), rule, series, hash);
        char path[128];
        snprintf(path, sizeof path, "%s/reference", directory);
        rig_cleanup(path);
    }
    rig_cleanup(directory);
}

/* The losses really fall: a run that computes nothing would pass all of the above. */
Test(matrix, the_tiny_model_learns)
{
    const char *directory = rig_directory();
    const char *words[] = {"steps=200", "log.every=199", NULL};
    char series[RIG_SERIES_BYTES];
    double first = 0, last = 0;
    int step = 0, n = 0;

    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_gpt, words)), 0, "%s", rig_log());
    rig_series(directory, "run", series);
    for (char *line = strtok(series, "\n"); line != NULL; line = strtok(NULL, "\n"), n++)
        cr_assert_eq(sscanf(line, "%d %lf", &step, n == 0 ? &first : &last), 2);
    cr_assert_gt(first, 5.3, "loss of a fresh model is about ln 257 = 5.55, got %f", first);
    /* Single characters of this text hold 2.9 nats, its words 0.54 per character. */
    cr_assert_lt(last, 1.6, "after 200 steps %f", last);
    rig_cleanup(directory);
}

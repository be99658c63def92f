#include "runtime/shoal.h"
#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Runs that train other weights than those to use: evaluations, samples and whoever opens a
 * checkpoint see the average, on any stage and in any precision, and training never notices.
 */

#define CODED "optimizer.groups=[\"qkv,o,gate_up,up,down: state=int8\"]"

static const char *directory;

static void setup(void)
{
    directory = rig_directory();
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(average, .init = setup, .fini = teardown, .timeout = 900);

static const char *const base[] = {"optimizer.name=schedule_free", "steps=6", NULL};
/* Tensors and shards of more than one of the pieces in which averages are made. */
static const char *const wide[] = {"optimizer.name=schedule_free", "steps=3", "model.hidden=128",
                                   "model.ffn=800", NULL};
static const char *const looking[] = {"eval.every=1", "eval.sample_every=3",
                                      "eval.sample_tokens=12", "eval.sample_temperature=0", NULL};

/* Weights that compute reads are the masters, a copy of them, or the upper part of them. */
static const char *const precisions[][4] = {
    {NULL},
    {"precision.compute=bf16", NULL},
    {"precision.compute=bf16", "precision.master=ecc8", CODED, NULL},
    {"precision.compute=bf16", "precision.master=bf16sr", NULL},
};

enum { N_PRECISIONS = sizeof precisions / sizeof precisions[0], MAX_LISTS = 5 };

/* All words of some lists, as rig_words gives one static list. */
static const char *const *words_of(const char *const *const lists[MAX_LISTS])
{
    static const char *all[64];
    size_t n = 0;

    for (int i = 0; i < MAX_LISTS && lists[i] != NULL; i++)
        for (const char *const *w = lists[i]; *w != NULL; w++)
            all[n++] = *w;
    all[n] = NULL;
    return all;
}

#define WORDS(...) words_of((const char *const *const[MAX_LISTS]){__VA_ARGS__})

static void train(const char *name, int ranks, const char *const *words)
{
    const int rc = rig_train(directory, name, ranks, words);

    cr_assert_eq(rc, 0, "%s: exit %d\n%s", name, rc, rig_log());
}

static void remove_run(const char *name)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    rig_cleanup(path);
}

/* The last validation loss, all its digits. */
static void last_loss(const char *name, char out[64])
{
    char path[128], line[4096];

    snprintf(path, sizeof path, "%s/%s/events.jsonl", directory, name);
    FILE *in = fopen(path, "r");
    cr_assert_not_null(in, "%s", path);
    out[0] = '\0';
    while (fgets(line, sizeof line, in) != NULL) {
        const char *value = strstr(line, "\"val_loss\":");
        if (value != NULL)
            snprintf(out, 64, "%.*s", (int)strcspn(value, ",}"), value);
    }
    fclose(in);
    cr_assert_neq(out[0], '\0', "%s", rig_log());
}

Test(average, is_what_evaluations_see_and_training_does_not)
{
    static const char *const worlds[][4] = {
        {"parallel.zero=0", NULL},
        {"parallel.zero=1", "parallel.order=vertical", NULL},
        {"parallel.zero=2", NULL},
        {"parallel.zero=3", "parallel.order=vertical", "parallel.prefetch=on", NULL},
    };
    static char evals[2][RIG_SERIES_BYTES], samples[2][RIG_SERIES_BYTES];
    char hash[2][64];

    for (int p = 0; p < N_PRECISIONS; p++) {
        train("blind", 0, WORDS(rig_llama, base, precisions[p]));
        rig_hash(directory, "blind", hash[0]);
        train("one", 0, WORDS(rig_llama, base, precisions[p], looking));
        rig_lines("eval", evals[0]);
        rig_lines("sample", samples[0]);
        rig_hash(directory, "one", hash[1]);
        cr_assert_str_eq(hash[1], hash[0], "precision %d: evaluation changed training", p);
        for (int stage = 0; stage <= 3; stage++) {
            train("many", stage % 2 == 0 ? 2 : 4,
                  WORDS(rig_llama, base, precisions[p], looking, worlds[stage]));
            rig_lines("eval", evals[1]);
            rig_lines("sample", samples[1]);
            rig_hash(directory, "many", hash[1]);
            cr_assert_str_eq(evals[1], evals[0], "precision %d, stage %d", p, stage);
            cr_assert_str_eq(samples[1], samples[0], "precision %d, stage %d", p, stage);
            cr_assert_str_eq(hash[1], hash[0], "precision %d, stage %d", p, stage);
            remove_run("many");
        }
        remove_run("blind");
        remove_run("one");
    }
}

/* Memory that host code may not touch, and tied weights. */
Test(average, is_the_same_on_a_device_with_memory_of_its_own)
{
    static const char *const staged[] = {"comm.transport=staged", NULL};
    static const char *const stages[] = {"parallel.zero=0", "parallel.zero=1", "parallel.zero=2",
                                         "parallel.zero=3"};
    static char evals[2][RIG_SERIES_BYTES];
    char hash[2][64];

    for (int p = 0; p < N_PRECISIONS; p++) {
        train("host", 0, WORDS(rig_gpt, wide, precisions[p], looking));
        rig_lines("eval", evals[0]);
        rig_hash(directory, "host", hash[0]);
        for (int ranks = 0; ranks <= 2; ranks += 2) {
            const char *stage[] = {stages[p], NULL};

            setenv("SHOAL_TEST_DEVICE", "remote", 1);
            train("remote", ranks,
                  WORDS(rig_gpt, wide, precisions[p], looking,
                        rig_words(stage, ranks > 0 ? staged : NULL)));
            unsetenv("SHOAL_TEST_DEVICE");
            rig_lines("eval", evals[1]);
            rig_hash(directory, "remote", hash[1]);
            cr_assert_str_eq(evals[1], evals[0], "precision %d, %d ranks", p, ranks);
            cr_assert_str_eq(hash[1], hash[0], "precision %d, %d ranks", p, ranks);
            remove_run("remote");
        }
        remove_run("host");
    }
}

static float *read_state(struct shoal_checkpoint *checkpoint, int tensor, const char *kind,
                         int64_t n)
{
    float *x = malloc((size_t)n * sizeof *x);

    cr_assert_not_null(x);
    cr_assert_eq(shoal_checkpoint_read(checkpoint, tensor, kind, 0, n, x), SHOAL_OK, "%s",
                 shoal_last_error());
    return x;
}

Test(average, is_what_a_checkpoint_holds_as_master)
{
    struct shoal_checkpoint *checkpoint = NULL;
    struct shoal_tensor_info info;
    char path[128];
    int apart = 0;

    train("run", 2, WORDS(rig_llama, wide));
    snprintf(path, sizeof path, "%s/run", directory);
    cr_assert_eq(shoal_checkpoint_open(path, &checkpoint), SHOAL_OK, "%s", shoal_last_error());
    for (int t = 0; t < shoal_checkpoint_tensor_count(checkpoint); t++) {
        cr_assert_eq(shoal_checkpoint_tensor_info(checkpoint, t, &info), SHOAL_OK);
        float *x = read_state(checkpoint, t, "master", info.n_elements);
        float *y = read_state(checkpoint, t, "y", info.n_elements);
        float *ahead = read_state(checkpoint, t, "z_minus_y", info.n_elements);

        for (int64_t i = 0; i < info.n_elements; i++) {
            const float want = y[i] - ahead[i] * (float)(1.0 / 0.9 - 1.0);

            cr_assert_eq(x[i], want, "%s[%lld]: %.9g, expected %.9g", info.name, (long long)i,
                         (double)x[i], (double)want);
            apart += x[i] != y[i];
        }
        free(x);
        free(y);
        free(ahead);
    }
    cr_assert_gt(apart, 10000);
    shoal_checkpoint_close(checkpoint);
}

/* The loss that the run found last is that of the weights which others read from it. */
Test(average, is_what_other_runs_start_from)
{
    static const char *const still[] = {"optimizer.name=sgd",
                                        "optimizer.lr=1e-30",
                                        "optimizer.min_lr=0",
                                        "optimizer.warmup_steps=0",
                                        "optimizer.weight_decay=0",
                                        "steps=1",
                                        "eval.every=1",
                                        NULL};
    char from[160], loss[2][64];
    const char *source[] = {from, NULL};

    snprintf(from, sizeof from, "model.from=%s/run", directory);
    for (int p = 0; p < 2; p++) {
        train("run", 0, WORDS(rig_llama, base, precisions[p], looking));
        last_loss("run", loss[0]);
        train("other", 2, WORDS(rig_llama, still, precisions[p], source));
        last_loss("other", loss[1]);
        cr_assert_str_eq(loss[1], loss[0], "precision %d", p);
        train("again", 2, WORDS(rig_llama, base, precisions[p], source));
        remove_run("run");
        remove_run("other");
        remove_run("again");
    }
}

Test(average, is_what_samples_are_written_with)
{
    static const char *const prompt[] = {"eval.sample_prompts=[\"the \"]", "steps=60", NULL};
    char path[128];
    static char text[RIG_SERIES_BYTES];
    const char *sample[] = {"sample",        path, "--prompt", "the ", "--tokens", "12",
                            "--temperature", "0",  NULL};

    snprintf(path, sizeof path, "%s/run", directory);
    train("run", 0, WORDS(rig_llama, base, looking, prompt));
    rig_lines("sample  60", text);
    cr_assert_eq(rig_shoal(sample), 0, "%s", rig_log());
    const char *line = strstr(text, "| the ");
    cr_assert_not_null(line, "%s", text);
    line += 2;
    cr_assert_eq(strncmp(rig_log(), line, strcspn(line, "\n")), 0, "%s\n%s", rig_log(), line);
}

/* Rates of the runs before the last matter to the average: they come from the checkpoint. */
Test(average, goes_on_with_another_rate_wherever_a_run_is_killed)
{
    static const char *const begin[] = {"checkpoint.every=1", "optimizer.schedule=constant", NULL};
    static const char *const slower[] = {"steps=9", "optimizer.lr=1e-3", NULL};
    char hash[2][64], path[128];

    train("whole", 1, WORDS(rig_llama, base, begin));
    train("whole", 1, WORDS(rig_llama, base, begin, slower));
    rig_hash(directory, "whole", hash[0]);
    snprintf(path, sizeof path, "%s/whole", directory);
    cr_assert_eq(rig_shoal((const char *const[]){"ckpt", "show", "--json", path, NULL}), 0);
    cr_assert_not_null(strstr(rig_log(), "average_lr_max\": 0.003"), "%s", rig_log());
    for (int step = 7; step <= 9; step++) {
        char fault[32];

        train("killed", 2, WORDS(rig_llama, base, begin));
        snprintf(fault, sizeof fault, "kill:%d:0", step);
        setenv("SHOAL_FAULT", fault, 1);
        cr_assert_neq(rig_train(directory, "killed", 2, WORDS(rig_llama, base, begin, slower)), 0);
        unsetenv("SHOAL_FAULT");
        train("killed", step == 8 ? 1 : 4, WORDS(rig_llama, base, begin, slower));
        rig_hash(directory, "killed", hash[1]);
        cr_assert_str_eq(hash[1], hash[0], "killed before step %d", step);
        remove_run("killed");
    }
}

static char *weight_sum(const char *name)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    cr_assert_eq(rig_shoal((const char *const[]){"ckpt", "show", "--json", path, NULL}), 0);
    const char *sum = strstr(rig_log(), "average_weight_sum\": ");
    cr_assert_not_null(sum, "%s", rig_log());
    return strndup(sum, strcspn(sum, ",}\n"));
}

/* A skipped step has no part in the average, nor does a resumed run give it one. */
Test(average, leaves_out_steps_that_were_skipped)
{
    static const char *const skip[] = {"optimizer.on_nonfinite=skip", "optimizer.schedule=constant",
                                       NULL};
    static const char *const four[] = {"steps=4", NULL};
    char hash[2][64];

    train("all", 2, WORDS(rig_llama, base, skip));
    setenv("SHOAL_FAULT", "nan:3:0", 1);
    train("whole", 2, WORDS(rig_llama, base, skip));
    cr_assert_not_null(strstr(rig_log(), "skipped, weights untouched"), "%s", rig_log());
    train("parts", 4, WORDS(rig_llama, base, skip, four));
    unsetenv("SHOAL_FAULT");
    train("parts", 2, WORDS(rig_llama, base, skip));
    rig_hash(directory, "whole", hash[0]);
    rig_hash(directory, "parts", hash[1]);
    cr_assert_str_eq(hash[1], hash[0]);

    char *sums[] = {weight_sum("all"), weight_sum("whole"), weight_sum("parts")};
    cr_assert_str_neq(sums[0], sums[1]);
    cr_assert_str_eq(sums[2], sums[1]);
    for (int i = 0; i < 3; i++)
        free(sums[i]);
}

/* The weights of the gradient are back before anything is saved. */
Test(average, is_out_of_the_way_when_an_evaluation_is_cut_short)
{
    static const char *const worlds[][3] = {{"parallel.zero=0", NULL}, {"parallel.zero=3", NULL}};
    char hash[2][64];

    for (int p = 0; p < N_PRECISIONS; p++) {
        train("whole", 0, WORDS(rig_llama, base, precisions[p]));
        rig_hash(directory, "whole", hash[0]);
        setenv("SHOAL_FAULT", "look:4:1", 1);
        const int rc = rig_train(directory, "cut", 2,
                                 WORDS(rig_llama, base, precisions[p], looking, worlds[p % 2]));
        unsetenv("SHOAL_FAULT");
        cr_assert_eq(rc, 75, "exit %d\n%s", rc, rig_log());
        cr_assert_not_null(strstr(rig_log(), "saved at step 4"), "%s", rig_log());
        cr_assert_null(strstr(rig_log(), "eval    4"), "%s", rig_log());
        train("cut", 2, WORDS(rig_llama, base, precisions[p], looking));
        rig_hash(directory, "cut", hash[1]);
        cr_assert_str_eq(hash[1], hash[0], "precision %d", p);
        remove_run("whole");
        remove_run("cut");
    }
}

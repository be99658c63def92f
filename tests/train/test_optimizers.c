#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rules, codecs and groups in whole runs: any of them x any stage x any world size, the same bits. */

enum { MAX_WORDS = 6 };

/* Tensors of the tiny model are too small for codecs unless a group asks for it. */
#define CODED(codec) "optimizer.groups=[\"qkv,o,gate_up,up,down: state=" codec "\"]"

static const struct {
    const char *name;
    const char *words[MAX_WORDS];
} cases[] = {
    {"adamw, int8, 24-bit weights",
     {"optimizer.state=int8", CODED("int8"), "precision.master=ecc8", "precision.compute=bf16"}},
    {"adamw, int4, stochastic rounding",
     {"optimizer.state=int4", CODED("int4"), "precision.master=bf16sr", "precision.compute=bf16"}},
    {"adamw, 4 bits with scales of rank 1", {CODED("lpmm4_rank1")}},
    {"lion, bnb8, split weights",
     {"optimizer.name=lion", "optimizer.lr=3e-4", CODED("bnb8"), "precision.master=split16",
      "precision.compute=bf16"}},
    {"adam_mini, bf16", {"optimizer.name=adam_mini", CODED("bf16")}},
    {"adafactor", {"optimizer.name=adafactor"}},
    {"came, int8", {"optimizer.name=came", CODED("int8")}},
    {"ademamix, fp8", {"optimizer.name=ademamix", CODED("fp8")}},
    {"adamw_deepspeed, bf16", {"optimizer.name=adamw_deepspeed", CODED("bf16")}},
    {"adamw_bnb, bnb8", {"optimizer.name=adamw_bnb", CODED("bnb8")}},
    {"schedule_free, int8, 24-bit weights",
     {"optimizer.name=schedule_free", CODED("int8"), "precision.master=ecc8",
      "precision.compute=bf16"}},
    {"schedule_free, fp32", {"optimizer.name=schedule_free"}},
    {"groups of two rules",
     {"optimizer.groups=[\"embedding,head: rule=sgd lr_scale=10\", \"down: rule=adam_mini "
      "weight_decay=0\", \"*norm*: lr_scale=0.5\"]"}},
};

enum { N_CASES = sizeof cases / sizeof cases[0] };

static const char *directory;

static void setup(void)
{
    directory = rig_directory();
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(optimizers, .init = setup, .fini = teardown);

static void remove_run(const char *name)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", directory, name);
    rig_cleanup(path);
}

/* A copy, as rig_words gives one static list. */
static const char *const *words_of(int c, const char *const *more)
{
    static const char *all[48];
    size_t n = 0;

    for (const char *const *w = rig_words(rig_llama, cases[c].words); *w != NULL; w++)
        all[n++] = *w;
    for (; more != NULL && *more != NULL; more++)
        all[n++] = *more;
    all[n] = NULL;
    return all;
}

Test(optimizers, give_the_same_bits_for_every_stage_and_world_size)
{
    for (int c = 0; c < N_CASES; c++) {
        char series[RIG_SERIES_BYTES], hash[64], got[RIG_SERIES_BYTES], got_hash[64];

        cr_assert_eq(rig_train(directory, "one", 0, words_of(c, NULL)), 0, "%s\n%s", cases[c].name,
                     rig_log());
        rig_series(directory, "one", series);
        rig_hash(directory, "one", hash);
        for (int stage = 0; stage <= 3; stage++) {
            char zero[32];
            const char *more[] = {zero, stage == 2 ? "parallel.order=vertical" : NULL, NULL};
            const int ranks = stage % 2 == 0 ? 2 : 4;

            snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
            cr_assert_eq(rig_train(directory, "run", ranks, words_of(c, more)), 0, "%s, %s\n%s",
                         cases[c].name, zero, rig_log());
            rig_series(directory, "run", got);
            rig_hash(directory, "run", got_hash);
            cr_assert_str_eq(got, series, "%s, %s", cases[c].name, zero);
            cr_assert_str_eq(got_hash, hash, "%s, %s", cases[c].name, zero);
            remove_run("run");
        }
        remove_run("one");
    }
}

Test(optimizers, go_on_after_a_kill_on_another_world_size)
{
    const char *six[] = {"steps=6", "checkpoint.every=2", "parallel.zero=3", NULL};

    for (int c = 0; c < N_CASES; c++) {
        char series[RIG_SERIES_BYTES], hash[64], got[RIG_SERIES_BYTES], got_hash[64];

        cr_assert_eq(rig_train(directory, "whole", 2, words_of(c, six)), 0, "%s\n%s", cases[c].name,
                     rig_log());
        rig_series(directory, "whole", series);
        rig_hash(directory, "whole", hash);
        setenv("SHOAL_FAULT", "kill:6:1", 1);
        cr_assert_neq(rig_train(directory, "killed", 2, words_of(c, six)), 0);
        unsetenv("SHOAL_FAULT");
        cr_assert_eq(rig_train(directory, "killed", c % 2 == 0 ? 4 : 1, words_of(c, six)), 0,
                     "%s\n%s", cases[c].name, rig_log());
        cr_assert_not_null(strstr(rig_log(), "continuing after step 4"), "%s", rig_log());
        rig_series(directory, "killed", got);
        rig_hash(directory, "killed", got_hash);
        cr_assert_str_eq(got, series, "%s", cases[c].name);
        cr_assert_str_eq(got_hash, hash, "%s", cases[c].name);
        remove_run("whole");
        remove_run("killed");
    }
}

Test(optimizers, refuse_state_of_another_codec_until_conversion_is_asked_for)
{
    const char *first[] = {CODED("int8"), "precision.compute=bf16", NULL};
    const char *other[] = {CODED("bnb8"), "precision.compute=bf16", "steps=6", NULL};
    const char *asked[] = {CODED("bnb8"), "precision.compute=bf16", "steps=6",
                           "checkpoint.convert=true", NULL};
    const char *coarser[] = {CODED("int8"), "precision.compute=bf16", "steps=6",
                             "precision.master=ecc8", NULL};
    const char *exact[] = {CODED("int8"), "precision.compute=bf16", "steps=6",
                           "precision.master=split16", NULL};

    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_llama, first)), 0, "%s", rig_log());
    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_llama, other)), 78, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "int8/32"), "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "checkpoint.convert=true"), "%s", rig_log());
    cr_assert_eq(rig_train(directory, "run", 2, rig_words(rig_llama, coarser)), 78, "%s",
                 rig_log());
    cr_assert_not_null(strstr(rig_log(), "precision.master"), "%s", rig_log());
    cr_assert_eq(rig_train(directory, "run", 4, rig_words(rig_llama, asked)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "states had another codec"), "%s", rig_log());

    cr_assert_eq(rig_train(directory, "exact", 2, rig_words(rig_llama, first)), 0, "%s", rig_log());
    cr_assert_eq(rig_train(directory, "exact", 1, rig_words(rig_llama, exact)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "go on with split16"), "%s", rig_log());
}

static double last_loss(const char *name)
{
    char series[RIG_SERIES_BYTES];
    long long step = 0;
    double loss = 0;

    rig_series(directory, name, series);
    for (const char *line = series; *line != '\0'; line += strcspn(line, "\n") + 1)
        cr_assert_eq(sscanf(line, "%lld %lf", &step, &loss), 2, "%s", line);
    return loss;
}

/* Scales of rows and columns are those of whole tensors, whoever holds which part of them. */
Test(optimizers, convert_states_with_scales_of_rank_1_alike_on_every_world_size)
{
    static const char *const ways[][2] = {{CODED("fp32"), CODED("lpmm4_rank1")},
                                          {CODED("lpmm4_rank1"), CODED("int8")}};

    for (size_t w = 0; w < 2; w++) {
        const char *from[] = {ways[w][0], "checkpoint.every=4", NULL};
        const char *kept[] = {ways[w][0], "checkpoint.every=4", "steps=6", NULL};
        const char *to[] = {ways[w][1], "checkpoint.every=4", "steps=6", "checkpoint.convert=true",
                            NULL};
        char hash[64], got[64];
        double loss[2];

        for (int many = 0; many < 2; many++) {
            const char *run = many == 0 ? "one" : "many";

            cr_assert_eq(rig_train(directory, run, 2, rig_words(rig_llama, from)), 0, "%s",
                         rig_log());
            cr_assert_eq(rig_train(directory, run, many == 0 ? 1 : 4, rig_words(rig_llama, to)), 0,
                         "%s", rig_log());
            cr_assert_not_null(strstr(rig_log(), "states had another codec"), "%s", rig_log());
            rig_hash(directory, run, many == 0 ? hash : got);
        }
        cr_assert_str_eq(got, hash);
        loss[0] = last_loss("one");
        cr_assert_eq(rig_train(directory, "kept", 2, rig_words(rig_llama, from)), 0, "%s",
                     rig_log());
        cr_assert_eq(rig_train(directory, "kept", 2, rig_words(rig_llama, kept)), 0, "%s",
                     rig_log());
        loss[1] = last_loss("kept");
        cr_assert_float_eq(loss[0], loss[1], 2e-4 * loss[1], "%g, %g", loss[0], loss[1]);
        remove_run("one");
        remove_run("many");
        remove_run("kept");
    }
}

Test(optimizers, refuse_bad_settings_before_the_first_step)
{
    static const struct {
        const char *words[3], *said;
    } bad[] = {
        {{"optimizer.name=schedule_free", "optimizer.betas=[0.0, 0.9]"}, "above 0"},
        {{"optimizer.name=schedule_free", "optimizer.cautious=true"}, "cannot be cautious"},
        {{"optimizer.name=adamm"}, "adam"},
        {{"optimizer.state=int9"}, "int8"},
        {{"optimizer.lr=0"}, "optimizer.lr"},
        {{"optimizer.betas=[0.9, 1.0]"}, "optimizer.betas"},
        {{"precision.master=ecc8"}, "precision.compute=bf16"},
        {{"optimizer.groups=[\"gate: lr_scale=2\"]"}, "matches no tensor"},
        {{"optimizer.groups=[\"norm: lr_scale=fast\"]"}, "lr_scale"},
        {{"optimizer.name=adafactor", "optimizer.state=int8"}, "adafactor"},
    };

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const int rc = rig_train(directory, "run", 2, rig_words(rig_llama, bad[i].words));

        cr_assert_eq(rc, 78, "%s: exit %d\n%s", bad[i].words[0], rc, rig_log());
        cr_assert_not_null(strstr(rig_log(), bad[i].said), "%s\n%s", bad[i].said, rig_log());
        cr_assert_null(strstr(rig_log(), "step "), "%s", rig_log());
    }
}

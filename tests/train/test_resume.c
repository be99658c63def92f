#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Killed at any step, on any world size and stage, a run goes on as if nothing had happened. */

static char want_series[RIG_SERIES_BYTES], want_hash[64];
static const char *directory;
static const char *const eight[] = {"steps=8", "checkpoint.every=2", "checkpoint.keep=2", NULL};

static void setup(void)
{
    directory = rig_directory();
    cr_assert_eq(rig_train(directory, "whole", 2, rig_words(rig_llama, eight)), 0, "%s", rig_log());
    rig_series(directory, "whole", want_series);
    rig_hash(directory, "whole", want_hash);
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(resume, .init = setup, .fini = teardown);

static void expect_the_whole_run(const char *name, const char *what)
{
    char series[RIG_SERIES_BYTES], hash[64];

    rig_series(directory, name, series);
    rig_hash(directory, name, hash);
    cr_assert_str_eq(series, want_series, "%s\n%s\nwant\n%s", what, series, want_series);
    cr_assert_str_eq(hash, want_hash, "%s", what);
}

Test(resume, after_sigkill_before_every_step)
{
    for (int step = 1; step <= 8; step++) {
        char fault[32], name[24];

        snprintf(fault, sizeof fault, "kill:%d:%d", step, step % 2);
        snprintf(name, sizeof name, "killed%d", step);
        setenv("SHOAL_FAULT", fault, 1);
        cr_assert_neq(rig_train(directory, name, 2, rig_words(rig_llama, eight)), 0);
        unsetenv("SHOAL_FAULT");
        cr_assert_eq(rig_train(directory, name, 2, rig_words(rig_llama, eight)), 0, "%s",
                     rig_log());
        expect_the_whole_run(name, fault);
    }
}

Test(resume, on_another_world_size_stage_and_order)
{
    static const struct {
        int ranks;
        const char *words[3];
    } others[] = {{1, {"parallel.zero=0", NULL}},
                  {4, {"parallel.zero=3", NULL}},
                  {4, {"parallel.zero=1", "parallel.order=vertical", NULL}},
                  {2, {"parallel.zero=2", "parallel.recompute=full", NULL}}};

    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        const char *const *words = rig_words(rig_llama, eight);
        const char *all[32];
        char name[16];
        size_t n = 0;

        snprintf(name, sizeof name, "moved%zu", i);
        for (; words[n] != NULL; n++)
            all[n] = words[n];
        all[n] = NULL;
        setenv("SHOAL_FAULT", "kill:6:0", 1);
        cr_assert_neq(rig_train(directory, name, 2, all), 0);
        unsetenv("SHOAL_FAULT");
        cr_assert_eq(rig_train(directory, name, others[i].ranks, rig_words(all, others[i].words)),
                     0, "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), "continuing after step 4"), "%s", rig_log());
        expect_the_whole_run(name, name);
    }
}

Test(resume, growing_and_shrinking_in_mid_run)
{
    static const int ranks[] = {1, 4, 2, 4};
    const char *const *words = rig_words(rig_llama, eight);
    const char *all[32];
    size_t n = 0;

    for (; words[n] != NULL; n++)
        all[n] = words[n];
    all[n] = NULL;
    for (int i = 0; i < 4; i++) {
        char fault[32];
        snprintf(fault, sizeof fault, "kill:%d:0", 3 + 2 * i);
        if (i < 3)
            setenv("SHOAL_FAULT", fault, 1);
        int rc = rig_train(directory, "elastic", ranks[i], all);
        unsetenv("SHOAL_FAULT");
        cr_assert_eq(rc == 0, i == 3, "leg %d\n%s", i, rig_log());
    }
    expect_the_whole_run("elastic", "elastic");
}

Test(resume, sigterm_on_one_rank_saves_and_leaves_with_75)
{
    setenv("SHOAL_FAULT", "term:4:1", 1);
    int rc = rig_train(directory, "term", 2, rig_words(rig_llama, eight));
    unsetenv("SHOAL_FAULT");
    cr_assert_eq(rc, 75, "exit %d\n%s", rc, rig_log());
    cr_assert_not_null(strstr(rig_log(), "saved at step 4"), "%s", rig_log());
    cr_assert_eq(rig_train(directory, "term", 4, rig_words(rig_llama, eight)), 0, "%s", rig_log());
    expect_the_whole_run("term", "term");
}

Test(resume, a_finished_run_says_so_and_does_nothing)
{
    cr_assert_eq(rig_train(directory, "whole", 2, rig_words(rig_llama, eight)), 0);
    cr_assert_not_null(strstr(rig_log(), "nothing to do"), "%s", rig_log());
    expect_the_whole_run("whole", "finished");
}

Test(resume, starting_anew_beside_later_checkpoints_warns)
{
    const char *anew[] = {"checkpoint.resume=never", "steps=2", NULL};

    cr_assert_eq(rig_train(directory, "whole", 2, rig_words(rig_llama, anew)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "holds a checkpoint of step 8"), "%s", rig_log());
    cr_assert_eq(rig_train(directory, "fresh", 2, rig_words(rig_llama, anew)), 0, "%s", rig_log());
    cr_assert_null(strstr(rig_log(), "holds a checkpoint"), "%s", rig_log());
}

/* DIRECTORY/whole's file of step 8 becomes a link to itself, which nobody can follow, or is again. */
static void hide(const char *name, bool hidden)
{
    char path[512], aside[520];

    snprintf(path, sizeof path, "%s/whole/checkpoints/step-000000000008/%s", directory, name);
    snprintf(aside, sizeof aside, "%s.aside", path);
    if (hidden) {
        cr_assert_eq(rename(path, aside), 0);
        cr_assert_eq(symlink(path, path), 0);
    } else {
        cr_assert_eq(rename(aside, path), 0);
    }
}

Test(resume, a_checkpoint_that_cannot_be_read_is_not_passed_over)
{
    const char *more[] = {"steps=9", "checkpoint.every=0", NULL};
    const char *older[] = {"steps=9", "checkpoint.every=0", "checkpoint.resume=6", NULL};
    const char *names[] = {"COMMIT", "manifest.h5", "rank-00001.h5"};
    const char *const *words = rig_words(rig_llama, more);

    for (int i = 0; i < 3; i++) {
        hide(names[i], true);
        cr_assert_eq(rig_train(directory, "whole", 2, words), 74, "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), "step 8 could not be checked and may be whole"), "%s",
                           rig_log());
        cr_assert_not_null(strstr(rig_log(), "checkpoint.resume=STEP"), "%s", rig_log());
        cr_assert_null(strstr(rig_log(), "continuing after"), "%s", rig_log());
        hide(names[i], false);
    }
    hide("COMMIT", true);
    cr_assert_eq(rig_train(directory, "whole", 2, rig_words(rig_llama, older)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "continuing after step 6"), "%s", rig_log());
}

Test(resume, a_damaged_checkpoint_is_skipped_with_its_reason)
{
    const char *more[] = {"steps=9", "checkpoint.every=0", NULL};
    const char *damaged[] = {"steps=9", "checkpoint.resume=8", NULL};
    char path[512];

    snprintf(path, sizeof path, "%s/whole/checkpoints/step-000000000008/manifest.h5", directory);
    cr_assert_eq(truncate(path, 1000), 0);
    cr_assert_eq(rig_train(directory, "whole", 2, rig_words(rig_llama, damaged)), 65, "%s",
                 rig_log());
    cr_assert_not_null(strstr(rig_log(), "lists the steps there are"), "%s", rig_log());
    cr_assert_eq(rig_train(directory, "whole", 2, rig_words(rig_llama, more)), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "step 8 is broken and skipped"), "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "manifest.h5: holds 1000 bytes"), "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "continuing after step 6"), "%s", rig_log());
}

Test(resume, bf16_keeps_its_bits_too)
{
    const char *bf16[] = {"precision.compute=bf16", NULL};
    const char *const *words = rig_words(rig_llama, eight);
    const char *all[32];
    char series[RIG_SERIES_BYTES], other[RIG_SERIES_BYTES];
    size_t n = 0;

    for (; words[n] != NULL; n++)
        all[n] = words[n];
    all[n++] = bf16[0];
    all[n] = NULL;
    cr_assert_eq(rig_train(directory, "b", 2, all), 0, "%s", rig_log());
    rig_series(directory, "b", series);
    setenv("SHOAL_FAULT", "kill:7:1", 1);
    cr_assert_neq(rig_train(directory, "bk", 2, all), 0);
    unsetenv("SHOAL_FAULT");
    cr_assert_eq(rig_train(directory, "bk", 1, all), 0, "%s", rig_log());
    rig_series(directory, "bk", other);
    cr_assert_str_eq(series, other);
}

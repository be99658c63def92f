#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Saves and reads through MPI; the details are tested with threads as ranks. */

static char root[256];
static char output[8192];

static void setup(void)
{
    snprintf(root, sizeof root, "/tmp/shoal-test-ckpt-XXXXXX");
    cr_assert_not_null(mkdtemp(root));
}

static void teardown(void)
{
    const char *argv[] = {"rm", "-rf", root, NULL};

    run_command(argv, 20, output, sizeof output, NULL);
}

TestSuite(ckpt_world, .init = setup, .fini = teardown, .timeout = 200);

static int save(const char *n, const char *step, const char *first, const char *fault)
{
    char variable[128];
    const char *argv[] = {
        "env",  variable, "mpirun", "-n",  n,   SHOAL_BUILD_DIR "/world/ckpt_world",
        "save", root,     step,     first, "3", NULL};

    snprintf(variable, sizeof variable, "SHOAL_CKPT_FAULT=%s", fault);
    return run_command(argv, 60, output, sizeof output, NULL);
}

static int run_job(const char *n, const char *job, const char *step)
{
    const char *argv[] = {"mpirun", "-n", n,    SHOAL_BUILD_DIR "/world/ckpt_world",
                          job,      root, step, NULL};

    return run_command(argv, 60, output, sizeof output, NULL);
}

static int read_as(const char *n, const char *step)
{
    return run_job(n, "read", step);
}

Test(ckpt_world, worlds_of_1_2_and_4_are_read_by_1_2_3_and_4)
{
    const char *writers[] = {"1", "2", "4"};
    const char *readers[] = {"1", "2", "3", "4"};
    const char *steps[] = {"1", "2", "3"};

    for (int w = 0; w < 3; w++) {
        cr_assert_eq(save(writers[w], steps[w], "0", ""), 0, "%s", output);
        for (int r = 0; r < 4; r++)
            cr_expect_eq(read_as(readers[r], steps[w]), 0, "%s -> %s: %s", writers[w], readers[r],
                         output);
    }
}

Test(ckpt_world, items_of_every_type_go_from_any_world_to_any_other)
{
    const char *worlds[] = {"1", "2", "3"};

    for (int w = 0; w < 3; w++) {
        cr_assert_eq(run_job(worlds[w], "save-items", worlds[w]), 0, "%s", output);
        for (int r = 0; r < 3; r++)
            cr_expect_eq(run_job(worlds[r], "read-items", worlds[w]), 0, "%s -> %s: %s", worlds[w],
                         worlds[r], output);
    }
}

Test(ckpt_world, one_killed_rank_ends_the_save_and_leaves_the_step_before)
{
    /* Rank 1 dies in the middle of its payload; rank 0 after everything but the rename. */
    const char *faults[] = {"payload:1:1", "rename:0:1"};

    cr_assert_eq(save("2", "1", "0", ""), 0, "%s", output);
    for (int i = 0; i < 2; i++) {
        cr_expect_neq(save("2", "2", "0", faults[i]), 0, "%s", faults[i]);
        cr_expect_eq(read_as("2", "1"), 0, "%s: %s", faults[i], output);
    }
    cr_expect_eq(save("2", "2", "0", ""), 0, "the next run goes on: %s", output);
    cr_expect_eq(read_as("1", "2"), 0, "%s", output);
}

Test(ckpt_world, one_rank_without_descriptors_ends_the_opening_on_all)
{
    cr_assert_eq(save("2", "3", "1", ""), 0, "%s", output);
    cr_expect_eq(run_job("3", "open", "3"), 0, "%s", output);
    for (int rank = 0; rank < 3; rank++) {
        char number[16], text[64];
        int n = 0;

        snprintf(number, sizeof number, "%d", rank);
        setenv("SHOAL_TEST_STARVED", number, 1);
        cr_expect_eq(run_job("3", "open", "3"), 74, "rank %d: %s", rank, output);
        unsetenv("SHOAL_TEST_STARVED");
        cr_expect_neq(strstr(output, "Too many open files"), NULL, "%s", output);
        /* Each rank says the same: "rank 0: rank 2 (host): ..." */
        snprintf(text, sizeof text, ": rank %d (", rank);
        for (const char *at = strstr(output, text); at != NULL; at = strstr(at + 1, text))
            n++;
        cr_expect_eq(n, 3, "%s", output);
    }
}

Test(ckpt_world, a_root_that_is_a_file_is_refused_on_all_ranks)
{
    char path[300];

    snprintf(path, sizeof path, "%s/file", root);
    fclose(fopen(path, "w"));

    const char *argv[] = {"mpirun", "-n", "2", SHOAL_BUILD_DIR "/world/ckpt_world",
                          "save",   path, "1", "0",
                          "0",      NULL};

    cr_expect_eq(run_command(argv, 60, output, sizeof output, NULL), 73, "%s", output);
    cr_expect_neq(strstr(output, "rank 0"), NULL, "%s", output);
}

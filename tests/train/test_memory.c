#include "tests/train/rig.h"
#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Nothing is allocated in a step, and the plan is what the run then has. */

static void poisoned(const char *const *words)
{
    const char *directory = rig_directory(), *argv[64];
    char config[160], data[160], out[160], output[32768];
    int n = 0;

    snprintf(config, sizeof config, "%s/tiny.yaml", directory);
    snprintf(data, sizeof data, "data.train=%s/data.txt", directory);
    snprintf(out, sizeof out, "run.out=%s/run", directory);
    for (const char *const *w =
             (const char *const[]){"mpirun", "-n", "2", SHOAL_BUILD_DIR "/world/poisoned", "train",
                                   config, data, out, NULL};
         *w != NULL; w++)
        argv[n++] = *w;
    for (; *words != NULL; words++)
        argv[n++] = *words;
    argv[n] = NULL;
    int rc = run_command(argv, 60, output, sizeof output, NULL);
    cr_assert_eq(rc, 0, "exit %d\n%s", rc, output);
    cr_assert_not_null(strstr(output, "allocations were refused: 0"), "%s", output);
    rig_cleanup(directory);
}

Test(memory, no_stage_or_order_allocates_in_a_step)
{
    for (int stage = 0; stage <= 3; stage++) {
        char zero[32];
        snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
        poisoned(rig_words(rig_gpt, (const char *[]){zero, NULL}));
        poisoned(rig_words(rig_llama, (const char *[]){zero, "parallel.order=vertical",
                                                       "parallel.recompute=full", NULL}));
    }
}

Test(memory, bf16_does_not_allocate_in_a_step)
{
    poisoned(rig_words(rig_llama, (const char *[]){"precision.compute=bf16", NULL}));
}

Test(memory, the_poison_works)
{
    setenv("SHOAL_TEST_ALLOCATE", "1", 1);
    const char *argv[] = {SHOAL_BUILD_DIR "/world/poisoned", "train", NULL};
    char output[4096];
    int rc = run_command(argv, 20, output, sizeof output, NULL);
    unsetenv("SHOAL_TEST_ALLOCATE");
    cr_assert_eq(rc, 1, "%s", output);
}

/*
 * A model large enough that the plan outweighs what the process and its libraries take later or
 * not, some MiB: 1 to 3 GiB.
 */
static void planned_is_measured(const char *const *words)
{
    const char *directory = rig_directory();
    double planned = 0, measured = 0, percent = 99;
    const char *size[] = {"model.layers=8",     "model.hidden=768",
                          "model.heads=8",      "model.ffn=3072",
                          "data.seq_len=128",   "batch.micro=2",
                          "batch.global=4",     "steps=3",
                          "checkpoint.every=2", NULL};
    const char *base[64];
    size_t n = 0;

    for (const char *const *w = rig_words(rig_llama, size); *w != NULL; w++)
        base[n++] = *w;
    base[n] = NULL;
    cr_assert_eq(rig_train(directory, "run", 2, rig_words(base, words)), 0, "%s", rig_log());
    const char *line = strstr(rig_log(), "memory  all ranks:");
    cr_assert_not_null(line, "%s", rig_log());
    cr_assert_eq(sscanf(line, "memory  all ranks: planned %lf MiB, measured peak %lf MiB (%lf",
                        &planned, &measured, &percent),
                 3);
    cr_assert(percent > -2 && percent < 2, "%.*s", (int)strcspn(line, "\n"), line);
    rig_cleanup(directory);
}

Test(memory, measured_peak_is_within_two_percent_of_the_plan)
{
    for (int stage = 0; stage <= 3; stage++) {
        char zero[32];
        snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
        planned_is_measured((const char *[]){zero, NULL});
    }
    planned_is_measured(
        (const char *[]){"precision.compute=bf16", "parallel.recompute=full", NULL});
    planned_is_measured((const char *[]){"parallel.order=vertical", NULL});
}

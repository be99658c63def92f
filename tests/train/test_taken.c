#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What others take of a device's memory, before a plan's is asked for (tests/world/crowded.c). */

static const char *directory;

static void setup(void)
{
    directory = rig_directory();
    rig_use(SHOAL_BUILD_DIR "/world/crowded");
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(taken, .init = setup, .fini = teardown, .timeout = 120);

/* MiB of the device, and that each rank takes when it opens it, by libraries (twice), by transport. */
static int run(int ranks, int total, int opening, int libraries, int transport)
{
    const char *words[] = {"parallel.zero=2", ranks > 0 ? "comm.transport=staged" : NULL, NULL};
    char script[256], path[128];

    snprintf(path, sizeof path, "%s/used", directory);
    FILE *used = fopen(path, "w");
    cr_assert_not_null(used);
    fwrite((char[8]){0}, 8, 1, used);
    fclose(used);
    snprintf(script, sizeof script, "%s %d %d %d %d", path, total, opening, libraries, transport);
    setenv("CROWDED", script, 1);
    snprintf(path, sizeof path, "%s/run", directory);
    rig_cleanup(path);
    return rig_train(directory, "run", ranks, words);
}

static void has_row(const char *name, double mib)
{
    char want[64];

    snprintf(want, sizeof want, "%-20s %12.2f  ", name, mib);
    cr_assert_not_null(strstr(rig_log(), want), "no \"%s\" in\n%s", want, rig_log());
}

Test(taken, is_told_row_by_row)
{
    cr_assert_eq(run(0, 1000, 100, 30, 20), 0, "%s", rig_log());
    has_row("before the run", 100);
    has_row("driver and libraries", 60);
    has_row("transport", 20);
    has_row("left", 820);
    cr_assert_not_null(strstr(rig_log(), " self\n"), "%s", rig_log());
}

/* None looks before all have taken theirs, or takes more before all have looked. */
Test(taken, is_that_of_all_ranks_of_the_device)
{
    static const char *const slow[] = {"take", "look"};

    for (int i = 0; i < 2; i++) {
        setenv("CROWDED_SLOW", slow[i], 1);
        cr_assert_eq(run(4, 1000, 100, 30, 20), 0, "%s", rig_log());
        has_row("before the run", 400);
        has_row("driver and libraries", 240);
        has_row("transport", 80);
        has_row("left", 280);
        cr_assert_not_null(strstr(rig_log(), " staged\n"), "%s", rig_log());
    }
    unsetenv("CROWDED_SLOW");
}

/* 61 MiB hold the plan of two ranks, 1 MiB does not. */
Test(taken, counts_when_a_plan_is_held_against_the_device)
{
    static const struct {
        int opening, libraries, transport;
        const char *why;
    } cases[] = {
        {30, 0, 0, "0.06 GiB were taken before the run, 0.00 by driver and libraries, 0.00 by"},
        {0, 15, 0, "0.00 GiB were taken before the run, 0.06 by driver and libraries, 0.00 by"},
        {0, 0, 30, "0.00 by driver and libraries, 0.06 by the transport"},
    };

    cr_assert_eq(run(2, 61, 0, 0, 0), 0, "%s", rig_log());
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int rc = run(2, 61, cases[i].opening, cases[i].libraries, cases[i].transport);

        cr_assert_eq(rc, 71, "exit %d\n%s", rc, rig_log());
        cr_assert_not_null(strstr(rig_log(), "GiB of the device for 2 rank(s)"), "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), cases[i].why), "no \"%s\" in\n%s", cases[i].why,
                           rig_log());
    }
}

Test(taken, ends_the_run_where_the_device_does_not_tell)
{
    setenv("CROWDED_BLIND", "1", 1);
    cr_assert_eq(run(2, 1000, 0, 0, 0), 69, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "cannot be asked for its memory"), "%s", rig_log());
    unsetenv("CROWDED_BLIND");
}

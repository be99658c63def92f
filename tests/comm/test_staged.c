#include "tests/world/run.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

/* What the device and the host do beside each other in bulk by way of the host. */

#define WORKER SHOAL_BUILD_DIR "/world/comm_staged"

static char output[16384];

static int run_worker(const char *ranks, const char *per_host, const char *mode, const char *copy)
{
    const char *argv[] = {"mpirun", "-n", ranks, WORKER, per_host, mode, copy, NULL};

    return run_command(argv, 120, output, sizeof output, NULL);
}

static void expect_line(const char *line)
{
    cr_assert_not_null(strstr(output, line), "no \"%s\": %s", line, run_report());
}

/*
 * When a piece is exchanged (x), the fetch of the next one and the delivery of the last one have been
 * issued, and only the fetch of this one has been waited for (w).
 */
Test(staged, copies_go_on_while_the_host_exchanges)
{
    cr_assert_eq(run_worker("2", "0", "lazy", NULL), 0, "%s", run_report());
    expect_line("gather FrFr"
                "wxDFr"
                "wxDFr"
                "wxDFr"
                "wxDwxD"
                "s\n");
    expect_line("sum FFrFFr"
                "wxDFFr"
                "wxDFFr"
                "wxDFFr"
                "wxDwxD"
                "s\n");
}

/* Whenever the queue runs what it was given. */
Test(staged, gives_the_same_bits_however_late_the_queue_is, .timeout = 300)
{
    static const char *const modes[] = {"lazy", "eager", "mixed", "random"};

    for (int i = 0; i < 4; i++) {
        cr_assert_eq(run_worker("2", "0", modes[i], NULL), 0, "%s", run_report());
        cr_assert_eq(run_worker("3", "0", modes[i], NULL), 0, "%s", run_report());
        cr_assert_eq(run_worker("4", "2", modes[i], NULL), 0, "%s", run_report());
    }
}

/* In the first gather, in its midst, in a sum; nothing is left in the queue of either rank. */
Test(staged, a_copy_that_fails_ends_the_run_on_every_rank)
{
    static const char *const copies[] = {"1", "2", "5", "17"};

    for (int i = 0; i < 4; i++) {
        char line[64];
        const int code = run_worker("2", "0", "lazy", copies[i]);

        cr_assert_eq(code, 69, "%s", run_report());
        snprintf(line, sizeof line, "learned by 1: -4 copy %s: the device refuses", copies[i]);
        expect_line(line);
        expect_line("learned by 0: -4 ");
        cr_assert_null(strstr(output, "copies are left"), "%s", run_report());
    }
}

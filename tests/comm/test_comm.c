#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <stdio.h>
#include <string.h>

/* Ranks, and ranks per virtual host (0: all on one). */
struct world {
    int ranks, per_host;
};

ParameterizedTestParameters(comm, collectives_match_one_process_bit_for_bit)
{
    static struct world worlds[] = {
        {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0}, /* one host */
        {2, 1}, {3, 1}, {4, 1},                         /* every rank a host */
        {4, 2}, {6, 2},                                 /* two and three hosts of two */
        {3, 2}, {5, 2},                                 /* uneven: falls back to hosts of one */
    };

    return cr_make_param_array(struct world, worlds, sizeof worlds / sizeof worlds[0]);
}

ParameterizedTest(struct world *world, comm, collectives_match_one_process_bit_for_bit)
{
    char ranks[16], per_host[16], output[8192];
    const char *const argv[] = {"mpirun", "-n", ranks, SHOAL_BUILD_DIR "/world/comm_collectives",
                                per_host, NULL};

    snprintf(ranks, sizeof ranks, "%d", world->ranks);
    snprintf(per_host, sizeof per_host, "%d", world->per_host);
    int code = run_command(argv, 120, output, sizeof output, NULL);

    cr_assert_eq(code, 0, "%s", run_report());
}

Test(comm, works_without_a_launcher)
{
    char output[8192];
    const char *const argv[] = {SHOAL_BUILD_DIR "/world/comm_collectives", "0", NULL};
    int code = run_command(argv, 60, output, sizeof output, NULL);

    cr_assert_eq(code, 0, "%s", run_report());
}

Test(comm, ring_reduction_is_right_to_rounding)
{
    char output[8192];
    const char *const argv[] = {"mpirun", "-n",   "3", SHOAL_BUILD_DIR "/world/comm_collectives",
                                "0",      "ring", NULL};
    int code = run_command(argv, 120, output, sizeof output, NULL);

    cr_assert_eq(code, 0, "%s", run_report());
}

Test(comm, machines_that_share_no_memory_give_the_same_bits)
{
    char output[8192];
    const char *const argv[] = {
        "mpirun", "-launcher", "fork", "-hosts", "m0,m1",
        "-ppn",   "2",         "-n",   "4",      SHOAL_BUILD_DIR "/world/comm_collectives",
        "0",      NULL};
    int code = run_command(argv, 120, output, sizeof output, NULL);

    cr_assert_eq(code, 0, "%s", run_report());
}

Test(comm, a_call_that_ended_early_writes_to_its_callers_memory_no_more)
{
    char output[8192];
    const char *const argv[] = {"mpirun", "-n", "2", SHOAL_BUILD_DIR "/world/comm_late", NULL};
    int code = run_command(argv, 60, output, sizeof output, NULL);

    cr_assert_eq(code, 0, "%s", run_report());
}

/* Every rank tells the same, whichever of them main prints. */
Test(comm, a_start_that_fails_on_one_rank_fails_on_all_and_says_why)
{
    static const struct {
        const char *part, *rank, *per_host, *message;
    } parts[] = {
        {"socket", "1", "0", "socket: refused"},
        {"ranks", "2", "0", "table of 3 ranks: out of memory"},
        {"make", "0", "0", "make: refused"},
        {"attach", "2", "0", "attach: refused"},
        {"links", "1", "1", "links: refused"},
        {"wire", "2", "1", "wire: refused"},
        {"watchdog", "1", "0", "watchdog: refused"},
        {"watchdog", "2", "1", "watchdog: refused"},
    };
    char output[8192], prefix[64];

    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const char *const argv[] = {"mpirun",
                                    "-n",
                                    "3",
                                    SHOAL_BUILD_DIR "/world/comm_start",
                                    parts[i].part,
                                    parts[i].rank,
                                    parts[i].per_host,
                                    NULL};
        int code = run_command(argv, 60, output, sizeof output, NULL);

        cr_assert_eq(code, 71, "%s", run_report());
        for (int rank = 0; rank < 3; rank++) {
            snprintf(prefix, sizeof prefix, "learned by %d: -6 rank %s (", rank, parts[i].rank);
            const char *line = strstr(output, prefix);

            cr_assert_not_null(line, "no \"%s\": %s", prefix, run_report());
            cr_assert_not_null(strstr(line, parts[i].message), "%s", run_report());
        }
        cr_assert_null(strstr(output, "died"), "%s", run_report());
    }
}

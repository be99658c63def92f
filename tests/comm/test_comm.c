#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <stdio.h>

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

#include "tests/world/run.h"

#include <criterion/criterion.h>

#include <signal.h>
#include <string.h>

static char output[256];

Test(run, returns_the_exit_code_and_both_outputs)
{
    const char *const argv[] = {"sh", "-c", "echo out; echo err >&2; exit 7", NULL};

    cr_assert_eq(run_command(argv, 10, output, sizeof output, NULL), 7);
    cr_assert_str_eq(output, "out\nerr\n");
}

Test(run, returns_the_signal_of_a_killed_program)
{
    const char *const argv[] = {"sh", "-c", "kill -9 $$", NULL};

    cr_assert_eq(run_command(argv, 10, output, sizeof output, NULL), -SIGKILL);
}

Test(run, ends_a_program_and_its_children_when_time_is_up)
{
    const char *const argv[] = {"sh", "-c", "echo begin; sleep 60 & sleep 60", NULL};
    double seconds;

    cr_assert_eq(run_command(argv, 0.3, output, sizeof output, &seconds), -SIGKILL);
    cr_assert_str_eq(output, "begin\n");
    cr_assert_lt(seconds, 10.0);
}

Test(run, cuts_long_output_and_still_finishes)
{
    const char *const argv[] = {"sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x", NULL};

    cr_assert_eq(run_command(argv, 20, output, sizeof output, NULL), 0);
    cr_assert_eq(strlen(output), sizeof output - 1);
}

Test(run, reports_a_missing_program)
{
    const char *const argv[] = {"/nonexistent/program", NULL};

    cr_assert_eq(run_command(argv, 10, output, sizeof output, NULL), 127);
}

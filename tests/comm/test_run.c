#include "tests/world/run.h"

#include "runtime/base/clock.h"

#include <criterion/criterion.h>

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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
    cr_assert_eq(run_survivors(), 0);
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

Test(run, ends_a_program_that_closes_its_output_and_stays)
{
    const char *const argv[] = {"sh", "-c", "exec >&- 2>&-; sleep 60", NULL};

    cr_assert_eq(run_command(argv, 0.3, output, sizeof output, NULL), -SIGKILL);
}

Test(run, reports_how_a_program_ended_and_what_it_printed)
{
    const char *const silent[] = {"sh", "-c", "kill -9 $$", NULL};
    const char *const loud[] = {"sh", "-c", "echo disk is full; exit 74", NULL};

    run_command(silent, 10, output, sizeof output, NULL);
    cr_assert_not_null(strstr(run_report(), "sh -c kill -9 $$\n"), "%s", run_report());
    cr_assert_not_null(strstr(run_report(), "ended by signal 9 (Killed) after 0."), "%s",
                       run_report());
    cr_assert_not_null(strstr(run_report(), "it printed nothing"), "%s", run_report());
    run_command(loud, 10, output, sizeof output, NULL);
    cr_assert_not_null(strstr(run_report(), "exit 74 after 0."), "%s", run_report());
    cr_assert_not_null(strstr(run_report(), "it printed:\ndisk is full\n"), "%s", run_report());
}

/* In a session of its own it outlives its group. */
Test(run, counts_the_processes_that_are_left_of_this_run_alone)
{
    const char *const other[] = {"sh", "-c", "setsid sleep 60 >&- 2>&- & sleep 0.2; echo $!", NULL};
    const char *const clean[] = {"true", NULL};
    int pid = 0;

    run_command(other, 10, output, sizeof output, NULL);
    cr_assert_eq(sscanf(output, "%d", &pid), 1, "%s", run_report());
    int n = run_survivors();

    run_command(clean, 10, output, sizeof output, NULL);
    int n_clean = run_survivors();

    kill(pid, SIGKILL);
    cr_assert_eq(n, 1);
    cr_assert_eq(n_clean, 0);
}

Test(run, counts_only_time_in_which_the_test_runs_itself)
{
    char script[96];
    const char *const argv[] = {"sh", "-c", script, NULL};
    double seconds, fault;

    /* It stops this process for 3 s, of which 0.5 s count. */
    snprintf(script, sizeof script, "kill -STOP %d; sleep 3; kill -CONT %d; sleep 0.2; echo end",
             (int)getpid(), (int)getpid());
    fault = clock_seconds();
    cr_assert_eq(run_command(argv, 2, output, sizeof output, &seconds), 0, "%s", run_report());
    cr_assert_str_eq(output, "end\n");
    cr_assert_gt(clock_seconds() - fault, 3.0);
    cr_assert_lt(seconds, 2.0);
    cr_assert_lt(run_seconds_of_fault(), 2.0);
}

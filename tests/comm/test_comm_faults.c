#include "tests/world/run.h"

#include <criterion/criterion.h>

#include <stdio.h>
#include <string.h>

/*
 * Something goes wrong on rank 1 of 4 at step 3 (tests/world/comm_faults.c); the others must name
 * it, and the job must be gone in time, with nothing left behind.
 */

#define WORKER SHOAL_BUILD_DIR "/world/comm_faults"

struct outcome {
    int code;
    double seconds; /* from the fault to the end; the start takes what it takes */
    char output[16384];
};

static void run_worker(const char *const argv[], struct outcome *outcome)
{
    outcome->code = run_command(argv, 60, outcome->output, sizeof outcome->output, NULL);
    outcome->seconds = run_seconds_of_fault();
}

static void run_fault(const char *mode, const char *per_host, const char *timeout_s,
                      struct outcome *outcome)
{
    const char *const argv[] = {"mpirun", "-n", "4", WORKER, mode, per_host, timeout_s, NULL};

    run_worker(argv, outcome);
}

/* The launcher does not learn that a rank was killed: a shell stays in its place. */
static void run_fault_behind_shells(const char *mode, const char *per_host, struct outcome *outcome)
{
    static const char shell[] = "\"$@\"; c=$?; if [ $c = 137 ]; then sleep 20; fi; exit $c";
    const char *const argv[] = {"mpirun", "-n",   "4",  "sh",     "-c", shell,
                                "sh",     WORKER, mode, per_host, "5",  NULL};

    run_worker(argv, outcome);
}

/* The launcher believes that these are four machines of one rank, or two of two ranks. */
static void run_fault_on_machines(const char *mode, const char *per_machine,
                                  struct outcome *outcome)
{
    const char *const argv[] = {"mpirun", "-launcher", "fork", "-hosts", "m0,m1,m2,m3",
                                "-ppn",   per_machine, "-n",   "4",      WORKER,
                                mode,     "0",         "5",    NULL};

    run_worker(argv, outcome);
}

static void expect_nothing_left(void)
{
    int n = run_survivors();

    cr_assert_eq(n, 0, "%d processes are left of %s", n, run_report());
}

static int count_of(const char *text, const char *part)
{
    int n = 0;

    while ((text = strstr(text, part)) != NULL) {
        n++;
        text += strlen(part);
    }
    return n;
}

static void expect(const struct outcome *outcome, int code, double limit_s, const char *part)
{
    cr_assert_eq(outcome->code, code, "not exit %d: %s", code, run_report());
    cr_assert_lt(outcome->seconds, limit_s, "%.1f s from the fault to the end, limit %g: %s",
                 outcome->seconds, limit_s, run_report());
    cr_assert(strstr(outcome->output, part) != NULL, "\"%s\" is missing: %s", part, run_report());
}

static void expect_count(const struct outcome *outcome, const char *part, int want)
{
    int n = count_of(outcome->output, part);

    cr_assert_eq(n, want, "\"%s\" comes %d times, not %d: %s", part, n, want, run_report());
}

/* What `shoal` itself would have shown: rank 0's last line, or one of the library's. */
static int lines_told(const struct outcome *outcome)
{
    return count_of(outcome->output, "error   rank ") + count_of(outcome->output, "failed  [rank ");
}

static void expect_told(const struct outcome *outcome)
{
    cr_assert_geq(lines_told(outcome), 1, "the failure is not told: %s", run_report());
}

static struct outcome outcome;

Test(comm_faults, a_killed_rank_is_named_with_its_last_step)
{
    run_fault("kill", "0", "5", &outcome);
    expect(&outcome, 9, 2.0, "failed  rank 1 (pid ");
    expect(&outcome, 9, 2.0, "died, the first on this machine");
    expect(&outcome, 9, 2.0, "last at step 3, forward block.2, collective call 2");
    expect_nothing_left();
}

Test(comm_faults, a_killed_rank_is_named_when_hosts_are_several)
{
    run_fault("kill", "2", "5", &outcome);
    expect(&outcome, 9, 2.0, "failed  rank 1 (pid ");
    expect_nothing_left();
}

Test(comm_faults, a_killed_rank_is_told_once_whether_or_not_there_is_a_witness)
{
    run_fault_behind_shells("kill", "0", &outcome);
    expect(&outcome, 69, 6.0, "died, the first on this machine");
    cr_assert_eq(lines_told(&outcome), 0, "%s", run_report());
    run_fault_behind_shells("unseen", "0", &outcome);
    expect(&outcome, 69, 6.0, "] rank 1 (pid ");
    expect(&outcome, 69, 6.0, "died; last at step 3, forward block.2");
    cr_assert_eq(lines_told(&outcome), 1, "%s", run_report());
    run_fault_behind_shells("unseen", "2", &outcome);
    expect(&outcome, 69, 6.0, "] rank 1 (pid ");
    expect_told(&outcome);
}

Test(comm_faults, a_stopped_rank_is_named_after_the_timeout)
{
    run_fault("stop", "0", "2", &outcome);
    expect(&outcome, 69, 6.0, "is silent for 2.");
    expect(&outcome, 69, 6.0, "last at step 3, forward block.2");
    expect_count(&outcome, "] rank 1 (pid ", 1); /* one rank reports */
    expect_nothing_left();
}

Test(comm_faults, a_stopped_rank_of_a_host_of_its_own_is_named)
{
    run_fault("stop", "1", "2", &outcome);
    expect(&outcome, 69, 6.0, "host 1 (");
    expect(&outcome, 69, 6.0, "ranks 1 to 1) is silent");
    expect_nothing_left();
}

Test(comm_faults, a_rank_that_does_not_arrive_is_named_by_the_others)
{
    run_fault("hang", "0", "2", &outcome);
    expect(&outcome, 69, 6.0, "did not arrive at all-reduce (call 3, n = 1) within 2.5 s");
    cr_assert_eq(lines_told(&outcome), 1, "%s", run_report());
    expect_count(&outcome, "-4 rank 1 (pid ", 3); /* three ranks learn it */
    expect_nothing_left();
}

Test(comm_faults, a_rank_that_does_not_arrive_is_named_on_other_hosts)
{
    run_fault("hang", "2", "2", &outcome);
    expect(&outcome, 69, 6.0, "learned by 2: -4 ");
    /* Whichever host times out first tells the others. */
    expect_count(&outcome, "was last at step 3", 3 + lines_told(&outcome));
}

Test(comm_faults, different_calls_are_an_error_that_names_both)
{
    run_fault("mismatch", "0", "5", &outcome);
    expect(&outcome, 70, 4.0, "collective calls differ");
    expect(&outcome, 70, 4.0, "entered barrier (call 3, n = 0)");
    expect(&outcome, 70, 4.0, "entered all-reduce (call 3, n = 1)");
}

Test(comm_faults, a_failure_reaches_every_rank_with_its_message_and_exit_code)
{
    run_fault("fail", "0", "5", &outcome);
    expect(&outcome, 74, 4.0, "disk is full");
    expect_count(&outcome, "-8 rank 1 (", 3);
}

Test(comm_faults, a_failure_reaches_the_ranks_of_other_hosts)
{
    run_fault("fail", "2", "5", &outcome);
    expect(&outcome, 74, 4.0, "learned by 3: -8 rank 1 (");
    expect_count(&outcome, "-8 rank 1 (", 3);
}

Test(comm_faults, a_failure_ends_ranks_that_are_busy_elsewhere)
{
    run_fault("late", "0", "20", &outcome);
    expect(&outcome, 74, 6.0, "disk is full");
    expect_told(&outcome);
    expect_nothing_left();
}

Test(comm_faults, a_short_pause_of_one_rank_is_no_failure)
{
    run_fault("pause", "0", "2", &outcome);
    expect(&outcome, 0, 10.0, "learned by 1: 0");
}

Test(comm_faults, a_slow_rank_that_notes_progress_is_no_failure)
{
    run_fault("slow", "0", "1", &outcome);
    expect(&outcome, 0, 10.0, "learned by 0: 0");
    run_fault("slow", "2", "1", &outcome);
    expect(&outcome, 0, 10.0, "learned by 3: 0");
}

Test(comm_faults, a_job_that_was_stopped_and_continued_as_a_whole_goes_on)
{
    run_fault("freeze", "0", "1", &outcome);
    expect(&outcome, 0, 10.0, "learned by 1: 0");
    run_fault("freeze", "2", "1", &outcome);
    expect(&outcome, 0, 10.0, "learned by 1: 0");
}

Test(comm_faults, a_witness_that_does_not_answer_does_not_hold_up_the_end)
{
    run_fault("witness", "0", "5", &outcome);
    expect(&outcome, 0, 6.0, "learned by 0: 0");
    expect_nothing_left();
}

/* The failing rank tells when it fails, and rank 0 may at its end. */
Test(comm_faults, a_failure_on_several_machines_is_told)
{
    for (int per_machine = 1; per_machine <= 2; per_machine++) {
        run_fault_on_machines("fail", per_machine == 1 ? "1" : "2", &outcome);
        expect(&outcome, 74, 6.0, "disk is full");
        expect_told(&outcome);
        expect_nothing_left();
    }
}

Test(comm_faults, a_killed_rank_of_another_machine_is_named_by_the_witness_there)
{
    run_fault_on_machines("kill", "1", &outcome);
    cr_assert_neq(outcome.code, 0, "%s", run_report());
    cr_assert(strstr(outcome.output, "failed  rank 1 (pid ") != NULL, "%s", run_report());
    expect_nothing_left();
}

/* The launcher leaves at the first request to abort: what ranks have printed must be through by then. */
Test(comm_faults, a_failure_is_told_to_a_launcher_that_listens_late)
{
    run_fault("deaf", "2", "5", &outcome);
    expect(&outcome, 74, 6.0, "learned by 3: -8 rank 1 (");
    expect_count(&outcome, "-8 rank 1 (", 3);
    expect_told(&outcome);
    run_fault("deaf-launcher", "2", "5", &outcome);
    expect(&outcome, 74, 6.0, "learned by 3: -8 rank 1 (");
    expect_told(&outcome);
}

Test(comm_faults, a_failure_on_several_machines_is_told_to_a_launcher_that_listens_late)
{
    static const char *const modes[] = {"deaf", "deaf-launcher"};

    for (int i = 0; i < 4; i++) {
        run_fault_on_machines(modes[i % 2], i < 2 ? "1" : "2", &outcome);
        expect(&outcome, 74, 6.0, "learned by 3: -8 rank 1 (");
        expect_count(&outcome, "learned by ", 4);
        expect_told(&outcome);
    }
}

Test(comm_faults, a_failure_after_the_last_call_is_the_end_of_every_rank)
{
    run_fault("last", "0", "5", &outcome);
    expect(&outcome, 74, 4.0, "error   rank 1 (");
    expect(&outcome, 74, 4.0, "ended by 1: -8 disk is full");
    expect_count(&outcome, ": -8 rank 1 (", 3);
    expect_nothing_left();
}

Test(comm_faults, a_failure_after_the_last_call_reaches_other_hosts)
{
    run_fault("last", "2", "5", &outcome);
    expect(&outcome, 74, 4.0, "disk is full");
    expect_count(&outcome, "ended by 3: 0", 0);
    expect_told(&outcome);
    run_fault_on_machines("last", "2", &outcome);
    expect(&outcome, 74, 4.0, "disk is full");
    expect_count(&outcome, "ended by 3: 0", 0);
    expect_told(&outcome);
}

Test(comm_faults, a_rank_that_stops_before_the_end_is_named)
{
    run_fault("last-stop", "0", "1", &outcome);
    expect(&outcome, 69, 6.0, "did not arrive at the end of the run");
    cr_assert_eq(lines_told(&outcome), 1, "%s", run_report());
    expect_nothing_left();
    run_fault("last-stop", "2", "1", &outcome);
    expect(&outcome, 69, 6.0, "rank 1 (");
    expect(&outcome, 69, 6.0, "the end of the run");
    expect_told(&outcome);
    expect_nothing_left();
}

/* The rank is named once, also by ranks that tell of it in their own name. */
Test(comm_faults, an_agreed_failure_names_the_rank_that_failed_alone)
{
    run_fault_on_machines("last-agreed", "2", &outcome);
    expect(&outcome, 74, 6.0, "disk is full");
    expect_told(&outcome);
    expect_count(&outcome, "): rank ", 0);
}

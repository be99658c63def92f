#include "tests/world/run.h"

#include <criterion/criterion.h>

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/*
 * Something goes wrong on rank 1 of 4 at step 3 (tests/world/comm_faults.c); the others must name
 * it, and the job must be gone in time, with nothing left behind.
 */

#define WORKER SHOAL_BUILD_DIR "/world/comm_faults"

struct outcome {
    int code;
    double seconds;
    char output[16384];
};

static void run_fault(const char *mode, const char *per_host, const char *timeout_s,
                      struct outcome *outcome)
{
    const char *const argv[] = {"mpirun", "-n", "4", WORKER, mode, per_host, timeout_s, NULL};

    outcome->code =
        run_command(argv, 60, outcome->output, sizeof outcome->output, &outcome->seconds);
}

/* The launcher believes that these are four machines of one rank, or two of two ranks. */
static void run_fault_on_machines(const char *mode, const char *per_machine,
                                  struct outcome *outcome)
{
    const char *const argv[] = {"mpirun", "-launcher", "fork", "-hosts", "m0,m1,m2,m3",
                                "-ppn",   per_machine, "-n",   "4",      WORKER,
                                mode,     "0",         "5",    NULL};

    outcome->code =
        run_command(argv, 60, outcome->output, sizeof outcome->output, &outcome->seconds);
}

/* Processes that run the worker with these arguments (zombies have no command line). */
static int running(const char *mode, const char *per_host)
{
    char path[300], line[512], want[512];
    int n = 0;
    DIR *proc = opendir("/proc");

    cr_assert(proc != NULL);
    snprintf(want, sizeof want, "%s %s %s ", WORKER, mode, per_host);
    for (struct dirent *entry; (entry = readdir(proc)) != NULL;) {
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        FILE *file = fopen(path, "r");

        if (file == NULL)
            continue;
        size_t length = fread(line, 1, sizeof line - 1, file);
        fclose(file);
        for (size_t i = 0; i < length; i++)
            if (line[i] == '\0')
                line[i] = ' ';
        line[length] = '\0';
        n += strncmp(line, want, strlen(want)) == 0;
    }
    closedir(proc);
    return n;
}

/* Those left a second after mpirun returned. */
static int survivors(const char *mode, const char *per_host)
{
    const struct timespec nap = {.tv_nsec = 100 * 1000 * 1000};
    int n = running(mode, per_host);

    for (int i = 0; i < 10 && n > 0; i++) {
        nanosleep(&nap, NULL);
        n = running(mode, per_host);
    }
    return n;
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
    cr_assert_eq(outcome->code, code, "exit %d\n%s", outcome->code, outcome->output);
    cr_assert_lt(outcome->seconds, limit_s, "took %.1f s\n%s", outcome->seconds, outcome->output);
    cr_assert(strstr(outcome->output, part) != NULL, "\"%s\" is missing in:\n%s", part,
              outcome->output);
}

/* What `shoal` itself would have shown: rank 0's last line, or one of the library's. */
static int lines_told(const struct outcome *outcome)
{
    return count_of(outcome->output, "error   rank ") + count_of(outcome->output, "failed  [rank ");
}

static struct outcome outcome;

Test(comm_faults, a_killed_rank_is_named_with_its_last_step)
{
    run_fault("kill", "0", "5", &outcome);
    expect(&outcome, 9, 2.0, "failed  rank 1 (pid ");
    expect(&outcome, 9, 2.0, "died, the first on this machine");
    expect(&outcome, 9, 2.0, "last at step 3, forward block.2, collective call 2");
    cr_assert_eq(survivors("kill", "0"), 0);
}

Test(comm_faults, a_killed_rank_is_named_when_hosts_are_several)
{
    run_fault("kill", "2", "5", &outcome);
    expect(&outcome, 9, 2.0, "failed  rank 1 (pid ");
    cr_assert_eq(survivors("kill", "2"), 0);
}

Test(comm_faults, a_stopped_rank_is_named_after_the_timeout)
{
    run_fault("stop", "0", "2", &outcome);
    expect(&outcome, 69, 6.0, "is silent for 2.");
    expect(&outcome, 69, 6.0, "last at step 3, forward block.2");
    cr_assert_eq(count_of(outcome.output, "] rank 1 (pid "), 1, "one rank reports:\n%s",
                 outcome.output);
    cr_assert_eq(survivors("stop", "0"), 0);
}

Test(comm_faults, a_stopped_rank_of_a_host_of_its_own_is_named)
{
    run_fault("stop", "1", "2", &outcome);
    expect(&outcome, 69, 6.0, "host 1 (");
    expect(&outcome, 69, 6.0, "ranks 1 to 1) is silent");
    cr_assert_eq(survivors("stop", "1"), 0);
}

Test(comm_faults, a_rank_that_does_not_arrive_is_named_by_the_others)
{
    run_fault("hang", "0", "2", &outcome);
    expect(&outcome, 69, 6.0, "did not arrive at all-reduce (call 3, n = 1) within 2.5 s");
    cr_assert_eq(lines_told(&outcome), 1, "%s", outcome.output);
    cr_assert_eq(count_of(outcome.output, "-4 rank 1 (pid "), 3, "three ranks learn it:\n%s",
                 outcome.output);
    cr_assert_eq(survivors("hang", "0"), 0);
}

Test(comm_faults, a_rank_that_does_not_arrive_is_named_on_other_hosts)
{
    run_fault("hang", "2", "2", &outcome);
    expect(&outcome, 69, 6.0, "learned by 2: -4 ");
    /* Whichever host times out first tells the others. */
    cr_assert_eq(count_of(outcome.output, "was last at step 3"), 3 + lines_told(&outcome), "%s",
                 outcome.output);
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
    cr_assert_eq(count_of(outcome.output, "-8 rank 1 ("), 3, "%s", outcome.output);
}

Test(comm_faults, a_failure_reaches_the_ranks_of_other_hosts)
{
    run_fault("fail", "2", "5", &outcome);
    expect(&outcome, 74, 4.0, "learned by 3: -8 rank 1 (");
    cr_assert_eq(count_of(outcome.output, "-8 rank 1 ("), 3, "%s", outcome.output);
}

Test(comm_faults, a_failure_ends_ranks_that_are_busy_elsewhere)
{
    run_fault("late", "0", "20", &outcome);
    expect(&outcome, 74, 6.0, "disk is full");
    cr_assert_geq(lines_told(&outcome), 1, "the failure is not told:\n%s", outcome.output);
    cr_assert_eq(survivors("late", "0"), 0);
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
    cr_assert_eq(survivors("witness", "0"), 0);
}

/*
 * The failing rank tells when it fails, and rank 0 at its end.  The launcher may cut off what one of them
 * wrote when the other's machine goes first: one line arrives in any case.
 */
Test(comm_faults, a_failure_on_several_machines_is_told)
{
    for (int per_machine = 1; per_machine <= 2; per_machine++) {
        run_fault_on_machines("fail", per_machine == 1 ? "1" : "2", &outcome);
        expect(&outcome, 74, 6.0, "disk is full");
        cr_assert_geq(lines_told(&outcome), 1, "%s", outcome.output);
        cr_assert_eq(survivors("fail", "0"), 0);
    }
}

Test(comm_faults, a_killed_rank_of_another_machine_is_named_by_the_witness_there)
{
    run_fault_on_machines("kill", "1", &outcome);
    cr_assert_neq(outcome.code, 0);
    cr_assert(strstr(outcome.output, "failed  rank 1 (pid ") != NULL, "%s", outcome.output);
    cr_assert_eq(survivors("kill", "0"), 0);
}

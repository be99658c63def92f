#pragma once

#include <stddef.h>

/*
 * Run a program for a test: with a time limit, keeping what it prints.
 *
 * argv ends with NULL and argv[0] is looked up in PATH.  stdout and stderr together go to `output`
 * (cut to n_bytes - 1, always terminated).  After timeout_s the program's process group gets
 * SIGKILL. Returns the exit code, or minus the signal that ended it, or -1000 if it could not be
 * started.  seconds_out (may be NULL): how long it ran.
 *
 * Times are those in which this process ran itself: on a machine that has no time for the test, or
 * stops it, the program gets as much longer.
 */
int run_command(const char *const argv[], double timeout_s, char *output, size_t n_bytes,
                double *seconds_out);

/*
 * Of the last run_command: the command, how it ended, how long it ran, and all that it printed.  For
 * the message of every assertion about a run.
 */
const char *run_report(void);

/*
 * Of the last run_command: seconds from the fault to its end.  The fault is when a worker printed
 * "fault at " and its clock_seconds; without such a line the whole run counts.
 */
double run_seconds_of_fault(void);

/*
 * How many of the processes that the last run_command started, with their descendants, live on; looks
 * until there are none or for 5 s.
 */
int run_survivors(void);

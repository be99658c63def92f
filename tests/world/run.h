#pragma once

#include <stddef.h>

/*
 * Run a program for a test: with a time limit, keeping what it prints.
 *
 * argv ends with NULL and argv[0] is looked up in PATH.  stdout and stderr together go to `output`
 * (cut to n_bytes - 1, always terminated).  After timeout_s the program's process group gets
 * SIGKILL. Returns the exit code, or minus the signal that ended it, or -1000 if it could not be
 * started.  seconds_out (may be NULL): how long it ran.
 */
int run_command(const char *const argv[], double timeout_s, char *output, size_t n_bytes,
                double *seconds_out);

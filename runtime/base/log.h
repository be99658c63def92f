#pragma once

#include <stdbool.h>

/*
 * Log lines: one write(2) per line, so that lines of several ranks never mix.
 * People read them on stderr; "step", "eval", "ckpt" ... label the first column.
 * Lines of rank 0 only, unless said otherwise.  Thread-safe.
 */

enum log_level { LOG_QUIET, LOG_NORMAL, LOG_VERBOSE };

/* Set once at start.  Only rank 0 prints log_line(); every rank prints log_rank_line(). */
void log_init(int rank, enum log_level level);
enum log_level log_level_now(void);

/* "label   text\n"; label is padded to 8 columns. */
void log_line(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same, only with `-v`. */
void log_verbose(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* From any rank, with "[rank N] " in front of the text. */
void log_rank_line(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The last failure of this thread in its three lines, with the exit code; from any rank. */
void log_failure(int exit_code);

#pragma once

#include "runtime/base/status.h"

#include <stdint.h>

/*
 * Metrics: metrics.jsonl (an object per logged step) and events.jsonl (eval, sample, ckpt) in
 * the run directory, appended line by line with one write(2).  Only rank 0 has one.
 * After a resume at step s, lines of steps > s from the lost part are cut off at opening.
 *
 * A line that a crash left incomplete is cut off as well, so what a reader sees is whole lines.
 * Nothing is allocated after metrics_open.  Not thread-safe.
 */
struct metrics;

/*
 * Open (create) both files in `dir`, which is created when missing.  SHOAL_ERR_CANTCREATE or
 * SHOAL_ERR_IO on failure; the files then hold what they held.  Local.
 */
shoal_status metrics_open(const char *dir, int64_t resume_step, struct metrics **metrics_out);
void metrics_close(struct metrics *metrics);

/*
 * A line of key/value pairs is built, then written by metrics_end; keys are plain words.  Every
 * line starts with "t" (seconds since 1970) and "step".  Bytes of a text that are not UTF-8
 * become U+FFFD.
 */
void metrics_begin(struct metrics *metrics, int64_t step);
void metrics_number(struct metrics *metrics, const char *key, double value); /* non-finite: null */
void metrics_integer(struct metrics *metrics, const char *key, int64_t value);
void metrics_text(struct metrics *metrics, const char *key, const char *value);

/*
 * Append the line.  On failure (disk full) the file is cut back to whole lines and the next line
 * may be tried; a line of more than 64 KiB is SHOAL_ERR_INTERNAL.
 */
shoal_status metrics_end(struct metrics *metrics);       /* to metrics.jsonl */
shoal_status metrics_end_event(struct metrics *metrics); /* to events.jsonl */

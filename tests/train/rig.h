#pragma once

#include <stdbool.h>
#include <stddef.h>

/*
 * Whole runs of the installed command, as a user starts them: tiny models on a small text, a
 * fresh directory per test.  Numbers are compared as the text that the program wrote.
 */

enum { RIG_LOG_BYTES = 1 << 16, RIG_SERIES_BYTES = 1 << 14 };

/* Make an empty directory with a text file data.txt in it; its path stays valid. */
const char *rig_directory(void);

/* Remove it with everything inside. */
void rig_cleanup(const char *directory);

/*
 * `shoal train` on `ranks` ranks (0: without mpirun) into DIRECTORY/NAME with the tiny config and the
 * given KEY=VALUE words (ends with NULL).  The log is kept for rig_log().  Returns the exit code as
 * run_command does.
 */
int rig_train(const char *directory, const char *name, int ranks, const char *const *words);

/* The command to run instead of `shoal` from now on. */
void rig_use(const char *program);

/* Output of the last rig_train or rig_shoal. */
const char *rig_log(void);
double rig_seconds(void);

/* `shoal WORDS...` on one process; exit code. */
int rig_shoal(const char *const *words);

/* Lines of the last log that begin with `label`, up to their times. */
void rig_lines(const char *label, char out[RIG_SERIES_BYTES]);

/* "step loss grad_norm\n" of every line of metrics.jsonl, as text. */
void rig_series(const char *directory, const char *name, char out[RIG_SERIES_BYTES]);

/* `shoal ckpt show --hash`. */
void rig_hash(const char *directory, const char *name, char out[64]);

/* Words for the two tiny models: GPT-2 like (tied) and Llama like (GQA, untied). */
extern const char *const rig_gpt[];
extern const char *const rig_llama[];

/* Concatenate two NULL-terminated lists into a static one. */
const char *const *rig_words(const char *const *a, const char *const *b);

/* SHOAL_LONG is set: `tests/run --long`. */
bool rig_is_long(void);

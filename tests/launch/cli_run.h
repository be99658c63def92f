#pragma once

/* Run the built `shoal` command in a scratch folder and keep what it says. */

struct run {
    int exit_code; /* 128 + signal when it was killed */
    char out[1 << 18];
    char err[1 << 16];
};

/*
 * `words` is split at spaces; a part in single quotes stays whole.  The child runs in `dir`
 * (NULL: /tmp) and its last run is overwritten by the next.
 */
const struct run *shoal_run(const char *dir, const char *words);

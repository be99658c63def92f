#pragma once

#include "runtime/shoal.h"

/*
 * Errors.  The function that first knows records the sentence with fail(); the
 * ones between only forward with SHOAL_TRY; main prints it once.
 *
 * A message has up to three lines: what failed (object first, lower case,
 * expected and found), why, and what to do next.  All are thread-local.
 */

/* Record line 1 and return `code`. */
shoal_status fail(shoal_status code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Add line 2 (why) or line 3 (what to do) to the failure just recorded; return `code`. */
shoal_status fail_why(shoal_status code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
shoal_status fail_hint(shoal_status code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Put "<prefix>: " in front of line 1: the rank, operation or file a lower layer did not know. */
shoal_status fail_context(shoal_status code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Replace the calling thread's message, for failures that travelled from another thread or rank. */
shoal_status fail_adopt(shoal_status code, const char *message);

/* Forward a failure. */
#define SHOAL_TRY(expr)                                                                            \
    do {                                                                                           \
        shoal_status try_status_ = (expr);                                                         \
        if (try_status_ != SHOAL_OK)                                                               \
            return try_status_;                                                                    \
    } while (0)

/* Forward a failure through a clean-up label; needs a local `status`. */
#define SHOAL_TRY_GOTO(expr, label)                                                                \
    do {                                                                                           \
        status = (expr);                                                                           \
        if (status != SHOAL_OK)                                                                    \
            goto label;                                                                            \
    } while (0)

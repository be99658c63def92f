#include "runtime/base/log.h"

#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int log_rank;
static enum log_level log_level = LOG_NORMAL;

void log_init(int rank, enum log_level level)
{
    log_rank = rank;
    log_level = level;
}

enum log_level log_level_now(void)
{
    return log_level;
}

/* One write(2): lines of several ranks on one pipe stay whole. */
static void emit(const char *label, const char *prefix, const char *fmt, va_list args)
{
    char line[4096];
    size_t limit = sizeof line - 1; /* room for the newline */
    int n = snprintf(line, limit, "%-8s%s", label, prefix);

    if (n < 0)
        return;
    int m = vsnprintf(line + n, limit - (size_t)n, fmt, args);
    if (m < 0)
        return;
    size_t length = (size_t)n + (size_t)m;
    if (length >= limit)
        length = limit - 1;
    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written; /* nothing can be done when stderr is gone */
}

void log_line(const char *label, const char *fmt, ...)
{
    va_list args;

    if (log_rank != 0 || log_level < LOG_NORMAL)
        return;
    va_start(args, fmt);
    emit(label, "", fmt, args);
    va_end(args);
}

void log_verbose(const char *label, const char *fmt, ...)
{
    va_list args;

    if (log_rank != 0 || log_level < LOG_VERBOSE)
        return;
    va_start(args, fmt);
    emit(label, "", fmt, args);
    va_end(args);
}

void log_rank_line(const char *label, const char *fmt, ...)
{
    char prefix[32];
    va_list args;

    snprintf(prefix, sizeof prefix, "[rank %d] ", log_rank);
    va_start(args, fmt);
    emit(label, prefix, fmt, args);
    va_end(args);
}

void log_failure(int exit_code)
{
    const char *message = shoal_last_error();
    char text[4000];
    size_t n = 0;

    /* Continuation lines are indented under the first. */
    for (; *message != '\0' && n + 16 < sizeof text; message++) {
        text[n++] = *message;
        if (*message == '\n') {
            memset(text + n, ' ', 8);
            n += 8;
        }
    }
    snprintf(text + n, sizeof text - n, "   [exit %d]\n", exit_code);
    char line[4100];
    int m = snprintf(line, sizeof line, "%-8s%s", "error", text);
    ssize_t written = write(STDERR_FILENO, line, (size_t)m);
    (void)written;
}

#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LINE_BYTES = 768 };

/* The three lines are kept apart so that a context can be put before the first. */
static _Thread_local char lines[3][LINE_BYTES];
static _Thread_local char joined[3 * LINE_BYTES + 4];

static const struct {
    shoal_status code;
    int exit_code;
} codes[] = {
    {SHOAL_OK, 0},           {SHOAL_ERR_USAGE, 64},       {SHOAL_ERR_DATA, 65},
    {SHOAL_ERR_NOINPUT, 66}, {SHOAL_ERR_UNAVAILABLE, 69}, {SHOAL_ERR_INTERNAL, 70},
    {SHOAL_ERR_NOMEM, 71},   {SHOAL_ERR_CANTCREATE, 73},  {SHOAL_ERR_IO, 74},
    {SHOAL_ERR_STOPPED, 75}, {SHOAL_ERR_NONFINITE, 76},   {SHOAL_ERR_CONFIG, 78},
};

int shoal_exit_code(shoal_status status)
{
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (codes[i].code == status)
            return codes[i].exit_code;
    return 70;
}

const char *shoal_last_error(void)
{
    int n = snprintf(joined, sizeof joined, "%s", lines[0]);

    for (int i = 1; i < 3; i++)
        if (lines[i][0] != '\0' && n >= 0 && (size_t)n < sizeof joined)
            n += snprintf(joined + n, sizeof joined - (size_t)n, "\n%s%s", i == 2 ? "hint: " : "",
                          lines[i]);
    return joined;
}

shoal_status fail(shoal_status code, const char *fmt, ...)
{
    va_list args;

    memset(lines, 0, sizeof lines);
    va_start(args, fmt);
    vsnprintf(lines[0], LINE_BYTES, fmt, args);
    va_end(args);
    return code;
}

shoal_status fail_why(shoal_status code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(lines[1], LINE_BYTES, fmt, args);
    va_end(args);
    return code;
}

shoal_status fail_hint(shoal_status code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(lines[2], LINE_BYTES, fmt, args);
    va_end(args);
    return code;
}

shoal_status fail_context(shoal_status code, const char *fmt, ...)
{
    char prefix[LINE_BYTES / 2];
    char old[LINE_BYTES];
    va_list args;

    va_start(args, fmt);
    vsnprintf(prefix, sizeof prefix, fmt, args);
    va_end(args);
    memcpy(old, lines[0], sizeof old);
    int n = snprintf(lines[0], LINE_BYTES, "%s: ", prefix);
    if (n > 0 && n < LINE_BYTES)
        snprintf(lines[0] + n, (size_t)(LINE_BYTES - n), "%.*s", LINE_BYTES - n - 1, old);
    return code;
}

shoal_status fail_adopt(shoal_status code, const char *message)
{
    memset(lines, 0, sizeof lines);
    for (int i = 0; i < 3 && *message != '\0'; i++) {
        size_t n = strcspn(message, "\n");
        int line = i;

        if (strncmp(message, "hint: ", 6) == 0) {
            message += 6;
            n -= 6;
            line = 2;
        }
        snprintf(lines[line], LINE_BYTES, "%.*s", (int)n, message);
        message += n + (message[n] == '\n');
    }
    return code;
}

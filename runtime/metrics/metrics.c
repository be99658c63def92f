/*
 * Lines of JSON, appended.  The crash argument: a line is one write(2) in O_APPEND mode, so a
 * crash leaves whole lines and at most one torn line at the end, without its '\n'; opening cuts
 * that off.  Cutting writes what stays to a temporary, syncs it and renames it over the old
 * file, so at every moment the name holds either the old or the new content.
 */
#include "runtime/metrics/metrics.h"

#include "runtime/base/clock.h"
#include "runtime/base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINE_BYTES = 64 * 1024, PATH_BYTES = 1024 };

struct metrics {
    int metrics_fd, events_fd;
    char dir[PATH_BYTES];
    size_t n; /* bytes of the line so far; more than LINE_BYTES: it did not fit */
    char line[LINE_BYTES];
};

/* ---- opening: cutting off what a resumed run will write again ---- */

/* A line stays unless it names a later step; what is not ours to read stays too. */
static bool line_stays(const char *line, size_t n, int64_t resume_step)
{
    json_t *object = json_loadb(line, n, 0, NULL);
    const json_t *step = object != NULL ? json_object_get(object, "step") : NULL;
    bool stays = !json_is_integer(step) || json_integer_value(step) <= resume_step;

    json_decref(object);
    return stays;
}

static shoal_status replace_file(const char *dir, const char *path, const char *bytes, size_t n)
{
    char temporary[PATH_BYTES + 40];
    shoal_status status;

    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail(SHOAL_ERR_CANTCREATE, "%s: cannot create: %m", temporary);
    if (files_write_all(fd, bytes, n) != 0) {
        status = fail(SHOAL_ERR_IO, "%s: cannot write: %m", temporary);
        goto err_unlink;
    }
    if (fsync(fd) != 0) {
        status = fail(SHOAL_ERR_IO, "%s: cannot sync: %m", temporary);
        goto err_unlink;
    }
    close(fd);
    if (rename(temporary, path) != 0) {
        status = fail(SHOAL_ERR_IO, "%s: cannot rename to %s: %m", temporary, path);
        unlink(temporary);
        return status;
    }
    /* The rename itself. */
    return files_sync_dir(dir) == 0 ? SHOAL_OK
                                    : fail(SHOAL_ERR_IO, "%s: cannot sync the directory: %m", dir);

err_unlink:
    close(fd);
    unlink(temporary);
    return status;
}

/* Read the whole file; a missing one has 0 bytes and NULL. */
static shoal_status read_all(const char *path, char **bytes_out, size_t *n_out)
{
    struct stat info;
    size_t used = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    *bytes_out = NULL;
    *n_out = 0;
    if (fd < 0 && errno == ENOENT)
        return SHOAL_OK;
    if (fd < 0 || fstat(fd, &info) != 0) {
        shoal_status status = fail(SHOAL_ERR_CANTCREATE, "%s: cannot open: %m", path);

        if (fd >= 0)
            close(fd);
        return status;
    }
    size_t n = (size_t)info.st_size;
    char *bytes = malloc(n + 1);
    shoal_status status = SHOAL_OK;
    if (bytes == NULL)
        status = fail(SHOAL_ERR_NOMEM, "%s: cannot reserve %zu bytes to read it", path, n);
    while (status == SHOAL_OK && used < n) {
        ssize_t got = read(fd, bytes + used, n - used);

        if (got < 0 && errno != EINTR)
            status = fail(SHOAL_ERR_IO, "%s: cannot read: %m", path);
        if (got == 0)
            break;
        used += got > 0 ? (size_t)got : 0;
    }
    close(fd);
    if (status != SHOAL_OK) {
        free(bytes);
        return status;
    }
    *bytes_out = bytes;
    *n_out = used;
    return SHOAL_OK;
}

static shoal_status cut_off(const char *dir, const char *path, int64_t resume_step)
{
    char *bytes;
    size_t n;
    size_t n_kept = 0;

    SHOAL_TRY(read_all(path, &bytes, &n));
    for (size_t begin = 0; begin < n;) {
        const char *line = bytes + begin;
        const char *newline = memchr(line, '\n', n - begin);

        if (newline == NULL)
            break; /* torn by a crash */
        size_t n_line = (size_t)(newline - line) + 1;
        begin += n_line;
        if (line_stays(line, n_line, resume_step)) {
            memmove(bytes + n_kept, line, n_line);
            n_kept += n_line;
        }
    }
    shoal_status status = SHOAL_OK;
    if (n_kept < n)
        status = replace_file(dir, path, bytes, n_kept);
    free(bytes);
    return status;
}

static shoal_status open_log(const char *dir, const char *name, int64_t resume_step, int *fd_out)
{
    char path[PATH_BYTES + 32];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    SHOAL_TRY(cut_off(dir, path, resume_step));
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail(SHOAL_ERR_CANTCREATE, "%s: cannot create: %m", path);
    *fd_out = fd;
    return SHOAL_OK;
}

shoal_status metrics_open(const char *dir, int64_t resume_step, struct metrics **metrics_out)
{
    shoal_status status;

    if (strlen(dir) >= PATH_BYTES)
        return fail(SHOAL_ERR_CANTCREATE,
                    "run directory: expected a path of at most %d bytes, "
                    "found %zu",
                    PATH_BYTES - 1, strlen(dir));
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return fail(SHOAL_ERR_CANTCREATE, "%s: cannot create the run directory: %m", dir);
    struct metrics *metrics = malloc(sizeof *metrics);
    if (metrics == NULL)
        return fail(SHOAL_ERR_NOMEM, "metrics: cannot reserve %zu bytes", sizeof *metrics);
    strcpy(metrics->dir, dir);
    metrics->n = 0;
    SHOAL_TRY_GOTO(open_log(dir, "metrics.jsonl", resume_step, &metrics->metrics_fd),
                   err_free_metrics);
    SHOAL_TRY_GOTO(open_log(dir, "events.jsonl", resume_step, &metrics->events_fd),
                   err_close_metrics_fd);
    *metrics_out = metrics;
    return SHOAL_OK;

err_close_metrics_fd:
    close(metrics->metrics_fd);
err_free_metrics:
    free(metrics);
    return status;
}

void metrics_close(struct metrics *metrics)
{
    if (metrics == NULL)
        return;
    close(metrics->metrics_fd);
    close(metrics->events_fd);
    free(metrics);
}

/* ---- building a line ---- */

/* Appends; what does not fit only counts, and metrics_end refuses the line. */
static void append(struct metrics *metrics, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void append(struct metrics *metrics, const char *fmt, ...)
{
    va_list args;

    if (metrics->n >= LINE_BYTES)
        return;
    va_start(args, fmt);
    int n = vsnprintf(metrics->line + metrics->n, LINE_BYTES - metrics->n, fmt, args);
    va_end(args);
    metrics->n += n > 0 ? (size_t)n : 0;
}

void metrics_begin(struct metrics *metrics, int64_t step)
{
    metrics->n = 0;
    append(metrics, "{\"t\": %.3f, \"step\": %" PRId64, clock_wall(), step);
}

void metrics_number(struct metrics *metrics, const char *key, double value)
{
    char text[40];

    if (!isfinite(value)) {
        append(metrics, ", \"%s\": null", key);
        return;
    }
    /* A decimal that reads back as the same double, so that equal lines mean equal bits. */
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    append(metrics, ", \"%s\": %s", key, text);
}

void metrics_integer(struct metrics *metrics, const char *key, int64_t value)
{
    append(metrics, ", \"%s\": %" PRId64, key, value);
}

/* Bytes of the valid UTF-8 sequence at s (zero-terminated), or 0. */
static size_t utf8_length(const unsigned char *s)
{
    if (s[0] < 0x80)
        return 1;
    size_t n = s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : 4;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) /* the final zero ends here too */
            return 0;
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool outside = (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf4 && s[1] > 0x8f);
    return overlong || outside ? 0 : n;
}

void metrics_text(struct metrics *metrics, const char *key, const char *value)
{
    const unsigned char *s = (const unsigned char *)value;

    append(metrics, ", \"%s\": \"", key);
    while (*s != '\0' && metrics->n < LINE_BYTES) {
        size_t n = utf8_length(s);

        if (n == 0)
            append(metrics, "\\ufffd");
        else if (*s == '"' || *s == '\\')
            append(metrics, "\\%c", *s);
        else if (*s < 0x20)
            append(metrics, "\\u%04x", *s);
        else
            append(metrics, "%.*s", (int)n, (const char *)s);
        s += n > 0 ? n : 1;
    }
    append(metrics, "\"");
}

/* ---- writing it ---- */

static shoal_status end_line(struct metrics *metrics, int fd, const char *name)
{
    append(metrics, "}\n");
    if (metrics->n >= LINE_BYTES)
        return fail(SHOAL_ERR_INTERNAL, "%s/%s: expected a line below %d bytes, found a longer one",
                    metrics->dir, name, LINE_BYTES);
    off_t end = lseek(fd, 0, SEEK_END);
    ssize_t n = write(fd, metrics->line, metrics->n);
    if (n == (ssize_t)metrics->n)
        return SHOAL_OK;
    int error = n < 0 ? errno : ENOSPC;
    if (n > 0 && end >= 0 && ftruncate(fd, end) != 0)
        error = errno;
    fail(SHOAL_ERR_IO, "%s/%s: cannot append %zu bytes: %s", metrics->dir, name, metrics->n,
         strerror(error));
    return fail_hint(SHOAL_ERR_IO, "free space on the disk of %s", metrics->dir);
}

shoal_status metrics_end(struct metrics *metrics)
{
    return end_line(metrics, metrics->metrics_fd, "metrics.jsonl");
}

shoal_status metrics_end_event(struct metrics *metrics)
{
    return end_line(metrics, metrics->events_fd, "events.jsonl");
}

#include "runtime/data/data_internal.h"

#include "runtime/base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Writing a token file.  A reader sees the old file or the whole new one: the tokens go to a
 * temporary name in the same directory, are synced, and take the final name by rename; then the
 * directory is synced.  A crash leaves at most a file named PATH.tmp-PID-N.
 */

enum { BLOCK_TOKENS = 8192, MAX_ATTEMPTS = 100 };

static bool is_full(int error)
{
    return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

static shoal_status fail_write(const char *path, uint64_t offset_bytes, uint64_t n_bytes, int error)
{
    char shown[DATA_SHOWN_BYTES];

    fail(SHOAL_ERR_IO, "%s: wrote %" PRIu64 " of %" PRIu64 " bytes: %s", data_shown(path, shown),
         offset_bytes, n_bytes, strerror(error));
    if (is_full(error))
        fail_hint(SHOAL_ERR_IO,
                  "free %" PRIu64 " bytes there or choose another directory; "
                  "nothing was left behind",
                  n_bytes);
    return SHOAL_ERR_IO;
}

static shoal_status fail_create(const char *path, int error)
{
    char shown[DATA_SHOWN_BYTES];

    fail(is_full(error) ? SHOAL_ERR_IO : SHOAL_ERR_CANTCREATE, "%s: cannot create: %s",
         data_shown(path, shown), strerror(error));
    return is_full(error) ? SHOAL_ERR_IO : SHOAL_ERR_CANTCREATE;
}

/* Open a new file beside `path`; its name goes to `temporary`. */
static shoal_status open_temporary(const char *path, char *temporary, size_t n_bytes, int *fd_out)
{
    for (int attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
        int n = snprintf(temporary, n_bytes, "%s.tmp-%d-%d", path, (int)getpid(), attempt);

        if (n < 0 || (size_t)n >= n_bytes)
            return fail_create(path, ENAMETOOLONG);
        int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            *fd_out = fd;
            return SHOAL_OK;
        }
        if (errno != EEXIST)
            return fail_create(path, errno);
    }
    return fail_create(path, EEXIST);
}

/* Where the bytes go, for messages. */
struct output {
    const char *path;
    int fd;
    uint64_t n_bytes;
};

static shoal_status write_fully(const struct output *output, const void *bytes, size_t n_bytes)
{
    if (files_write_all(output->fd, bytes, n_bytes) == 0)
        return SHOAL_OK;

    const int error = errno;

    return fail_write(output->path, (uint64_t)lseek(output->fd, 0, SEEK_CUR), output->n_bytes,
                      error);
}

static shoal_status write_stream(const struct output *output, const struct data_stream *stream,
                                 bool is_wide)
{
    int32_t header[LLMC_HEADER_BYTES / 4] = {
        is_wide ? LLMC_MAGIC_U32 : LLMC_MAGIC_U16,
        is_wide ? LLMC_VERSION_U32 : LLMC_VERSION_U16,
        (int32_t)stream->n_tokens,
    };
    int32_t tokens[BLOCK_TOKENS];
    uint16_t narrow[BLOCK_TOKENS];

    SHOAL_TRY(write_fully(output, header, sizeof header));
    for (uint64_t begin = 0; begin < stream->n_tokens; begin += BLOCK_TOKENS) {
        uint64_t n_left = stream->n_tokens - begin;
        size_t n = n_left < BLOCK_TOKENS ? (size_t)n_left : BLOCK_TOKENS;

        data_stream_read(stream, begin, n, tokens);
        for (size_t i = 0; i < n && !is_wide; i++)
            narrow[i] = (uint16_t)tokens[i];
        if (is_wide)
            SHOAL_TRY(write_fully(output, tokens, n * sizeof *tokens));
        else
            SHOAL_TRY(write_fully(output, narrow, n * sizeof *narrow));
    }
    return SHOAL_OK;
}

static shoal_status sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char directory[PATH_MAX] = ".";

    if (slash != NULL)
        snprintf(directory, sizeof directory, "%.*s", (int)(slash - path) + 1, path);
    if (files_sync_dir(directory) != 0)
        return fail(SHOAL_ERR_IO, "%s: cannot sync: %s", directory, strerror(errno));
    return SHOAL_OK;
}

static shoal_status write_file(const struct data_stream *stream, const char *path)
{
    bool is_wide = stream->max_token > UINT16_MAX;
    char temporary[PATH_MAX];
    struct output output = {
        .path = path,
        .n_bytes = LLMC_HEADER_BYTES + stream->n_tokens * (is_wide ? 4 : 2),
    };
    shoal_status status;

    if (stream->n_tokens > INT32_MAX) {
        fail(SHOAL_ERR_DATA, "data.train: %" PRIu64 " tokens, an llm.c file holds at most %d",
             stream->n_tokens, INT32_MAX);
        return fail_hint(SHOAL_ERR_DATA, "prepare parts of it; data.train takes several files");
    }
    SHOAL_TRY(open_temporary(path, temporary, sizeof temporary, &output.fd));
    SHOAL_TRY_GOTO(write_stream(&output, stream, is_wide), err_close);
    if (fsync(output.fd) != 0) {
        status = fail_write(path, output.n_bytes, output.n_bytes, errno);
        goto err_close;
    }
    if (close(output.fd) != 0) {
        status = fail_write(path, output.n_bytes, output.n_bytes, errno);
        goto err_unlink;
    }
    if (rename(temporary, path) != 0) {
        status = fail_create(path, errno);
        goto err_unlink;
    }
    return sync_directory(path);

err_close:
    close(output.fd);
err_unlink:
    unlink(temporary);
    return status;
}

shoal_status data_prepare(const struct data_params *params, const char *path,
                          uint64_t *n_tokens_out)
{
    struct data_params whole = *params;
    struct data *data;

    /* Files of data.val are still left out of data.train; a percentage is the reader's business. */
    if (data_val_is_percent(params))
        whole.val = "none";
    whole.seq_len = 1;
    SHOAL_TRY(data_open(&whole, &data));

    const struct data_stream *stream = data_train_stream(data);
    uint64_t n_tokens = stream->n_tokens;
    shoal_status status = write_file(stream, path);
    data_close(data);
    SHOAL_TRY(status);
    *n_tokens_out = n_tokens;
    return SHOAL_OK;
}

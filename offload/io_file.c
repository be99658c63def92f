#include "offload/offload_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * A file is opened twice: O_DIRECT for whole pages, buffered for heads, tails and unaligned
 * pieces.  The two never write the same page at the same time as long as callers do not queue
 * overlapping ranges, and the kernel keeps both views coherent.
 */

shoal_status io_fail(const char *path, const char *what, int error)
{
    fail(SHOAL_ERR_IO, "%s: %s: %s (errno %d)", path, what, strerror(error), error);
    if (error == ENOSPC || error == EDQUOT)
        return fail_hint(SHOAL_ERR_IO,
                         "free space on that file system, keep fewer checkpoints, or choose "
                         "another directory");
    if (error == EFBIG)
        return fail_hint(SHOAL_ERR_IO, "raise the file size limit (ulimit -f)");
    return SHOAL_ERR_IO;
}

shoal_status io_file_open(struct io_engine *engine, const char *path, bool writable,
                          struct io_file **file_out)
{
    int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC;
    struct io_file *file = calloc(1, sizeof *file);
    char *name = strdup(path);
    int error = 0;

    if (file == NULL || name == NULL) {
        fail(SHOAL_ERR_NOMEM, "%s: no memory to open it", path);
        goto err_free;
    }
    *file = (struct io_file){
        .engine = engine, .path = name, .writable = writable, .fd = -1, .direct_fd = -1};
    file->fd = open(path, flags);
    if (file->fd < 0) {
        error = errno;
        io_fail(path, "cannot open", error);
        goto err_free;
    }
    /* tmpfs and some network file systems refuse O_DIRECT; then everything is buffered. */
    file->direct_fd = open(path, flags | O_DIRECT);
    *file_out = file;
    return SHOAL_OK;

err_free:
    free(name);
    free(file);
    if (error == 0 || error == ENOMEM)
        return SHOAL_ERR_NOMEM;
    return !writable && (error == ENOENT || error == EACCES || error == ENOTDIR) ? SHOAL_ERR_NOINPUT
                                                                                 : SHOAL_ERR_IO;
}

void io_file_close(struct io_file *file)
{
    if (file == NULL)
        return;
    if (file->direct_fd >= 0)
        close(file->direct_fd);
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file);
}

shoal_status io_file_size(struct io_file *file, uint64_t *size_out)
{
    struct stat st;

    if (fstat(file->fd, &st) != 0)
        return io_fail(file->path, "cannot stat", errno);
    *size_out = (uint64_t)st.st_size;
    return SHOAL_OK;
}

static int reserve(int fd, uint64_t size_bytes)
{
    int rc;

    /* fallocate may end for any signal, and a save is often what a signal asked for. */
    do
        rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)size_bytes);
    while (rc != 0 && errno == EINTR);
    return rc;
}

shoal_status io_file_reserve(struct io_file *file, uint64_t size_bytes)
{
    uint64_t size;

    if (size_bytes == 0)
        return SHOAL_OK;
    SHOAL_TRY(io_file_size(file, &size));
    /* KEEP_SIZE: a reservation that fails half-way must not have grown the file. */
    if (reserve(file->fd, size_bytes) != 0) {
        int error = errno;

        /* Where nothing can be reserved, a full disk shows at the write. */
        if (error != EOPNOTSUPP && error != ENOSYS) {
            io_fail(file->path, "cannot reserve space", error);
            return fail_why(SHOAL_ERR_IO, "%llu bytes were asked for",
                            (unsigned long long)size_bytes);
        }
    }
    if (size < size_bytes && ftruncate(file->fd, (off_t)size_bytes) != 0)
        return io_fail(file->path, "cannot extend", errno);
    return SHOAL_OK;
}

shoal_status io_file_sync(struct io_file *file)
{
    if (fdatasync(file->fd) != 0)
        return io_fail(file->path, "cannot sync", errno);
    return SHOAL_OK;
}

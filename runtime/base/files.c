#include "runtime/base/files.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int files_write_all(int fd, const void *data, size_t n_bytes)
{
    const char *from = data;

    while (n_bytes > 0) {
        ssize_t n = write(fd, from, n_bytes);

        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = EIO; /* nothing written, nothing said: trying again might never end */
        if (n <= 0)
            return -1;
        from += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

int files_sync_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return -1;
    /* Some file systems cannot sync directories and say EINVAL: they order renames themselves. */
    int rc = fsync(fd) == 0 || errno == EINVAL ? 0 : -1;
    int error = errno;

    close(fd);
    errno = error;
    return rc;
}

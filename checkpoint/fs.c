#include "checkpoint/checkpoint_internal.h"
#include "runtime/base/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

shoal_status ckpt_fs_fail(shoal_status code, const char *path, const char *what)
{
    int error = errno;

    fail(code, "%s: %s: %s (errno %d)", path, what, strerror(error), error);
    if (error == ENOSPC || error == EDQUOT)
        return fail_hint(code, "free space on that file system or keep fewer checkpoints");
    return code;
}

shoal_status ckpt_fs_refused(const char *path, const char *what)
{
    bool is_forbidden = errno == EACCES || errno == EPERM;

    return ckpt_fs_fail(errno == ENOMEM ? SHOAL_ERR_NOMEM
                        : is_forbidden  ? SHOAL_ERR_NOINPUT
                                        : SHOAL_ERR_IO,
                        path, what);
}

shoal_status ckpt_fs_look(const char *path, enum fs_kind *kind_out)
{
    struct stat st;

    if (stat(path, &st) == 0)
        *kind_out = S_ISDIR(st.st_mode) ? FS_DIRECTORY : S_ISREG(st.st_mode) ? FS_FILE : FS_OTHER;
    else if (errno == ENOENT || errno == ENOTDIR)
        *kind_out = FS_ABSENT;
    else
        return ckpt_fs_refused(path, "cannot look at it");
    return SHOAL_OK;
}

shoal_status ckpt_fs_need_file(const char *path)
{
    enum fs_kind kind;

    SHOAL_TRY(ckpt_fs_look(path, &kind));
    if (kind == FS_ABSENT)
        return fail(SHOAL_ERR_DATA, "%s: is missing", path);
    if (kind != FS_FILE)
        return fail(SHOAL_ERR_DATA, "%s: is not a regular file", path);
    return SHOAL_OK;
}

shoal_status ckpt_fs_join(char *out, size_t out_bytes, const char *a, const char *b)
{
    size_t n = strlen(a);
    size_t m = strlen(b);

    if (n + m + 2 > out_bytes)
        return fail(SHOAL_ERR_CANTCREATE, "%s/%s: path is longer than %zu bytes", a, b,
                    out_bytes - 1);
    memcpy(out, a, n);
    out[n] = '/';
    memcpy(out + n + 1, b, m + 1);
    return SHOAL_OK;
}

/* A directory is durable when the entry in the one above it is. */
static shoal_status sync_parent(const char *path)
{
    char parent[CKPT_PATH_BYTES] = ".";
    const char *slash = strrchr(path, '/');

    if (slash != NULL)
        snprintf(parent, sizeof parent, "%.*s", slash > path ? (int)(slash - path) : 1, path);
    return ckpt_fs_sync_dir(parent);
}

shoal_status ckpt_fs_make_dirs(const char *path)
{
    char part[CKPT_PATH_BYTES];
    size_t n = strlen(path);

    if (n == 0 || n >= sizeof part)
        return fail(SHOAL_ERR_CANTCREATE, "checkpoint root \"%s\": name is empty or too long",
                    path);
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        char c = part[i];

        if (c != '/' && c != '\0')
            continue;
        part[i] = '\0';
        if (mkdir(part, 0777) == 0)
            SHOAL_TRY(sync_parent(part));
        else if (errno != EEXIST)
            return ckpt_fs_fail(SHOAL_ERR_CANTCREATE, part, "cannot create directory");
        part[i] = c;
    }
    if (!ckpt_fs_is_dir(path))
        return fail(SHOAL_ERR_CANTCREATE, "%s: exists and is not a directory", path);
    return SHOAL_OK;
}

shoal_status ckpt_fs_sync_dir(const char *path)
{
    return files_sync_dir(path) == 0 ? SHOAL_OK
                                     : ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot sync directory");
}

shoal_status ckpt_fs_write_file(const char *dir, const char *name, const void *data, size_t n_bytes)
{
    char path[CKPT_PATH_BYTES];

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, dir, name));

    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd < 0)
        return ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot create");
    if (files_write_all(fd, data, n_bytes) != 0 || fsync(fd) != 0) {
        ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot write");
        close(fd);
        return SHOAL_ERR_IO;
    }
    if (close(fd) != 0)
        return ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot close");
    return SHOAL_OK;
}

/* fallocate may end for any signal, and a save is often what a signal asked for. */
static int reserve(int fd, uint64_t n_bytes)
{
    int rc;

    do
        rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)n_bytes);
    while (rc != 0 && errno == EINTR);
    return rc;
}

shoal_status ckpt_fs_probe_space(const char *path, uint64_t n_bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    shoal_status status = SHOAL_OK;

    if (fd < 0) {
        bool no_directory = errno == ENOENT;

        ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot create");
        return no_directory ? fail_hint(SHOAL_ERR_IO, "the checkpoint root must lie on a file "
                                                      "system that all ranks share")
                            : SHOAL_ERR_IO;
    }
    /* Where nothing can be reserved, a full disk shows later. */
    if (reserve(fd, n_bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        status = ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot reserve space");
        fail_why(status, "%llu bytes are needed for it", (unsigned long long)n_bytes);
    }
    close(fd);
    return status;
}

shoal_status ckpt_fs_sync_file(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot open");
    if (fsync(fd) != 0) {
        ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot sync");
        close(fd);
        return SHOAL_ERR_IO;
    }
    close(fd);
    return SHOAL_OK;
}

static shoal_status read_open_file(const char *path, int fd, size_t max_bytes, char **data_out,
                                   size_t *n_out)
{
    struct stat st;
    size_t n = 0;

    if (fstat(fd, &st) != 0)
        return ckpt_fs_refused(path, "cannot stat");
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > max_bytes)
        return fail(SHOAL_ERR_DATA, "%s: holds %lld bytes, at most %zu were expected", path,
                    (long long)st.st_size, max_bytes);

    size_t size = (size_t)st.st_size;
    char *data = malloc(size + 1);

    if (data == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %zu bytes", path, size);
    while (n < size) {
        ssize_t got = pread(fd, data + n, size - n, (off_t)n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            /* Nobody writes to a checkpoint: a file that changes is a file system that lags. */
            shoal_status status = got < 0
                                      ? ckpt_fs_refused(path, "cannot read")
                                      : fail(SHOAL_ERR_IO, "%s: shrank while it was read", path);
            free(data);
            return status;
        }
        n += (size_t)got;
    }
    data[n] = '\0';
    *data_out = data;
    *n_out = n;
    return SHOAL_OK;
}

shoal_status ckpt_fs_read_file(const char *path, size_t max_bytes, char **data_out, size_t *n_out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return ckpt_fs_refused(path, "cannot open");

    shoal_status status = read_open_file(path, fd, max_bytes, data_out, n_out);

    close(fd);
    return status;
}

shoal_status ckpt_fs_remove_dir(struct comm *comm, int64_t step, const char *path)
{
    DIR *dir;
    struct dirent *entry;

    /* A link to where somebody moved it: the link is ours, what it leads to is not. */
    if (unlink(path) == 0)
        return SHOAL_OK;
    dir = opendir(path);
    if (dir == NULL)
        return errno == ENOENT ? SHOAL_OK
                               : ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot open directory");
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        comm_note(comm, step, "checkpoint: removing files");
        if (unlinkat(dirfd(dir), entry->d_name, 0) != 0 && errno != ENOENT) {
            ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot empty");
            fail_why(SHOAL_ERR_IO, "%s cannot be removed", entry->d_name);
            closedir(dir);
            return SHOAL_ERR_IO;
        }
    }
    closedir(dir);
    if (rmdir(path) != 0 && errno != ENOENT)
        return ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot remove directory");
    return SHOAL_OK;
}

uint64_t ckpt_fs_dir_bytes(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    struct stat st;
    uint64_t sum = 0;

    if (dir == NULL)
        return 0;
    while ((entry = readdir(dir)) != NULL)
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode))
            sum += (uint64_t)st.st_size;
    closedir(dir);
    return sum;
}

bool ckpt_fs_is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

shoal_status ckpt_fs_uuid(char out[CKPT_UUID_BYTES])
{
    unsigned char b[16];

    if (getrandom(b, sizeof b, 0) != (ssize_t)sizeof b)
        return ckpt_fs_fail(SHOAL_ERR_INTERNAL, "random identifier", "getrandom");
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    memset(out, 0, CKPT_UUID_BYTES);
    for (size_t i = 0, at = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            out[at++] = '-';
        at += (size_t)snprintf(out + at, 3, "%02x", b[i]);
    }
    return SHOAL_OK;
}

#include "tests/checkpoint/faults.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Thread_local struct fault fault;
static _Thread_local int hits;
static _Thread_local const char *redirect_from, *redirect_to;

void fault_set(struct fault new_fault)
{
    fault = new_fault;
    hits = 0;
}

int fault_hits(void)
{
    return hits;
}

void fault_redirect(const char *from, const char *to)
{
    redirect_from = from;
    redirect_to = to;
}

/* Does the call fail now?  Sets errno. */
static bool fails(const char *call, const char *path)
{
    size_t n = strlen(path);

    if (fault.call == NULL || hits == fault.n_times || strcmp(call, fault.call) != 0)
        return false;
    if (n < strlen(fault.ending) || strcmp(path + n - strlen(fault.ending), fault.ending) != 0)
        return false;
    if (fault.n_before > 0) {
        fault.n_before--;
        return false;
    }
    hits++;
    errno = fault.error;
    return true;
}

static bool fails_at(const char *call, int fd)
{
    char link[64], path[512];

    if (fault.call == NULL || strcmp(call, fault.call) != 0)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);

    path[n > 0 ? n : 0] = '\0';
    return fails(call, path);
}

static const char *redirected(const char *path, char buffer[1024])
{
    size_t n = redirect_from == NULL ? 0 : strlen(redirect_from);

    if (n == 0 || strncmp(path, redirect_from, n) != 0)
        return path;
    snprintf(buffer, 1024, "%s%s", redirect_to, path + n);
    return buffer;
}

int open(const char *path, int flags, ...)
{
    char other[1024];
    va_list args;
    int mode = 0;

    va_start(args, flags);
    if ((flags & O_CREAT) != 0)
        mode = va_arg(args, int);
    va_end(args);
    return fails("open", path)
               ? -1
               : (int)syscall(SYS_openat, AT_FDCWD, redirected(path, other), flags, mode);
}

int stat(const char *restrict path, struct stat *restrict out)
{
    char other[1024];

    return fails("stat", path) ? -1 : fstatat(AT_FDCWD, redirected(path, other), out, 0);
}

ssize_t pread(int fd, void *data, size_t n_bytes, off_t offset)
{
    return fails_at("pread", fd) ? -1 : syscall(SYS_pread64, fd, data, n_bytes, offset);
}

int fdatasync(int fd)
{
    return fails_at("fdatasync", fd) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return fails_at("fsync", fd) ? -1 : (int)syscall(SYS_fsync, fd);
}

typedef int scandir_fn(const char *, struct dirent ***, int (*)(const struct dirent *),
                       int (*)(const struct dirent **, const struct dirent **));

int scandir(const char *restrict path, struct dirent ***restrict entries,
            int (*filter)(const struct dirent *),
            int (*compare)(const struct dirent **, const struct dirent **))
{
    char other[1024];

    return fails("scandir", path) ? -1
                                  : ((scandir_fn *)dlsym(RTLD_NEXT, "scandir"))(
                                        redirected(path, other), entries, filter, compare);
}

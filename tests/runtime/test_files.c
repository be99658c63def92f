#include "runtime/base/files.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In place of the C library's: the next calls' results, a number of bytes or -errno. */
static const int *script;

ssize_t write(int fd, const void *data, size_t n_bytes)
{
    long n = (long)n_bytes;

    if (script != NULL && *script != 9999) {
        n = *script++;
        if (n < 0) {
            errno = (int)-n;
            return -1;
        }
    }
    return n == 0 ? 0 : syscall(SYS_write, fd, data, n);
}

static char path[] = "/tmp/shoal-test-files-XXXXXX";
static int fd;

static void setup(void)
{
    fd = mkstemp(path);
    cr_assert_geq(fd, 0);
}

static void teardown(void)
{
    close(fd);
    unlink(path);
}

TestSuite(files, .init = setup, .fini = teardown);

static void expect_content(const char *want, size_t n)
{
    char got[256] = "";

    cr_assert_eq(pread(fd, got, sizeof got, 0), (ssize_t)n, "%s", got);
    cr_expect_eq(memcmp(got, want, n), 0, "%s", got);
}

Test(files, writing_goes_on_after_signals_and_short_writes)
{
    static const int results[] = {-EINTR, 3, -EINTR, -EINTR, 1, 9999};

    script = results;
    cr_expect_eq(files_write_all(fd, "abcdefgh", 8), 0);
    expect_content("abcdefgh", 8);
    cr_expect_eq(*script, 9999, "all of them happened");
    cr_expect_eq(files_write_all(fd, NULL, 0), 0);
}

Test(files, a_failure_is_returned_with_its_errno)
{
    static const int failing[] = {2, -EIO, 9999}, nothing[] = {0, 9999};

    script = failing;
    cr_expect_eq(files_write_all(fd, "abcd", 4), -1);
    cr_expect_eq(errno, EIO);
    expect_content("ab", 2);
    script = nothing;
    cr_expect_eq(files_write_all(fd, "abcd", 4), -1, "a write of nothing must not go on for ever");
    cr_expect_eq(errno, EIO);
}

Test(files, a_full_device_is_enospc)
{
    int full = open("/dev/full", O_WRONLY);

    cr_assert_geq(full, 0);
    cr_expect_eq(files_write_all(full, "abcd", 4), -1);
    cr_expect_eq(errno, ENOSPC);
    close(full);
}

Test(files, a_size_limit_leaves_what_fits)
{
    struct rlimit limit = {.rlim_cur = 5, .rlim_max = RLIM_INFINITY};

    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int rc = files_write_all(fd, "abcdefgh", 8);
    int error = errno;
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    cr_expect_eq(rc, -1);
    cr_expect_eq(error, EFBIG);
    expect_content("abcde", 5);
}

static char received[1 << 20];

static void *drain(void *arg)
{
    int from = *(int *)arg;
    ssize_t n;

    for (size_t at = 0; (n = read(from, received + at, 1000)) > 0;)
        at += (size_t)n;
    return NULL;
}

Test(files, a_pipe_takes_more_than_it_holds)
{
    static char sent[1 << 20];
    int ends[2];
    pthread_t reader;

    for (size_t i = 0; i < sizeof sent; i++)
        sent[i] = (char)(i * 7 + i / 4096);
    cr_assert_eq(pipe(ends), 0);
    cr_assert_eq(pthread_create(&reader, NULL, drain, &ends[0]), 0);
    cr_expect_eq(files_write_all(ends[1], sent, sizeof sent), 0);
    close(ends[1]);
    pthread_join(reader, NULL);
    cr_expect_eq(memcmp(sent, received, sizeof sent), 0);
    close(ends[0]);
}

Test(files, a_directory_that_is_none_cannot_be_synced)
{
    cr_expect_eq(files_sync_dir("/tmp"), 0);
    cr_expect_eq(files_sync_dir(path), -1);
    cr_expect_eq(errno, ENOTDIR);
    cr_expect_eq(files_sync_dir("/nonexistent"), -1);
    cr_expect_eq(errno, ENOENT);
    cr_expect_eq(files_sync_dir("/proc"), 0, "it says EINVAL, which is no failure");
}

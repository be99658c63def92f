#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

/* A file system with any number of free pages: the save is whole or was never there. */

static char root[256];
static char log_path[] = "/tmp/shoal-test-log-XXXXXX"; /* what the children say */
static struct layout *layout;

static void setup(void)
{
    make_root(root);
    close(mkstemp(log_path));
    layout = test_layout(false);
}

static void teardown(void)
{
    umount(root);
    unlink(log_path);
    layout_destroy(layout);
    remove_tree(root);
}

TestSuite(ckpt_full_disk, .init = setup, .fini = teardown);

static long used_bytes(void)
{
    struct statvfs s;

    cr_assert_eq(statvfs(root, &s), 0);
    return (long)((s.f_blocks - s.f_bfree) * s.f_frsize);
}

static void resize(long n_bytes)
{
    char text[64];

    snprintf(text, sizeof text, "size=%ld", n_bytes);
    cr_assert_eq(mount("shoal-test", root, "tmpfs", MS_REMOUNT, text), 0);
}

/* In a process of its own, as a run would: also the end of the process must be clean. */
static int save_in_child(int64_t step)
{
    struct job job = {.root = root, .layout = layout, .step = step};
    pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        freopen(log_path, "a", stderr);
        exit(shoal_exit_code(save_with(2, &job)));
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void expect_newest(int64_t want, long n_free)
{
    struct ckpt_entry *entries = NULL;
    int64_t step = -1;
    int64_t wrong = -1;
    size_t n = 0;

    cr_assert_eq(read_back(root, layout, 1, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(step, want, "%ld bytes free: step %ld", n_free, (long)step);
    cr_expect_eq(wrong, 0);
    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK);
    cr_expect_eq(n, (size_t)want, "%ld bytes free: %zu entries", n_free, n);
    free(entries);
}

Test(ckpt_full_disk, any_number_of_free_pages_gives_a_whole_step_or_none, .timeout = 250)
{
    enum { PAGE = 4096 };
    int n_failed = 0;
    int rc = -1;

    if (mount("shoal-test", root, "tmpfs", 0, "size=64m") != 0)
        cr_skip_test("mounting a tmpfs is not permitted here");
    cr_assert_eq(save_in_child(1), 0);
    long used = used_bytes();

    for (long n_free = 0; rc != 0; n_free += PAGE) {
        resize(used + n_free);
        rc = save_in_child(2);
        /* Without room for its own probe the store cannot be opened (73); else it is the save. */
        cr_expect(rc == 0 || rc == 73 || rc == 74, "%ld bytes free: exit code %d", n_free, rc);
        expect_newest(rc == 0 ? 2 : 1, n_free);
        n_failed += rc == 74;
        cr_assert_lt(n_free, 64 << 20);
    }
    cr_expect_gt(n_failed, 50);

    char *said = NULL;
    size_t n = 0;

    cr_assert_eq(ckpt_fs_read_file(log_path, 1 << 26, &said, &n), SHOAL_OK);
    cr_expect_null(strstr(said, "HDF5: "), "HDF5 met a full disk, which it does not survive: %s",
                   said);
    free(said);
}

#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(ckpt_store, .init = fixture_empty, .fini = fixture_teardown);

/* In place of the C library's: notes what is synced. */
static char synced[4096];

int fsync(int fd)
{
    char link[64], path[256];
    size_t used = strlen(synced);

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);

    if (n > 0)
        snprintf(synced + used, sizeof synced - used, "%.*s\n", (int)n, path);
    return (int)syscall(SYS_fsync, fd);
}

static size_t count_entries(void)
{
    struct ckpt_entry *entries = NULL;
    size_t n = 0;

    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK, "%s", shoal_last_error());
    free(entries);
    return n;
}

static bool exists(const char *name)
{
    char path[512];

    snprintf(path, sizeof path, "%s/%s", root, name);
    return access(path, F_OK) == 0;
}

Test(ckpt_store, keeps_the_newest_steps_and_says_how_many_went)
{
    struct job job = {.root = root, .layout = layout, .step = 5, .first_save = 4, .keep = 2};

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(job.result.n_removed, 1);
    cr_expect_eq(count_entries(), 2);
    cr_expect(exists("step-000000000005"));
    cr_expect(exists("step-000000000004"));
    cr_expect_gt(job.result.n_bytes, 3 * 4 * (uint64_t)layout->n_parameters);
}

Test(ckpt_store, never_removes_what_it_just_saved_for_steps_of_an_abandoned_future)
{
    struct job job = {.root = root, .layout = layout, .step = 9, .first_save = 1, .keep = 2};

    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    job.step = 3;
    job.first_save = 0;
    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_expect(exists("step-000000000003"));
    cr_expect(exists("step-000000000009"));
    cr_expect_not(exists("step-000000000008"));
}

Test(ckpt_store, a_second_run_on_the_same_root_is_refused_with_the_holder)
{
    struct job job = {.root = root, .layout = layout, .step = 1};
    char path[512];

    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    snprintf(path, sizeof path, "%s/LOCK", root);

    int fd = open(path, O_RDWR);

    cr_assert_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
    cr_expect_eq(save_with(2, &job), SHOAL_ERR_CANTCREATE);
    cr_expect_neq(strstr(shoal_last_error(), "another run writes"), NULL, "%s", shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), "\"pid\": "), NULL);
    close(fd);
    cr_expect_eq(save_with(2, &job), SHOAL_OK, "a stale LOCK file does not lock: %s",
                 shoal_last_error());
}

Test(ckpt_store, opening_removes_dead_temporaries_and_finishes_deletions_and_nothing_else)
{
    const char *dead[] = {"step-000000000007.tmp-aaaa", "step-000000000003.del-bbbb",
                          ".probe-a-cccc"};
    const char *mine[] = {"step-7.tmp-aaaa", "notes", "step-000000000004x"};
    struct job job = {.root = root, .layout = layout, .step = 1};
    char path[512];

    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", root, dead[i]);
        cr_assert_eq(mkdir(path, 0777), 0);
        strcat(path, "/rank-00000.h5");
        fclose(fopen(path, "w"));
        snprintf(path, sizeof path, "%s/%s", root, mine[i]);
        cr_assert_eq(mkdir(path, 0777), 0);
    }
    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    for (int i = 0; i < 3; i++) {
        cr_expect_not(exists(dead[i]), "%s", dead[i]);
        cr_expect(exists(mine[i]), "%s", mine[i]);
    }
}

Test(ckpt_store, a_root_that_cannot_be_written_is_named_with_errno)
{
    char path[512];
    struct job job = {.root = path, .layout = layout, .step = 1};

    snprintf(path, sizeof path, "%s/file/below", root);

    char file[512];

    snprintf(file, sizeof file, "%s/file", root);
    fclose(fopen(file, "w"));
    cr_expect_eq(save_with(2, &job), SHOAL_ERR_CANTCREATE);
    cr_expect_neq(strstr(shoal_last_error(), file), NULL, "%s", shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), "errno"), NULL, "%s", shoal_last_error());
    snprintf(path, sizeof path, "/proc/shoal");
    cr_expect_eq(save_with(1, &job), SHOAL_ERR_CANTCREATE);
}

Test(ckpt_store, an_empty_or_missing_root_is_no_input)
{
    struct ckpt *ckpt = NULL;

    cr_expect_eq(ckpt_open(root, &ckpt), SHOAL_ERR_NOINPUT);
    cr_expect_neq(strstr(shoal_last_error(), "holds no checkpoint"), NULL);
    cr_expect_eq(ckpt_open("/nonexistent/run", &ckpt), SHOAL_ERR_NOINPUT);
    cr_expect_null(ckpt);
}

Test(ckpt_store, a_run_directory_is_searched_in_its_checkpoints)
{
    char path[512];
    struct job job = {.root = path, .layout = layout, .step = 4};
    int64_t step = -1;
    int64_t wrong = -1;

    snprintf(path, sizeof path, "%s/checkpoints", root);
    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(read_back(root, layout, 1, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(step, 4);
    cr_expect_eq(count_entries(), 1);
}

/* A step was saved, the next one fails: the first must be whole and no temporary left. */
static void expect_only_step_1(const char *where)
{
    int64_t step = -1;
    int64_t wrong = -1;
    struct ckpt_entry *entries = NULL;
    size_t n = 0;

    cr_assert_eq(read_back(where, layout, 3, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(step, 1);
    cr_expect_eq(wrong, 0);
    cr_assert_eq(ckpt_list(where, &entries, &n), SHOAL_OK);
    cr_expect_eq(n, 1, "the temporary directory must be gone");
    free(entries);
}

Test(ckpt_store, a_full_disk_fails_on_all_ranks_and_leaves_the_earlier_step)
{
    struct job job = {.root = root, .layout = layout, .step = 1};

    /* One step of this model takes about 0.5 MB: the second does not fit. */
    if (mount("shoal-test", root, "tmpfs", 0, "size=800k") != 0)
        cr_skip_test("mounting a tmpfs is not permitted here");
    cr_expect_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    job.step = 2;
    cr_expect_eq(save_with(2, &job), SHOAL_ERR_IO);
    cr_expect_neq(strstr(shoal_last_error(), "No space left"), NULL, "%s", shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), "hint:"), NULL);
    expect_only_step_1(root);
    umount(root);
}

Test(ckpt_store, a_file_size_limit_fails_the_save_and_leaves_the_earlier_step)
{
    struct job job = {.root = root, .layout = layout, .step = 1};
    struct rlimit limit = {.rlim_cur = 100000, .rlim_max = 100000};

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());

    pid_t pid = fork();

    if (pid == 0) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        job.step = 2;
        _exit(save_with(2, &job) == SHOAL_ERR_IO &&
                      strstr(shoal_last_error(), "File too large") != NULL
                  ? 0
                  : 1);
    }

    int status = -1;

    waitpid(pid, &status, 0);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "wait status %x", (unsigned)status);
    expect_only_step_1(root);
}

Test(ckpt_store, list_tells_whole_broken_unfinished_and_deleted_apart)
{
    struct job job = {.root = root, .layout = layout, .step = 3, .first_save = 1};
    struct ckpt_entry *entries = NULL;
    size_t n = 0;
    char path[512];

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    file_in_step(path, root, 2, "COMMIT");
    cr_assert_eq(unlink(path), 0);
    snprintf(path, sizeof path, "%s/step-000000000009.tmp-x", root);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/step-000000000001.del-x", root);
    mkdir(path, 0777);
    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK);
    cr_assert_eq(n, 4);
    cr_expect_eq(entries[0].state, CKPT_TEMPORARY);
    cr_expect_eq(entries[1].state, CKPT_COMPLETE);
    cr_expect_eq(entries[1].step, 3);
    cr_expect_eq(entries[1].world_size, 2);
    cr_expect_eq(entries[1].zero_stage, 2);
    cr_expect_eq(entries[1].loss, 3.25);
    cr_expect_eq(entries[2].state, CKPT_BROKEN);
    cr_expect_neq(strstr(entries[2].why, "has no COMMIT"), NULL, "%s", entries[2].why);
    cr_expect_eq(entries[3].state, CKPT_DELETED);
    free(entries);
}

Test(ckpt_store, a_failed_read_leaves_the_engine_usable)
{
    struct io_engine *engine = NULL;
    struct io_file *file = NULL;
    char path[300];
    char buffer[8192];
    uint32_t crc = 0;

    snprintf(path, sizeof path, "%s/short", root);
    cr_assert_eq(ckpt_fs_write_file(root, "short", "abc", 3), SHOAL_OK);
    cr_assert_eq(io_engine_create(4, true, &engine), SHOAL_OK);
    cr_assert_eq(io_file_open(engine, path, false, &file), SHOAL_OK);
    cr_assert_eq(ckpt_crc_range(engine, file, buffer, sizeof buffer, 0, sizeof buffer, &crc),
                 SHOAL_ERR_IO);
    cr_assert_eq(ckpt_crc_range(engine, file, buffer, sizeof buffer, 0, 3, &crc), SHOAL_OK, "%s",
                 shoal_last_error());
    io_file_close(file);
    io_engine_destroy(engine);
}

Test(ckpt_store, makes_the_roots_own_directories_durable)
{
    char path[512], expected[1024];

    snprintf(path, sizeof path, "%s/runs//new/checkpoints/", root);
    snprintf(expected, sizeof expected, "%s\n%s/runs\n%s/runs/new\n", root, root, root);
    cr_assert_eq(ckpt_fs_make_dirs(path), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_str_eq(synced, expected);
    synced[0] = '\0';
    cr_assert_eq(ckpt_fs_make_dirs(path), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_str_eq(synced, "");
}

Test(ckpt_store, removing_notes_progress_for_every_file)
{
    char name[32];

    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "file-%d", i);
        cr_assert_eq(ckpt_fs_write_file(root, name, "x", 1), SHOAL_OK, "%s", shoal_last_error());
    }
    int before = world_notes();

    cr_assert_eq(ckpt_fs_remove_dir(NULL, 7, root), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(world_notes() - before, 5);
    cr_expect_not(ckpt_fs_is_dir(root));
}

#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/faults.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Which step is taken.  Damage gives way to the step before; what the system does not let us read
 * says nothing about a checkpoint, and must not cost the steps since the one before.
 */

/* Steps 1 and 2, by two ranks. */
static void setup(void)
{
    setenv("SHOAL_IO", "sync", 1);
    fixture_saved(2);
}

TestSuite(ckpt_choose, .init = setup, .fini = fixture_teardown);

/* The step that is taken; -1: none, *status_out says why. */
static int64_t chosen_step(const char *path, shoal_status *status_out)
{
    struct ckpt *ckpt = NULL;
    int64_t step = -1;

    *status_out = ckpt_open(path, &ckpt);
    if (*status_out == SHOAL_OK)
        step = ckpt_meta(ckpt)->step;
    else
        cr_assert_null(ckpt);
    ckpt_close(ckpt);
    return step;
}

static void expect_message(const char *text)
{
    cr_expect_neq(strstr(shoal_last_error(), text), NULL, "expected \"%s\" in: %s", text,
                  shoal_last_error());
}

static const int refusals[] = {EIO, EMFILE, ENFILE, ENOMEM, EACCES, EAGAIN, ESTALE};

enum { N_REFUSALS = sizeof refusals / sizeof refusals[0] };

static shoal_status status_of(int error)
{
    return error == ENOMEM ? SHOAL_ERR_NOMEM : error == EACCES ? SHOAL_ERR_NOINPUT : SHOAL_ERR_IO;
}

/* Every call that opening step 2 needs. */
static const struct fault places[] = {
    {.call = "stat", .ending = "02/COMMIT"},        {.call = "open", .ending = "02/COMMIT"},
    {.call = "pread", .ending = "02/COMMIT"},       {.call = "stat", .ending = "02/manifest.h5"},
    {.call = "open", .ending = "02/manifest.h5"},   {.call = "pread", .ending = "02/manifest.h5"},
    {.call = "stat", .ending = "02/rank-00001.h5"}, {.call = "open", .ending = "02/rank-00001.h5"}};

enum { N_PLACES = sizeof places / sizeof places[0] };

static struct fault fault_at(const struct fault *place, int error)
{
    return (struct fault){
        .call = place->call, .ending = place->ending, .error = error, .n_times = 1};
}

Test(ckpt_choose, a_step_that_cannot_be_read_is_never_passed_over)
{
    for (int p = 0; p < N_PLACES; p++)
        for (int e = 0; e < N_REFUSALS; e++) {
            int error = refusals[e];
            shoal_status status;

            fault_set(fault_at(&places[p], error));
            cr_expect_eq(chosen_step(root, &status), -1, "%s %s: %s", places[p].call,
                         places[p].ending, strerror(error));
            cr_expect_eq(fault_hits(), 1);
            cr_expect_eq(status, status_of(error), "%s %s: %s: %s", places[p].call,
                         places[p].ending, strerror(error), shoal_last_error());
            expect_message(places[p].ending);
            expect_message(strerror(error));
            expect_message("step 2 could not be checked and may be whole");
            expect_message("hint: ");
            cr_expect_eq(chosen_step(root, &status), 2, "it passes: %s", shoal_last_error());
        }
}

Test(ckpt_choose, a_rank_file_that_cannot_be_read_is_never_passed_over)
{
    for (int e = 0; e < N_REFUSALS; e++) {
        int error = refusals[e];
        bool is_retried = error == EAGAIN; /* by the engine, until it works */
        shoal_status status;

        fault_set((struct fault){
            .call = "pread", .ending = "02/rank-00000.h5", .error = error, .n_times = 1});
        cr_expect_eq(chosen_step(root, &status), is_retried ? 2 : -1, "%s", strerror(error));
        cr_expect_eq(fault_hits(), 1);
        cr_expect_eq(status, is_retried ? SHOAL_OK : SHOAL_ERR_IO, "%s", strerror(error));
    }
}

Test(ckpt_choose, a_root_that_cannot_be_read_does_not_pass_for_an_empty_one)
{
    const struct fault at_root[] = {{.call = "stat", .ending = root},
                                    {.call = "stat", .ending = "/checkpoints"},
                                    {.call = "stat", .ending = "/COMMIT"},
                                    {.call = "scandir", .ending = root}};

    for (int p = 0; p < 4; p++)
        for (int e = 0; e < N_REFUSALS; e++) {
            struct ckpt_entry *entries = NULL;
            size_t n = 0;
            shoal_status status;

            fault_set(fault_at(&at_root[p], refusals[e]));
            cr_expect_eq(chosen_step(root, &status), -1);
            cr_expect_eq(fault_hits(), 1);
            cr_expect_eq(status, status_of(refusals[e]));
            expect_message(strerror(refusals[e]));
            if (p == 2)
                continue;
            fault_set(fault_at(&at_root[p], refusals[e]));
            cr_expect_eq(ckpt_list(root, &entries, &n), status_of(refusals[e]));
            expect_message(strerror(refusals[e]));
        }
}

Test(ckpt_choose, a_listing_tells_unreadable_from_broken)
{
    struct ckpt_entry *entries = NULL;
    size_t n = 0;

    fault_set(fault_at(&places[7], EMFILE));
    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(n, 2);
    cr_expect_eq(entries[0].state, CKPT_UNREADABLE);
    cr_expect_neq(strstr(entries[0].why, strerror(EMFILE)), NULL, "%s", entries[0].why);
    cr_expect_eq(entries[1].state, CKPT_COMPLETE);
    free(entries);
}

/* ---- refused by the kernel itself ---- */

static int take_descriptors(void)
{
    int n = 0;

    while (dup(STDERR_FILENO) >= 0)
        n++;
    return n;
}

Test(ckpt_choose, with_any_number_of_free_descriptors_the_newest_step_is_taken_or_none)
{
    struct rlimit limit = {.rlim_cur = 100, .rlim_max = 100};
    int n_taken = 0;
    int n_refused = 0;

    ckpt_h5_quiet(); /* loads what HDF5 needs */
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int n = take_descriptors();

    cr_assert_gt(n, 10);
    for (int free_ones = 0; free_ones < 10; free_ones++) {
        shoal_status status;
        int64_t step = chosen_step(root, &status);

        if (status == SHOAL_OK) {
            cr_expect_eq(step, 2);
            n_taken++;
        } else {
            cr_expect_eq(status, SHOAL_ERR_IO, "%s", shoal_last_error());
            expect_message(strerror(EMFILE));
            n_refused++;
        }
        close(100 - 1 - free_ones);
    }
    cr_expect_gt(n_taken, 0);
    cr_expect_gt(n_refused, 0);
}

/* As another user, who may not read what `path` names. */
static int chosen_by_nobody(const char *path)
{
    pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        struct ckpt *ckpt = NULL;

        if (chmod(root, 0755) != 0 || chmod(path, 0) != 0 || seteuid(65534) != 0)
            _exit(99);
        shoal_status code = ckpt_open(root, &ckpt);

        if (strstr(shoal_last_error(), strerror(EACCES)) == NULL)
            _exit(98);
        _exit(shoal_exit_code(code));
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(ckpt_choose, a_step_of_another_user_is_not_passed_over)
{
    const char *names[] = {"", "COMMIT", "manifest.h5", "rank-00000.h5"};
    char path[512];

    if (geteuid() != 0)
        cr_skip_test("needs root to become somebody else");
    for (int i = 0; i < 4; i++) {
        file_in_step(path, root, 2, names[i]);
        cr_expect_eq(chosen_by_nobody(path), 66, "%s", names[i]);
        chmod(path, 0755);
    }
    cr_expect_eq(chosen_by_nobody(root), 66);
}

/* ---- what is damage ---- */

static void expect_skipped_to_1(const char *why)
{
    char step_2[512];
    shoal_status status;

    cr_expect_eq(chosen_step(root, &status), 1, "%s: %s", why, shoal_last_error());
    file_in_step(step_2, root, 2, "");
    cr_expect_eq(chosen_step(step_2, &status), -1);
    cr_expect_eq(status, SHOAL_ERR_DATA);
    expect_message(why);
}

Test(ckpt_choose, what_is_no_file_is_damage_and_is_not_waited_for, .timeout = 20)
{
    const char *names[] = {"COMMIT", "manifest.h5", "rank-00000.h5"};
    char path[512], aside[512];

    snprintf(aside, sizeof aside, "%s/aside", root);
    for (int i = 0; i < 3; i++) {
        file_in_step(path, root, 2, names[i]);
        cr_assert_eq(rename(path, aside), 0);
        cr_assert_eq(mkfifo(path, 0666), 0);
        expect_skipped_to_1("is not a regular file");
        unlink(path);
        mkdir(path, 0777);
        expect_skipped_to_1("is not a regular file");
        rmdir(path);
        expect_skipped_to_1(i == 0 ? "never finished" : "is missing");
        cr_assert_eq(rename(aside, path), 0);
    }
}

Test(ckpt_choose, a_file_with_a_steps_name_is_skipped)
{
    char path[512];
    shoal_status status;

    snprintf(path, sizeof path, "%s/step-000000000007", root);
    fclose(fopen(path, "w"));
    cr_expect_eq(chosen_step(root, &status), 2, "%s", shoal_last_error());
}

Test(ckpt_choose, a_newer_format_is_not_passed_over_for_an_older_step)
{
    char dir[512], text[512], path[512];
    struct commit commit;
    shoal_status status;

    file_in_step(dir, root, 2, "");
    file_in_step(path, root, 2, "COMMIT");
    cr_assert_eq(ckpt_commit_read(dir, &commit), SHOAL_OK);
    commit.version = CKPT_VERSION_MAJOR + 1;
    cr_assert_eq(
        ckpt_fs_write_file(dir, "COMMIT", text, ckpt_commit_format(text, sizeof text, &commit)),
        SHOAL_OK);
    cr_expect_eq(chosen_step(root, &status), -1);
    cr_expect_eq(status, SHOAL_ERR_CONFIG);
    expect_message("format version 3, this program reads up to 2");
    expect_message("hint: use the version of shoal that saved it");

    /* But a version that is merely a damaged digit is damage. */
    commit.version = CKPT_VERSION_MAJOR;
    cr_assert_eq(
        ckpt_fs_write_file(dir, "COMMIT", text, ckpt_commit_format(text, sizeof text, &commit)),
        SHOAL_OK);
    flip_bit(path, (long)strlen(CKPT_FORMAT) + 1, 0);
    expect_skipped_to_1("checksum does not match");
}

Test(ckpt_choose, a_file_in_the_working_directory_does_not_stand_in_the_way)
{
    char here[512], path[600];
    shoal_status status;

    snprintf(path, sizeof path, "%s/shoal manifest image", root);
    fclose(fopen(path, "w"));
    cr_assert_not_null(getcwd(here, sizeof here));
    cr_assert_eq(chdir(root), 0);
    cr_expect_eq(chosen_step(root, &status), 2, "%s", shoal_last_error());
    cr_assert_eq(chdir(here), 0);
}

static void *open_often(void *arg)
{
    int64_t step = *(int64_t *)arg;
    char path[512];
    intptr_t n_wrong = 0;

    file_in_step(path, root, step, "");
    for (int i = 0; i < 100; i++) {
        shoal_status status;

        n_wrong += chosen_step(path, &status) != step;
    }
    return (void *)n_wrong;
}

Test(ckpt_choose, threads_open_different_checkpoints_at_the_same_time)
{
    int64_t steps[4] = {1, 2, 1, 2};
    pthread_t threads[4];

    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, open_often, &steps[i]), 0);
    for (int i = 0; i < 4; i++) {
        void *n_wrong = NULL;

        pthread_join(threads[i], &n_wrong);
        cr_expect_null(n_wrong, "thread %d was wrong %ld times", i, (long)(intptr_t)n_wrong);
    }
}

Test(ckpt_choose, the_newest_finished_step_is_told_by_its_commit)
{
    char path[512];
    int64_t step = 77;

    cr_expect_eq(ckpt_newest_step(root, &step), SHOAL_OK);
    cr_expect_eq(step, 2);
    file_in_step(path, root, 2, "COMMIT");
    cr_assert_eq(truncate(path, 20), 0);
    cr_expect_eq(ckpt_newest_step(root, &step), SHOAL_OK);
    cr_expect_eq(step, 1);
    fault_set((struct fault){.call = "open", .ending = "COMMIT", .error = EIO, .n_times = 1});
    cr_expect_eq(ckpt_newest_step(root, &step), SHOAL_ERR_IO);
    file_in_step(path, root, 1, "COMMIT");
    cr_assert_eq(unlink(path), 0);
    cr_expect_eq(ckpt_newest_step(root, &step), SHOAL_OK);
    cr_expect_eq(step, -1);
    cr_expect_eq(ckpt_newest_step("/nonexistent", &step), SHOAL_ERR_NOINPUT);
}

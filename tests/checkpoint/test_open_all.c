#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/faults.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A world opens one checkpoint, or none: whatever a single rank meets, all return the same. */

enum { RANKS = 3 };

static void setup(void)
{
    setenv("SHOAL_IO", "sync", 1);
    fixture_empty();
}

TestSuite(ckpt_open_all, .init = setup, .fini = fixture_teardown);

static void save_steps(const char *to, int64_t last, int n_before)
{
    struct job job = {.root = to, .layout = layout, .step = last, .first_save = n_before};

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
}

struct open_job {
    const char *path;
    bool is_optional;
    struct fault fault; /* on faulty_rank */
    int faulty_rank;
    const char *elsewhere; /* what faulty_rank finds in place of `path`; NULL: the same */

    shoal_status statuses[RANKS];
    int64_t steps[RANKS]; /* -1: none was opened */
    char messages[RANKS][512];
};

static shoal_status open_as_rank(struct comm *comm, void *arg)
{
    struct open_job *job = arg;
    int rank = comm_rank(comm);
    struct ckpt *ckpt = NULL;

    if (rank == job->faulty_rank) {
        fault_set(job->fault);
        if (job->elsewhere != NULL)
            fault_redirect(job->path, job->elsewhere);
    }
    job->statuses[rank] = ckpt_open_all(comm, job->path, job->is_optional, &ckpt);
    job->steps[rank] = ckpt != NULL ? ckpt_meta(ckpt)->step : -1;
    snprintf(job->messages[rank], sizeof job->messages[rank], "%s", shoal_last_error());
    ckpt_close(ckpt);
    return job->statuses[rank];
}

static void open_with(struct open_job *job, shoal_status want, int64_t step)
{
    world_run(RANKS, open_as_rank, job);
    for (int r = 0; r < RANKS; r++) {
        cr_expect_eq(job->statuses[r], want, "rank %d: %d: %s", r, job->statuses[r],
                     job->messages[r]);
        cr_expect_eq(job->steps[r], step, "rank %d opened %ld", r, (long)job->steps[r]);
    }
}

static void expect_message(const struct open_job *job, const char *text)
{
    for (int r = 0; r < RANKS; r++)
        cr_expect_neq(strstr(job->messages[r], text), NULL, "rank %d: no \"%s\" in: %s", r, text,
                      job->messages[r]);
}

Test(ckpt_open_all, a_refusal_on_any_one_rank_ends_all)
{
    static const struct {
        int error;
        shoal_status status;
    } refusals[] = {{EIO, SHOAL_ERR_IO},        {EMFILE, SHOAL_ERR_IO}, {ENFILE, SHOAL_ERR_IO},
                    {ENOMEM, SHOAL_ERR_NOMEM},  {EAGAIN, SHOAL_ERR_IO}, {ESTALE, SHOAL_ERR_IO},
                    {EACCES, SHOAL_ERR_NOINPUT}};
    const char *endings[] = {"02/COMMIT", "02/manifest.h5", "02/rank-00001.h5"};

    save_steps(root, 2, 1);
    for (int rank = 0; rank < RANKS; rank++)
        for (int p = 0; p < 3; p++)
            for (int e = 0; e < 7; e++) {
                char who[32];
                struct open_job job = {.path = root, .is_optional = true, .faulty_rank = rank};

                job.fault = (struct fault){
                    .call = "open", .ending = endings[p], .error = refusals[e].error, .n_times = 1};
                open_with(&job, refusals[e].status, -1);
                snprintf(who, sizeof who, "rank %d (test): ", rank);
                expect_message(&job, who);
                expect_message(&job, strerror(refusals[e].error));
            }

    struct open_job job = {.path = root, .faulty_rank = -1};

    open_with(&job, SHOAL_OK, 2);
}

Test(ckpt_open_all, damage_that_rank_0_sees_is_skipped_by_all)
{
    char path[512];
    struct open_job job = {.path = root, .faulty_rank = -1};

    save_steps(root, 2, 1);
    file_in_step(path, root, 2, "rank-00001.h5");
    cr_assert_eq(truncate(path, 5000), 0);
    open_with(&job, SHOAL_OK, 1);
}

Test(ckpt_open_all, what_only_another_rank_finds_damaged_ends_all)
{
    for (int rank = 1; rank < RANKS; rank++) {
        struct open_job job = {.path = root, .is_optional = true, .faulty_rank = rank};

        save_steps(root, 2, 1);
        /* As where a network file system does not show a new file yet. */
        job.fault = (struct fault){
            .call = "stat", .ending = "02/rank-00000.h5", .error = ENOENT, .n_times = 1};
        open_with(&job, SHOAL_ERR_IO, -1);
        expect_message(&job, "rank-00000.h5: is missing");
        expect_message(&job, "rank 0 finds a whole checkpoint there");
        expect_message(&job, "hint: use an absolute path on a file system that all ranks share");
    }
}

Test(ckpt_open_all, a_rank_that_sees_another_save_of_the_step_ends_all)
{
    char other[300];
    struct open_job job = {.path = root, .faulty_rank = 2, .elsewhere = other};

    snprintf(other, sizeof other, "%s/other", root);
    save_steps(root, 2, 0);
    save_steps(other, 2, 0);
    open_with(&job, SHOAL_ERR_IO, -1);
    expect_message(&job, "rank 0 sees attempt");
}

Test(ckpt_open_all, none_at_all_is_success_only_where_that_will_do)
{
    char missing[300];
    const char *paths[] = {root, missing};

    snprintf(missing, sizeof missing, "%s/missing", root);
    for (int i = 0; i < 2; i++) {
        struct open_job job = {.path = paths[i], .is_optional = true, .faulty_rank = -1};

        open_with(&job, SHOAL_OK, -1);
        job.is_optional = false;
        open_with(&job, SHOAL_ERR_NOINPUT, -1);
        expect_message(&job, i == 0 ? "holds no checkpoint" : "does not exist");
    }
}

Test(ckpt_open_all, a_root_that_cannot_be_searched_is_not_none)
{
    const char *calls[] = {"stat", "scandir"};

    save_steps(root, 2, 1);
    for (int i = 0; i < 2; i++) {
        struct open_job job = {.path = root, .is_optional = true};

        job.fault = (struct fault){.call = calls[i], .ending = root, .error = EMFILE, .n_times = 1};
        open_with(&job, SHOAL_ERR_IO, -1);
        job.fault.error = EACCES;
        open_with(&job, SHOAL_ERR_NOINPUT, -1);
    }
}

Test(ckpt_open_all, no_whole_step_is_not_none)
{
    char path[512];
    struct open_job job = {.path = root, .is_optional = true, .faulty_rank = -1};

    save_steps(root, 1, 0);
    file_in_step(path, root, 1, "COMMIT");
    cr_assert_eq(unlink(path), 0);
    open_with(&job, SHOAL_ERR_DATA, -1);
    expect_message(&job, "no step is whole");
}

/* The ranks wait for the slowest of them, which must not look dead. */
Test(ckpt_open_all, every_rank_notes_progress_for_every_file)
{
    struct open_job job = {.path = root, .faulty_rank = -1};
    struct job saved = {.root = root, .layout = layout, .step = 1};
    int n_files = 6; /* of ranks */

    cr_assert_eq(save_with(n_files, &saved), SHOAL_OK, "%s", shoal_last_error());
    int before = world_notes();

    open_with(&job, SHOAL_OK, 1);
    cr_expect_geq(world_notes() - before, RANKS * (n_files + 1));
}

static shoal_status open_and_hash(struct comm *comm, void *arg)
{
    struct ckpt *ckpt = NULL;
    char hex[33];

    SHOAL_TRY(ckpt_open_all(comm, root, false, &ckpt));
    int before = world_notes();

    shoal_status status = ckpt_hash(ckpt, NULL, hex);

    *(int *)arg = world_notes() - before;
    ckpt_close(ckpt);
    return status;
}

Test(ckpt_open_all, reading_notes_progress_too)
{
    int n_notes = 0;

    save_steps(root, 1, 0);
    cr_assert_eq(world_run(1, open_and_hash, &n_notes), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_geq(n_notes, TEST_KINDS * layout->n_tensors);
}

Test(ckpt_open_all, rank_0_notes_progress_for_every_step_that_it_skips)
{
    struct open_job job = {.path = root, .faulty_rank = -1};
    char path[512];

    save_steps(root, 8, 7);
    for (int64_t step = 2; step <= 8; step++) {
        file_in_step(path, root, step, "rank-00001.h5");
        cr_assert_eq(unlink(path), 0);
    }
    int before = world_notes();

    open_with(&job, SHOAL_OK, 1);
    cr_expect_geq(world_notes() - before, 7 * 2 + RANKS * 2);
}

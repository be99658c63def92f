#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/faults.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What saving leaves behind, removes and must not remove. */

TestSuite(ckpt_leftovers, .init = fixture_empty, .fini = fixture_teardown);

static void save_step(int64_t step, int keep)
{
    struct job job = {.root = root, .layout = layout, .step = step, .keep = keep};

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
}

static void in_root(char out[512], const char *name)
{
    snprintf(out, 512, "%s/%s", root, name);
}

static bool exists(const char *name)
{
    char path[512];
    struct stat st;

    in_root(path, name);
    return lstat(path, &st) == 0;
}

static int count_names(const char *beginning)
{
    DIR *dir = opendir(root);
    const struct dirent *entry;
    int n = 0;

    while ((entry = readdir(dir)) != NULL)
        n += strncmp(entry->d_name, beginning, strlen(beginning)) == 0;
    closedir(dir);
    return n;
}

static void expect_whole(const char *path, int64_t step)
{
    int64_t found = -1;
    int64_t wrong = -1;

    cr_assert_eq(read_back(path, layout, 1, &found, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(found, step);
    cr_expect_eq(wrong, 0);
}

/* Move step to a directory of its own, with a link `name` in its place. */
static void move_away(int64_t step, const char *archive, const char *name)
{
    char path[512], target[512], link[512];

    file_in_step(path, root, step, "");
    path[strlen(path) - 1] = '\0';
    in_root(target, archive);
    in_root(link, name);
    cr_assert_eq(rename(path, target), 0);
    cr_assert_eq(symlink(target, link), 0);
}

Test(ckpt_leftovers, a_step_that_was_moved_behind_a_link_loses_the_link_only)
{
    char archive[512];

    save_step(1, 0);
    move_away(1, "archive", "step-000000000001");
    expect_whole(root, 1);
    save_step(2, 1);
    cr_expect_not(exists("step-000000000001"));
    in_root(archive, "archive");
    expect_whole(archive, 1);

    /* The same with the names that opening cleans up, and with a step that is saved again. */
    move_away(2, "second", "step-000000000002.del-x");
    save_step(3, 0);
    cr_expect_not(exists("step-000000000002.del-x"));
    in_root(archive, "second");
    expect_whole(archive, 2);
    move_away(3, "third", "step-000000000003");
    save_step(3, 0);
    expect_whole(root, 3);
    in_root(archive, "third");
    expect_whole(archive, 3);
}

Test(ckpt_leftovers, what_cannot_be_removed_is_no_reason_not_to_train)
{
    const char *dead[] = {"step-000000000003.del-x", "step-000000000003.del-x/notes",
                          "step-000000000009.tmp-y", "step-000000000009.tmp-y/notes"};
    char path[512];

    for (int i = 0; i < 4; i++) {
        in_root(path, dead[i]);
        cr_assert_eq(mkdir(path, 0777), 0);
    }
    save_step(1, 0);
    cr_expect(exists(dead[1]), "what is not ours stays");
    cr_expect_not(exists(dead[2]), "but under the name of a deletion");
    for (int i = 1; i < 4; i += 2) {
        in_root(path, dead[1]);
        rmdir(path);
    }
    save_step(2, 0);
    cr_expect_not(exists(dead[0]), "the next run finishes it");
}

Test(ckpt_leftovers, a_hint_that_cannot_be_given_leaves_nothing)
{
    char path[512];

    in_root(path, "LATEST");
    cr_assert_eq(mkdir(path, 0777), 0);
    in_root(path, "LATEST/x");
    cr_assert_eq(mkdir(path, 0777), 0);
    save_step(1, 0);
    cr_expect_eq(count_names("LATEST.tmp-"), 0);
    expect_whole(root, 1);
}

Test(ckpt_leftovers, a_step_has_one_name)
{
    char from[512], to[512];
    int64_t step;

    cr_expect_eq(ckpt_step_name_parse("step-000000000005", &step), STEP_FINAL);
    cr_expect_eq(ckpt_step_name_parse("step-1234567890123", &step), STEP_FINAL);
    cr_expect_eq(step, 1234567890123);
    cr_expect_eq(ckpt_step_name_parse("step-0000000000005", &step), STEP_NOT_A_STEP);
    cr_expect_eq(ckpt_step_name_parse("step-0000000000005.tmp-x", &step), STEP_NOT_A_STEP);

    /* Else it would count twice among those that are kept. */
    save_step(4, 0);
    save_step(5, 0);
    in_root(from, "step-000000000005");
    in_root(to, "step-0000000000005");
    copy_tree(from, to);
    save_step(6, 3);
    cr_expect(exists("step-000000000004"));
    save_step(7, 3);
    cr_expect_not(exists("step-000000000004"));
    cr_expect(exists("step-0000000000005"));
}

Test(ckpt_leftovers, looking_for_old_steps_notes_progress)
{
    int notes[2];

    for (int64_t step = 1; step <= 6; step++)
        save_step(step, 0);
    for (int i = 0; i < 2; i++) {
        int before = world_notes();

        save_step(7, 10 * i);
        notes[i] = world_notes() - before;
    }
    /* The second save removes the old step 7 as well: its four files are noted, too. */
    cr_expect_geq(notes[1] - notes[0], 4 + 6, "%d, then %d", notes[0], notes[1]);
}

/* ---- syncs that fail ---- */

struct faulty_job {
    struct job job;
    struct fault fault;
    int rank;
    int hits;
};

static shoal_status save_with_fault(struct comm *comm, void *arg)
{
    struct faulty_job *f = arg;

    fault_set(comm_rank(comm) == f->rank ? f->fault : (struct fault){.call = NULL});
    shoal_status status = job_save(comm, &f->job);

    if (comm_rank(comm) == f->rank)
        f->hits = fault_hits();
    return status;
}

static void expect_failed_save(struct faulty_job *f)
{
    cr_expect_eq(world_run(2, save_with_fault, f), SHOAL_ERR_IO, "%s", shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), strerror(EIO)), NULL, "%s", shoal_last_error());
    cr_expect_eq(f->hits, 1);
}

Test(ckpt_leftovers, a_sync_that_fails_anywhere_leaves_the_step_before)
{
    const struct {
        const char *call, *ending;
        int rank;
    } places[] = {{"fdatasync", "rank-00000.h5", 0},
                  {"fdatasync", "rank-00001.h5", 1},
                  {"fsync", "manifest.h5", 0},
                  {"fsync", "COMMIT", 0},
                  {"fsync", root, 0}};

    save_step(1, 0);
    for (int i = 0; i < 5; i++) {
        struct faulty_job f = {
            .job = {.root = root, .layout = layout, .step = 2},
            .rank = places[i].rank,
            .fault = {
                .call = places[i].call, .ending = places[i].ending, .error = EIO, .n_times = 1}};

        expect_failed_save(&f);
        expect_whole(root, 1);
        cr_expect_eq(count_names("step-"), 1, "%s %s", places[i].call, places[i].ending);
    }
}

Test(ckpt_leftovers, an_exchange_that_may_not_last_keeps_both_directories)
{
    struct faulty_job f = {.job = {.root = root, .layout = layout, .step = 1}};
    struct ckpt_entry *entries = NULL;
    size_t n = 0;

    save_step(1, 0);
    f.fault =
        (struct fault){.call = "fsync", .ending = root, .error = EIO, .n_times = 1, .n_before = 1};
    expect_failed_save(&f);
    expect_whole(root, 1);
    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK);
    cr_assert_eq(n, 2);
    cr_expect_eq(entries[1].state, CKPT_TEMPORARY);
    cr_expect_eq(entries[1].n_bytes, entries[0].n_bytes, "the old one is all there");
    free(entries);
    save_step(2, 0);
    cr_expect_eq(count_names("step-"), 2, "and gone with the next run");
}

/* ---- what could not be read back ---- */

Test(ckpt_leftovers, what_a_reader_would_refuse_is_not_saved)
{
    size_t n = (16 << 20) + 1; /* longer than any reader takes */
    char *text = malloc(n + 1);
    struct job job = {.root = root, .layout = layout, .step = 2, .config_yaml = text};

    save_step(1, 0);
    memset(text, '#', n);
    text[n] = '\0';
    cr_expect_eq(save_with(2, &job), SHOAL_ERR_INTERNAL);
    cr_expect_neq(strstr(shoal_last_error(), "cannot be read back"), NULL, "%s",
                  shoal_last_error());
    expect_whole(root, 1);
    cr_expect_eq(count_names("step-"), 1);
    text[n - 1] = '\0';
    cr_expect_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    expect_whole(root, 2);
    free(text);
}

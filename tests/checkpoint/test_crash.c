#include "tests/checkpoint/support.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * SIGKILL at each point of a save: what a reader then finds is the step before or the new one,
 * bit for bit, and the next run works.  (Here a kill takes all ranks; test_world.c kills one.)
 */

struct kill_at {
    char point[16];
    int rank;
    int64_t found; /* the step that must be found when step 2's save is killed */
};

ParameterizedTestParameters(ckpt_crash, a_killed_save_leaves_the_step_before_or_the_new_one)
{
    static struct kill_at points[] = {
        {"skeleton", 0, 1}, {"skeleton", 1, 1}, {"payload", 0, 1},
        {"payload", 1, 1},  {"manifest", 0, 1}, {"commit", 0, 1},
        {"rename", 0, 1},   {"renamed", 0, 2},  {"delete", 0, 2},
    };

    return cr_make_param_array(struct kill_at, points, sizeof points / sizeof points[0]);
}

/* Save steps 1 and 2 with keep 1 and 2 ranks in a child; returns its wait status. */
static int save_in_child(const char *root, const struct layout *layout, const char *fault)
{
    pid_t pid = fork();

    if (pid == 0) {
        struct job job = {.root = root, .layout = layout, .step = 2, .first_save = 1, .keep = 1};

        setenv("SHOAL_CKPT_FAULT", fault, 1);
        _exit(save_with(2, &job) == SHOAL_OK ? 0 : 1);
    }

    int status = -1;

    waitpid(pid, &status, 0);
    return status;
}

ParameterizedTest(struct kill_at *at, ckpt_crash,
                  a_killed_save_leaves_the_step_before_or_the_new_one)
{
    struct layout *layout = test_layout(false);
    char root[256];
    char fault[64];
    int64_t step = -1;
    int64_t wrong = -1;

    make_root(root);
    /* Step 2's save is the second of that store; only it deletes. */
    snprintf(fault, sizeof fault, "%s:%d:2", at->point, at->rank);

    int status = save_in_child(root, layout, fault);

    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s: wait status %x", fault,
              (unsigned)status);
    cr_assert_eq(read_back(root, layout, 3, &step, &wrong), SHOAL_OK, "%s: %s", fault,
                 shoal_last_error());
    cr_expect_eq(step, at->found, "%s: found step %ld", fault, (long)step);
    cr_expect_eq(wrong, 0);

    /* The next run cleans up and goes on. */
    struct job job = {.root = root, .layout = layout, .step = 3, .keep = 1};
    struct ckpt_entry *entries = NULL;
    size_t n = 0;

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s: %s", fault, shoal_last_error());
    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK);
    cr_expect_eq(n, 1, "%s: %zu entries are left", fault, n);
    cr_expect_eq(entries[0].step, 3);
    cr_expect_eq(entries[0].state, CKPT_COMPLETE, "%s", entries[0].why);
    free(entries);
    layout_destroy(layout);
    remove_tree(root);
}

Test(ckpt_crash, a_kill_while_a_step_is_saved_again_leaves_a_whole_step)
{
    struct layout *layout = test_layout(false);
    const char *faults[] = {"rename:0:1", "renamed:0:1"};

    for (int i = 0; i < 2; i++) {
        char root[256];
        int64_t step = -1;
        int64_t wrong = -1;
        int status = -1;

        make_root(root);

        struct job job = {.root = root, .layout = layout, .step = 2};

        /* In children: this process has no threads or files of the save open. */
        for (int attempt = 0; attempt < 2; attempt++) {
            pid_t pid = fork();

            if (pid == 0) {
                if (attempt == 1)
                    setenv("SHOAL_CKPT_FAULT", faults[i], 1);
                _exit(save_with(2, &job) == SHOAL_OK ? 0 : 1);
            }
            waitpid(pid, &status, 0);
        }
        cr_expect(WIFSIGNALED(status), "%s", faults[i]);
        cr_assert_eq(read_back(root, layout, 1, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
        cr_expect_eq(step, 2);
        cr_expect_eq(wrong, 0);
        remove_tree(root);
    }
    layout_destroy(layout);
}

/* Kill at a random moment, again and again; the root must always hold a whole step. */
Test(ckpt_crash, kills_at_random_moments_never_leave_a_mix, .timeout = 120)
{
    struct layout *layout = test_layout(false);
    char root[256];
    int64_t last = 0;

    make_root(root);
    srand(20261122);
    for (int i = 0; i < 60; i++) {
        pid_t pid = fork();
        int status;
        int64_t step = -1;
        int64_t wrong = -1;

        if (pid == 0) {
            struct job job = {
                .root = root, .layout = layout, .step = last + 50, .first_save = 49, .keep = 2};

            _exit(save_with(2, &job) == SHOAL_OK ? 0 : 1);
        }
        /* The first one gets time to save at least once. */
        usleep((unsigned)((i == 0 ? 300000 : 5000) + rand() % 60000));
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        cr_assert_eq(read_back(root, layout, 1, &step, &wrong), SHOAL_OK, "kill %d: %s", i,
                     shoal_last_error());
        cr_assert_eq(wrong, 0);
        cr_assert_geq(step, last, "kill %d: step %ld after step %ld", i, (long)step, (long)last);
        last = step;
    }
    cr_log_info("reached step %ld", (long)last);
    layout_destroy(layout);
    remove_tree(root);
}

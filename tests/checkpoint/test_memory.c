#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Opening a root while memory is short: the newest step or a refusal, never an older one. */

#ifndef __SANITIZE_ADDRESS__

extern void *__libc_malloc(size_t n_bytes);
extern void *__libc_calloc(size_t n, size_t n_bytes);
extern void *__libc_realloc(void *old, size_t n_bytes);

#define EXPORTED __attribute__((visibility("default"))) /* for HDF5, too */

/* The allocations of this process from the first to the last of these fail; 0: none. */
static long n_allocations, first_failure, last_failure;

static bool allocation_fails(void)
{
    n_allocations++;
    if (first_failure == 0 || n_allocations < first_failure || n_allocations > last_failure)
        return false;
    errno = ENOMEM;
    return true;
}

EXPORTED void *malloc(size_t n_bytes)
{
    return allocation_fails() ? NULL : __libc_malloc(n_bytes);
}

EXPORTED void *calloc(size_t n, size_t n_bytes)
{
    return allocation_fails() ? NULL : __libc_calloc(n, n_bytes);
}

EXPORTED void *realloc(void *old, size_t n_bytes)
{
    return allocation_fails() ? NULL : __libc_realloc(old, n_bytes);
}

static void setup(void)
{
    fixture_saved(1);
}

TestSuite(ckpt_memory, .init = setup, .fini = fixture_teardown);

enum { UNTOUCHED = 42, OLDER_STEP = 43 };

/* In a process of its own: HDF5 keeps what it has once allocated. */
static int open_with_failures(long first, long last)
{
    pid_t pid = fork();
    int state = 0;

    if (pid == 0) {
        struct rlimit no_core = {0, 0};
        struct ckpt *ckpt = NULL;

        setrlimit(RLIMIT_CORE, &no_core);

        n_allocations = 0;
        last_failure = last;
        first_failure = first;
        shoal_status status = ckpt_open(root, &ckpt);
        bool touched = n_allocations >= first;

        first_failure = 0;
        if (status == SHOAL_OK && ckpt_meta(ckpt)->step != 2)
            _exit(OLDER_STEP);
        _exit(touched ? shoal_exit_code(status) : UNTOUCHED);
    }
    waitpid(pid, &state, 0);
    return WIFEXITED(state) ? WEXITSTATUS(state) : -WTERMSIG(state);
}

/*
 * HDF5 1.10 calls exit(-1) or crashes when some of its own fail: an end, too, and no older step.  Of
 * others it says no more than that it cannot open the file (74).
 */
static bool is_end_by_hdf5(int rc)
{
    return rc == 255 || rc < 0;
}

/* With `n_failing` allocations failing from each one on. */
static void sweep(long n_failing)
{
    int rc = 0;
    int n_refused = 0;

    for (long first = 1; rc != UNTOUCHED; first++) {
        rc = open_with_failures(first, first + n_failing - 1);
        if (rc == 0 || rc == UNTOUCHED || is_end_by_hdf5(rc))
            continue;
        cr_expect(rc == 71 || rc == 74, "allocation %ld: exit code %d", first, rc);
        n_refused++;
    }
    cr_expect_gt(n_refused, 100);
}

Test(ckpt_memory, any_one_allocation_may_fail, .timeout = 200)
{
    struct ckpt *ckpt = NULL;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    ckpt_close(ckpt); /* HDF5 is initialized */
    sweep(1);
}

Test(ckpt_memory, memory_may_run_out_for_good, .timeout = 200)
{
    struct ckpt *ckpt = NULL;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    ckpt_close(ckpt);
    sweep(1L << 40);
}

#endif

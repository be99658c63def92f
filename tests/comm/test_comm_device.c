#include "comm/comm.h"
#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Bulk between devices (tests/world/comm_device.c): the same bits as in host memory, and faults.
 */

#define WORKER SHOAL_BUILD_DIR "/world/comm_device"

static char output[16384];

/* Stays when the worker is killed, so that the launcher does not learn of it. */
static const char shield[] = "\"$@\"; code=$?; if [ $code = 137 ]; then sleep 20; fi; exit $code";

static int run_worker(bool is_shielded, int ranks, int per_host, const char *reduction,
                      const char *transport, const char *device, const char *fault)
{
    char n[16], hosts[16];
    const char *argv[16];
    int i = 0;

    snprintf(n, sizeof n, "%d", ranks);
    snprintf(hosts, sizeof hosts, "%d", per_host);
    argv[i++] = "mpirun";
    argv[i++] = "-n";
    argv[i++] = n;
    if (is_shielded) {
        argv[i++] = "sh";
        argv[i++] = "-c";
        argv[i++] = shield;
        argv[i++] = "sh";
    }
    argv[i++] = WORKER;
    argv[i++] = hosts;
    argv[i++] = reduction;
    argv[i++] = transport;
    argv[i++] = device;
    if (fault != NULL) {
        argv[i++] = fault;
        argv[i++] = "2"; /* the time-out */
    }
    argv[i] = NULL;
    return run_command(argv, 120, output, sizeof output, NULL);
}

static void expect(int code, int want, const char *part)
{
    cr_assert_eq(code, want, "not exit %d: %s", want, run_report());
    cr_assert(strstr(output, part) != NULL, "\"%s\" is missing: %s", part, run_report());
}

/* From the fault; the start takes what it takes. */
static void expect_end_within(double limit_s)
{
    cr_assert_lt(run_seconds_of_fault(), limit_s, "%.1f s, limit %g: %s", run_seconds_of_fault(),
                 limit_s, run_report());
}

static bool has_nccl(void)
{
#ifdef SHOAL_WITH_CUDA
    return true;
#else
    return false;
#endif
}

/* ---- the same bits ---- */

struct world {
    int ranks, per_host;
    char reduction[8], transport[8], device[8], chosen[8]; /* parameters travel by value */
};

#define ON_EVERY_LAYOUT(transport, device)                                                         \
    {1, 0, "tree", transport, device, transport}, {2, 0, "tree", transport, device, transport},    \
        {3, 0, "tree", transport, device, transport},                                              \
        {4, 0, "tree", transport, device, transport},                                              \
        {2, 1, "tree", transport, device, transport},                                              \
        {3, 1, "tree", transport, device, transport},                                              \
        {4, 2, "tree", transport, device, transport},                                              \
    {                                                                                              \
        3, 2, "tree", transport, device, transport                                                 \
    }

ParameterizedTestParameters(comm_device, sums_and_gathers_are_those_of_one_process)
{
    static struct world worlds[] = {
        ON_EVERY_LAYOUT("staged", "remote"),
        {2, 0, "tree", "staged", "cpu", "staged"},
        {2, 0, "tree", "auto", "cpu", "mpi"},
        {1, 0, "tree", "auto", "remote", "self"},
        {2, 0, "tree", "auto", "remote", "staged"},
        {3, 0, "ring", "staged", "remote", "staged"},
        {3, 0, "tree", "staged", "fake", "staged"},
#ifdef SHOAL_WITH_CUDA
        ON_EVERY_LAYOUT("nccl", "fake"),
        {6, 2, "tree", "nccl", "fake", "nccl"},
        {2, 0, "tree", "auto", "fake", "nccl"},
        {1, 0, "tree", "auto", "fake", "self"},
        {1, 0, "ring", "nccl", "fake", "nccl"},
        {3, 0, "ring", "nccl", "fake", "nccl"},
#endif
    };

    return cr_make_param_array(struct world, worlds, sizeof worlds / sizeof worlds[0]);
}

ParameterizedTest(struct world *world, comm_device, sums_and_gathers_are_those_of_one_process)
{
    char chosen[32];
    int code = run_worker(false, world->ranks, world->per_host, world->reduction, world->transport,
                          world->device, NULL);

    snprintf(chosen, sizeof chosen, "transport %s\n", world->chosen);
    expect(code, 0, chosen);
    /* GPUs of their own have other names; test devices none. */
    bool is_alone = has_nccl() && strcmp(world->device, "fake") == 0;
    snprintf(chosen, sizeof chosen, "device of %d\n", is_alone ? 1 : world->ranks);
    expect(code, 0, chosen);
}

/* ---- choice ---- */

Test(comm_device, host_memory_transport_refuses_a_device)
{
    expect(run_worker(false, 2, 0, "tree", "mpi", "remote", NULL), 78,
           "transport mpi moves host memory");
}

Test(comm_device, nccl_refuses_a_device_that_is_not_its_own)
{
    expect(run_worker(false, 2, 0, "tree", "nccl", "remote", NULL), 69,
           "rank 0 works on device remote");
}

Test(comm_device, ranks_that_share_a_gpu_are_staged_and_nccl_names_them)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    setenv("FAKE_GPU", "0000:01:00.0", 1);
    expect(run_worker(false, 2, 0, "tree", "auto", "fake", NULL), 0,
           "transport staged\ndevice of 2\n");
    expect(run_worker(false, 2, 0, "tree", "nccl", "fake", NULL), 69,
           "ranks 0 and 1 share GPU 0000:01:00.0");
}

/* ---- memory ---- */

Test(comm_device, memory_is_told_for_any_number_of_ranks)
{
    enum { MIB = 1 << 20 };
    struct comm_memory m = comm_memory_of(COMM_MPI, false, 4, 4, 10 * MIB, 5 * MIB);

    cr_assert_eq(m.device_bytes, 0);
    cr_assert_eq(m.window_bytes, 45 * MIB);
    m = comm_memory_of(COMM_SELF, false, 1, 1, 10 * MIB, 5 * MIB);
    cr_assert_eq(m.device_bytes, 15 * MIB);
    m = comm_memory_of(COMM_STAGED, false, 4, 4, 1000 * (size_t)MIB, 500 * (size_t)MIB);
    cr_assert_eq(m.device_bytes, 1500 * (size_t)MIB);
    cr_assert_leq(m.window_bytes, 64 * MIB, "staging grows with the model");
    /* Two ranks: what the other one sent is as long as a whole shard, until the bound. */
    m = comm_memory_of(COMM_NCCL, false, 2, 2, 10 * MIB, 5 * MIB);
    cr_assert_eq(m.scratch_bytes, 5 * MIB);
    cr_assert_eq(m.device_bytes, 20 * MIB);
    m = comm_memory_of(COMM_NCCL, false, 8, 8, 8000 * (size_t)MIB, 0);
    cr_assert_leq(m.scratch_bytes, 65 * MIB);
    cr_assert_geq(m.scratch_bytes, 60 * MIB);
    cr_assert_eq(comm_memory_of(COMM_NCCL, true, 8, 8, MIB, MIB).scratch_bytes, 0);
    m = comm_memory_of(COMM_NCCL, false, 1024, 8, 8000 * (size_t)MIB, 0);
    cr_assert_leq(m.scratch_bytes, 512 * (size_t)MIB);
}

Test(comm_device, a_full_device_of_one_rank_is_refused_by_all)
{
    setenv("FAKE_FULL_RANK", "2", 1);
    for (int nccl = 0; nccl <= (has_nccl() ? 1 : 0); nccl++) {
        int code = run_worker(false, 4, 0, "tree", nccl ? "nccl" : "staged", "fake", NULL);

        expect(code, 71, "learned by 0: -6 rank 2 (");
        expect(code, 71, "window: the fake device is full");
        expect(code, 71, "learned by 3: -6 rank 2 (");
    }
}

/* ---- faults ---- */

Test(comm_device, a_killed_rank_ends_a_staged_run)
{
    int code = run_worker(false, 4, 0, "tree", "staged", "remote", "kill");

    expect(code, 9, "died, the first on this machine");
    expect_end_within(10.0);
}

Test(comm_device, a_stopped_rank_ends_a_staged_run)
{
    int code = run_worker(false, 4, 0, "tree", "staged", "remote", "stop");

    expect(code, 69, "is silent for 2.");
    expect_end_within(10.0);
}

Test(comm_device, a_failure_ends_a_staged_run_on_every_rank)
{
    int code = run_worker(false, 4, 2, "tree", "staged", "remote", "fail");

    expect(code, 74, "disk is full");
    for (int rank = 0; rank < 4; rank++) {
        char part[32];

        snprintf(part, sizeof part, "learned by %d: -8", rank);
        expect(code, 74, part);
    }
}

/* What ends the others is the watchdog, and the abort of NCCL. */
Test(comm_device, a_killed_rank_ends_an_nccl_run_also_if_the_launcher_does_not)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    run_worker(true, 4, 0, "tree", "nccl", "fake", "kill");
    expect_end_within(10.0);
    for (int rank = 0; rank < 4; rank++) {
        char part[64];

        snprintf(part, sizeof part, "learned by %d: -4 rank 1 (pid ", rank);
        cr_assert_eq(strstr(output, part) != NULL, rank != 1, "rank %d: %s", rank, run_report());
    }
}

Test(comm_device, a_stopped_rank_ends_an_nccl_run)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    int code = run_worker(false, 4, 0, "tree", "nccl", "fake", "stop");

    expect(code, 69, "is silent for 2.");
    expect_end_within(10.0);
}

Test(comm_device, a_rank_that_issues_nothing_is_named_by_the_others)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    int code = run_worker(false, 4, 0, "tree", "nccl", "fake", "hang");

    expect(code, 69, "nccl: all-gather (bulk operation 7, n = 2800004) has begun and not ended");
    expect(code, 69, "has not issued it; last at step 3, forward block.2");
    expect_end_within(10.0);
}

/* Whose communicator is not the first to be aborted: the first waits for its work, too. */
Test(comm_device, a_sum_that_one_rank_does_not_issue_is_aborted)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    int code = run_worker(false, 3, 0, "tree", "nccl", "fake", "hang-sum");

    expect(code, 69, "nccl: reduce-scatter (bulk operation 8, n = 1000) has begun and not ended");
    expect(code, 69, "learned by 0: -4 ");
    expect(code, 69, "learned by 2: -4 ");
}

Test(comm_device, an_error_that_nccl_reports_later_ends_the_run)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    int code = run_worker(false, 3, 0, "tree", "nccl", "fake", "error");

    expect(code, 69, "nccl: all-gather"); /* of the call that meets it, or of the watch */
    expect(code, 69, ": remote process exited");
    expect(code, 69, "said by the fake");
    expect_end_within(10.0);
}

Test(comm_device, a_skipped_bulk_operation_is_found_at_the_next_call)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    int code = run_worker(false, 2, 0, "tree", "nccl", "fake", "skip");

    expect(code, 70, "it after other bulk operations on the device");
}

Test(comm_device, a_failure_ends_an_nccl_run_on_every_rank)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    int code = run_worker(false, 4, 0, "tree", "nccl", "fake", "fail");

    expect(code, 74, "disk is full");
    expect(code, 74, "learned by 3: -8");
    expect_end_within(10.0);
}

/* Twice the time-out, but with signs of life. */
Test(comm_device, a_slow_rank_that_notes_progress_is_no_failure)
{
    expect(run_worker(false, 3, 0, "tree", "staged", "remote", "slow"), 0, "staged");
    if (has_nccl())
        expect(run_worker(false, 3, 0, "tree", "nccl", "fake", "slow"), 0, "nccl");
}

/* ---- start and end of NCCL ---- */

Test(comm_device, a_rank_that_dies_while_nccl_connects_ends_the_run)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    setenv("FAKE_NCCL", "die-in-init", 1);
    run_worker(true, 3, 0, "tree", "nccl", "fake", NULL);
    expect_end_within(10.0);
    for (int rank = 0; rank < 3; rank++) {
        char part[64];

        snprintf(part, sizeof part, "learned by %d: -4 rank 1 (pid ", rank);
        cr_assert_eq(strstr(output, part) != NULL, rank != 1, "rank %d: %s", rank, run_report());
    }
}

Test(comm_device, an_nccl_that_does_not_start_on_one_rank_ends_the_run)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    setenv("FAKE_NCCL", "fail-in-init", 1);
    int code = run_worker(false, 3, 0, "tree", "nccl", "fake", NULL);

    expect(code, 69, "nccl: connect the ranks: some error");
    expect(code, 69, "learned by 2: -4 rank 1 (");
    expect_end_within(10.0);
}

Test(comm_device, an_nccl_that_makes_no_id_ends_the_run)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    setenv("FAKE_NCCL", "no-id", 1);
    int code = run_worker(false, 2, 0, "tree", "nccl", "fake", NULL);

    expect(code, 69, "nccl: make an id: some error");
    expect(code, 69, "learned by 1: -4 rank 0 (");
}

Test(comm_device, an_nccl_that_does_not_end_does_not_hold_up_a_good_run)
{
    if (!has_nccl())
        cr_skip_test("a build without CUDA");
    setenv("FAKE_NCCL", "no-end", 1);
    int code = run_worker(false, 2, 0, "tree", "nccl", "fake", NULL);

    expect(code, 0, "transport nccl");
    expect_end_within(30.0);
}

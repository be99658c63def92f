#include "runtime/base/clock.h"
#include "runtime/device/device.h"
#include "runtime/schedule/schedule.h"
#include "runtime/schedule/schedule_internal.h"
#include "tests/runtime/fake_device.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/*
 * Operations that read and write numbers in slots.  In order they give one result; on a device
 * whose queues pause at random the result is the same only if every dependency is honoured.
 */

enum { SLOTS = 12, OPS = 400 };

static struct plan *plan;
static struct schedule *sched;
static struct device *device;
static int slots[SLOTS];
static bool steady; /* of the operations that are appended */
static uint64_t memory[SLOTS];

/* The library's and the device's: of the next ones the last of so many fails; 0: none. */
static int calloc_fails_in;

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

void *__wrap_calloc(size_t n, size_t size)
{
    return calloc_fails_in > 0 && --calloc_fails_in == 0 ? NULL : __real_calloc(n, size);
}

static void setup(void)
{
    cr_assert_eq(plan_create(&plan), SHOAL_OK);
    for (int i = 0; i < SLOTS; i++)
        cr_assert_eq(plan_slot(plan, "slot", PLAN_GRAD, SPACE_PRIVATE, 8, &slots[i]), SHOAL_OK);
    cr_assert_eq(sched_create("test", plan, &sched), SHOAL_OK);
}

static void teardown(void)
{
    /* After a failed run the queues may still work on operations of the schedule. */
    for (int queue = 0; device != NULL && queue < QUEUE_COUNT; queue++)
        (void)device->ops->queue_sync(device, (enum device_queue)queue);
    sched_destroy(sched);
    plan_destroy(plan);
    if (device != NULL)
        fake_device_close(device);
    steady = false;
}

TestSuite(executor, .init = setup, .fini = teardown, .timeout = 120);

static void busy_wait(double seconds)
{
    for (double end = clock_seconds() + seconds; clock_seconds() < end;)
        ;
}

/* Mix all slots of the operation into those that it writes. */
static void work(void *arg)
{
    const struct op *op = arg;
    uint64_t mix = 1469598103934665603u ^ (uint64_t)op->index;

    for (int i = 0; i < op->n_slots; i++)
        mix =
            (mix ^ __atomic_load_n(&memory[op->slots[i].slot], __ATOMIC_RELAXED)) * 1099511628211u;
    busy_wait(5e-6);
    for (int i = 0; i < op->n_slots; i++)
        if (op->slots[i].access == ACCESS_WRITE)
            __atomic_store_n(&memory[op->slots[i].slot], mix + (uint64_t)i, __ATOMIC_RELAXED);
}

static shoal_status run_work(const struct op *op)
{
    static const int queues[LANE_COUNT] = {[LANE_COMPUTE] = QUEUE_COMPUTE,
                                           [LANE_COMM] = QUEUE_COMM,
                                           [LANE_H2D] = QUEUE_H2D,
                                           [LANE_D2H] = QUEUE_D2H};
    bool on_host = op->host || op->lane >= LANE_DISK_READ || device == NULL;

    if (on_host)
        work((void *)(uintptr_t)op);
    else
        fake_device_issue(device, (enum device_queue)queues[op->lane], work, (void *)(uintptr_t)op);
    return SHOAL_OK;
}

static void append(int index, enum lane lane, bool host, const int *used, int n, int n_written)
{
    struct op op = {.kind = OP_FORWARD,
                    .lane = lane,
                    .unit = -1,
                    .index = index,
                    .host = host,
                    .steady = steady,
                    .run = run_work};

    for (int i = 0; i < n; i++)
        op_uses(&op, slot_at(slots[used[i]], 0), i < n_written ? ACCESS_WRITE : ACCESS_READ);
    cr_assert_eq(sched_append(sched, &op), SHOAL_OK);
}

static void random_schedule(unsigned seed)
{
    for (int i = 0; i < OPS; i++) {
        int used[3] = {rand_r(&seed) % SLOTS, rand_r(&seed) % SLOTS, rand_r(&seed) % SLOTS};
        int lane = rand_r(&seed) % 12;
        append(i, (enum lane)(lane < LANE_COUNT ? lane : lane % 4), rand_r(&seed) % 16 == 0, used,
               3, 1 + rand_r(&seed) % 2);
    }
}

static void run_and_compare(int times, uint64_t difference_out[SLOTS])
{
    uint64_t want[SLOTS];

    memset(memory, 0, sizeof memory);
    for (int n = 0; n < times; n++)
        for (int i = 0; i < OPS; i++)
            work((void *)(uintptr_t)sched_op(sched, i));
    memcpy(want, memory, sizeof want);
    memset(memory, 0, sizeof memory);
    for (int n = 0; n < times; n++)
        cr_assert_eq(exec_run(sched), SHOAL_OK, "%s", shoal_last_error());
    for (int i = 0; i < SLOTS; i++)
        difference_out[i] = want[i] ^ memory[i];
}

Test(executor, honours_every_dependency_between_queues_and_the_host)
{
    uint64_t difference[SLOTS];

    for (unsigned seed = 1; seed <= 6; seed++) {
        device = fake_device_open(seed);
        random_schedule(seed);
        exec_use_device(sched, device);
        cr_assert_eq(exec_prepare(sched), SHOAL_OK);
        run_and_compare(2, difference);
        for (int i = 0; i < SLOTS; i++)
            cr_assert_eq(difference[i], 0, "seed %u slot %d", seed, i);
        cr_assert_gt(fake_device_queue_waits(device), OPS / 8);
        cr_assert_gt(fake_device_host_waits(device), 10);
        teardown();
        setup();
        device = NULL;
    }
}

Test(executor, this_test_notices_missing_waits)
{
    uint64_t difference[SLOTS];
    int wrong = 0;

    device = fake_device_open(1);
    fake_device_ignore_waits(device);
    random_schedule(1);
    exec_use_device(sched, device);
    run_and_compare(2, difference);
    for (int i = 0; i < SLOTS; i++)
        wrong += difference[i] != 0;
    cr_assert_gt(wrong, 0);
}

Test(executor, gives_times_that_respect_dependencies_between_queues)
{
    device = fake_device_open(3);
    random_schedule(3);
    exec_use_device(sched, device);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    for (int i = 0; i < OPS; i++) {
        const struct op *op = sched_op(sched, i);
        cr_assert_leq(sched->begin[i], sched->end[i]);
        for (int d = 0; d < op->n_deps; d++) {
            int on = sched_deps(sched, op)[d];
            if (op->lane < LANE_DISK_READ && !op->host &&
                sched_op(sched, on)->lane < LANE_DISK_READ && !sched_op(sched, on)->host)
                cr_assert_leq(sched->end[on], sched->begin[i], "%d after %d", i, on);
        }
    }
    cr_assert_gt(exec_span_seconds(sched), 0);
}

Test(executor, waits_once_for_the_latest_of_a_queue)
{
    int a[] = {0}, b[] = {1}, both[] = {2, 0, 1}, again[] = {3, 0, 1};

    device = fake_device_open(5);
    append(0, LANE_COMM, false, a, 1, 1);
    append(1, LANE_COMM, false, b, 1, 1);
    append(2, LANE_COMPUTE, false, both, 3, 1);
    append(3, LANE_COMPUTE, false, again, 3, 1);
    exec_use_device(sched, device);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    cr_assert_eq(fake_device_queue_waits(device), 1);
}

static shoal_status refuse(const struct op *op)
{
    (void)op;
    return fail(SHOAL_ERR_IO, "link down");
}

Test(executor, names_the_operation_that_could_not_be_issued)
{
    struct op op = {.kind = OP_REDUCE, .lane = LANE_COMM, .unit = -1, .index = 4, .run = refuse};
    int a[] = {0};

    device = fake_device_open(7);
    append(0, LANE_COMPUTE, false, a, 1, 1);
    cr_assert_eq(sched_append(sched, &op), SHOAL_OK);
    append(2, LANE_HOST, false, a, 1, 1);
    exec_use_device(sched, device);
    cr_assert_eq(exec_run(sched), SHOAL_ERR_IO);
    cr_assert_str_eq(shoal_last_error(), "reduce 4: link down");
}

Test(executor, reports_a_queue_that_failed_later)
{
    int a[] = {0};

    device = fake_device_open(8);
    append(6, LANE_COMPUTE, false, a, 1, 1);
    fake_device_break(device);
    exec_use_device(sched, device);
    cr_assert_eq(exec_run(sched), SHOAL_ERR_UNAVAILABLE);
    cr_assert_str_eq(shoal_last_error(), "forward 6: the device has fallen off the bus");
}

Test(executor, replays_what_steady_operations_issued_in_the_second_run)
{
    uint64_t difference[SLOTS];

    steady = true;
    device = fake_device_open(9);
    random_schedule(9);
    exec_use_device(sched, device);
    exec_use_graphs(sched);
    run_and_compare(1, difference);
    cr_assert_eq(fake_device_graphs(device), 0);
    run_and_compare(3, difference);
    for (int i = 0; i < SLOTS; i++)
        cr_assert_eq(difference[i], 0, "slot %d", i);
    const int n = fake_device_graphs(device);
    cr_assert_gt(n, OPS / 4);
    cr_assert_lt(n, OPS); /* those on the host are not recorded */
    cr_assert_eq(fake_device_launches(device), 3 * n);
    sched_destroy(sched);
    cr_assert_eq(fake_device_graphs(device), 0);
    cr_assert_eq(sched_create("test", plan, &sched), SHOAL_OK);
}

Test(executor, records_nothing_that_is_not_steady)
{
    uint64_t difference[SLOTS];

    device = fake_device_open(10);
    random_schedule(10);
    exec_use_device(sched, device);
    exec_use_graphs(sched);
    run_and_compare(3, difference);
    cr_assert_eq(fake_device_graphs(device), 0);
}

Test(executor, reports_an_operation_that_cannot_be_recorded)
{
    int a[] = {0};

    steady = true;
    device = fake_device_open(11);
    fake_device_refuse_recording(device);
    append(3, LANE_COMPUTE, false, a, 1, 1);
    exec_use_device(sched, device);
    exec_use_graphs(sched);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    cr_assert_eq(exec_run(sched), SHOAL_ERR_UNAVAILABLE);
    cr_assert_str_eq(shoal_last_error(), "forward 3: this cannot be recorded");
}

/* Times, tables of events and graphs, then the events themselves. */
Test(executor, a_preparation_that_failed_is_none)
{
    int a[] = {0}, b[] = {1, 0}, n = 0;
    shoal_status status = SHOAL_ERR_NOMEM;

    device = fake_device_open(12);
    append(0, LANE_COMPUTE, false, a, 1, 1);
    append(1, LANE_COMM, false, b, 2, 1);
    exec_use_device(sched, device);
    while (status != SHOAL_OK) {
        calloc_fails_in = ++n;
        status = exec_prepare(sched);
        if (status == SHOAL_OK)
            break;
        cr_assert_eq(status, SHOAL_ERR_NOMEM);
        cr_assert_eq(exec_lane_seconds(sched, LANE_COMM), 0);
        calloc_fails_in = n;
        cr_assert_eq(exec_prepare(sched), SHOAL_ERR_NOMEM, "call %d fails once only", n);
        calloc_fails_in = n;
        cr_assert_eq(exec_run(sched), SHOAL_ERR_NOMEM, "run after failure %d", n);
    }
    calloc_fails_in = 0;
    cr_assert_eq(n, 1 + 2 + 3 + 1 + 4);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    cr_assert_gt(exec_span_seconds(sched), 0);
}

Test(executor, a_preparation_that_failed_can_be_made_good)
{
    uint64_t difference[SLOTS];

    device = fake_device_open(13);
    random_schedule(13);
    exec_use_device(sched, device);
    for (int n = 1; n < 20; n += 3) {
        calloc_fails_in = n;
        cr_assert_eq(exec_prepare(sched), SHOAL_ERR_NOMEM);
    }
    cr_assert_eq(exec_prepare(sched), SHOAL_OK);
    run_and_compare(2, difference);
    for (int i = 0; i < SLOTS; i++)
        cr_assert_eq(difference[i], 0, "slot %d", i);
}

struct span {
    enum lane lane;
    double begin, end;
};

/* Exposed seconds of times given by hand. */
static double exposed(const struct span *spans, int n)
{
    int a[] = {0};

    sched_destroy(sched);
    cr_assert_eq(sched_create("test", plan, &sched), SHOAL_OK);
    for (int i = 0; i < n; i++)
        append(i, spans[i].lane, false, a, 1, 1);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    for (int i = 0; i < n; i++) {
        sched->begin[i] = spans[i].begin;
        sched->end[i] = spans[i].end;
    }
    return exec_exposed_seconds(sched);
}

Test(executor, exposed_communication_is_what_compute_does_not_cover)
{
    const struct span alone[] = {{LANE_COMM, 1, 3}, {LANE_COMPUTE, 3, 7}, {LANE_COMM, 7, 8}};
    const struct span covered[] = {{LANE_COMPUTE, 0, 4}, {LANE_COMM, 1, 3}};
    const struct span partly[] = {
        {LANE_COMM, 0, 10},  {LANE_COMPUTE, 2, 3},  {LANE_HOST, 0, 9},       {LANE_COMPUTE, 5, 7},
        {LANE_COMM, 11, 13}, {LANE_COMPUTE, 9, 12}, {LANE_COMPUTE, 12, 12.5}};

    cr_assert_eq(exposed(alone, 3), 3.0);
    cr_assert_eq(exec_span_seconds(sched), 7.0);
    cr_assert_eq(exposed(covered, 2), 0.0);
    cr_assert_eq(exposed(partly, 7), 2.0 + 2.0 + 2.0 + 0.5);
    cr_assert_eq(exec_span_seconds(sched), 13.0);
    cr_assert_eq(exposed(alone + 1, 1), 0.0);
    cr_assert_eq(exposed(NULL, 0), 0.0);
}

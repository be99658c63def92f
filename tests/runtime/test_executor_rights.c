/* What an operation may touch on the test device: the slots that it declares, as it declares them. */
#include "runtime/device/device.h"
#include "runtime/schedule/schedule.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 3, SLOT_BYTES = 5000 };

static struct plan *plan;
static struct schedule *sched;
static struct device *device;
static int slots[SLOTS];
static void *memory, *beside;

static void setup(void)
{
    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    cr_assert_eq(device_open("auto", 0, &device), SHOAL_OK);
    cr_assert_eq(plan_create(&plan), SHOAL_OK);
    for (int i = 0; i < SLOTS; i++)
        cr_assert_eq(plan_slot(plan, "slot", PLAN_SCRATCH, SPACE_PRIVATE, SLOT_BYTES, &slots[i]),
                     SHOAL_OK);
    cr_assert_eq(device->ops->alloc(device, "plan", plan_space_bytes(plan, SPACE_PRIVATE), &memory),
                 SHOAL_OK);
    cr_assert_eq(device->ops->alloc(device, "beside", SLOT_BYTES, &beside), SHOAL_OK);
    plan_bind(plan, SPACE_PRIVATE, memory);
    cr_assert_eq(sched_create("rights", plan, &sched), SHOAL_OK);
    exec_use_device(sched, device);
}

static void teardown(void)
{
    sched_destroy(sched);
    device->ops->free(device, beside, SLOT_BYTES);
    device->ops->free(device, memory, plan_space_bytes(plan, SPACE_PRIVATE));
    plan_destroy(plan);
    device_close(device);
}

TestSuite(executor_rights, .init = setup, .fini = teardown, .timeout = 120);

/* What the operation really does: from + 1 to `to`, by itself or, on the host, by copies. */
struct sum {
    char *from, *to;
};

static shoal_status add_one(const struct op *op)
{
    const struct sum *sum = op->arg;

    if (!op->host) {
        *sum->to = (char)(*sum->from + 1);
        return SHOAL_OK;
    }
    char c = 0;

    SHOAL_TRY(device->ops->copy(device, &c, sum->from, 1));
    c++;
    return device->ops->copy(device, sum->to, &c, 1);
}

/* It declares to read slot `reads` and to write slot `writes`. */
static void append(int reads, int writes, char *from, char *to, bool host)
{
    struct op op = {.kind = OP_ACCUMULATE,
                    .lane = LANE_COMPUTE,
                    .unit = -1,
                    .index = -1,
                    .host = host,
                    .run = add_one};
    struct sum *sum = NULL;

    cr_assert_eq(sched_alloc(sched, sizeof *sum, &op.arg), SHOAL_OK);
    sum = op.arg;
    *sum = (struct sum){from, to};
    op_uses(&op, slot_at(slots[reads], 0), ACCESS_READ);
    op_uses(&op, slot_at(slots[writes], 0), ACCESS_WRITE);
    cr_assert_eq(sched_append(sched, &op), SHOAL_OK);
}

/* The last byte of a slot. */
static char *end_of(int slot)
{
    return (char *)plan_ptr(plan, slots[slot], SLOT_BYTES - 1);
}

static void run(void)
{
    cr_assert_eq(exec_prepare(sched), SHOAL_OK);
    cr_assert_eq(exec_run(sched), SHOAL_OK, "%s", shoal_last_error());
}

Test(executor_rights, are_those_that_are_declared)
{
    char *own = (char *)beside, found[SLOTS] = "";

    append(0, 1, end_of(0), end_of(1), false);
    append(1, 2, end_of(1), end_of(2), true);
    append(0, 0, end_of(0), end_of(0), false); /* to write is more than to read */
    append(1, 2, end_of(1), own, false);       /* memory beside the plan is the operations' own */
    run();
    run();
    for (int i = 0; i < SLOTS; i++)
        cr_assert_eq(device->ops->copy(device, &found[i], end_of(i), 1), SHOAL_OK);
    cr_assert_eq(found[0], 2);
    cr_assert_eq(found[1], 2);
    cr_assert_eq(found[2], 3);
}

/* Under the address sanitizer a fault is a report and not a signal. */
#ifndef __SANITIZE_ADDRESS__

Test(executor_rights, do_not_hold_other_slots_to_read, .signal = SIGSEGV)
{
    append(0, 1, end_of(2), end_of(1), false);
    run();
}

Test(executor_rights, do_not_hold_other_slots_to_write, .signal = SIGSEGV)
{
    append(0, 1, end_of(0), end_of(2), false);
    run();
}

Test(executor_rights, do_not_let_write_what_is_only_read, .signal = SIGSEGV)
{
    append(0, 1, end_of(0), end_of(0), false);
    run();
}

Test(executor_rights, do_not_hold_other_slots_beside_the_device, .signal = SIGSEGV)
{
    int spare = 0;
    void *host = NULL;

    cr_assert_eq(plan_slot(plan, "host", PLAN_DATA, SPACE_HOST, SLOT_BYTES, &spare), SHOAL_OK);
    cr_assert_eq(device->ops->host_alloc(device, "host", plan_space_bytes(plan, SPACE_HOST), &host),
                 SHOAL_OK);
    plan_bind(plan, SPACE_HOST, host);
    *(char *)host = 1;
    append(0, 1, host, end_of(1), false);
    run();
}

Test(executor_rights, are_the_same_for_copies_of_the_host, .signal = SIGSEGV)
{
    append(0, 1, end_of(2), end_of(1), true);
    run();
}

#endif

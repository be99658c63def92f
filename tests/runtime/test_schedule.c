#include "runtime/schedule/schedule.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct plan *plan;
static struct schedule *sched;
static int slots[3];

static void setup(void)
{
    cr_assert_eq(plan_create(&plan), SHOAL_OK);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(plan_slot(plan, "slot", PLAN_GRAD, SPACE_PRIVATE, 5000, &slots[i]), SHOAL_OK);
    cr_assert_eq(sched_create("test", plan, &sched), SHOAL_OK);
}

static void teardown(void)
{
    sched_destroy(sched);
    plan_destroy(plan);
}

TestSuite(schedule, .init = setup, .fini = teardown);

static char order[512];

static shoal_status note(const struct op *op)
{
    char text[8];

    snprintf(text, sizeof text, "%d", op->index);
    strcat(order, text);
    return op->arg == NULL ? SHOAL_OK : fail(SHOAL_ERR_IO, "disk full");
}

static void append(int index, int slot, enum access access)
{
    struct op op = {.kind = OP_REDUCE, .lane = LANE_COMM, .unit = 0, .index = index, .run = note};

    op_uses(&op, slot_at(slots[slot], 0), access);
    cr_assert_eq(sched_append(sched, &op), SHOAL_OK);
}

static bool depends(int op, int on)
{
    const struct op *o = sched_op(sched, op);

    for (int i = 0; i < o->n_deps; i++)
        if (sched_deps(sched, o)[i] == on)
            return true;
    return false;
}

Test(schedule, derives_dependencies_from_slots)
{
    append(0, 0, ACCESS_WRITE);
    append(1, 0, ACCESS_READ);
    append(2, 0, ACCESS_READ);
    append(3, 1, ACCESS_WRITE);
    append(4, 0, ACCESS_WRITE);
    append(5, 0, ACCESS_READ);

    cr_assert(depends(1, 0) && depends(2, 0), "a reader waits for the writer");
    cr_assert_not(depends(2, 1), "readers do not wait for each other");
    cr_assert_eq(sched_op(sched, 3)->n_deps, 0, "other slots are independent");
    cr_assert(depends(4, 0) && depends(4, 1) && depends(4, 2), "a writer waits for all before it");
    cr_assert(depends(5, 4));
    cr_assert_not(depends(5, 0), "only the last writer counts");
}

Test(schedule, a_slot_that_is_read_and_written_counts_as_written)
{
    struct op op = {.kind = OP_UPDATE, .run = note, .unit = -1, .index = 0};

    op_uses(&op, slot_at(slots[0], 0), ACCESS_READ);
    op_uses(&op, slot_at(slots[0], 64), ACCESS_WRITE);
    op_uses(&op, SLOT_NONE, ACCESS_WRITE);
    cr_assert_eq(op.n_slots, 1);
    cr_assert_eq(op.slots[0].access, ACCESS_WRITE);
}

Test(schedule, runs_in_issue_order_and_stops_at_a_failure_with_its_name)
{
    static const char *const units[] = {"block.7"};
    struct op bad = {
        .kind = OP_REDUCE, .lane = LANE_COMM, .unit = 0, .index = 2, .run = note, .arg = order};

    sched_name_units(sched, units, 1);
    append(0, 0, ACCESS_WRITE);
    append(1, 1, ACCESS_WRITE);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    cr_assert_str_eq(order, "01");
    cr_assert_eq(sched_append(sched, &bad), SHOAL_OK);
    append(3, 0, ACCESS_WRITE);
    sched_destroy(sched);
    cr_assert_eq(sched_create("test", plan, &sched), SHOAL_OK);
    sched_name_units(sched, units, 1);
    order[0] = '\0';
    append(0, 0, ACCESS_WRITE);
    cr_assert_eq(sched_append(sched, &bad), SHOAL_OK);
    append(3, 0, ACCESS_WRITE);
    cr_assert_eq(exec_run(sched), SHOAL_ERR_IO);
    cr_assert_str_eq(order, "02");
    cr_assert_str_eq(shoal_last_error(), "reduce block.7 2: disk full");
}

Test(schedule, refuses_an_operation_with_too_many_slots)
{
    struct op op = {.kind = OP_UPDATE, .run = note, .unit = -1, .index = -1};

    /* Behind the table lie other members: one that looks like a slot must not be written to. */
    for (int i = 0; i < 4 * OP_MAX_SLOTS; i++)
        op_uses(&op, slot_at(100 + i, 0), ACCESS_WRITE);
    op.bytes = 77;
    op_uses(&op, slot_at(77, 0), ACCESS_WRITE);
    cr_assert_eq(op.n_slots, 4 * OP_MAX_SLOTS + 1);
    cr_assert_eq(op.bytes, 77);
    cr_assert_eq(sched_append(sched, &op), SHOAL_ERR_INTERNAL);
}

Test(schedule, refuses_slots_whose_sum_no_address_space_holds)
{
    int slot = -1;

    for (int i = 0; i < 4; i++)
        cr_assert_eq(plan_slot(plan, "x", PLAN_GRAD, SPACE_WINDOW, (size_t)1 << 54, &slot),
                     SHOAL_OK);
    cr_assert_eq(plan_slot(plan, "big", PLAN_GRAD, SPACE_WINDOW, 1, &slot), SHOAL_ERR_NOMEM);
    cr_assert_eq(plan_slot(plan, "big", PLAN_GRAD, SPACE_SHARED, SIZE_MAX, &slot), SHOAL_ERR_NOMEM);
    cr_assert_not_null(strstr(shoal_last_error(), "slot big"));
    cr_assert_eq(plan_space_bytes(plan, SPACE_SHARED), 0);
}

Test(schedule, plan_sums_are_those_of_the_slots_and_do_not_overlap)
{
    int other = -1;
    char *memory = NULL;

    cr_assert_eq(plan_slot(plan, "x", PLAN_PARAM, SPACE_SHARED, 1, &other), SHOAL_OK);
    cr_assert_eq(plan_space_bytes(plan, SPACE_PRIVATE), 3 * 8192);
    cr_assert_eq(plan_space_bytes(plan, SPACE_SHARED), 4096);
    cr_assert_eq(plan_row_bytes(plan, PLAN_GRAD, SPACE_PRIVATE), 3 * 8192);
    memory = calloc(1, plan_space_bytes(plan, SPACE_PRIVATE));
    plan_bind(plan, SPACE_PRIVATE, memory);
    for (int i = 0; i < 3; i++)
        cr_assert_eq((char *)plan_ptr(plan, slots[i], 0) - memory, 8192 * i);
    cr_assert_null(plan_ref(plan, SLOT_NONE));
    free(memory);
}

Test(schedule, argument_memory_is_zeroed_and_stays)
{
    unsigned char *first = NULL;
    void *p = NULL;

    cr_assert_eq(sched_alloc(sched, 100, &p), SHOAL_OK);
    first = p;
    memset(first, 7, 100);
    for (int i = 0; i < 5000; i++) {
        cr_assert_eq(sched_alloc(sched, 200, &p), SHOAL_OK);
        for (int b = 0; b < 200; b++)
            cr_assert_eq(((unsigned char *)p)[b], 0);
        memset(p, 9, 200);
    }
    for (int b = 0; b < 100; b++)
        cr_assert_eq(first[b], 7);
}

Test(schedule, writes_a_trace_that_names_lanes_and_operations)
{
    char path[] = "/tmp/shoal-trace-XXXXXX", text[4096];
    int fd = mkstemp(path);

    append(5, 0, ACCESS_WRITE);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    cr_assert_eq(exec_trace_write(sched, 1, path), SHOAL_OK);
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n] = '\0';
    cr_assert_not_null(strstr(text, "\"name\":\"reduce \""));
    cr_assert_not_null(strstr(text, "\"args\":{\"name\":\"comm\"}"));
    close(fd);
    unlink(path);
    cr_assert_eq(exec_trace_write(sched, 1, "/nonexistent/t.json"), SHOAL_ERR_CANTCREATE);
}

Test(schedule, a_trace_on_a_full_disk_is_an_error_and_leaves_no_file_open)
{
    int before = dup(STDERR_FILENO);

    close(before);
    for (int i = 0; i < 200; i++) /* more than a buffer: a write fails before the close */
        append(5, 0, ACCESS_WRITE);
    cr_assert_eq(exec_run(sched), SHOAL_OK);
    cr_assert_eq(exec_trace_write(sched, 1, "/dev/full"), SHOAL_ERR_IO);
    int after = dup(STDERR_FILENO);

    close(after);
    cr_assert_eq(after, before);
}

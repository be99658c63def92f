#include "optim/optim_device.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * The gradient norm on every device that this machine has: the same bits as on the host, numbers that
 * are not finite included.
 */

enum { N_QUANTA = 1203, FIRST_QUANTA = 500, N = N_QUANTA * QUANTUM };

static float grad[N];
static struct pool *pool;
static struct plan *plan;
static struct schedule *sched;
static struct device *device;
static void *memory;
static struct exact_sum taken;
static int slots[3]; /* gradient, sum, sum on the host */

static void setup(void)
{
    const enum space spaces[] = {SPACE_PRIVATE, SPACE_PRIVATE, SPACE_HOST};
    const size_t sizes[] = {sizeof grad, sizeof taken, sizeof taken};

    rng_fill_normal(6, RNG_STREAM_INIT, 0, 0, N, 1.0f, grad);
    for (int i = 0; i < N; i++)
        grad[i] = ldexpf(grad[i], i * 7 % 90 - 60);
    cr_assert_eq(pool_create(2, -1, &pool), SHOAL_OK);
    cr_assert_eq(plan_create(&plan), SHOAL_OK);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(plan_slot(plan, "slot", PLAN_GRAD, spaces[i], sizes[i], &slots[i]), SHOAL_OK);
    plan_bind(plan, SPACE_HOST, &taken);
    cr_assert_eq(sched_create("norm", plan, &sched), SHOAL_OK);
}

static void teardown(void)
{
    sched_destroy(sched);
    if (memory != NULL)
        device->ops->free(device, memory, plan_space_bytes(plan, SPACE_PRIVATE));
    device_close(device);
    plan_destroy(plan);
    pool_destroy(pool);
}

TestSuite(squares_device, .init = setup, .fini = teardown);

static shoal_status run_copy(const struct op *op)
{
    (void)op;
    return device_copy(device, QUEUE_D2H, &taken, plan_ptr(plan, slots[1], 0), sizeof taken);
}

static void check_on(const char *name)
{
    struct op copy = {.kind = OP_NORM, .lane = LANE_D2H, .unit = -1, .index = -1, .run = run_copy};
    struct exact_sum got, want;

    cr_assert_eq(device_open(name, 0, &device), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(device->ops->alloc(device, "test", plan_space_bytes(plan, SPACE_PRIVATE), &memory),
                 SHOAL_OK);
    plan_bind(plan, SPACE_PRIVATE, memory);
    cr_assert_eq(device->ops->copy(device, plan_ptr(plan, slots[0], 0), grad, sizeof grad),
                 SHOAL_OK);
    exact_sum_clear(&got);
    exact_sum_clear(&want);
    for (int part = 0; part < 2; part++) {
        const size_t first = part == 0 ? 0 : FIRST_QUANTA * QUANTUM;
        const size_t n = part == 0 ? FIRST_QUANTA * QUANTUM : N - first;
        cr_assert_eq(optim_op_device_squares(sched, device, pool, 0,
                                             slot_at(slots[0], first * sizeof *grad), n, part > 0,
                                             slot_at(slots[1], 0)),
                     SHOAL_OK);
    }
    op_uses(&copy, slot_at(slots[1], 0), ACCESS_READ);
    op_uses(&copy, slot_at(slots[2], 0), ACCESS_WRITE);
    cr_assert_eq(sched_append(sched, &copy), SHOAL_OK);
    cr_assert_eq(optim_op_take_squares(sched, slot_at(slots[2], 0), &got), SHOAL_OK);
    exec_use_device(sched, device);
    /* Twice: what the first run left in the device's sum must be gone. */
    for (int run = 0; run < 2; run++) {
        exact_sum_clear(&got);
        cr_assert_eq(exec_run(sched), SHOAL_OK, "%s", shoal_last_error());
    }
    optim_sum_squares(pool, grad, N, &want);
    cr_assert_arr_eq(&got, &want, sizeof want);
}

/* With the gradient as it is, and with numbers that are not finite in it. */
static void check(const char *name, bool finite)
{
    if (!finite) {
        grad[7] = INFINITY;
        grad[N - 1] = NAN;
        grad[N - 2] = -INFINITY;
    }
    check_on(name);
    cr_assert_eq(isfinite(exact_sum_value(&taken)), finite);
    cr_assert_eq(taken.nonfinite, finite ? 0 : 3);
}

Test(squares_device, on_the_host_are_those_of_one_pass)
{
    check("cpu", true);
}

Test(squares_device, behind_copies_are_those_of_the_host)
{
    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    check("auto", true);
}

Test(squares_device, behind_copies_lose_no_infinity)
{
    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    check("auto", false);
}

Test(squares_device, on_a_gpu_are_those_of_the_host)
{
    if (strcmp(device_auto_name(), "cuda") != 0)
        cr_skip_test("no CUDA device");
    check("cuda", true);
}

Test(squares_device, on_a_gpu_lose_no_infinity)
{
    if (strcmp(device_auto_name(), "cuda") != 0)
        cr_skip_test("no CUDA device");
    check("cuda", false);
}

Test(squares_device, refuses_slots_that_are_too_small)
{
    const struct slot_ref small = slot_at(slots[1], 4096);

    cr_assert_eq(device_open("cpu", 0, &device), SHOAL_OK);
    cr_assert_eq(optim_op_device_squares(sched, device, pool, 0, slot_at(slots[0], 0), 2 * N, false,
                                         slot_at(slots[1], 0)),
                 SHOAL_ERR_INTERNAL);
    cr_assert_eq(optim_op_device_squares(sched, device, pool, 0, slot_at(slots[0], 0), N - 1, false,
                                         slot_at(slots[1], 0)),
                 SHOAL_ERR_INTERNAL);
    cr_assert_eq(
        optim_op_device_squares(sched, device, pool, 0, slot_at(slots[0], 0), N, false, small),
        SHOAL_ERR_INTERNAL);
    cr_assert_eq(optim_op_take_squares(sched, slot_at(slots[2], 4096), NULL), SHOAL_ERR_INTERNAL);
    cr_assert_eq(sched_count(sched), 0);
}

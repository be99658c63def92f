#include "runtime/device/cuda.h"
#include "tests/gpu/gpu.h"
#include "tests/optim/world.h"

#include <criterion/criterion.h>

/* The operation UPDATE on a GPU, through the executor: the bytes of the CPU. */

static void run_on(struct device *device, struct world *world)
{
    const size_t n_bytes = plan_space_bytes(world->plan, SPACE_PRIVATE);
    void *memory = NULL;

    cr_assert_eq(device->ops->alloc(device, "test", n_bytes, &memory), SHOAL_OK);
    cr_assert_eq(device->ops->copy(device, memory, world->memory, n_bytes), SHOAL_OK);
    plan_bind(world->plan, SPACE_PRIVATE, memory);
    cr_assert_eq(exec_run(world->sched), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(device->ops->copy(device, world->memory, memory, n_bytes), SHOAL_OK);
    plan_bind(world->plan, SPACE_PRIVATE, world->memory);
    device->ops->free(device, memory, n_bytes);
}

static void check(const char *rule, const char *state, const char *master)
{
    struct world_params params = {
        .rule = rule, .state = state, .master = master, .n_ranks = 2, .chunk = 30 * QUANTUM};
    struct world got, want;

    world_open(&want, &params);
    cr_assert_eq(device_open("cuda", 0, &params.device), SHOAL_OK, "%s", shoal_last_error());
    world_open(&got, &params);
    exec_use_device(got.sched, params.device);
    for (int64_t update = 1; update <= 3; update++) {
        world_update(&want, update, 1e-2);
        world_begin(&got, update, 1e-2);
        run_on(params.device, &got);
        cr_assert_arr_eq(got.memory, want.memory, plan_space_bytes(want.plan, SPACE_PRIVATE),
                         "%s %s %s after update %d", rule, state, master, (int)update);
    }
    world_close(&got);
    device_close(params.device);
    world_close(&want);
}

Test(gpu_optim_op, gives_the_bytes_of_the_cpu)
{
    gpu_require();
    check("adamw", "fp32", "fp32");
    check("adamw", "int8", "split16");
    check("ademamix", "int4", "bf16sr");
    check("mars", "bnb8", "ecc8");
    check("lion", "ao4", "fp32");
}

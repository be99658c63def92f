#include "runtime/device/cuda.h"
#include "tests/gpu/gpu.h"
#include "tests/optim/world.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* The operations UPDATE and SUMS on a GPU, through the executor: the bytes of the CPU. */

static void run_on(struct device *device, struct world *world, struct schedule *sched)
{
    const size_t n_bytes = plan_space_bytes(world->plan, SPACE_PRIVATE);
    void *memory = NULL;

    cr_assert_eq(device->ops->alloc(device, "test", n_bytes, &memory), SHOAL_OK);
    cr_assert_eq(device->ops->copy(device, memory, world->memory, n_bytes), SHOAL_OK);
    plan_bind(world->plan, SPACE_PRIVATE, memory);
    exec_use_device(sched, device);
    cr_assert_eq(exec_run(sched), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(device->ops->copy(device, world->memory, memory, n_bytes), SHOAL_OK);
    plan_bind(world->plan, SPACE_PRIVATE, world->memory);
    device->ops->free(device, memory, n_bytes);
}

static void check(struct world_params params)
{
    struct world got, want;

    params.n_ranks = 2;
    params.chunk = 30 * QUANTUM;
    world_open(&want, &params);
    cr_assert_eq(device_open("cuda", 0, &params.device), SHOAL_OK, "%s", shoal_last_error());
    world_open(&got, &params);
    for (int64_t update = 1; update <= 3; update++) {
        world_update(&want, update, 1e-2);
        world_begin(&got, update, 1e-2);
        for (int pass = 0; pass < got.setup->n_passes; pass++) {
            run_on(params.device, &got, got.sums[pass]);
            world_finish(&got, pass);
        }
        run_on(params.device, &got, got.sched);
        cr_assert_arr_eq(got.memory, want.memory, plan_space_bytes(want.plan, SPACE_PRIVATE),
                         "%s %s %s after update %d", params.rule, params.state, params.master,
                         (int)update);
    }
    world_close(&got);
    device_close(params.device);
    world_close(&want);
}

Test(gpu_optim_op, gives_the_bytes_of_the_cpu)
{
    gpu_require();
    check((struct world_params){.rule = "adamw", .state = "fp32", .master = "fp32"});
    check((struct world_params){.rule = "adamw", .state = "int8", .master = "split16"});
    check((struct world_params){.rule = "ademamix", .state = "int4", .master = "bf16sr"});
    check((struct world_params){.rule = "mars", .state = "bnb8", .master = "ecc8"});
    check((struct world_params){.rule = "lion", .state = "ao4", .master = "fp32"});
}

Test(gpu_optim_op, gives_the_bytes_of_the_cpu_over_sums)
{
    gpu_require();
    check((struct world_params){.rule = "adam_mini", .state = "int8", .master = "ecc8"});
    check((struct world_params){.rule = "adafactor", .state = "fp32", .master = "bf16sr"});
    check((struct world_params){.rule = "came", .state = "bnb8", .master = "split16"});
    check((struct world_params){
        .rule = "mars", .state = "int4", .master = "fp32", .cautious = true, .tensor_clip = true});
}

Test(gpu_optim_op, skips_its_sums_with_the_step)
{
    struct world_params params = {.rule = "came", .state = "fp32", .master = "fp32"};
    struct world world;
    unsigned char *before = NULL;

    gpu_require();
    cr_assert_eq(device_open("cuda", 0, &params.device), SHOAL_OK, "%s", shoal_last_error());
    world_open(&world, &params);
    world_begin(&world, 1, 1e-2);
    world.step.skip = true;

    const size_t n_bytes = plan_space_bytes(world.plan, SPACE_PRIVATE);
    int64_t *limbs = plan_ref(world.plan, world.refs[0].limbs);
    before = malloc(n_bytes);
    memcpy(before, world.memory, n_bytes);
    limbs[0] = 7; /* of the step before */
    run_on(params.device, &world, world.sums[0]);
    run_on(params.device, &world, world.sched);
    cr_assert_arr_eq(world.memory, before, n_bytes);
    free(before);
    world_close(&world);
    device_close(params.device);
}

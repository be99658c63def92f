#include "optim/cuda/squares.h"
#include "optim/cuda/update.h"
#include "optim/optim_internal.h"
#include "tests/gpu/optim_rig.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/*
 * UPDATE by the kernels against that of the CPU, bytes and padding: every rule with every codec of
 * states and master weights, on tensors of odd sizes cut into shards.
 */

enum { N_MASTERS = 4 };

static const char *const RULES[] = {
    "adamw",        "adam", "adam_atan2", "ademamix",  "adopt",           "lion",
    "mars",         "sgd",  "adamw_apex", "adamw_bnb", "adamw_deepspeed", "adamw_torch_fused",
    "schedule_free"};

enum { N_RULES = sizeof RULES / sizeof RULES[0] };

Test(gpu_optim, gives_the_bytes_of_the_cpu_for_every_rule_and_state_codec)
{
    gpu_require();
    for (int r = 0; r < N_RULES; r++)
        for (int s = 0; codec_name(s) != NULL; s++)
            optim_rig_check(&(struct world_params){.rule = RULES[r],
                                                   .state = codec_name(s),
                                                   .master = master_codec_name((r + s) % N_MASTERS),
                                                   .n_ranks = (r + s) % 3 + 1,
                                                   .chunk = s % 2 == 0 ? 0 : 20 * QUANTUM},
                            WITHOUT_CORNERS);
}

Test(gpu_optim, gives_the_bytes_of_the_cpu_for_every_rule_and_master_codec)
{
    gpu_require();
    for (int r = 0; r < N_RULES; r++)
        for (int m = 0; master_codec_name(m) != NULL; m++)
            optim_rig_check(&(struct world_params){.rule = RULES[r],
                                                   .state = "fp32",
                                                   .master = master_codec_name(m)},
                            WITH_CORNERS);
}

Test(gpu_optim, gives_the_bytes_of_the_cpu_where_gradients_are_no_numbers)
{
    gpu_require();
    for (int s = 0; codec_name(s) != NULL; s++)
        for (int r = 0; r < N_RULES; r += 2)
            optim_rig_check(
                &(struct world_params){.rule = RULES[r],
                                       .state = codec_name(s),
                                       .master = master_codec_name((r / 2 + s) % N_MASTERS)},
                WITH_CORNERS);
}

/* Less than a block of threads takes, all of it, and more; two launches; NaN and infinities. */
static void check_squares(size_t n_quanta, bool finite)
{
    enum { MOST = 300 };
    static float grad[MOST * QUANTUM];
    const size_t half = n_quanta / 2;
    struct exact_sum got, want;
    void *x = NULL, *sum = NULL;

    for (size_t i = 0; i < n_quanta * QUANTUM; i++)
        grad[i] = (float)((int)i % 977 - 400) * (i % 3 == 0 ? 0x1p-70f : 1.3e-3f);
    if (!finite) {
        grad[3] = -INFINITY;
        grad[n_quanta * QUANTUM - 1] = NAN;
    }
    EXPECT_CUDA(cudaMalloc(&x, n_quanta * QUANTUM * sizeof *grad));
    EXPECT_CUDA(cudaMalloc(&sum, sizeof got));
    EXPECT_CUDA(cudaMemsetAsync(sum, 0xff, sizeof got, NULL));
    EXPECT_CUDA(cudaMemcpy(x, grad, n_quanta * QUANTUM * sizeof *grad, cudaMemcpyHostToDevice));
    cr_assert_eq(cuda_sum_squares(NULL, x, half, false, sum), SHOAL_OK);
    cr_assert_eq(cuda_sum_squares(NULL, (float *)x + half * QUANTUM, n_quanta - half, true, sum),
                 SHOAL_OK);
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(&got, sum, sizeof got, cudaMemcpyDeviceToHost));
    exact_sum_clear(&want);
    optim_sum_squares(NULL, grad, n_quanta * QUANTUM, &want);
    cr_assert_arr_eq(&got, &want, sizeof want, "%zu quanta", n_quanta);
    cr_assert_eq(got.nonfinite, finite ? 0 : 2);
    cudaFree(x);
    cudaFree(sum);
}

Test(gpu_optim, sums_squares_exactly_as_the_cpu)
{
    static const size_t counts[] = {1, 2, 37, 128, 256, 300};

    gpu_require();
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        check_squares(counts[i], true);
        check_squares(counts[i], false);
    }
}

Test(gpu_optim, refuses_work_that_is_not_whole)
{
    void *memory = NULL;

    gpu_require();
    EXPECT_CUDA(cudaMalloc(&memory, QUANTUM * sizeof(float)));
    EXPECT_CUDA(cudaMemsetAsync(memory, 0, QUANTUM * sizeof(float), NULL));

    const struct update_part good = {.grad = memory,
                                     .low = memory,
                                     .n = 5,
                                     .rank1 = -1,
                                     .n_states = 1,
                                     .codes = {memory},
                                     .rule = RULE_SGD};
    struct update_work work = {.n_parts = 1, .parts = {good}};

    cr_assert_eq(cuda_update(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
    work.parts[0].codec[0] = CODE_INT8; /* without scales */
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].master = MASTER_ECC8; /* without bf16 weights */
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].rule = -1;
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.n_parts = WORK_PARTS + 1;
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL);
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaFree(memory));
}

Test(gpu_optim, names_a_rule_that_the_device_has_no_kernels_for)
{
    static const char *const over_sums[] = {"adafactor", "adam_mini", "came"};
    const struct optim_rule *rule = NULL;

    for (int r = 0; r < N_RULES; r++) {
        cr_assert_eq(optim_find(RULES[r], &rule), SHOAL_OK);
        cr_assert_eq(optim_check_device("cuda", rule), SHOAL_OK, "%s", RULES[r]);
    }
    for (int r = 0; r < 3; r++) {
        cr_assert_eq(optim_find(over_sums[r], &rule), SHOAL_OK);
        cr_assert_eq(optim_check_device("cuda", rule), SHOAL_OK, "%s", over_sums[r]);
    }

    const struct optim_rule unknown = {.name = "unknown"};
    cr_assert_eq(optim_check_device("cuda", &unknown), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "unknown: not on cuda yet"), "%s",
                       shoal_last_error());
    cr_assert_eq(optim_check_device("remote", &unknown), SHOAL_OK);
}

Test(gpu_optim, has_no_operation_for_such_a_rule)
{
    const struct device_ops ops = {.name = "cuda", .separate = true};
    struct device device = {.ops = &ops};
    struct optim_rule unknown;
    struct world world;

    world_open(&world, &(struct world_params){.rule = "adamw", .state = "fp32", .master = "fp32"});
    const struct shard all = layout_shard(world.layout, 0, 0, 1);
    struct optim_refs refs = world.refs[0];
    const int n = sched_count(world.sched);

    unknown = *world.setup->tensors[1].rule;
    world.setup->tensors[1].rule = &unknown;
    refs.device = &device;
    cr_assert_eq(
        optim_op_update(world.sched, world.pool, world.setup, 0, 0, all, all, &refs, &world.step),
        SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "not on cuda yet"), "%s", shoal_last_error());
    cr_assert_eq(sched_count(world.sched), n);
    world_close(&world);
}

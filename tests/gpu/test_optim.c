#include "optim/codec_map.h"
#include "optim/cuda/squares.h"
#include "optim/cuda/update.h"
#include "optim/optim_internal.h"
#include "optim/update_parts.h"
#include "tests/gpu/gpu.h"
#include "tests/optim/world.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * UPDATE by the kernels against that of the CPU, bytes and padding: every rule with every codec of
 * states and master weights, on tensors of odd sizes cut into shards.
 */

enum { N_MASTERS = 4, N_UPDATES = 3 };

static const char *const RULES[] = {
    "adamw",        "adam", "adam_atan2", "ademamix",  "adopt",           "lion",
    "mars",         "sgd",  "adamw_apex", "adamw_bnb", "adamw_deepspeed", "adamw_torch_fused",
    "schedule_free"};

enum { N_RULES = sizeof RULES / sizeof RULES[0] };

#define EXPECT_CUDA(call)                                                                          \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        cr_assert_eq(error_, cudaSuccess, "%s: %s", #call, cudaGetErrorString(error_));            \
    } while (0)

static void update_range(struct world *world, int rank, struct shard shard, struct shard range)
{
    struct tile tiles[64];
    struct tile_buffers buffers;
    struct update_work work;
    const size_t n = tiles_cut_long(world->setup, 0, shard, shard, range, tiles);

    cr_assert_leq(n, sizeof tiles / sizeof tiles[0]);
    tile_buffers_init(&buffers, world->plan, world->setup, &world->refs[rank]);
    for (size_t i = 0; i < n; i += WORK_PARTS) {
        update_work_fill(&buffers, &world->step, tiles + i, n - i < WORK_PARTS ? n - i : WORK_PARTS,
                         &work);
        cr_assert_eq(cuda_update(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
    }
}

/* What exec_run(world->sched) does, in the device's memory. */
static void update_by_kernels(struct world *world)
{
    const size_t n_bytes = plan_space_bytes(world->plan, SPACE_PRIVATE);
    void *memory = NULL;

    EXPECT_CUDA(cudaMalloc(&memory, n_bytes));
    EXPECT_CUDA(cudaMemcpy(memory, world->memory, n_bytes, cudaMemcpyHostToDevice));
    plan_bind(world->plan, SPACE_PRIVATE, memory);
    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, 0, rank, world->n_ranks);

        for (int64_t begin = shard.begin; begin < shard.end; begin += world->chunk) {
            const int64_t end = begin + world->chunk;

            update_range(world, rank, shard,
                         (struct shard){begin, end < shard.end ? end : shard.end});
        }
    }
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(world->memory, memory, n_bytes, cudaMemcpyDeviceToHost));
    plan_bind(world->plan, SPACE_PRIVATE, world->memory);
    EXPECT_CUDA(cudaFree(memory));
}

/* Gradients from where arithmetic has corners, in some quanta. */
static void plant_corners(struct world *world)
{
    static const uint32_t corners[] = {
        0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
        0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0x5f000000, 0x1e3ce508,
    };
    enum { N = sizeof corners / sizeof corners[0] };

    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, 0, rank, world->n_ranks);
        float *grad = plan_ref(world->plan, world->refs[rank].grad);

        for (int64_t e = shard.begin; e < shard.end && e < world->layout->units[0].n_elements; e++)
            if (e / 160 % 5 == 0 && (e % 37 == 0 || e / 160 % 25 == 0))
                memcpy(&grad[e - shard.begin], &corners[(e / 160 + e % 11) % N], 4);
    }
}

static void assert_same(const struct world *got, const struct world *want, const char *what)
{
    for (int i = 0; world_kind(want, i) != NULL; i++) {
        size_t n_got = 0, n_want = 0;
        unsigned char *a = world_bytes(got, world_kind(want, i), &n_got);
        unsigned char *b = world_bytes(want, world_kind(want, i), &n_want);

        cr_assert_eq(n_got, n_want);
        for (size_t k = 0; k < n_want; k++)
            cr_assert_eq(a[k], b[k], "%s: %s differs at byte %zu", what, world_kind(want, i), k);
        free(a);
        free(b);
    }
    cr_assert_arr_eq(got->memory, want->memory, plan_space_bytes(want->plan, SPACE_PRIVATE), "%s",
                     what);
}

static void check(struct world_params params, bool corners)
{
    struct world got, want;
    char what[96];

    snprintf(what, sizeof what, "%s %s %s%s", params.rule, params.state, params.master,
             corners ? " with corners" : "");
    world_open(&want, &params);
    world_open(&got, &params);
    cr_assert_eq(cuda_update_maps(), SHOAL_OK);
    for (int64_t update = 1; update <= N_UPDATES; update++) {
        world_begin(&want, update, 1e-2);
        world_begin(&got, update, 1e-2);
        if (corners && update > 1) {
            plant_corners(&want);
            plant_corners(&got);
        }
        cr_assert_eq(exec_run(want.sched), SHOAL_OK);
        update_by_kernels(&got);
        assert_same(&got, &want, what);
    }
    world_close(&got);
    world_close(&want);
}

Test(gpu_optim, gives_the_bytes_of_the_cpu_for_every_rule_and_state_codec)
{
    gpu_require();
    for (int r = 0; r < N_RULES; r++)
        for (int s = 0; codec_name(s) != NULL; s++)
            check((struct world_params){.rule = RULES[r],
                                        .state = codec_name(s),
                                        .master = master_codec_name((r + s) % N_MASTERS),
                                        .n_ranks = (r + s) % 3 + 1,
                                        .chunk = s % 2 == 0 ? 0 : 20 * QUANTUM},
                  false);
}

Test(gpu_optim, gives_the_bytes_of_the_cpu_for_every_rule_and_master_codec)
{
    gpu_require();
    for (int r = 0; r < N_RULES; r++)
        for (int m = 0; master_codec_name(m) != NULL; m++)
            check((struct world_params){.rule = RULES[r],
                                        .state = "fp32",
                                        .master = master_codec_name(m)},
                  true);
}

Test(gpu_optim, gives_the_bytes_of_the_cpu_where_gradients_are_no_numbers)
{
    gpu_require();
    for (int s = 0; codec_name(s) != NULL; s++)
        for (int r = 0; r < N_RULES; r += 2)
            check((struct world_params){.rule = RULES[r],
                                        .state = codec_name(s),
                                        .master = master_codec_name((r / 2 + s) % N_MASTERS)},
                  true);
}

Test(gpu_optim, sums_the_squares_of_quanta_as_the_cpu)
{
    enum { N_QUANTA = 37 };
    static float grad[N_QUANTA * QUANTUM];
    static double got[N_QUANTA], want[N_QUANTA];
    void *x = NULL, *sums = NULL;

    gpu_require();
    for (int i = 0; i < N_QUANTA * QUANTUM; i++)
        grad[i] = (float)(i % 977 - 400) * (i % 3 == 0 ? 0x1p-70f : 1.3e-3f);
    EXPECT_CUDA(cudaMalloc(&x, sizeof grad));
    EXPECT_CUDA(cudaMalloc(&sums, sizeof got));
    EXPECT_CUDA(cudaMemcpy(x, grad, sizeof grad, cudaMemcpyHostToDevice));
    cr_assert_eq(cuda_quantum_squares(NULL, x, N_QUANTA, sums), SHOAL_OK);
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(got, sums, sizeof got, cudaMemcpyDeviceToHost));
    optim_squares_scalar(grad, N_QUANTA, want);
    cr_assert_arr_eq(got, want, sizeof want);
    cudaFree(x);
    cudaFree(sums);
}

Test(gpu_optim, refuses_work_that_is_not_whole)
{
    static float memory[QUANTUM];
    const struct update_part good = {
        .grad = memory, .low = memory, .n = 5, .n_states = 1, .codes = {memory}, .rule = RULE_SGD};
    struct update_work work = {.n_parts = 1, .n_blocks = 2, .parts = {good}};

    gpu_require();
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL); /* more blocks than quanta */
    work.n_blocks = 1;
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
}

Test(gpu_optim, names_what_the_device_has_no_kernels_for)
{
    const struct optim_hyper plain = {0}, cautious = {.cautious = true},
                             clip = {.tensor_clip = true};
    static const char *const over_sums[] = {"adafactor", "adam_mini", "came"};
    const struct optim_rule *rule = NULL;

    for (int r = 0; r < N_RULES; r++) {
        cr_assert_eq(optim_find(RULES[r], &rule), SHOAL_OK);
        cr_assert_eq(optim_check_device("cuda", rule, &plain), SHOAL_OK, "%s", RULES[r]);
    }
    for (int r = 0; r < 3; r++) {
        cr_assert_eq(optim_find(over_sums[r], &rule), SHOAL_OK);
        cr_assert_eq(optim_check_device("cpu", rule, &plain), SHOAL_OK);
        cr_assert_eq(optim_check_device("cuda", rule, &plain), SHOAL_ERR_UNAVAILABLE);
        cr_assert_not_null(strstr(shoal_last_error(), over_sums[r]), "%s", shoal_last_error());
    }
    cr_assert_eq(optim_find("mars", &rule), SHOAL_OK);
    cr_assert_eq(optim_check_device("cuda", rule, &clip), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "mars with optimizer.tensor_clip"));
    cr_assert_eq(optim_check_device("cuda", rule, &cautious), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "mars with optimizer.cautious"));
    cr_assert_eq(optim_check_device("remote", rule, &cautious), SHOAL_OK);
}

Test(gpu_optim, has_no_operation_for_a_rule_over_sums)
{
    const struct device_ops ops = {.name = "cuda", .separate = true};
    struct device device = {.ops = &ops};
    struct world world;

    world_open(&world, &(struct world_params){.rule = "came", .state = "fp32", .master = "fp32"});
    const struct shard all = layout_shard(world.layout, 0, 0, 1);
    struct optim_refs refs = world.refs[0];
    const int n = sched_count(world.sched);

    refs.device = &device;
    cr_assert_eq(
        optim_op_update(world.sched, world.pool, world.setup, 0, 0, all, all, &refs, &world.step),
        SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "came: not on cuda yet"), "%s",
                       shoal_last_error());
    cr_assert_eq(sched_count(world.sched), n);
    world_close(&world);
}

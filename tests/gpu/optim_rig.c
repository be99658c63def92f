#include "tests/gpu/optim_rig.h"

#include "optim/cuda/update.h"
#include "optim/update_parts.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_UPDATES = 3, MAX_TILES = 64 };

/* ---- a world in the device's memory ---- */

static void *move_to_device(struct world *world)
{
    const size_t n_bytes = plan_space_bytes(world->plan, SPACE_PRIVATE);
    void *memory = NULL;

    EXPECT_CUDA(cudaMalloc(&memory, n_bytes));
    EXPECT_CUDA(cudaMemcpy(memory, world->memory, n_bytes, cudaMemcpyHostToDevice));
    plan_bind(world->plan, SPACE_PRIVATE, memory);
    return memory;
}

static void move_back(struct world *world, void *memory)
{
    const size_t n_bytes = plan_space_bytes(world->plan, SPACE_PRIVATE);

    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(world->memory, memory, n_bytes, cudaMemcpyDeviceToHost));
    plan_bind(world->plan, SPACE_PRIVATE, world->memory);
    EXPECT_CUDA(cudaFree(memory));
}

/* ---- what the operations do ---- */

static size_t cut(const struct world *world, struct shard shard, struct shard range,
                  struct tile *tiles)
{
    const size_t n = tiles_cut_long(world->setup, 0, shard, shard, range, tiles);

    cr_assert_leq(n, MAX_TILES);
    return n;
}

static void update_range(struct world *world, int rank, struct shard shard, struct shard range)
{
    struct tile tiles[MAX_TILES];
    struct tile_buffers buffers;
    struct update_work work;
    const size_t n = cut(world, shard, range, tiles);

    tile_buffers_init(&buffers, world->plan, world->setup, &world->refs[rank]);
    for (size_t i = 0; i < n; i += WORK_PARTS) {
        update_work_fill(&buffers, &world->step, tiles + i, n - i < WORK_PARTS ? n - i : WORK_PARTS,
                         &work);
        cr_assert_eq(cuda_update(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
    }
}

static void sum_range(struct world *world, int rank, int pass, struct shard shard,
                      struct shard range)
{
    struct tile tiles[MAX_TILES];
    struct tile_buffers buffers;
    struct update_work work;
    struct sums_work sums = {.buffers = &buffers,
                             .step = &world->step,
                             .pass = pass,
                             .tiles = tiles,
                             .n_tiles = cut(world, shard, range, tiles),
                             .limbs = plan_ref(world->plan, world->refs[rank].limbs)};

    tile_buffers_init(&buffers, world->plan, world->setup, &world->refs[rank]);
    while (sums_work_fill(&sums, &work))
        cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
}

/* UPDATE, or a pass of sums, of all ranks in chunks. */
static void run_kernels(struct world *world, int pass)
{
    void *memory = move_to_device(world);

    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, 0, rank, world->n_ranks);

        if (pass >= 0)
            EXPECT_CUDA(cudaMemsetAsync(plan_ref(world->plan, world->refs[rank].limbs), 0,
                                        world->setup->n_limbs * sizeof(int64_t), NULL));
        for (int64_t begin = shard.begin; begin < shard.end; begin += world->chunk) {
            const int64_t end = begin + world->chunk;
            const struct shard range = {begin, end < shard.end ? end : shard.end};

            if (pass >= 0)
                sum_range(world, rank, pass, shard, range);
            else
                update_range(world, rank, shard, range);
        }
    }
    move_back(world, memory);
}

static void run_by_kernels(struct world *world)
{
    for (int pass = 0; pass < world->setup->n_passes; pass++) {
        run_kernels(world, pass);
        world_finish(world, pass);
    }
    run_kernels(world, -1);
}

/* ---- comparison ---- */

static void plant_corners(struct world *world, enum optim_rig_corners corners)
{
    static const uint32_t bits[] = {
        0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
        0x5f000000, 0x1e3ce508, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001,
    };
    enum { N = sizeof bits / sizeof bits[0], N_FINITE = 9 };
    const int64_t n = corners == WITH_CORNERS ? N : N_FINITE;
    struct exact_sum squares;

    exact_sum_clear(&squares);
    for (int rank = 0; rank < world->n_ranks; rank++) {
        const struct shard shard = layout_shard(world->layout, 0, rank, world->n_ranks);
        float *grad = plan_ref(world->plan, world->refs[rank].grad);

        for (int64_t e = shard.begin; e < shard.end && e < world->layout->units[0].n_elements; e++)
            if (e / 160 % 5 == 0 && (e % 37 == 0 || e / 160 % 25 == 0))
                memcpy(&grad[e - shard.begin], &bits[(e / 160 + e % 11) % n], 4);
        optim_sum_squares(world->pool, grad, world->shard, &squares);
    }
    world->step.grad_squares = exact_sum_value(&squares);
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

void optim_rig_check(const struct world_params *params, enum optim_rig_corners corners)
{
    struct world got, want;
    char what[160];

    snprintf(what, sizeof what, "%s %s %s%s%s%s%s, %d ranks", params->rule, params->state,
             params->master, params->cautious ? " cautious" : "",
             params->tensor_clip ? " tensor_clip" : "",
             params->scale_parameter ? " scale_parameter" : "",
             corners != WITHOUT_CORNERS ? " with corners" : "", params->n_ranks);
    world_open(&want, params);
    world_open(&got, params);
    cr_assert_eq(cuda_update_maps(), SHOAL_OK);
    for (int64_t update = 1; update <= N_UPDATES; update++) {
        world_begin(&want, update, 1e-2);
        world_begin(&got, update, 1e-2);
        if (corners != WITHOUT_CORNERS && update > 1) {
            plant_corners(&want, corners);
            plant_corners(&got, corners);
        }
        world_run(&want);
        run_by_kernels(&got);
        assert_same(&got, &want, what);
    }
    world_close(&got);
    world_close(&want);
}

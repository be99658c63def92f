#include "models/ops/cuda/machine.cuh"
#include "tests/gpu/emulate/race_examples.h"

enum { THREADS = 128, WARPS = THREADS / 32 };

static __device__ uint32_t *mine(uint32_t *x)
{
    return x + blockIdx.x * THREADS + threadIdx.x;
}

/* ---- shared memory ---- */

template <bool BEFORE_READ, bool BEFORE_WRITE> static __global__ void turn_round(uint32_t *x)
{
    __shared__ uint32_t line[THREADS];

    for (int i = 0; i < 2; i++) {
        line[threadIdx.x] = *mine(x);
        if (BEFORE_READ)
            __syncthreads();
        *mine(x) = line[THREADS - 1 - threadIdx.x];
        if (BEFORE_WRITE)
            __syncthreads();
    }
}

/* The reader's last turn does not matter: nothing is written after it. */
static __global__ void turn_round_dynamic(uint32_t *x)
{
    uint32_t *line = (uint32_t *)dynamic_shared();

    line[threadIdx.x] = *mine(x);
    *mine(x) = line[THREADS - 1 - threadIdx.x];
}

template <bool SYNC> static __global__ void within_warps(uint32_t *x)
{
    __shared__ uint32_t line[THREADS];

    line[threadIdx.x] = *mine(x);
    if (SYNC)
        __syncwarp();
    else
        __shfl_xor_sync(0xffffffffu, line[threadIdx.x], 1);
    *mine(x) = line[threadIdx.x ^ 1];
}

/* A warp's synchronization does not order another warp. */
static __global__ void across_warps(uint32_t *x)
{
    __shared__ uint32_t line[THREADS];

    line[threadIdx.x] = *mine(x);
    __syncwarp();
    *mine(x) = line[threadIdx.x ^ 32];
}

static __global__ void read_by_all(uint32_t *x)
{
    __shared__ uint32_t one;

    if (threadIdx.x == 5)
        one = *mine(x);
    __syncthreads();
    *mine(x) += one;
    if (threadIdx.x == 5)
        one = 0;
}

/* Lanes read the rows that their own addresses name. */
template <bool SYNC> static __global__ void matrices(uint32_t *x)
{
    __shared__ __align__(16) bf16_t rows[WARPS][32][8];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t r[4];

    for (int i = 0; i < 8; i++)
        rows[warp][lane][i] = (bf16_t)i;
    if (SYNC)
        __syncwarp();
    load_matrices(r, rows[warp][31 - lane]);
    *mine(x) = r[0];
}

/* ---- global memory ---- */

static __global__ void own_elements(uint32_t *x)
{
    memcpy(mine(x), mine(x), 4);
    *mine(x) += 1;
}

static __global__ void next_element(uint32_t *x)
{
    *mine(x) = x[threadIdx.x ^ 1];
}

/* Neighbours in one word. */
static __global__ void own_bytes(uint32_t *x)
{
    ((uint8_t *)x)[blockIdx.x * THREADS + threadIdx.x] = 1;
}

/* __syncthreads orders a block, not the grid. */
static __global__ void first_of_all(uint32_t *x)
{
    if (threadIdx.x == 0)
        *x = 1;
    __syncthreads();
}

static __global__ void copied_into_one(uint32_t *x)
{
    if (blockIdx.x > 0 && threadIdx.x == 0)
        memcpy(x, mine(x), 4);
}

static __global__ void counted(uint32_t *x)
{
    atomicAdd(x, 1u);
    if (*(const volatile uint32_t *)x < 7)
        atomicMax(x, 7u);
}

static __global__ void counted_and_read(uint32_t *x)
{
    atomicAdd(x, 1u);
    *(mine(x) + (threadIdx.x == 0)) = *x;
}

const struct race_example race_examples[] = {
    {"two barriers", false, 2, turn_round<true, true>},
    {"no barrier before the read", true, 1, turn_round<false, true>},
    {"no barrier before the next write", true, 1, turn_round<true, false>},
    {"no barrier, dynamic", true, 1, turn_round_dynamic},
    {"a warp's barrier", false, 2, within_warps<true>},
    {"a shuffle orders nothing", true, 1, within_warps<false>},
    {"a warp's barrier for others", true, 1, across_warps},
    {"a write after all have read", true, 1, read_by_all},
    {"matrices", false, 2, matrices<true>},
    {"matrices without a barrier", true, 1, matrices<false>},
    {"own elements", false, 3, own_elements},
    {"the neighbour's element", true, 1, next_element},
    {"own bytes", false, 3, own_bytes},
    {"one word by all blocks", true, 2, first_of_all},
    {"one word by one block", false, 1, first_of_all},
    {"a copy into one word", true, 3, copied_into_one},
    {"counted by atomics", false, 2, counted},
    {"an atomic beside a read", true, 1, counted_and_read},
};

const int n_race_examples = sizeof race_examples / sizeof *race_examples;

shoal_status race_example_run(const struct race_example *example, uint32_t *x)
{
    return launch(example->name, example->kernel, dim3(example->blocks), THREADS,
                  THREADS * sizeof *x, NULL, x);
}

#pragma once

/*
 * Rules over sums: what they add up (stats.h), in the order of the CPU inside a quantum and as
 * integers beyond it.  Threads add integers up among themselves before they touch the limbs, as
 * every limb is one address for all of them.  What they add up that way are some of the terms that
 * the limb gets anyway, so the bounds on its terms (stats_internal.h, exact_sum.h) hold for it, too.
 */
#include "optim/cuda/codecs.cuh"
#include "optim/cuda/limbs.cuh"
#include "optim/element_rules.h"

enum {
    LANES = 16,
    AHEAD = 8, /* elements that a thread loads before it uses any */
    COLUMN_ROWS = 64,
    RUN_QUANTA = 2, /* that LANES threads go through */
    SUM_QUANTA = RUN_QUANTA * QUANTUM_THREADS / LANES,
};

/* ---- where an element is ---- */

/* Row and column where the tensor has them. */
struct spot {
    size_t i; /* in the part */
    uint64_t element;
    uint64_t row;
    uint32_t col;
};

static __device__ __forceinline__ spot spot_of(const update_part &part, size_t i)
{
    const uint64_t element = part.begin + i;
    const uint64_t row = part.cols > 0 ? divide(element, part.cols) : 0;

    return {i, element, row, (uint32_t)(element - row * part.cols)};
}

/* Block number, and elements of the block before this one and from it on. */
struct block_spot {
    uint64_t block;
    uint32_t before, rest;
};

static __device__ __forceinline__ block_spot block_of(const update_part &part, uint64_t element)
{
    int k = part.n_blocks - 1;

    while (element < part.blocks[k].begin)
        k--;

    const work_blocks &blocks = part.blocks[k];
    const uint64_t at = element - blocks.begin;
    const uint64_t block = divide(at, blocks.length);
    const uint32_t before = (uint32_t)(at - block * blocks.length);

    return {blocks.first + block, before, blocks.length - before};
}

/* ---- what is added up ---- */

/* u of a factored second moment. */
static __device__ __forceinline__ float factored_update(const update_part &part, const spot &at,
                                                        float g)
{
    if (part.cols == 0)
        return by_second_moment(g, part.vectors[FACTORED_ELEMENT][at.element]);
    return by_factors(g, part.vectors[FACTORED_ROW_FACTOR][at.row],
                      part.vectors[FACTORED_COL_FACTOR][at.col]);
}

/* came: moves the average in *s, returns the clipped u. */
static __device__ __forceinline__ float clipped_update(const update_part &part, const spot &at,
                                                       float g, float *s)
{
    const float u = factored_update(part, at, g) * part.vectors[FACTORED_STEP][STEP_CLIP];

    *s = moved_average(part.f, *s, u);
    return u;
}

/* The state that a value is made of; -1: none. */
static __device__ __forceinline__ int state_of(int value)
{
    if (value == VALUE_CORRECTED)
        return 2;
    return value == VALUE_AVERAGE || value == VALUE_RESIDUAL ? 0 : -1;
}

/*
 * What memory holds of a value of an element; see struct coded.  No union: before a register is
 * loaded again, a thread waits for what it was loaded with.
 */
struct coded_value {
    float grad;
    coded_master master;
    coded state;
};

static __device__ __forceinline__ coded_value load_value(const update_part &part, size_t i,
                                                         bool live)
{
    const int k = state_of(part.value);
    coded_value x = {};

    if (!live)
        return x;
    if (part.value == VALUE_WEIGHT)
        x.master = load_master(part, i);
    else if (part.value != VALUE_AVERAGE)
        x.grad = part.grad[i];
    if (k >= 0)
        x.state = load(place_of(part, k, i, true));
    return x;
}

/* All but VALUE_AGREES and VALUE_MOMENT. */
static __device__ __forceinline__ float value_of(const update_part &part, float grad_scale,
                                                 const spot &at, const coded_value &x)
{
    const float g = x.grad * grad_scale;
    const int k = state_of(part.value);
    float s = k >= 0 ? decode(place_of(part, k, at.i, true), x.state) : 0.0f;

    switch (part.value) {
    case VALUE_GRAD:
        return g;
    case VALUE_WEIGHT:
        return decode_master(part, x.master);
    case VALUE_SHARE:
        return adam_mini_share(part.f, g);
    case VALUE_SQUARE:
        return factored_square(g);
    case VALUE_UPDATE:
        return factored_update(part, at, g);
    case VALUE_AVERAGE:
        return s;
    case VALUE_CORRECTED:
        return mars_corrected(part.f, g, s);
    default: {
        const float u = clipped_update(part, at, g, &s);

        return u - s;
    }
    }
}

/* The spot as far as value_of needs it. */
static __device__ __forceinline__ spot value_spot(const update_part &part, size_t i)
{
    if (part.value == VALUE_UPDATE || part.value == VALUE_RESIDUAL)
        return spot_of(part, i);
    return {i, 0, 0, 0};
}

/* came bounds the residuals by measured sums; where those are not finite nothing is added. */
static __device__ __forceinline__ bool has_scale(const update_part &part)
{
    return part.value != VALUE_RESIDUAL || !isnan(part.vectors[FACTORED_STEP][STEP_RESIDUAL_BITS]);
}

static __device__ __forceinline__ double scale_of(const update_part &part)
{
    return part.value == VALUE_RESIDUAL
               ? power_of_two((int)part.vectors[FACTORED_STEP][STEP_RESIDUAL_BITS])
               : part.scale;
}

/* ---- sums ---- */

static __device__ __forceinline__ double square_of(float x)
{
    return (double)x * (double)x;
}

static __device__ __forceinline__ void add_limbs(const update_part &part, uint64_t sum,
                                                 const int64_t *limbs)
{
    for (int k = 0; k < LIMBS; k++)
        add_to(&part.limbs[sum + k * part.n_sums], limbs[k]);
}

/*
 * The sum of squares of elements [begin, end) of the part, a run within a quantum, in each of LANES
 * threads: lane l adds elements l, l + 16, ...; then lanes l and l ^ 8 are added, and so on, which
 * gives the CPU's sum, as a + b is b + a.  All threads of a warp must call it.
 */
static __device__ __forceinline__ double run_sum(const update_part &part, float grad_scale,
                                                 size_t begin, size_t end)
{
    double sum = 0.0;

    for (size_t i = begin + threadIdx.x % LANES; i < end; i += AHEAD * LANES) {
        coded_value x[AHEAD];

        ELEMENT_UNROLL
        for (int k = 0; k < AHEAD; k++)
            x[k] = load_value(part, i + k * LANES, i + k * LANES < end);
        ELEMENT_UNROLL
        for (int k = 0; k < AHEAD; k++)
            if (i + k * LANES < end)
                sum += square_of(value_of(part, grad_scale, value_spot(part, i + k * LANES), x[k]));
    }
    for (int width = LANES / 2; width > 0; width /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, width);
    return sum;
}

/* The elements [*begin_out, *end_out) that the thread's LANES go through. */
static __device__ __forceinline__ void lane_range(const update_part &part, uint32_t block,
                                                  size_t *begin_out, size_t *end_out)
{
    const size_t n = RUN_QUANTA * QUANTUM_THREADS;
    const size_t begin = ((size_t)block * (QUANTUM_THREADS / LANES) + threadIdx.x / LANES) * n;

    *begin_out = begin < part.n ? begin : part.n;
    *end_out = begin + n < part.n ? begin + n : part.n;
}

static __device__ __forceinline__ size_t quantum_end(size_t i, size_t end)
{
    const size_t next = i - i % QUANTUM_THREADS + QUANTUM_THREADS;

    return next < end ? next : end;
}

/* Either half of the warp is not through; all of its threads must call it. */
static __device__ __forceinline__ bool warp_goes_on(bool mine)
{
    const int half = mine ? 1 : 0;

    return (half | __shfl_xor_sync(0xffffffffu, half, LANES)) != 0;
}

/* Limbs wait in registers while runs are of one block. */
static __device__ __forceinline__ void sum_blocks(const update_part &part, float grad_scale,
                                                  uint32_t block)
{
    const bool writes = threadIdx.x % LANES == 0;
    const double scale = scale_of(part);
    size_t i = 0, end = 0;
    int64_t limbs[LIMBS] = {0, 0, 0};

    lane_range(part, block, &i, &end);
    while (warp_goes_on(i < end)) {
        const block_spot at = block_of(part, part.begin + i);
        const size_t stop = quantum_end(i, end - i > at.rest ? i + at.rest : end);
        const limb_term term = limb_term_of(run_sum(part, grad_scale, i, stop), scale);
        const bool ends = stop == end || stop - i == at.rest;

        if (i == end)
            continue;
        for (int k = 0; k < LIMBS; k++)
            limbs[k] += term.limbs[k];
        if (ends && writes)
            add_limbs(part, at.block, limbs);
        for (int k = 0; k < LIMBS; k++)
            limbs[k] = ends ? 0 : limbs[k];
        i = stop;
    }
}

/* All threads must call it. */
static __device__ __forceinline__ void sum_tensor(const update_part &part, float grad_scale,
                                                  uint32_t block)
{
    __shared__ int64_t limbs[EXACT_LIMBS];
    size_t begin = 0, end = 0;

    clear_limbs(limbs);
    lane_range(part, block, &begin, &end);
    for (int q = 0; q < RUN_QUANTA; q++) {
        const size_t stop = quantum_end(begin, end);
        const exact_term term = exact_term_of(run_sum(part, grad_scale, begin, stop));

        if (begin < end && threadIdx.x % LANES == 0)
            add_exactly(limbs, term);
        begin = stop;
    }
    give_limbs(limbs, part.limbs);
}

/* `n` of the thread's elements agree; all threads must call it. */
static __device__ __forceinline__ void sum_elements(const update_part &part, int n)
{
    __shared__ int warps[QUANTUM_THREADS / WARP];

    for (int distance = WARP / 2; distance > 0; distance /= 2)
        n += __shfl_xor_sync(0xffffffffu, n, distance);
    if (threadIdx.x % WARP == 0)
        warps[threadIdx.x / WARP] = n;
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    for (int i = 1; i < QUANTUM_THREADS / WARP; i++)
        n += warps[i];
    add_to(part.limbs, n);
}

/*
 * A thread is a column here and adds COLUMN_ROWS rows of it before it touches the limbs: its terms
 * are elements, and integers, so no quantum matters.
 */
static __device__ __forceinline__ void sum_columns(const update_part &part, float grad_scale,
                                                   uint32_t block)
{
    const uint32_t chunks = (part.cols + QUANTUM_THREADS - 1) / QUANTUM_THREADS;
    const uint32_t col = block % chunks * QUANTUM_THREADS + threadIdx.x;
    const uint64_t first = divide(part.begin, part.cols) + (uint64_t)(block / chunks) * COLUMN_ROWS;
    const double scale = scale_of(part);
    int64_t limbs[LIMBS] = {0, 0, 0};

    if (col >= part.cols)
        return;
    for (uint64_t row = first; row < first + COLUMN_ROWS; row += AHEAD) {
        coded_value x[AHEAD];
        spot at[AHEAD];

        ELEMENT_UNROLL
        for (int k = 0; k < AHEAD; k++) {
            const uint64_t element = (row + k) * part.cols + col;

            /* Beyond n, too, where it is before the part. */
            at[k] = {(size_t)(element - part.begin), element, row + k, col};
            x[k] = load_value(part, at[k].i, at[k].i < part.n);
        }
        ELEMENT_UNROLL
        for (int k = 0; k < AHEAD; k++) {
            if (at[k].i >= part.n)
                continue;
            const limb_term term =
                limb_term_of(square_of(value_of(part, grad_scale, at[k], x[k])), scale);
            for (int j = 0; j < LIMBS; j++)
                limbs[j] += term.limbs[j];
        }
    }
    add_limbs(part, col, limbs);
}

/* What is read may be too low by now, never too high: then the atomic maximum settles it. */
static __device__ __forceinline__ void raise(int64_t *limb, uint32_t key)
{
    if (*(const volatile int64_t *)limb < (int64_t)key)
        atomicMax((unsigned long long *)limb, (unsigned long long)key);
}

/* The largest of rows and columns; all threads must call it, those without an element with 0. */
static __device__ __forceinline__ void raise_maxima(const update_part &part, size_t i, bool live,
                                                    uint32_t key)
{
    const spot at = spot_of(part, i);
    const uint32_t lane = threadIdx.x % WARP;
    const bool one_row = at.col >= lane && at.col - lane + WARP <= part.cols; /* the warp's */
    uint32_t largest = key;

    for (int distance = WARP / 2; distance > 0; distance /= 2)
        largest = max_bits(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    if (!live)
        return;
    if (!one_row)
        raise(&part.limbs[at.row], key);
    else if (lane == 0)
        raise(&part.limbs[at.row], largest);
    raise(&part.limbs[part.n_sums + at.col], key);
}

#pragma once

/*
 * Rules over sums in kernels whose block of threads is a quantum: what they add up (stats.h), in
 * the order of the CPU inside a quantum and as integers beyond it.
 */
#include "optim/cuda/codecs.cuh"
#include "optim/element_rules.h"
#include "optim/element_sums.h"

extern "C" {
#include "runtime/base/exact_sum.h"
}

enum { LANES = 16, COLUMN_ROWS = 64 };

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

static __device__ __forceinline__ float state_of(const update_part &part, int k, size_t i)
{
    const place at = place_of(part, k, i, true);

    return decode(at, load(at));
}

/* All but VALUE_AGREES. */
static __device__ __forceinline__ float value_of(const update_part &part, float grad_scale,
                                                 const spot &at)
{
    const float g = part.grad[at.i] * grad_scale;

    switch (part.value) {
    case VALUE_GRAD:
        return g;
    case VALUE_WEIGHT:
        return decode_master(part, load_master(part, at.i));
    case VALUE_SHARE:
        return adam_mini_share(part.f, g);
    case VALUE_SQUARE:
        return factored_square(g);
    case VALUE_UPDATE:
        return factored_update(part, at, g);
    case VALUE_AVERAGE:
        return state_of(part, 0, at.i);
    case VALUE_CORRECTED:
        return mars_corrected(part.f, g, state_of(part, 2, at.i));
    default: {
        float m = state_of(part, 0, at.i);
        const float u = clipped_update(part, at, g, &m);

        return u - m;
    }
    }
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

static __device__ __forceinline__ void add_to(int64_t *limb, int64_t x)
{
    atomicAdd((unsigned long long *)limb, (unsigned long long)x);
}

static __device__ __forceinline__ void add_limbs(const update_part &part, uint64_t sum,
                                                 const int64_t *limbs)
{
    for (int k = 0; k < LIMBS; k++)
        add_to(&part.limbs[sum + k * part.n_sums], limbs[k]);
}

/*
 * The sum of squares of the thread's run, threads [first, end), in its first thread: thread `lane`
 * of the first 16 adds elements lane, lane + 16, ...; then lanes l and l + 8 are added, and so on.
 * All threads must call it.
 */
static __device__ __forceinline__ double run_sum(double square, int first, int end)
{
    __shared__ double shared[QUANTUM_THREADS];
    const int t = (int)threadIdx.x;
    const int lane = t - first;
    double sum = 0.0;

    shared[t] = square;
    __syncthreads();
    for (int i = t; lane < LANES && i < end; i += LANES)
        sum += shared[i];
    for (int width = LANES / 2; width > 0; width /= 2) {
        __syncthreads();
        shared[t] = sum;
        __syncthreads();
        if (lane < width && t + width < end)
            sum += shared[t + width];
    }
    return sum;
}

/* x of element i, one of the `n` of the quantum that are in the part. */
static __device__ __forceinline__ void sum_blocks(const update_part &part, size_t i, int n, float x)
{
    const int t = (int)threadIdx.x;
    const bool live = t < n;
    const block_spot at = block_of(part, part.begin + i);
    const int first = live && at.before < (uint32_t)t ? t - (int)at.before : 0;
    const int end = live && at.rest < (uint32_t)(n - t) ? t + (int)at.rest : n;
    const double sum = run_sum(square_of(x), first, end);

    if (live && t == first)
        add_limbs(part, at.block, limb_term_of(sum, scale_of(part)).limbs);
}

static __device__ __forceinline__ void sum_tensor(const update_part &part, int n, float x)
{
    const double sum = run_sum(square_of(x), 0, n);

    if (threadIdx.x > 0)
        return;

    const exact_term term = exact_term_of(sum);
    if (term.first < 0)
        add_to(&part.limbs[EXACT_SUM_LIMBS], 1);
    for (int k = 0; term.first >= 0 && k < 3; k++)
        if (term.limbs[k] != 0)
            add_to(&part.limbs[term.first + k], term.limbs[k]);
}

/* All threads must call it. */
static __device__ __forceinline__ void sum_elements(const update_part &part, bool agrees)
{
    __shared__ int warps[QUANTUM_THREADS / WARP];
    int n = agrees ? 1 : 0;

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
    for (uint64_t row = first; row < first + COLUMN_ROWS; row++) {
        const uint64_t element = row * part.cols + col;

        if (element < part.begin || element - part.begin >= part.n)
            continue;
        const spot at = {(size_t)(element - part.begin), element, row, col};
        const limb_term term = limb_term_of(square_of(value_of(part, grad_scale, at)), scale);
        for (int k = 0; k < LIMBS; k++)
            limbs[k] += term.limbs[k];
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

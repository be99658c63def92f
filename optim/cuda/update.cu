/*
 * UPDATE and its sums: a thread has an element of a quantum at a time (see element.h); where
 * everything rests in fp32, four (wide.cuh); in sums by blocks and tensors, 16 threads have a
 * quantum (sums.cuh).
 */
#include "optim/cuda/update.h"

#include "optim/cuda/checks.cuh"
#include "optim/cuda/rules.cuh"
#include "optim/cuda/sums.cuh"
#include "optim/cuda/wide.cuh"

/* ---- rules over sums ---- */

/* mars clips by what its sums say. */
static __device__ __forceinline__ float clipped_step(const update_part &part, float g, float p,
                                                     float *s)
{
    if (part.vectors[ELEMENTS_CLIP] == NULL)
        return step(part, g, p, s);

    float f[sizeof part.f / sizeof part.f[0]];

    memcpy(f, part.f, sizeof f);
    f[MARS_CLIP] = *part.vectors[ELEMENTS_CLIP];
    return mars_step(f, part.decay, g, p, s);
}

/* What the rule takes from a weight, without decay. */
static __device__ __forceinline__ float step_taken(const update_part &part, float g, float *s)
{
    return 0.0f - one_nan(clipped_step(part, g, 0.0f, s));
}

static __device__ __forceinline__ float cautious_step(const update_part &part, size_t i, float g,
                                                      float p, float *s)
{
    const float u = step_taken(part, g, s);
    const float kept = step_agrees(u, part.grad[i]) ? u * *part.vectors[ELEMENTS_MASK] : 0.0f;

    return moved_weight(p, part.weight_decay, kept, 1.0f);
}

static __device__ __forceinline__ float factored_step(const update_part &part, const spot &at,
                                                      float g, float p, float *s)
{
    const float *values = part.vectors[FACTORED_STEP];
    const float decay = part.decays != 0 ? values[STEP_DECAY] : 1.0f;
    float u = 0.0f;

    if (part.rule == RULE_ADAFACTOR)
        return moved_weight(p, decay, factored_update(part, at, g), values[STEP_SIZE]);
    clipped_update(part, at, g, s);
    u = s[0];
    if (part.cols > 0)
        u = by_factors(u, part.vectors[CAME_ROW_FACTOR][at.row],
                       part.vectors[CAME_COL_FACTOR][at.col]);
    return moved_weight(p, decay, u, values[STEP_SIZE]);
}

static __device__ __forceinline__ float any_step(const update_part &part, size_t i, float g,
                                                 float p, float *s)
{
    switch (part.rule) {
    case RULE_ADAM_MINI: {
        const uint64_t element = part.begin + i;
        const uint64_t block = part.n_blocks > 0 ? block_of(part, element).block : element;

        return adam_mini_step(part.f, part.decay, g, p, s, part.vectors[MINI_DENOMINATOR][block]);
    }
    case RULE_ADAFACTOR:
    case RULE_CAME:
        return factored_step(part, spot_of(part, i), g, p, s);
    default:
        return part.vectors[ELEMENTS_MASK] != NULL ? cautious_step(part, i, g, p, s)
                                                   : clipped_step(part, g, p, s);
    }
}

/* ---- kernels ---- */

/* Of a block of threads; it counts in several rounds of UPDATE_QUANTA. */
enum { UPDATE_QUANTA = 4, COUNT_QUANTA = 16 };

static __device__ __forceinline__ const update_part &part_of(const update_work &work)
{
    int index = work.n_parts - 1;

    while (blockIdx.x < work.parts[index].first_block)
        index--;
    return work.parts[index];
}

/* All that memory holds of an element. */
struct coded_element {
    float grad;
    coded_master master;
    coded states[WORK_STATES];
};

static __device__ __forceinline__ coded_element load_element(const update_part &part, size_t i,
                                                             bool live)
{
    coded_element x = {};

    if (!live)
        return x;
    x.grad = part.grad[i];
    x.master = load_master(part, i);
    ELEMENT_UNROLL
    for (int k = 0; k < WORK_STATES; k++)
        if (k < part.n_states)
            x.states[k] = load(place_of(part, k, i, true));
    return x;
}

/* Element i of the part and those that are a quantum further each. */
static __device__ __forceinline__ void load_quanta(const update_part &part, size_t i,
                                                   coded_element (&x)[UPDATE_QUANTA])
{
    ELEMENT_UNROLL
    for (int q = 0; q < UPDATE_QUANTA; q++)
        x[q] = load_element(part, i + q * QUANTUM_THREADS, i + q * QUANTUM_THREADS < part.n);
}

static __device__ __forceinline__ void decode_states(const update_part &part, size_t i,
                                                     const coded_element &x, float *s)
{
    ELEMENT_UNROLL
    for (int k = 0; k < WORK_STATES; k++)
        s[k] = k < part.n_states ? decode(place_of(part, k, i, true), x.states[k]) : 0.0f;
}

/* All threads must call it. */
static __device__ __forceinline__ void update_element(const update_part &part, float grad_scale,
                                                      size_t i, const coded_element &x)
{
    const bool live = i < part.n;
    float s[WORK_STATES] = {0.0f, 0.0f, 0.0f};
    float p = 0.0f;

    if (live) {
        decode_states(part, i, x, s);
        p = one_nan(any_step(part, i, x.grad * grad_scale, decode_master(part, x.master), s));
    }
    ELEMENT_UNROLL
    for (int k = 0; k < WORK_STATES; k++)
        if (k < part.n_states)
            encode(new_place_of(part, k, i, live), one_nan(s[k]));
    encode_master(part, i, live, p);
}

/* A thread has an element of each of UPDATE_QUANTA quanta: what it waits for is then that much more. */
static __global__ void __launch_bounds__(QUANTUM_THREADS)
    update_quanta(const __grid_constant__ update_work work)
{
    const update_part &part = part_of(work);
    const size_t quantum = (size_t)(blockIdx.x - part.first_block) * UPDATE_QUANTA;
    const size_t first = quantum * QUANTUM_THREADS + threadIdx.x;
    coded_element x[UPDATE_QUANTA];

    load_quanta(part, first, x);
    ELEMENT_UNROLL
    for (int q = 0; q < UPDATE_QUANTA; q++)
        if ((quantum + q) * QUANTUM_THREADS < part.n)
            update_element(part, work.grad_scale, first + q * QUANTUM_THREADS, x[q]);
}

static __global__ void __launch_bounds__(QUANTUM_THREADS)
    update_wide(const __grid_constant__ update_work work)
{
    const update_part &part = part_of(work);
    const size_t thread = (size_t)(blockIdx.x - part.first_block) * QUANTUM_THREADS + threadIdx.x;
    const size_t i = thread * WIDE;

    if (i + WIDE <= part.n)
        update_four(part, work.grad_scale, i);
    else
        for (size_t e = i; e < part.n; e++)
            update_one(part, work.grad_scale, e);
}

/* Of one element. */
static __device__ __forceinline__ bool agrees(const update_part &part, float grad_scale, size_t i,
                                              const coded_element &x)
{
    float s[WORK_STATES];

    decode_states(part, i, x, s);
    return step_agrees(step_taken(part, x.grad * grad_scale, s), x.grad);
}

/* All threads must call it. */
static __device__ __forceinline__ void sum_agreeing(const update_part &part, float grad_scale,
                                                    uint32_t block)
{
    const size_t first = (size_t)block * COUNT_QUANTA * QUANTUM_THREADS + threadIdx.x;
    const size_t end = first + COUNT_QUANTA * QUANTUM_THREADS;
    int n = 0;

    for (size_t i = first; i < end; i += UPDATE_QUANTA * QUANTUM_THREADS) {
        coded_element x[UPDATE_QUANTA];

        load_quanta(part, i, x);
        ELEMENT_UNROLL
        for (int q = 0; q < UPDATE_QUANTA; q++)
            if (i + q * QUANTUM_THREADS < part.n)
                n += agrees(part, grad_scale, i + q * QUANTUM_THREADS, x[q]);
    }
    sum_elements(part, n);
}

/* The second moment that the step will have, by its bits. */
static __device__ __forceinline__ uint32_t moment_of(const update_part &part, float grad_scale,
                                                     size_t i, const coded_element &x)
{
    float s[WORK_STATES];

    decode_states(part, i, x, s);
    clipped_step(part, x.grad * grad_scale, decode_master(part, x.master), s);

    /* An index that is not known here would put s in memory. */
    return map_key(false, one_nan(part.rank1 == 0 ? s[0] : part.rank1 == 1 ? s[1] : s[2]));
}

/* All threads must call it. */
static __device__ __forceinline__ void find_maxima(const update_part &part, float grad_scale,
                                                   uint32_t block)
{
    const size_t quantum = (size_t)block * UPDATE_QUANTA;
    const size_t first = quantum * QUANTUM_THREADS + threadIdx.x;
    coded_element x[UPDATE_QUANTA];

    load_quanta(part, first, x);
    ELEMENT_UNROLL
    for (int q = 0; q < UPDATE_QUANTA; q++) {
        const size_t i = first + q * QUANTUM_THREADS;
        const bool live = i < part.n;

        if ((quantum + q) * QUANTUM_THREADS < part.n)
            raise_maxima(part, i, live, live ? moment_of(part, grad_scale, i, x[q]) : 0);
    }
}

static __global__ void __launch_bounds__(QUANTUM_THREADS)
    sum_quanta(const __grid_constant__ update_work work)
{
    const update_part &part = part_of(work);
    const uint32_t block = blockIdx.x - part.first_block;

    if (!has_scale(part))
        return;
    switch (part.sum) {
    case SUM_BLOCKS:
        sum_blocks(part, work.grad_scale, block);
        break;
    case SUM_COLUMNS:
        sum_columns(part, work.grad_scale, block);
        break;
    case SUM_TENSOR:
        sum_tensor(part, work.grad_scale, block);
        break;
    case SUM_ELEMENTS:
        sum_agreeing(part, work.grad_scale, block);
        break;
    case SUM_MAXIMA:
        find_maxima(part, work.grad_scale, block);
        break;
    default: /* SUM_BITS: nobody else has this element */
        const size_t i = (size_t)block * QUANTUM_THREADS + threadIdx.x;

        if (i < part.n)
            part.limbs[part.begin + i] = (int64_t)bits_of(
                value_of(part, work.grad_scale, value_spot(part, i), load_value(part, i, true)));
        break;
    }
}

/* ---- launchers ---- */

enum grid_of { GRID_UPDATE, GRID_WIDE, GRID_SUMS };

/* Blocks of threads for a part. */
static uint64_t blocks_of(const update_part *part, enum grid_of grid)
{
    uint64_t elements = QUANTUM_THREADS;

    if (grid == GRID_WIDE)
        elements *= WIDE;
    else if (grid == GRID_UPDATE || part->sum == SUM_MAXIMA)
        elements *= UPDATE_QUANTA;
    else if (part->sum == SUM_BLOCKS || part->sum == SUM_TENSOR)
        elements *= SUM_QUANTA;
    else if (part->sum == SUM_ELEMENTS)
        elements *= COUNT_QUANTA;

    if (grid != GRID_SUMS || part->sum != SUM_COLUMNS)
        return (part->n + elements - 1) / elements;

    const uint64_t first = part->begin / part->cols;
    const uint64_t last = (part->begin + part->n - 1) / part->cols;
    const uint64_t chunks = (part->cols + QUANTUM_THREADS - 1) / QUANTUM_THREADS;

    return (last - first + COLUMN_ROWS) / COLUMN_ROWS * chunks;
}

/* Checks the work and numbers the blocks of its parts. */
static shoal_status place_blocks(update_work *work, enum grid_of grid, dim3 *grid_out)
{
    uint64_t blocks = 0;

    if (work->n_parts < 1 || work->n_parts > WORK_PARTS)
        return fail(SHOAL_ERR_INTERNAL, "cuda: update of %d parts", work->n_parts);
    for (int i = 0; i < work->n_parts; i++) {
        update_part *part = &work->parts[i];

        if (!good_part(part) || !good_vectors(part) || (grid == GRID_SUMS && !good_sum(part)))
            return fail(SHOAL_ERR_INTERNAL, "cuda: update: bad part %d", i);
        part->first_block = (uint32_t)blocks;
        blocks += blocks_of(part, grid);
        if (blocks > 0x7fffffffu)
            return fail(SHOAL_ERR_INTERNAL, "cuda: update: more blocks than a grid can have");
    }
    *grid_out = dim3((unsigned)blocks);
    return SHOAL_OK;
}

extern "C" shoal_status cuda_update(cudaStream_t stream, const struct update_work *work)
{
    update_work placed = *work;
    bool wide = true;
    dim3 grid;

    for (int i = 0; i < work->n_parts && i < WORK_PARTS; i++)
        wide = wide && is_wide(&work->parts[i]);
    SHOAL_TRY(place_blocks(&placed, wide ? GRID_WIDE : GRID_UPDATE, &grid));
    return launch("update of weights", wide ? update_wide : update_quanta, grid, QUANTUM_THREADS, 0,
                  stream, placed);
}

extern "C" shoal_status cuda_update_sums(cudaStream_t stream, const struct update_work *work)
{
    update_work placed = *work;
    dim3 grid;

    SHOAL_TRY(place_blocks(&placed, GRID_SUMS, &grid));
    return launch("sums over tensors", sum_quanta, grid, QUANTUM_THREADS, 0, stream, placed);
}

extern "C" shoal_status cuda_update_maps(void)
{
    SHOAL_TRY(cuda_check(cudaMemcpyToSymbol(device_maps, codec_maps, sizeof device_maps),
                         "copy maps of codecs"));
    return cuda_check(cudaDeviceSynchronize(), "copy maps of codecs");
}

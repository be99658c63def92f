/* Cross-entropy of rows of logits and its gradient in their place; a block per row. */
#include "models/ops/cuda/kernels_internal.cuh"

#include <math.h>

enum { LOSS_THREADS = 512 };

/* A maximum and the sum of exp(x - max), which grow together (Milakov & Gimelshein 2018). */
struct running {
    float max;
    double sum;
};

/* ---- kernels ---- */

/* A group is summed in fp32, the groups' sums in double; `n` elements of it are in the row. */
static __device__ __forceinline__ void add_group(struct running *r, struct group x, int n)
{
    float max = r->max;
    float sum = 0.0f;

    for (int j = 0; j < GROUP; j++) {
        x.v[j] = j < n ? x.v[j] : -INFINITY;
        max = fmaxf(max, x.v[j]);
    }
    /* Selections instead of branches, so that the eight run side by side. */
    for (int j = 0; j < GROUP; j++) {
        const float e = expf(x.v[j] - max);
        sum += x.v[j] == -INFINITY ? 0.0f : e; /* max may be -inf, too */
    }
    if (max > r->max)
        r->sum *= (double)expf(r->max - max);
    r->sum += (double)sum;
    r->max = max;
}

template <typename T>
static __device__ __forceinline__ struct running thread_sum(const T *logits, int64_t V, bool vector)
{
    const int64_t step = (int64_t)LOSS_THREADS * GROUP;
    struct running r = {-INFINITY, 0.0};

    for (int64_t i = (int64_t)threadIdx.x * GROUP; i < V; i += 2 * step) {
        packed<T> two[2];
        load_two(two, logits, i, step, V, vector);
        for (int k = 0; k < 2; k++)
            add_group(&r, unpack(two[k]), in_group(i + k * step, V));
    }
    return r;
}

template <typename T>
static __global__ void __launch_bounds__(LOSS_THREADS)
    cross_entropy_kernel(int64_t V, T *logits, const int32_t *targets, float scale, bool backward,
                         double *row_loss, bool vector)
{
    const int32_t target = targets[blockIdx.x];
    const int64_t first = (int64_t)threadIdx.x * GROUP;
    const int64_t step = (int64_t)LOSS_THREADS * GROUP;

    logits += (int64_t)blockIdx.x * V;
    if (target < 0) {
        const struct group zero = {};
        for (int64_t i = first; backward && i < V; i += step)
            store_group(logits, i, V, vector, zero);
        if (threadIdx.x == 0)
            row_loss[blockIdx.x] = 0.0;
        return;
    }
    const float target_logit = to_float(logits[target]);
    const struct running mine = thread_sum(logits, V, vector);
    const float max = block_max(mine.max);
    /* A thread without logits has the sum 0 and the maximum -inf. */
    const double sum = block_sum(mine.sum * (double)expf(mine.max - max));

    if (threadIdx.x == 0)
        row_loss[blockIdx.x] = log(sum) + ((double)max - (double)target_logit);
    if (!backward)
        return;
    const float factor = (float)((double)scale / sum);
    const double share = (double)expf(target_logit - max) / sum;
    const float target_gradient = (float)((share - 1.0) * (double)scale);
    for (int64_t i = first; i < V; i += 2 * step) {
        packed<T> two[2];
        load_two(two, logits, i, step, V, vector);
        for (int k = 0; k < 2; k++) {
            const int64_t at = i + k * step;
            struct group x = unpack(two[k]);
            for (int j = 0; j < GROUP; j++) {
                const float gradient = expf(x.v[j] - max) * factor;
                x.v[j] = j == target - at ? target_gradient : gradient;
            }
            store_group(logits, at, V, vector, x);
        }
    }
}

/* ---- launchers ---- */

template <typename T>
static shoal_status cross_entropy(cudaStream_t stream, int64_t rows, int64_t V, void *logits,
                                  const int32_t *targets, float scale, bool backward,
                                  double *row_loss)
{
    const bool vector = V % GROUP == 0 && is_aligned(logits);

    return launch("cross-entropy", cross_entropy_kernel<T>, dim3((unsigned)rows), LOSS_THREADS, 0,
                  stream, V, (T *)logits, targets, scale, backward, row_loss, vector);
}

shoal_status cuda_cross_entropy(cudaStream_t stream, int64_t rows, int64_t V, void *logits,
                                enum dtype dtype, const int32_t *targets, float scale,
                                bool backward, double *row_loss)
{
    SHOAL_TRY(check_dtype("cross-entropy", dtype));
    SHOAL_TRY(check_rows("cross-entropy", rows, V));
    return (dtype == DTYPE_F32 ? cross_entropy<float>
                               : cross_entropy<bf16_t>)(stream, rows, V, logits, targets, scale,
                                                        backward, row_loss);
}

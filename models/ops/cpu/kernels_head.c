/* Kernels: softmax and cross-entropy of one row of logits. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

OP_INLINE float row_max(int64_t V, const float *logits)
{
    f32x16 max[2] = {splat(-INFINITY), splat(-INFINITY)};
    int64_t i = 0;

    for (; i + 2 * LANES <= V; i += 2 * LANES) {
        max[0] = max16(load(DTYPE_F32, logits, i), max[0]);
        max[1] = max16(load(DTYPE_F32, logits, i + LANES), max[1]);
    }
    for (; i < V; i += LANES)
        max[0] = max16(keep_lanes(load_some(DTYPE_F32, logits, i, V), V - i, -INFINITY), max[0]);
    return max_lanes(max16(max[0], max[1]));
}

/* exp(logits - max), stored unless exps is NULL, and added to 16 sums in double. */
OP_INLINE void exp_piece(int n, int64_t at, int64_t end, const float *logits, float max,
                         float *exps, f64x16 *sum)
{
    f32x16 e[GROUP];

    EACH(i) __builtin_prefetch(logits + at + end + i * LANES, 0, 2); /* the next row */
    load_group(n, DTYPE_F32, logits, at, end, e);
    EACH(i) e[i] = e[i] - max;
    exp_below(n, e);
    if (n == 1)
        e[0] = keep_lanes(e[0], end - at, 0.0f);
    EACH(i) *sum += __builtin_convertvector(e[i], f64x16);
    if (exps != NULL)
        store_group(n, DTYPE_F32, exps, at, end, e);
}

OP_INLINE double exp_sum(int64_t V, const float *logits, float max, float *exps)
{
    f64x16 sum = {0};

    FOR_GROUPS(V, exp_piece, logits, max, exps, &sum);
    return sum_lanes64(sum);
}

double kernel_cross_entropy(int64_t V, const float *logits, int32_t target)
{
    const float max = row_max(V, logits);

    return log_positive(exp_sum(V, logits, max, NULL)) + ((double)max - (double)logits[target]);
}

/* From the front, each vector read before its place is written: bf16 values never overtake. */
OP_INLINE void scale_row(int64_t V, float *exps, float factor, enum dtype dtype)
{
    for (int64_t i = 0; i < V; i += LANES)
        store_some(dtype, exps, i, V, factor * load_some(DTYPE_F32, exps, i, V));
}

double kernel_cross_entropy_backward(int64_t V, float *logits, int32_t target, float scale,
                                     enum dtype dtype)
{
    const float max = row_max(V, logits);
    const float target_logit = logits[target];
    const double sum = exp_sum(V, logits, max, logits);
    const float dtarget = (float)(((double)logits[target] / sum - 1.0) * (double)scale);
    const float factor = (float)((double)scale / sum);

    if (dtype == DTYPE_F32) {
        scale_row(V, logits, factor, DTYPE_F32);
        logits[target] = dtarget;
    } else {
        const bf16_t rounded = bf16_from_f32(dtarget);
        scale_row(V, logits, factor, DTYPE_BF16);
        memcpy(at_mut(DTYPE_BF16, logits, target), &rounded, sizeof rounded);
    }
    return log_positive(sum) + ((double)max - (double)target_logit);
}

/* Kernels: rotary positions, dot products and the rows of attention's softmax. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

OP_INLINE void rotate(int64_t half, enum dtype dtype, const float *cosines, const float *sines,
                      float direction, void *x)
{
    void *second = at_mut(dtype, x, half);

    for (int64_t i = 0; i < half; i += LANES) {
        f32x16 c = load_some(DTYPE_F32, cosines, i, half);
        f32x16 s = direction * load_some(DTYPE_F32, sines, i, half);
        f32x16 a = load_some(dtype, x, i, half);
        f32x16 b = load_some(dtype, second, i, half);
        store_some(dtype, x, i, half, a * c - b * s);
        store_some(dtype, second, i, half, b * c + a * s);
    }
}

void kernel_rotate(int64_t half, enum dtype dtype, const float *cosines, const float *sines,
                   float direction, void *x)
{
    if (dtype == DTYPE_F32)
        rotate(half, DTYPE_F32, cosines, sines, direction, x);
    else
        rotate(half, DTYPE_BF16, cosines, sines, direction, x);
}

float kernel_exp(float x)
{
    return exp16(splat(x))[0];
}

double kernel_log(double x)
{
    return log_positive(x);
}

OP_INLINE float dot(int64_t n, enum dtype a_dtype, const void *a, enum dtype b_dtype, const void *b)
{
    f32x16 sum = splat(0.0f);

    for (int64_t i = 0; i < n; i += LANES)
        sum += load_some(a_dtype, a, i, n) * load_some(b_dtype, b, i, n);
    return sum_lanes(sum);
}

float kernel_dot(int64_t n, enum dtype a_dtype, const void *a, enum dtype b_dtype, const void *b)
{
    if (a_dtype == DTYPE_F32)
        return b_dtype == DTYPE_F32 ? dot(n, DTYPE_F32, a, DTYPE_F32, b)
                                    : dot(n, DTYPE_F32, a, DTYPE_BF16, b);
    return b_dtype == DTYPE_F32 ? dot(n, DTYPE_BF16, a, DTYPE_F32, b)
                                : dot(n, DTYPE_BF16, a, DTYPE_BF16, b);
}

OP_INLINE void axpy(int64_t n, float scale, enum dtype dtype, const void *x, float *y)
{
    for (int64_t i = 0; i < n; i += LANES)
        store_some(DTYPE_F32, y, i, n,
                   load_some(DTYPE_F32, y, i, n) + scale * load_some(dtype, x, i, n));
}

void kernel_axpy(int64_t n, float scale, enum dtype dtype, const void *x, float *y)
{
    if (dtype == DTYPE_F32)
        axpy(n, scale, DTYPE_F32, x, y);
    else
        axpy(n, scale, DTYPE_BF16, x, y);
}

/* s = exp(s - max), added to the sum. */
OP_INLINE void exp_piece(int n, int64_t at, int64_t end, float max, float *s, f32x16 *sum)
{
    f32x16 e[GROUP];

    load_group(n, DTYPE_F32, s, at, end, e);
    EACH(i) e[i] = e[i] - max;
    exp_below(n, e);
    if (n == 1)
        e[0] = keep_lanes(e[0], end - at, 0.0f);
    EACH(i) *sum += e[i];
    store_group(n, DTYPE_F32, s, at, end, e);
}

float kernel_softmax_row(int64_t n, int64_t n_padded, float *s, float *max_out)
{
    f32x16 max = splat(-INFINITY);
    f32x16 sum = splat(0.0f);

    for (int64_t i = 0; i < n; i += LANES)
        max = max16(keep_lanes(load_some(DTYPE_F32, s, i, n), n - i, -INFINITY), max);
    const float row_max = max_lanes(max);

    FOR_GROUPS(n, exp_piece, row_max, s, &sum);
    memset(s + n, 0, (size_t)(n_padded - n) * sizeof *s);
    *max_out = row_max;
    return sum_lanes(sum);
}

OP_INLINE void softmax_backward(int n, int64_t at, int64_t end, float lse, float delta, float *s,
                                float *dp)
{
    f32x16 p[GROUP];
    f32x16 d[GROUP];

    load_group(n, DTYPE_F32, s, at, end, p);
    load_group(n, DTYPE_F32, dp, at, end, d);
    EACH(i) p[i] = p[i] - lse;
    exp_below(n, p);
    EACH(i) d[i] = p[i] * (d[i] - delta);
    store_group(n, DTYPE_F32, s, at, end, p);
    store_group(n, DTYPE_F32, dp, at, end, d);
}

void kernel_softmax_backward_row(int64_t n, int64_t n_padded, float lse, float delta, float *s,
                                 float *dp)
{
    FOR_GROUPS(n, softmax_backward, lse, delta, s, dp);
    memset(s + n, 0, (size_t)(n_padded - n) * sizeof *s);
    memset(dp + n, 0, (size_t)(n_padded - n) * sizeof *dp);
}

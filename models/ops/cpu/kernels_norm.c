/* Kernels: LayerNorm and RMSNorm, forward and backward. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

OP_INLINE float row_sum(int64_t C, const float *x)
{
    f32x16 sum = splat(0.0f);

    for (int64_t i = 0; i < C; i += LANES)
        sum += load_some(DTYPE_F32, x, i, C);
    return sum_lanes(sum);
}

/* Sum of (x - mean)². */
OP_INLINE float row_square_sum(int64_t C, const float *x, float mean)
{
    f32x16 sum = splat(0.0f);

    for (int64_t i = 0; i < C; i += LANES) {
        f32x16 d = load_some(DTYPE_F32, x, i, C) - mean;
        sum += keep_lanes(d * d, C - i, 0.0f);
    }
    return sum_lanes(sum);
}

OP_INLINE void norm(enum norm_kind kind, int64_t rows, int64_t C, float eps, enum dtype dtype,
                    const float *x, const void *w, const void *b, void *y, float *stats)
{
    for (int64_t row = 0; row < rows; row++, x += C, y = at_mut(dtype, y, C)) {
        float mean = kind == NORM_LAYER ? row_sum(C, x) / (float)C : 0.0f;
        float rstd = 1.0f / sqrtf(row_square_sum(C, x, mean) / (float)C + eps);

        for (int64_t i = 0; i < C; i += LANES) {
            f32x16 normed = (load_some(DTYPE_F32, x, i, C) - mean) * rstd;
            normed = normed * load_some(dtype, w, i, C);
            if (b != NULL)
                normed = normed + load_some(dtype, b, i, C);
            store_some(dtype, y, i, C, normed);
        }
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

void kernel_norm(enum norm_kind kind, int64_t rows, int64_t C, float eps, enum dtype dtype,
                 const float *x, const void *w, const void *b, void *y, float *stats)
{
    if (dtype == DTYPE_F32)
        norm(kind, rows, C, eps, DTYPE_F32, x, w, b, y, stats);
    else
        norm(kind, rows, C, eps, DTYPE_BF16, x, w, b, y, stats);
}

/*
 * With x̂ = (x - mean) rstd and g = dy w:
 *   dx += rstd (g - mean(g) - x̂ mean(g x̂)),   dw += dy x̂,   db += dy;
 * RMSNorm has no mean(g) term.
 */
OP_INLINE void norm_backward(enum norm_kind kind, int64_t rows, int64_t C, enum dtype dtype,
                             const void *dy, const float *x, const void *w, const float *stats,
                             float *dx, float *dw, float *db)
{
    for (int64_t row = 0; row < rows; row++, x += C, dx += C, dy = at(dtype, dy, C)) {
        const float mean = kind == NORM_LAYER ? stats[2 * row] : 0.0f;
        const float rstd = stats[2 * row + 1];
        f32x16 g_sum = splat(0.0f);
        f32x16 gx_sum = splat(0.0f);

        for (int64_t i = 0; i < C; i += LANES) {
            f32x16 d = load_some(dtype, dy, i, C);
            f32x16 normed = (load_some(DTYPE_F32, x, i, C) - mean) * rstd;
            f32x16 g = d * load_some(dtype, w, i, C);
            g_sum += g;
            gx_sum += g * normed; /* g is zero in the lanes behind the row's end */
            store_some(DTYPE_F32, dw, i, C, load_some(DTYPE_F32, dw, i, C) + d * normed);
            if (db != NULL)
                store_some(DTYPE_F32, db, i, C, load_some(DTYPE_F32, db, i, C) + d);
        }
        const float g_mean = kind == NORM_LAYER ? sum_lanes(g_sum) / (float)C : 0.0f;
        const float gx_mean = sum_lanes(gx_sum) / (float)C;
        for (int64_t i = 0; i < C; i += LANES) {
            f32x16 normed = (load_some(DTYPE_F32, x, i, C) - mean) * rstd;
            f32x16 g = load_some(dtype, dy, i, C) * load_some(dtype, w, i, C);
            f32x16 change = (g - g_mean - normed * gx_mean) * rstd;
            store_some(DTYPE_F32, dx, i, C, load_some(DTYPE_F32, dx, i, C) + change);
        }
    }
}

void kernel_norm_backward(enum norm_kind kind, int64_t rows, int64_t C, enum dtype dtype,
                          const void *dy, const float *x, const void *w, const float *stats,
                          float *dx, float *dw, float *db)
{
    if (dtype == DTYPE_F32)
        norm_backward(kind, rows, C, DTYPE_F32, dy, x, w, stats, dx, dw, db);
    else
        norm_backward(kind, rows, C, DTYPE_BF16, dy, x, w, stats, dx, dw, db);
}

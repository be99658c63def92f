/* Kernels: LayerNorm and RMSNorm, forward and backward. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

/* ---- forward: n rows at a time, see GROUP in vector.h ---- */

OP_INLINE void row_means(int n, int64_t C, const float *x, float mean[])
{
    f32x16 sum[GROUP];
    f32x16 v[GROUP];

    EACH(i) sum[i] = splat(0.0f);
    for (int64_t c = 0; c < C; c += LANES) {
        load_rows(n, DTYPE_F32, x, C, c, C, v);
        EACH(i) sum[i] += v[i];
    }
    EACH(i) mean[i] = sum_lanes(sum[i]) / (float)C;
}

/* 1 / sqrt(mean of (x - mean)² + eps). */
OP_INLINE void row_scales(int n, int64_t C, float eps, const float *x, const float mean[],
                          float rstd[])
{
    f32x16 sum[GROUP];
    f32x16 v[GROUP];

    EACH(i) sum[i] = splat(0.0f);
    for (int64_t c = 0; c < C; c += LANES) {
        load_rows(n, DTYPE_F32, x, C, c, C, v);
        EACH(i) v[i] = v[i] - mean[i];
        EACH(i) sum[i] += keep_lanes(v[i] * v[i], C - c, 0.0f);
    }
    EACH(i) rstd[i] = 1.0f / sqrtf(sum_lanes(sum[i]) / (float)C + eps);
}

OP_INLINE void norm_rows(int n, enum norm_kind kind, int64_t C, float eps, enum dtype dtype,
                         const float *x, const void *w, const void *b, void *y, float *stats)
{
    float mean[GROUP] = {0};
    float rstd[GROUP];
    f32x16 v[GROUP];

    if (kind == NORM_LAYER)
        row_means(n, C, x, mean);
    row_scales(n, C, eps, x, mean, rstd);
    for (int64_t c = 0; c < C; c += LANES) {
        const f32x16 weight = load_some(dtype, w, c, C);
        load_rows(n, DTYPE_F32, x, C, c, C, v);
        EACH(i) v[i] = (v[i] - mean[i]) * rstd[i] * weight;
        if (b != NULL) {
            const f32x16 bias = load_some(dtype, b, c, C);
            EACH(i) v[i] = v[i] + bias;
        }
        store_rows(n, dtype, y, C, c, C, v);
    }
    EACH(i)
    {
        stats[2 * i] = mean[i];
        stats[2 * i + 1] = rstd[i];
    }
}

OP_INLINE void norm(enum norm_kind kind, int64_t rows, int64_t C, float eps, enum dtype dtype,
                    const float *x, const void *w, const void *b, void *y, float *stats)
{
    int64_t row = 0;

    for (; row + GROUP <= rows; row += GROUP)
        norm_rows(GROUP, kind, C, eps, dtype, x + row * C, w, b, at_mut(dtype, y, row * C),
                  stats + 2 * row);
    for (; row < rows; row++)
        norm_rows(1, kind, C, eps, dtype, x + row * C, w, b, at_mut(dtype, y, row * C),
                  stats + 2 * row);
}

void kernel_norm(enum norm_kind kind, int64_t rows, int64_t C, float eps, enum dtype dtype,
                 const float *x, const void *w, const void *b, void *y, float *stats)
{
    if (dtype == DTYPE_F32)
        norm(kind, rows, C, eps, DTYPE_F32, x, w, b, y, stats);
    else
        norm(kind, rows, C, eps, DTYPE_BF16, x, w, b, y, stats);
}

/* ---- backward ---- */

/*
 * With x̂ = (x - mean) rstd and g = dy w:
 *   dx += rstd (g - mean(g) - x̂ mean(g x̂)),   dw += dy x̂,   db += dy;
 * RMSNorm has no mean(g) term.
 */
OP_INLINE void norm_backward(enum norm_kind kind, int64_t rows, int64_t C, enum dtype dtype,
                             const void *dy, const float *x, const void *w, const float *stats,
                             float *dx, void *dx_rounded, float *dw, float *db)
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
            f32x16 sum = load_some(DTYPE_F32, dx, i, C) + change;
            store_some(DTYPE_F32, dx, i, C, sum);
            if (dx_rounded != NULL)
                store_some(dtype, dx_rounded, i, C, sum);
        }
        if (dx_rounded != NULL)
            dx_rounded = at_mut(dtype, dx_rounded, C);
    }
}

void kernel_norm_backward(enum norm_kind kind, int64_t rows, int64_t C, enum dtype dtype,
                          const void *dy, const float *x, const void *w, const float *stats,
                          float *dx, void *dx_rounded, float *dw, float *db)
{
    if (dtype == DTYPE_F32)
        norm_backward(kind, rows, C, DTYPE_F32, dy, x, w, stats, dx, NULL, dw, db);
    else
        norm_backward(kind, rows, C, DTYPE_BF16, dy, x, w, stats, dx, dx_rounded, dw, db);
}

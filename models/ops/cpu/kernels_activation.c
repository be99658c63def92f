/* Kernels: GELU (tanh form) and SwiGLU, forward and backward. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

/*
 * gelu(x) = x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x³), which is x sigmoid(2u):
 * this form has no cancellation for negative x.
 */
static const float two_root = 1.5957691216057308f; /* 2 sqrt(2/pi) */
static const float cubic = 0.044715f;

/* ---- pieces: n vectors from element `at` of arrays of `end` elements ---- */

OP_INLINE void gelu(int n, int64_t at, int64_t end, enum dtype dtype, const void *x, void *y)
{
    f32x16 v[GROUP];
    f32x16 s[GROUP];
    f32x16 rest[GROUP];

    load_group(n, dtype, x, at, end, v);
    EACH(i) s[i] = two_root * v[i] * (1.0f + cubic * v[i] * v[i]);
    sigmoid(n, s, rest);
    EACH(i) v[i] = v[i] * s[i];
    store_group(n, dtype, y, at, end, v);
}

/*
 * y = gelu(x) unless NULL, and dx.
 * d/dx x s(v(x)) = s + x s (1 - s) v', v' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x²).
 */
OP_INLINE void gelu_backward(int n, int64_t at, int64_t end, enum dtype dtype, const void *x,
                             const void *dy, void *y, void *dx)
{
    f32x16 v[GROUP];
    f32x16 s[GROUP];
    f32x16 rest[GROUP];
    f32x16 d[GROUP];

    load_group(n, dtype, x, at, end, v);
    load_group(n, dtype, dy, at, end, d);
    EACH(i) s[i] = two_root * v[i] * (1.0f + cubic * v[i] * v[i]);
    sigmoid(n, s, rest);
    EACH(i)
    {
        f32x16 slope = two_root * (1.0f + 3.0f * cubic * v[i] * v[i]);
        v[i] = v[i] * s[i];
        d[i] = d[i] * (s[i] + v[i] * rest[i] * slope);
    }
    if (y != NULL)
        store_group(n, dtype, y, at, end, v);
    store_group(n, dtype, dx, at, end, d);
}

OP_INLINE void swiglu(int n, int64_t at, int64_t end, enum dtype dtype, const void *gate,
                      const void *up, void *y)
{
    f32x16 g[GROUP];
    f32x16 u[GROUP];
    f32x16 s[GROUP];
    f32x16 rest[GROUP];

    load_group(n, dtype, gate, at, end, g);
    load_group(n, dtype, up, at, end, u);
    EACH(i) s[i] = g[i];
    sigmoid(n, s, rest);
    EACH(i) u[i] = g[i] * s[i] * u[i];
    store_group(n, dtype, y, at, end, u);
}

/* silu' = s (1 + g (1 - s)). */
OP_INLINE void swiglu_backward(int n, int64_t at, int64_t end, enum dtype dtype, const void *gate,
                               const void *up, const void *dy, void *dgate, void *dup)
{
    f32x16 g[GROUP];
    f32x16 u[GROUP];
    f32x16 d[GROUP];
    f32x16 s[GROUP];
    f32x16 rest[GROUP];

    load_group(n, dtype, gate, at, end, g);
    load_group(n, dtype, up, at, end, u);
    load_group(n, dtype, dy, at, end, d);
    EACH(i) s[i] = g[i];
    sigmoid(n, s, rest);
    EACH(i) u[i] = d[i] * u[i] * (s[i] * (1.0f + g[i] * rest[i]));
    EACH(i) d[i] = d[i] * (g[i] * s[i]);
    store_group(n, dtype, dup, at, end, d);
    store_group(n, dtype, dgate, at, end, u);
}

/* ---- kernels ---- */

void kernel_gelu(int64_t n, enum dtype dtype, const void *x, void *y)
{
    if (dtype == DTYPE_F32)
        FOR_GROUPS(n, gelu, DTYPE_F32, x, y);
    else
        FOR_GROUPS(n, gelu, DTYPE_BF16, x, y);
}

void kernel_gelu_backward(int64_t n, enum dtype dtype, const void *x, const void *dy, void *dx)
{
    if (dtype == DTYPE_F32)
        FOR_GROUPS(n, gelu_backward, DTYPE_F32, x, dy, NULL, dx);
    else
        FOR_GROUPS(n, gelu_backward, DTYPE_BF16, x, dy, NULL, dx);
}

void kernel_gelu_again(int64_t n, enum dtype dtype, const void *x, const void *dy, void *y,
                       void *dx)
{
    if (dtype == DTYPE_F32)
        FOR_GROUPS(n, gelu_backward, DTYPE_F32, x, dy, y, dx);
    else
        FOR_GROUPS(n, gelu_backward, DTYPE_BF16, x, dy, y, dx);
}

void kernel_swiglu(int64_t n, enum dtype dtype, const void *gate, const void *up, void *y)
{
    if (dtype == DTYPE_F32)
        FOR_GROUPS(n, swiglu, DTYPE_F32, gate, up, y);
    else
        FOR_GROUPS(n, swiglu, DTYPE_BF16, gate, up, y);
}

void kernel_swiglu_backward(int64_t n, enum dtype dtype, const void *gate, const void *up,
                            const void *dy, void *dgate, void *dup)
{
    if (dtype == DTYPE_F32)
        FOR_GROUPS(n, swiglu_backward, DTYPE_F32, gate, up, dy, dgate, dup);
    else
        FOR_GROUPS(n, swiglu_backward, DTYPE_BF16, gate, up, dy, dgate, dup);
}

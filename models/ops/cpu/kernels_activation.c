/* Kernels: GELU (tanh form) and SwiGLU, forward and backward. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

/*
 * gelu(x) = x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x³), which is x sigmoid(2u):
 * this form has no cancellation for negative x.
 */
static const float two_root = 1.5957691216057308f; /* 2 sqrt(2/pi) */
static const float cubic = 0.044715f;

OP_INLINE f32x16 gelu16(f32x16 x)
{
    f32x16 rest;

    return x * sigmoid16(two_root * x * (1.0f + cubic * x * x), &rest);
}

/* d/dx x s(v(x)) = s + x s (1 - s) v', v' = 2 sqrt(2/pi) (1 + 3 * 0.044715 x²). */
OP_INLINE f32x16 gelu_slope16(f32x16 x, f32x16 *value_out)
{
    f32x16 rest;
    f32x16 s = sigmoid16(two_root * x * (1.0f + cubic * x * x), &rest);

    *value_out = x * s;
    return s + x * s * rest * (two_root * (1.0f + 3.0f * cubic * x * x));
}

OP_INLINE void gelu_again(int64_t n, enum dtype dtype, const void *x, const void *dy, void *y,
                          void *dx)
{
    for (int64_t i = 0; i < n; i += LANES) {
        f32x16 value;
        f32x16 slope = gelu_slope16(load_some(dtype, x, i, n), &value);
        f32x16 d = load_some(dtype, dy, i, n) * slope;
        store_some(dtype, y, i, n, value);
        store_some(dtype, dx, i, n, d);
    }
}

void kernel_gelu_again(int64_t n, enum dtype dtype, const void *x, const void *dy, void *y,
                       void *dx)
{
    if (dtype == DTYPE_F32)
        gelu_again(n, DTYPE_F32, x, dy, y, dx);
    else
        gelu_again(n, DTYPE_BF16, x, dy, y, dx);
}

OP_INLINE void gelu(int64_t n, enum dtype dtype, const void *x, void *y)
{
    for (int64_t i = 0; i < n; i += LANES)
        store_some(dtype, y, i, n, gelu16(load_some(dtype, x, i, n)));
}

void kernel_gelu(int64_t n, enum dtype dtype, const void *x, void *y)
{
    if (dtype == DTYPE_F32)
        gelu(n, DTYPE_F32, x, y);
    else
        gelu(n, DTYPE_BF16, x, y);
}

OP_INLINE void gelu_backward(int64_t n, enum dtype dtype, const void *x, const void *dy, void *dx)
{
    for (int64_t i = 0; i < n; i += LANES) {
        f32x16 value;
        f32x16 slope = gelu_slope16(load_some(dtype, x, i, n), &value);
        store_some(dtype, dx, i, n, load_some(dtype, dy, i, n) * slope);
    }
}

void kernel_gelu_backward(int64_t n, enum dtype dtype, const void *x, const void *dy, void *dx)
{
    if (dtype == DTYPE_F32)
        gelu_backward(n, DTYPE_F32, x, dy, dx);
    else
        gelu_backward(n, DTYPE_BF16, x, dy, dx);
}

OP_INLINE void swiglu(int64_t n, enum dtype dtype, const void *gate, const void *up, void *y)
{
    for (int64_t i = 0; i < n; i += LANES) {
        f32x16 rest;
        f32x16 g = load_some(dtype, gate, i, n);
        f32x16 silu = g * sigmoid16(g, &rest);
        store_some(dtype, y, i, n, silu * load_some(dtype, up, i, n));
    }
}

void kernel_swiglu(int64_t n, enum dtype dtype, const void *gate, const void *up, void *y)
{
    if (dtype == DTYPE_F32)
        swiglu(n, DTYPE_F32, gate, up, y);
    else
        swiglu(n, DTYPE_BF16, gate, up, y);
}

/* silu' = s (1 + g (1 - s)). */
OP_INLINE void swiglu_backward(int64_t n, enum dtype dtype, const void *gate, const void *up,
                               const void *dy, void *dgate, void *dup)
{
    for (int64_t i = 0; i < n; i += LANES) {
        f32x16 g = load_some(dtype, gate, i, n);
        f32x16 u = load_some(dtype, up, i, n);
        f32x16 d = load_some(dtype, dy, i, n);
        f32x16 rest;
        f32x16 s = sigmoid16(g, &rest);
        store_some(dtype, dup, i, n, d * (g * s));
        store_some(dtype, dgate, i, n, d * u * (s * (1.0f + g * rest)));
    }
}

void kernel_swiglu_backward(int64_t n, enum dtype dtype, const void *gate, const void *up,
                            const void *dy, void *dgate, void *dup)
{
    if (dtype == DTYPE_F32)
        swiglu_backward(n, DTYPE_F32, gate, up, dy, dgate, dup);
    else
        swiglu_backward(n, DTYPE_BF16, gate, up, dy, dgate, dup);
}

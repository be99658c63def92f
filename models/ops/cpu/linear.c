/* Linear layers: three products per shape, each with its place in torch's conventions. */
#include "models/ops/cpu/product.h"

/* y [rows, out] = x [rows, in] w[out, in]ᵀ. */
static struct matmul_shape forward_shape(struct linear_shape s, bool bias)
{
    return (struct matmul_shape){.kind = MATMUL_NT,
                                 .in = s.dtype,
                                 .out = s.dtype,
                                 .accumulate = bias && s.dtype == DTYPE_F32,
                                 .bias = bias && s.dtype == DTYPE_BF16,
                                 .m = s.rows,
                                 .n = s.out,
                                 .k = s.in,
                                 .lda = s.in,
                                 .ldb = s.in,
                                 .ldc = s.out};
}

static struct matmul_shape add_shape(struct linear_shape s)
{
    struct matmul_shape shape = forward_shape(s, false);

    shape.out = DTYPE_F32;
    shape.accumulate = true;
    return shape;
}

/* dx [rows, in] = dy [rows, out] w [out, in]. */
static struct matmul_shape input_shape(struct linear_shape s)
{
    return (struct matmul_shape){.kind = MATMUL_NN,
                                 .in = s.dtype,
                                 .out = s.dtype,
                                 .m = s.rows,
                                 .n = s.in,
                                 .k = s.out,
                                 .lda = s.out,
                                 .ldb = s.in,
                                 .ldc = s.in};
}

/* dw [out, in] = dy [rows, out]ᵀ x [rows, in]. */
static struct matmul_shape weight_shape(struct linear_shape s)
{
    return (struct matmul_shape){.kind = MATMUL_TN,
                                 .in = s.dtype,
                                 .out = DTYPE_F32,
                                 .m = s.out,
                                 .n = s.in,
                                 .k = s.rows,
                                 .lda = s.out,
                                 .ldb = s.in,
                                 .ldc = s.in};
}

shoal_status cpu_linear_prepare(struct ops *ops, struct linear_shape s)
{
    const struct matmul_shape shapes[] = {forward_shape(s, false), forward_shape(s, true),
                                          add_shape(s), input_shape(s), weight_shape(s)};

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        SHOAL_TRY(product_prepare(cpu_of(ops), &shapes[i]));
    return SHOAL_OK;
}

/* Tiles go straight to their place. */
size_t cpu_linear_scratch_bytes(const struct ops *ops, struct linear_shape s)
{
    (void)ops;
    (void)s;
    return 0;
}

shoal_status cpu_linear(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                        const void *bias, void *y, void *scratch)
{
    const struct matmul_shape shape = forward_shape(s, bias != NULL);
    const struct product_start start = {.bias = bias, .bias_dtype = s.dtype};
    const struct product_data data = {.a = x,
                                      .b = w,
                                      .bias = shape.bias ? bias : NULL,
                                      .c = y,
                                      .start = shape.accumulate ? &start : NULL};

    (void)scratch;
    return product_run(cpu_of(ops), &shape, &data);
}

shoal_status cpu_linear_add(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                            const void *bias, const float *residual, float *y, void *scratch)
{
    const struct matmul_shape shape = add_shape(s);
    const struct product_start start = {.residual = residual, .bias = bias, .bias_dtype = s.dtype};
    const bool in_place = bias == NULL && residual == y;
    const struct product_data data = {.a = x, .b = w, .c = y, .start = in_place ? NULL : &start};

    (void)scratch;
    return product_run(cpu_of(ops), &shape, &data);
}

shoal_status cpu_linear_backward_input(struct ops *ops, struct linear_shape s, const void *dy,
                                       const void *w, void *dx, void *scratch)
{
    const struct matmul_shape shape = input_shape(s);
    const struct product_data data = {.a = dy, .b = w, .c = dx};

    (void)scratch;
    return product_run(cpu_of(ops), &shape, &data);
}

shoal_status cpu_linear_backward_weight(struct ops *ops, struct linear_shape s, const void *dy,
                                        const void *x, float *dw, float *dbias, void *scratch)
{
    const struct matmul_shape shape = weight_shape(s);
    const struct product_data data = {.a = dy, .b = x, .c = dw};

    (void)scratch;
    SHOAL_TRY(product_run(cpu_of(ops), &shape, &data));
    if (dbias != NULL)
        cpu_column_sums(cpu_of(ops), s.rows, s.out, s.dtype, dy, dbias);
    return SHOAL_OK;
}

/* Linear layers: three products per shape, each with its place in torch's conventions. */
#include "models/ops/cuda/cuda_internal.h"

/* y [rows, out] = x [rows, in] w [out, in]ᵀ. */
struct cublas_shape ops_cuda_forward_shape(struct linear_shape s, bool bias)
{
    return (struct cublas_shape){.kind = CUBLAS_NT,
                                 .in = s.dtype,
                                 .out = s.dtype,
                                 .bias = bias,
                                 .m = s.rows,
                                 .n = s.out,
                                 .k = s.in,
                                 .lda = s.in,
                                 .ldb = s.in,
                                 .ldc = s.out};
}

static struct cublas_shape add_shape(struct linear_shape s, bool bias)
{
    struct cublas_shape shape = ops_cuda_forward_shape(s, bias);

    shape.out = DTYPE_F32;
    shape.accumulate = true;
    return shape;
}

/* dx [rows, in] = dy [rows, out] w [out, in]. */
struct cublas_shape ops_cuda_input_shape(struct linear_shape s)
{
    return (struct cublas_shape){.kind = CUBLAS_NN,
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
struct cublas_shape ops_cuda_weight_shape(struct linear_shape s)
{
    return (struct cublas_shape){.kind = CUBLAS_TN,
                                 .in = s.dtype,
                                 .out = DTYPE_F32,
                                 .m = s.out,
                                 .n = s.in,
                                 .k = s.rows,
                                 .lda = s.out,
                                 .ldb = s.in,
                                 .ldc = s.in};
}

static struct cublas_shape gelu_shape(struct linear_shape s, bool bias)
{
    struct cublas_shape shape = ops_cuda_forward_shape(s, bias);

    shape.epilogue = CUBLAS_EPILOGUE_GELU;
    return shape;
}

static struct cublas_shape input_gelu_shape(struct linear_shape s)
{
    struct cublas_shape shape = ops_cuda_input_shape(s);

    shape.epilogue = CUBLAS_EPILOGUE_GELU_GRADIENT;
    return shape;
}

static struct cublas_shape weight_bias_shape(struct linear_shape s)
{
    struct cublas_shape shape = ops_cuda_weight_shape(s);

    shape.epilogue = CUBLAS_EPILOGUE_BIAS_GRADIENT;
    return shape;
}

/* fp32 and tf32 are the reference: with them a product has nothing but a bias inside. */
bool ops_cuda_has_epilogues(const struct ops *ops, enum dtype dtype)
{
    return cuda_of_const(ops)->options.epilogue == OPS_CUDA_EPILOGUE_FULL && dtype == DTYPE_BF16;
}

shoal_status ops_cuda_linear_prepare(struct ops *ops, struct linear_shape s)
{
    struct cublas *cublas = cuda_of(ops)->cublas;
    const struct cublas_shape shapes[] = {ops_cuda_forward_shape(s, false),
                                          ops_cuda_forward_shape(s, true),
                                          add_shape(s, false),
                                          add_shape(s, true),
                                          ops_cuda_input_shape(s),
                                          ops_cuda_weight_shape(s)};
    const struct cublas_shape with_bias = weight_bias_shape(s);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        SHOAL_TRY(cublas_prepare(cublas, &shapes[i]));
    return ops_cuda_has_epilogues(ops, s.dtype) ? cublas_prepare(cublas, &with_bias) : SHOAL_OK;
}

/* For an fp32 copy of a bf16 bias, or the partial sums of a bias gradient: never both at once. */
size_t ops_cuda_linear_scratch_bytes(const struct ops *ops, struct linear_shape s)
{
    const size_t copy = s.dtype == DTYPE_F32 ? 0 : cuda_aligned((size_t)s.out * sizeof(float));
    const size_t sums = cuda_aligned(cuda_bias_gradient_scratch_bytes(s.rows, s.out));

    (void)ops;
    return copy > sums ? copy : sums;
}

shoal_status ops_cuda_linear(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                             const void *bias, void *y, void *scratch)
{
    const struct cublas_shape shape = ops_cuda_forward_shape(s, bias != NULL);
    const struct cublas_data data = {.a = x, .b = w, .bias = bias, .d = y};

    (void)scratch;
    return cublas_multiply(cuda_of(ops)->cublas, &shape, &data);
}

/* The library wants the bias of an fp32 result in fp32. */
static shoal_status widen_bias(struct cuda_ops *cuda, struct linear_shape s, const void *bias,
                               float *wide)
{
    if (wide == NULL)
        return fail(SHOAL_ERR_INTERNAL, "linear add: a bias needs scratch");
    SHOAL_TRY(cuda_zero(cuda->stream, (size_t)s.out * sizeof *wide, wide));
    return cuda_add_bias_f32(cuda->stream, 1, s.out, s.dtype, bias, wide);
}

shoal_status ops_cuda_linear_add(struct ops *ops, struct linear_shape s, const void *x,
                                 const void *w, const void *bias, const float *residual, float *y,
                                 void *scratch)
{
    struct cuda_ops *cuda = cuda_of(ops);
    const struct cublas_shape shape = add_shape(s, bias != NULL);
    struct cublas_data data = {.a = x, .b = w, .c = residual, .bias = bias, .d = y};

    if (bias != NULL && s.dtype != DTYPE_F32) {
        SHOAL_TRY(widen_bias(cuda, s, bias, scratch));
        data.bias = scratch;
    }
    return cublas_multiply(cuda->cublas, &shape, &data);
}

shoal_status ops_cuda_linear_backward_input(struct ops *ops, struct linear_shape s, const void *dy,
                                            const void *w, void *dx, void *scratch)
{
    const struct cublas_shape shape = ops_cuda_input_shape(s);
    const struct cublas_data data = {.a = dy, .b = w, .d = dx};

    (void)scratch;
    return cublas_multiply(cuda_of(ops)->cublas, &shape, &data);
}

shoal_status ops_cuda_linear_gelu_prepare(struct ops *ops, struct linear_shape up, bool bias,
                                          struct linear_shape down)
{
    struct cublas *cublas = cuda_of(ops)->cublas;
    const struct cublas_shape behind = gelu_shape(up, bias), before = input_gelu_shape(down);

    SHOAL_TRY(cublas_prepare(cublas, &behind));
    return cublas_prepare(cublas, &before);
}

shoal_status ops_cuda_linear_gelu(struct ops *ops, struct linear_shape s, const void *x,
                                  const void *w, const void *bias, void *up, void *act,
                                  void *scratch)
{
    const struct cublas_shape shape = gelu_shape(s, bias != NULL);
    const struct cublas_data data = {.a = x, .b = w, .bias = bias, .d = act, .pre_out = up};

    (void)scratch;
    return cublas_multiply(cuda_of(ops)->cublas, &shape, &data);
}

shoal_status ops_cuda_linear_backward_input_gelu(struct ops *ops, struct linear_shape s,
                                                 const void *dy, const void *w, const void *up,
                                                 void *dup, void *scratch)
{
    const struct cublas_shape shape = input_gelu_shape(s);
    const struct cublas_data data = {.a = dy, .b = w, .d = dup, .pre = up};

    (void)scratch;
    return cublas_multiply(cuda_of(ops)->cublas, &shape, &data);
}

shoal_status ops_cuda_linear_backward_weight(struct ops *ops, struct linear_shape s, const void *dy,
                                             const void *x, float *dw, float *dbias, void *scratch)
{
    struct cuda_ops *cuda = cuda_of(ops);
    const bool together = dbias != NULL && ops_cuda_has_epilogues(ops, s.dtype);
    const struct cublas_shape shape = together ? weight_bias_shape(s) : ops_cuda_weight_shape(s);
    const struct cublas_data data = {.a = dy, .b = x, .d = dw, .dbias = dbias, .scratch = scratch};

    SHOAL_TRY(cublas_multiply(cuda->cublas, &shape, &data));
    if (dbias == NULL || together)
        return SHOAL_OK;
    return cuda_bias_gradient(cuda->stream, s.rows, s.out, s.dtype, dy, dbias, scratch);
}

/* The ops that are one launch of our own kernels (kernels.h). */
#include "models/ops/cuda/cuda_internal.h"

shoal_status ops_cuda_norm(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                           enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                           float *stats)
{
    return cuda_norm(cuda_of(ops)->stream, kind, N, C, eps, dtype, x, w, b, y, stats);
}

size_t ops_cuda_norm_backward_scratch_bytes(const struct ops *ops, int64_t N, int64_t C)
{
    (void)ops;
    return cuda_norm_backward_scratch_bytes(N, C);
}

shoal_status ops_cuda_norm_backward(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                                    enum dtype dtype, const void *dy, const float *x, const void *w,
                                    const float *stats, float *dx, void *dx_rounded, float *dw,
                                    float *db, void *scratch)
{
    return cuda_norm_backward(cuda_of(ops)->stream, kind, N, C, dtype, dy, x, w, stats, dx,
                              dx_rounded, dw, db, scratch);
}

shoal_status ops_cuda_gelu(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y)
{
    return cuda_gelu(cuda_of(ops)->stream, n, dtype, x, y);
}

shoal_status ops_cuda_gelu_backward(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                                    const void *dy, void *dx)
{
    return cuda_gelu_backward(cuda_of(ops)->stream, n, dtype, x, dy, dx);
}

shoal_status ops_cuda_gelu_again(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                                 const void *dy, void *y, void *dx)
{
    return cuda_gelu_again(cuda_of(ops)->stream, n, dtype, x, dy, y, dx);
}

shoal_status ops_cuda_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                             const void *gate_up, void *y)
{
    return cuda_swiglu(cuda_of(ops)->stream, N, F, dtype, gate_up, y);
}

shoal_status ops_cuda_swiglu_backward(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                      const void *gate_up, const void *dy, void *dgate_up)
{
    return cuda_swiglu_backward(cuda_of(ops)->stream, N, F, dtype, gate_up, dy, dgate_up);
}

shoal_status ops_cuda_embedding(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                                const int32_t *tokens, const void *wte, const void *wpe,
                                int64_t first_position, float *x)
{
    return cuda_embedding(cuda_of(ops)->stream, B, T, C, dtype, tokens, wte, wpe, first_position,
                          x);
}

/* The order of the tokens is kept in the products' workspace, which nobody else uses meanwhile. */
shoal_status ops_cuda_embedding_backward(struct ops *ops, int64_t B, int64_t T, int64_t C,
                                         int64_t V, int64_t T_max, const int32_t *tokens,
                                         const float *dx, float *dwte, float *dwpe)
{
    struct cuda_ops *cuda = cuda_of(ops);
    const size_t n_bytes = cuda_embedding_backward_scratch_bytes(B, T, V);

    if (n_bytes > CUBLAS_WORKSPACE_BYTES)
        return fail(SHOAL_ERR_INTERNAL,
                    "embedding backward: %lld tokens of %lld need %zu bytes of scratch, there are "
                    "%d",
                    (long long)(B * T), (long long)V, n_bytes, (int)CUBLAS_WORKSPACE_BYTES);
    return cuda_embedding_backward(cuda->stream, B, T, C, V, T_max, tokens, dx, dwte, dwpe,
                                   cublas_workspace(cuda->cublas));
}

shoal_status ops_cuda_cast(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y)
{
    return cuda_cast(cuda_of(ops)->stream, n, dtype, x, y);
}

shoal_status ops_cuda_accumulate(struct ops *ops, int64_t n, const float *src, float *dst)
{
    return cuda_accumulate(cuda_of(ops)->stream, n, src, dst);
}

shoal_status ops_cuda_zero(struct ops *ops, size_t n_bytes, void *dst)
{
    return cuda_zero(cuda_of(ops)->stream, n_bytes, dst);
}

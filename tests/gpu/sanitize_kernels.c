/*
 * Every launcher of models/ops/cuda/kernels.h once per type and shape, and those of optim/cuda/, on
 * arrays without a byte to spare: a plain program for compute-sanitizer, which stops Criterion's
 * processes.  Results are not looked at; the tests gpu_kernels and gpu_optim do that.  Exits 0, 1,
 * or 77 where there is no CUDA device.
 *
 *     compute-sanitizer --tool memcheck --error-exitcode 9 sanitize_kernels
 */
#include "models/ops/cuda/kernels.h"
#include "tests/gpu/sanitize.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARRAYS_MAX = 24 };

static void *arrays[ARRAYS_MAX];
static int n_arrays;

static void expect_cuda(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "sanitize_kernels: %s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

void expect(shoal_status status, const char *what)
{
    if (status == SHOAL_OK)
        return;
    fprintf(stderr, "sanitize_kernels: %s: %s\n", what, shoal_last_error());
    exit(1);
}

static void *put(const void *content, size_t n_bytes)
{
    void *p = NULL;

    if (n_bytes == 0)
        return NULL;
    expect_cuda(cudaMalloc(&p, n_bytes), "allocate");
    expect_cuda(cudaMemcpy(p, content, n_bytes, cudaMemcpyHostToDevice), "copy");
    arrays[n_arrays++] = p;
    return p;
}

void *array(enum dtype dtype, int64_t n)
{
    size_t n_bytes = (size_t)n * dtype_bytes(dtype);
    void *content = malloc(n_bytes + 1);

    if (content == NULL)
        expect(SHOAL_ERR_NOMEM, "host memory");
    memset(content, 0x3f, n_bytes);
    void *p = put(content, n_bytes);
    free(content);
    return p;
}

void *scratch(size_t n_bytes)
{
    return array(DTYPE_U8, (int64_t)n_bytes);
}

static int32_t *ids(int64_t n, int32_t below)
{
    int32_t *content = malloc((size_t)n * sizeof *content + 1);

    if (content == NULL)
        expect(SHOAL_ERR_NOMEM, "host memory");
    for (int64_t i = 0; i < n; i++)
        content[i] = (int32_t)(i * 7919 % below);
    void *p = put(content, (size_t)n * sizeof *content);
    free(content);
    return p;
}

void done(const char *what)
{
    expect_cuda(cudaDeviceSynchronize(), what);
    for (; n_arrays > 0; n_arrays--)
        expect_cuda(cudaFree(arrays[n_arrays - 1]), what);
}

static void norms(enum norm_kind kind, int64_t N, int64_t C, enum dtype dtype)
{
    float *x = array(DTYPE_F32, N * C), *stats = array(DTYPE_F32, 2 * N);
    void *w = array(dtype, C), *b = kind == NORM_LAYER ? array(dtype, C) : NULL;
    float *db = kind == NORM_LAYER ? array(DTYPE_F32, C) : NULL;

    expect(cuda_norm(NULL, kind, N, C, 1e-5f, dtype, x, w, b, array(dtype, N * C), stats), "norm");
    expect(cuda_norm_backward(NULL, kind, N, C, dtype, array(dtype, N * C), x, w, stats,
                              array(DTYPE_F32, N * C),
                              dtype == DTYPE_F32 ? NULL : array(dtype, N * C), array(DTYPE_F32, C),
                              db, scratch(cuda_norm_backward_scratch_bytes(N, C))),
           "norm backward");
    done("norms");
}

static void attention(struct attention_shape s)
{
    const int64_t rows = s.B * s.T, width = (int64_t)(s.H + 2 * s.K) * s.D,
                  out = (int64_t)s.H * s.D;
    void *qkv = array(s.dtype, rows * width), *y = array(s.dtype, rows * out);
    float *lse = array(DTYPE_F32, s.B * s.H * s.T);
    float *cosines = array(DTYPE_F32, s.T * (s.D / 2)), *sines = array(DTYPE_F32, s.T * (s.D / 2));

    expect(cuda_rope(NULL, s, cosines, sines, 0, false, qkv), "rope");
    expect(cuda_attention_plain(NULL, s, qkv, y, lse), "attention");
    expect(cuda_attention_plain_backward(NULL, s, array(s.dtype, rows * out), qkv, y, lse,
                                         array(s.dtype, rows * width),
                                         scratch(cuda_attention_plain_backward_scratch_bytes(s))),
           "attention backward");
    expect(cuda_rope(NULL, s, cosines, sines, 0, true, qkv), "rope back");
    done("attention");

    struct attention_shape one = {.B = 1, .T = 1, .H = s.H, .K = s.K, .D = s.D, .dtype = s.dtype};
    expect(cuda_attention_decode(NULL, one, array(s.dtype, width), s.T - 1, s.T,
                                 array(s.dtype, 2 * s.T * s.K * s.D), array(s.dtype, out)),
           "attention decode");
    done("attention decode");
}

static void activations(int64_t N, int64_t F, enum dtype dtype)
{
    void *x = array(dtype, N * F), *pair = array(dtype, 2 * N * F);

    expect(cuda_gelu(NULL, N * F, dtype, x, array(dtype, N * F)), "gelu");
    expect(cuda_gelu_backward(NULL, N * F, dtype, x, array(dtype, N * F), array(dtype, N * F)),
           "gelu backward");
    expect(cuda_gelu_again(NULL, N * F, dtype, x, array(dtype, N * F), array(dtype, N * F),
                           array(dtype, N * F)),
           "gelu again");
    expect(cuda_swiglu(NULL, N, F, dtype, pair, array(dtype, N * F)), "swiglu");
    expect(
        cuda_swiglu_backward(NULL, N, F, dtype, pair, array(dtype, N * F), array(dtype, 2 * N * F)),
        "swiglu backward");
    done("activations");
}

static void embedding(int64_t B, int64_t T, int64_t C, int64_t V, enum dtype dtype)
{
    int32_t *tokens = ids(B * T, (int32_t)V);

    expect(cuda_embedding(NULL, B, T, C, dtype, tokens, array(dtype, V * C), array(dtype, T * C), 0,
                          array(DTYPE_F32, B * T * C)),
           "embedding");
    expect(cuda_embedding_backward(NULL, B, T, C, V, T, tokens, array(DTYPE_F32, B * T * C),
                                   array(DTYPE_F32, V * C), array(DTYPE_F32, T * C),
                                   scratch(cuda_embedding_backward_scratch_bytes(B, T, V))),
           "embedding backward");
    done("embedding");
}

static void loss(int64_t rows, int64_t V, enum dtype dtype)
{
    for (int backward = 0; backward <= 1; backward++)
        expect(cuda_cross_entropy(NULL, rows, V, array(dtype, rows * V), dtype,
                                  ids(rows, (int32_t)V), 0.125f, backward,
                                  array(DTYPE_F32, 2 * rows)),
               "cross-entropy");
    done("loss");
}

static void elementwise(int64_t rows, int64_t n, enum dtype dtype)
{
    float *x = array(DTYPE_F32, rows * n);
    void *y = array(dtype, rows * n);

    expect(cuda_cast(NULL, rows * n, dtype, x, y), "cast");
    expect(cuda_cast_stochastic(NULL, rows * n, 1, 2, 3, x, array(DTYPE_BF16, rows * n)),
           "stochastic cast");
    expect(cuda_accumulate(NULL, rows * n, x, array(DTYPE_F32, rows * n)), "accumulate");
    expect(cuda_zero(NULL, (size_t)(rows * n) * sizeof(float), array(DTYPE_F32, rows * n)), "zero");
    expect(cuda_add_bias(NULL, rows, n, dtype, array(dtype, n), y), "add bias");
    expect(cuda_add_bias_f32(NULL, rows, n, dtype, array(dtype, n), x), "add bias f32");
    expect(cuda_bias_gradient(NULL, rows, n, dtype, y, array(DTYPE_F32, n),
                              scratch(cuda_bias_gradient_scratch_bytes(rows, n))),
           "bias gradient");
    done("elementwise");
}

int main(void)
{
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        puts("no CUDA device");
        return 77;
    }
    for (int i = 0; i < 2; i++) {
        enum dtype dtype = i == 0 ? DTYPE_F32 : DTYPE_BF16;
        norms(NORM_LAYER, 37, 259, dtype);
        norms(NORM_RMS, 130, 768, dtype);
        attention((struct attention_shape){2, 33, 4, 2, 24, dtype});
        attention((struct attention_shape){1, 97, 2, 1, 64, dtype});
        attention((struct attention_shape){1, 70, 2, 2, 128, dtype});
        activations(13, 101, dtype);
        activations(16, 256, dtype);
        embedding(2, 37, 51, 70, dtype);
        embedding(2, 64, 64, 1000, dtype);
        embedding(3, 200, 8, 9000, dtype);
        loss(5, 1003, dtype);
        elementwise(11, 77, dtype);
        elementwise(300, 128, dtype);
    }
    sanitize_optim();
    puts("every kernel ran");
    return 0;
}

#include "tests/gpu/gpu.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 256, GUARD_BYTE = 0xa5, NAN_BYTE = 0xff };

#define EXPECT_CUDA(call)                                                                          \
    do {                                                                                           \
        const cudaError_t error_ = (call);                                                         \
        cr_assert_eq(error_, cudaSuccess, "%s: %s", #call, cudaGetErrorString(error_));            \
    } while (0)

void gpu_require(void)
{
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
        cr_skip_test("no CUDA device");
}

static size_t bytes_of(const struct gpu_array *a)
{
    return (size_t)a->n * dtype_bytes(a->dtype);
}

static void *create(struct gpu *gpu, enum dtype dtype, int64_t n, int shift)
{
    cr_assert_lt(gpu->n, GPU_ARRAYS_MAX);
    struct gpu_array *a = &gpu->arrays[gpu->n++];
    const size_t shift_bytes = (size_t)shift * dtype_bytes(dtype);

    *a = (struct gpu_array){.dtype = dtype, .n = n};
    const size_t n_bytes = bytes_of(a) + GUARD_BYTES;
    unsigned char *content = malloc(n_bytes);
    cr_assert_not_null(content);
    memset(content, NAN_BYTE, n_bytes);
    memset(content + bytes_of(a), GUARD_BYTE, GUARD_BYTES);
    EXPECT_CUDA(cudaMalloc(&a->start, shift_bytes + n_bytes));
    a->p = (char *)a->start + shift_bytes;
    EXPECT_CUDA(cudaMemcpy(a->p, content, n_bytes, cudaMemcpyHostToDevice));
    EXPECT_CUDA(cudaDeviceSynchronize()); /* streams of the back end do not wait for this copy */
    free(content);
    return a->p;
}

void *gpu_new(struct gpu *gpu, enum dtype dtype, int64_t n)
{
    return create(gpu, dtype, n, gpu->shift);
}

void *gpu_scratch(struct gpu *gpu, size_t n_bytes)
{
    return create(gpu, DTYPE_U8, (int64_t)n_bytes, 0);
}

void *gpu_put(struct gpu *gpu, struct array a)
{
    void *p = gpu_new(gpu, a.dtype, a.n);

    EXPECT_CUDA(cudaMemcpy(p, a.p, (size_t)a.n * dtype_bytes(a.dtype), cudaMemcpyHostToDevice));
    EXPECT_CUDA(cudaDeviceSynchronize());
    return p;
}

static struct array download(const struct gpu_array *from)
{
    struct array a = array_create(from->dtype, from->n);
    unsigned char *content = malloc(bytes_of(from) + GUARD_BYTES);

    cr_assert_not_null(content);
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(content, from->p, bytes_of(from) + GUARD_BYTES, cudaMemcpyDeviceToHost));
    for (int i = 0; i < GUARD_BYTES; i++)
        cr_assert_eq(content[bytes_of(from) + (size_t)i], GUARD_BYTE,
                     "byte %d behind an array of %lld was written", i, (long long)from->n);
    memcpy(a.p, content, bytes_of(from));
    free(content);
    return a;
}

struct array gpu_take(struct gpu *gpu, const void *p)
{
    for (int i = 0; i < gpu->n; i++)
        if (gpu->arrays[i].p == p)
            return download(&gpu->arrays[i]);
    cr_assert(false, "not an array of this device");
    return (struct array){0};
}

void gpu_free_all(struct gpu *gpu)
{
    for (int i = 0; i < gpu->n; i++) {
        struct array a = download(&gpu->arrays[i]);
        array_free(&a);
        EXPECT_CUDA(cudaFree(gpu->arrays[i].start));
    }
    gpu->n = 0;
}

struct array array_round(struct array a, enum dtype dtype)
{
    struct array rounded = array_create(dtype, a.n);

    for (int64_t i = 0; i < a.n; i++)
        array_set(rounded, i, array_get(a, i));
    return rounded;
}

struct array array_widen(struct array a)
{
    return array_round(a, DTYPE_F32);
}

void outputs_take(struct outputs *out, struct gpu *gpu, const void *p)
{
    cr_assert_lt(out->n, OUTPUTS_MAX);
    out->arrays[out->n++] = gpu_take(gpu, p);
}

void outputs_free(struct outputs *out)
{
    for (int i = 0; i < out->n; i++)
        array_free(&out->arrays[i]);
    out->n = 0;
}

struct outputs run_repeatedly(void (*run)(void *arg, struct gpu *gpu, struct outputs *out),
                              void *arg, bool shifted)
{
    struct outputs first = {0};

    for (int round = 0; round < (shifted ? 3 : 2); round++) {
        struct gpu gpu = {.shift = round == 2};
        struct outputs out = {0};
        run(arg, &gpu, &out);
        gpu_free_all(&gpu);
        if (round == 0) {
            first = out;
            continue;
        }
        cr_assert_eq(out.n, first.n);
        for (int i = 0; i < out.n; i++) {
            const size_t n_bytes = (size_t)out.arrays[i].n * dtype_bytes(out.arrays[i].dtype);
            cr_assert_eq(memcmp(out.arrays[i].p, first.arrays[i].p, n_bytes), 0,
                         "output %d has other bits in run %d", i, round);
        }
        outputs_free(&out);
    }
    return first;
}

void outputs_expect(const struct outputs *out, int i, struct array want, double tolerance,
                    const char *what)
{
    double *values = array_doubles(want);

    cr_assert_eq(out->arrays[i].n, want.n);
    array_expect(out->arrays[i], values, tolerance, what);
    free(values);
}

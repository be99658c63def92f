/*
 * What this machine can do: matrix products by cuBLASLt in bf16, fp32 and tf32 (large squares, and
 * the layers of GPT-2 124M and Llama 8B, the head with and without a padded vocabulary), and
 * bandwidths of device memory and of the way to the host.  A product's line gives the algorithm
 * that the back end takes and the best of all that the library names.
 *
 *     probe_ceilings
 */
#include "models/ops/cuda/cublas.h"
#include "tests/gpu/probe.h"

#include <stdio.h>

enum { SWEEP_BYTES = 256 << 20, COPY_BYTES = 1 << 30, RUNS = 10 };

static const struct {
    const char *name;
    struct cublas_shape s;
} products[] = {
    {"square", {.kind = CUBLAS_NT, .m = 8192, .n = 8192, .k = 8192}},
    {"square", {.kind = CUBLAS_NN, .m = 8192, .n = 8192, .k = 8192}},
    {"square", {.kind = CUBLAS_TN, .m = 8192, .n = 8192, .k = 8192}},
    {"124M qkv", {.kind = CUBLAS_NT, .m = 16384, .n = 2304, .k = 768}},
    {"124M qkv+bias", {.kind = CUBLAS_NT, .m = 16384, .n = 2304, .k = 768, .bias = true}},
    {"124M up", {.kind = CUBLAS_NT, .m = 16384, .n = 3072, .k = 768}},
    {"124M up dx", {.kind = CUBLAS_NN, .m = 16384, .n = 768, .k = 3072}},
    {"124M up dw", {.kind = CUBLAS_TN, .m = 3072, .n = 768, .k = 16384, .out = DTYPE_F32}},
    {"124M head", {.kind = CUBLAS_NT, .m = 4096, .n = 50257, .k = 768, .ldc = 50304}},
    {"124M head padded", {.kind = CUBLAS_NT, .m = 4096, .n = 50304, .k = 768}},
    {"124M head dx", {.kind = CUBLAS_NN, .m = 4096, .n = 768, .k = 50257, .lda = 50304}},
    {"124M head dx padded", {.kind = CUBLAS_NN, .m = 4096, .n = 768, .k = 50304}},
    {"124M head dw",
     {.kind = CUBLAS_TN, .m = 50257, .n = 768, .k = 4096, .lda = 50304, .out = DTYPE_F32}},
    {"124M head dw padded", {.kind = CUBLAS_TN, .m = 50304, .n = 768, .k = 4096, .out = DTYPE_F32}},
    {"8B qkv", {.kind = CUBLAS_NT, .m = 8192, .n = 6144, .k = 4096}},
    {"8B gate, up", {.kind = CUBLAS_NT, .m = 8192, .n = 28672, .k = 4096}},
    {"8B down added",
     {.kind = CUBLAS_NT, .m = 8192, .n = 4096, .k = 14336, .out = DTYPE_F32, .accumulate = true}},
    {"8B down dw", {.kind = CUBLAS_TN, .m = 4096, .n = 14336, .k = 8192, .out = DTYPE_F32}},
};

/* Rows lie one after the other unless the table says otherwise; fp32 in the table is the fp32 of
 * the result, whatever the inputs are. */
static struct cublas_shape complete(struct cublas_shape s, enum dtype in)
{
    const bool wide = s.out == DTYPE_F32 && (s.accumulate || s.kind == CUBLAS_TN);

    s.in = in;
    s.out = in == DTYPE_F32 || wide ? DTYPE_F32 : DTYPE_BF16;
    s.lda = s.lda > 0 ? s.lda : s.kind == CUBLAS_TN ? s.m : s.k;
    s.ldb = s.ldb > 0 ? s.ldb : s.kind == CUBLAS_NT ? s.k : s.n;
    s.ldc = s.ldc > 0 ? s.ldc : s.n;
    return s;
}

static shoal_status time_product(struct device *device, struct cublas *cublas,
                                 const struct cublas_shape *s, struct cublas_timing *timing_out)
{
    void *memory[5] = {NULL};

    SHOAL_TRY(
        probe_random(device, s->in, s->lda * (s->kind == CUBLAS_TN ? s->k : s->m), &memory[0]));
    SHOAL_TRY(
        probe_random(device, s->in, s->ldb * (s->kind == CUBLAS_NT ? s->n : s->k), &memory[1]));
    SHOAL_TRY(probe_random(device, s->out, s->ldc * s->m, &memory[2]));
    SHOAL_TRY(probe_random(device, s->out, s->n, &memory[3]));
    SHOAL_TRY(probe_random(device, DTYPE_F32, SWEEP_BYTES / 4, &memory[4]));
    const struct cublas_data data = {
        .a = memory[0], .b = memory[1], .c = memory[2], .d = memory[2], .bias = memory[3]};
    const struct cublas_sweep sweep = {memory[4], SWEEP_BYTES};
    const shoal_status status = cublas_time(cublas, s, &data, &sweep, timing_out);
    cudaDeviceSynchronize();
    for (int i = 0; i < 5; i++)
        device->ops->free(device, memory[i], 0);
    return status;
}

static shoal_status probe_products(struct device *device, enum dtype dtype, bool tf32,
                                   size_t n_products)
{
    struct cublas *cublas = NULL;
    char text[512];

    SHOAL_TRY(cublas_create(device, tf32, &cublas));
    printf("%s\n", tf32 ? "tf32" : dtype_name(dtype));
    for (size_t i = 0; i < n_products; i++) {
        const struct cublas_shape s = complete(products[i].s, dtype);
        const double flops = 2.0 * (double)s.m * (double)s.n * (double)s.k;
        struct cublas_timing t;
        if (time_product(device, cublas, &s, &t) != SHOAL_OK) {
            printf("  %-20s %s\n", products[i].name, shoal_last_error());
            continue;
        }
        cublas_plan_describe(cublas, cublas_plan_count(cublas) - 1, text, sizeof text);
        printf("  %-20s %8.3f ms %7.1f TFLOP/s, best of %d %7.1f TFLOP/s  %s\n", products[i].name,
               1e3 * t.chosen_seconds, 1e-12 * flops / t.chosen_seconds, t.n_algorithms,
               1e-12 * flops / t.best_seconds, text);
    }
    cublas_destroy(cublas);
    return SHOAL_OK;
}

struct transfer {
    cudaStream_t stream;
    void *dst;
    const void *src;
};

static shoal_status transfer(void *arg)
{
    const struct transfer *t = arg;

    return cuda_check(cudaMemcpyAsync(t->dst, t->src, COPY_BYTES, cudaMemcpyDefault, t->stream),
                      "copy");
}

static shoal_status clear(void *arg)
{
    const struct transfer *t = arg;

    return cuda_check(cudaMemsetAsync(t->dst, 0, COPY_BYTES, t->stream), "clear");
}

static shoal_status probe_bandwidths(struct device *device)
{
    const cudaStream_t stream = device_cuda_stream(device, QUEUE_COMPUTE);
    void *a = NULL, *b = NULL, *host = NULL;
    double seconds = 0.0;

    SHOAL_TRY(device->ops->alloc(device, "probe", COPY_BYTES, &a));
    SHOAL_TRY(device->ops->alloc(device, "probe", COPY_BYTES, &b));
    SHOAL_TRY(device->ops->host_alloc(device, "probe", COPY_BYTES, &host));
    const struct {
        const char *name;
        struct transfer t;
        double bytes;
        shoal_status (*run)(void *arg);
    } rows[] = {{"copy on the device", {stream, a, b}, 2.0 * COPY_BYTES, transfer},
                {"clear", {stream, a, NULL}, COPY_BYTES, clear},
                {"host to device", {stream, a, host}, COPY_BYTES, transfer},
                {"device to host", {stream, host, a}, COPY_BYTES, transfer}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct transfer t = rows[i].t;
        SHOAL_TRY(probe_time(device, RUNS, rows[i].run, &t, &seconds));
        printf("  %-20s %8.3f ms %7.1f GB/s\n", rows[i].name, 1e3 * seconds,
               1e-9 * rows[i].bytes / seconds);
    }
    device->ops->host_free(device, host, COPY_BYTES);
    device->ops->free(device, b, COPY_BYTES);
    device->ops->free(device, a, COPY_BYTES);
    return SHOAL_OK;
}

static shoal_status probe_all(struct device *device)
{
    const size_t all = sizeof products / sizeof *products;
    char text[64];

    cublas_describe(text, sizeof text);
    printf("%s\nbandwidths of %d MiB\n", text, COPY_BYTES >> 20);
    SHOAL_TRY(probe_bandwidths(device));
    SHOAL_TRY(probe_products(device, DTYPE_BF16, false, all));
    SHOAL_TRY(probe_products(device, DTYPE_F32, true, 3));
    return probe_products(device, DTYPE_F32, false, 3);
}

int main(void)
{
    struct device *device = probe_open();
    const shoal_status status = probe_all(device);

    device_close(device);
    return probe_end(status);
}

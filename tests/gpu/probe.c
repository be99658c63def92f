#include "tests/gpu/probe.h"

#include <stdio.h>
#include <stdlib.h>

enum { SKIPPED = 77, SEED_ELEMENTS = 1 << 20 };

struct device *probe_open(void)
{
    struct device *device = NULL;
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
        printf("no CUDA device\n");
        exit(SKIPPED);
    }
    if (device_open("cuda", 0, &device) != SHOAL_OK)
        exit(probe_end(SHOAL_ERR_UNAVAILABLE));
    printf("%s\n", device->ops->describe(device));
    return device;
}

static void fill(enum dtype dtype, size_t n, void *p)
{
    uint32_t state = 1;

    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        const float x = (float)(int32_t)state * 0x1p-31f;
        if (dtype == DTYPE_BF16)
            ((bf16_t *)p)[i] = bf16_from_f32(x);
        else
            ((float *)p)[i] = x;
    }
}

shoal_status probe_random(struct device *device, enum dtype dtype, int64_t n, void **p_out)
{
    const size_t n_bytes = (size_t)n * dtype_bytes(dtype);
    const size_t seed_bytes = SEED_ELEMENTS * dtype_bytes(dtype);
    void *seed = malloc(seed_bytes);
    void *p = NULL;

    if (seed == NULL)
        return fail(SHOAL_ERR_NOMEM, "probe: cannot reserve %zu bytes", seed_bytes);
    fill(dtype, SEED_ELEMENTS, seed);
    shoal_status status = device->ops->alloc(device, "probe", n_bytes, &p);
    for (size_t done = 0; status == SHOAL_OK && done < n_bytes; done += seed_bytes) {
        const size_t part = n_bytes - done < seed_bytes ? n_bytes - done : seed_bytes;
        status = device->ops->copy(device, (char *)p + done, seed, part);
    }
    free(seed);
    if (status == SHOAL_OK)
        *p_out = p;
    return status;
}

shoal_status probe_time(struct device *device, int runs, shoal_status (*run)(void *arg), void *arg,
                        double *seconds_out)
{
    cudaStream_t stream = device_cuda_stream(device, QUEUE_COMPUTE);
    cudaEvent_t from, to;
    double best = 1e30;

    SHOAL_TRY(cuda_check(cudaEventCreate(&from), "create an event"));
    SHOAL_TRY(cuda_check(cudaEventCreate(&to), "create an event"));
    for (int i = 0; i <= runs; i++) {
        float ms = 0.0f;
        SHOAL_TRY(cuda_check(cudaEventRecord(from, stream), "record an event"));
        SHOAL_TRY(run(arg));
        SHOAL_TRY(cuda_check(cudaEventRecord(to, stream), "record an event"));
        SHOAL_TRY(cuda_check(cudaEventSynchronize(to), "wait for an event"));
        SHOAL_TRY(cuda_check(cudaEventElapsedTime(&ms, from, to), "read a time"));
        if (i > 0 && ms * 1e-3 < best)
            best = ms * 1e-3;
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    *seconds_out = best;
    return SHOAL_OK;
}

shoal_status probe_hash(struct device *device, const void *p, size_t n_bytes, uint64_t *hash_out)
{
    unsigned char *bytes = malloc(n_bytes);
    uint64_t hash = 14695981039346656037u;

    if (bytes == NULL)
        return fail(SHOAL_ERR_NOMEM, "probe: cannot reserve %zu bytes", n_bytes);
    shoal_status status = device->ops->copy(device, bytes, p, n_bytes);
    for (size_t i = 0; status == SHOAL_OK && i < n_bytes; i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    free(bytes);
    *hash_out = hash;
    return status;
}

int probe_end(shoal_status status)
{
    if (status == SHOAL_OK)
        return EXIT_SUCCESS;
    fprintf(stderr, "%s\n", shoal_last_error());
    return EXIT_FAILURE;
}

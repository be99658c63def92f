/*
 * Our attention graphs before cuDNN's own checks: pattern, shapes, layouts, workspace.  The library
 * is told of a device in its own JSON, so that this runs on a host without one.  Nothing is
 * compiled or executed.
 */
#include "models/ops/cuda/cudnn_attention.h"

#include <criterion/criterion.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* An H200 or an A100, as far as the checks ask. */
static cudnnBackendDescriptor_t properties_of(int version)
{
    cudnnBackendDescriptor_t properties = NULL;
    char json[1024];

    snprintf(json, sizeof json,
             "{\"cudnn_version\":%zu,\"maxGridSize\":[2147483647,65535,65535],"
             "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,"
             "\"multiProcessorCount\":%d,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
             "\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,"
             "\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,\"maxThreadsPerBlock\":1024,"
             "\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
             "\"supportCoopLaunch\":1,\"totalGlobalMem\":85899345920,\"smClockRateKHz\":1980000,"
             "\"memClockRateKHz\":3201000,\"l2CacheSize\":41943040,\"memoryBusWidth\":5120,"
             "\"oversizedSharedMemoryPerBlock\":0,\"cudaDeviceId\":0,"
             "\"deviceVer\":%d,\"driverVer\":13000,\"deviceName\":\"device\"}",
             cudnnGetVersion(), version == 900 ? 132 : 108, version == 900 ? 232448 : 166912,
             version);
    cr_assert_eq(cudnn_properties_of_text(json, &properties), SHOAL_OK, "%s", shoal_last_error());
    return properties;
}

static void setup(void)
{
    /* The library looks for a loaded one of this name. */
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) == NULL &&
        dlopen(SHOAL_CUDA_STUB, RTLD_NOW | RTLD_GLOBAL) == NULL)
        cr_skip_test("no libcuda.so.1, nor its stub");
}

TestSuite(cudnn_graphs, .init = setup, .timeout = 120);

static struct cudnn_attention_shape shape(int64_t B, int64_t T, int H, int K, int D)
{
    return (struct cudnn_attention_shape){.B = B,
                                          .T = T,
                                          .H = H,
                                          .K = K,
                                          .D = D,
                                          .qkv_row = (int64_t)(H + 2 * K) * D,
                                          .y_row = (int64_t)H * D,
                                          .deterministic = true};
}

static size_t expect_taken(cudnnBackendDescriptor_t properties, struct cudnn_attention_shape s,
                           enum cudnn_attention_pass pass)
{
    struct cudnn_attention *attention = NULL;

    cr_assert_eq(cudnn_attention_create(&s, pass, properties, (size_t)1 << 40, false, &attention),
                 SHOAL_OK, "B %lld T %lld H %d K %d D %d pass %d: %s", (long long)s.B,
                 (long long)s.T, s.H, s.K, s.D, (int)pass, shoal_last_error());
    cr_assert_geq(cudnn_attention_plan(attention)->n_configs, 1);
    const size_t n_bytes = cudnn_attention_scratch_bytes(attention);
    cudnn_attention_destroy(attention);
    return n_bytes;
}

/* GPT-2's and Llama's, lengths that no tile divides, a small head; a part of a larger batch. */
static void check_device(int version)
{
    struct cudnn_attention_shape part = shape(1, 1024, 8, 2, 128);
    part.qkv_row = 48 * 128;
    part.y_row = 32 * 128;
    const struct cudnn_attention_shape shapes[] = {
        shape(4, 1024, 12, 12, 64), shape(16, 1024, 25, 25, 64), shape(1, 8192, 32, 8, 128),
        shape(2, 1001, 12, 4, 64),  shape(1, 63, 4, 2, 128),     shape(1, 2, 2, 2, 16),
        shape(1, 65, 3, 1, 72),     shape(2, 32, 4, 4, 8),       part};
    cudnnBackendDescriptor_t properties = properties_of(version);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct cudnn_attention_shape s = shapes[i];
        cr_assert_leq(expect_taken(properties, s, CUDNN_ATTENTION_FORWARD), (size_t)1 << 20);
        const size_t n_bytes = expect_taken(properties, s, CUDNN_ATTENTION_BACKWARD);
        cr_assert_leq(n_bytes, cudnn_attention_estimate_bytes(&s));
        cr_assert_geq(n_bytes, (size_t)(2 * s.B * s.H * s.T * s.T));
        s.deterministic = false;
        expect_taken(properties, s, CUDNN_ATTENTION_BACKWARD);
    }
    cudnn_descriptor_destroy(properties);
}

Test(cudnn_graphs, are_taken_on_hopper)
{
    check_device(900);
}

Test(cudnn_graphs, are_taken_on_ampere)
{
    check_device(800);
}

Test(cudnn_graphs, a_refusal_carries_the_librarys_reason)
{
    cudnnBackendDescriptor_t properties = properties_of(900);
    const struct cudnn_attention_shape s = shape(1, 64, 2, 2, 100);
    struct cudnn_attention *attention = NULL;

    cr_assert_eq(
        cudnn_attention_create(&s, CUDNN_ATTENTION_FORWARD, properties, 1 << 30, false, &attention),
        SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "no engine takes the graph"));
    if (cudnnGetVersion() >= 91500) /* 9.10 has none to give. */
        cr_assert_not_null(strstr(shoal_last_error(), "\nEmbedding dim per head for q and k is not "
                                                      "a multiple of 8"),
                           "%s", shoal_last_error());
    cudnn_descriptor_destroy(properties);
}

Test(cudnn_graphs, a_plan_stays_under_its_limit)
{
    cudnnBackendDescriptor_t properties = properties_of(900);
    const struct cudnn_attention_shape s = shape(1, 1024, 2, 2, 64);
    struct cudnn_attention *attention = NULL;

    cr_assert_eq(cudnn_attention_create(&s, CUDNN_ATTENTION_BACKWARD, properties, 1 << 20, false,
                                        &attention),
                 SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "at most 1048576 are allowed"), "%s",
                       shoal_last_error());
    cudnn_descriptor_destroy(properties);
}

Test(cudnn_graphs, a_wrong_attribute_is_named)
{
    struct cudnn_graph g = {0};
    const struct cudnn_tensor q = {.place = CUDNN_REAL,
                                   .type = CUDNN_DATA_BFLOAT16,
                                   .dims = {1, 2, 64, 32},
                                   .strides = {4096, 2048, 32, 1}};
    struct cudnn_tensor bad = q;
    bad.dims[3] = -1;

    cr_assert_eq(cudnn_graph_tensor(&g, bad), 0);
    cr_assert_eq(g.status, SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "cuDNN: tensor: "), "%s", shoal_last_error());
    cudnn_graph_fini(&g);

    /* q times q: the inner dimensions differ. */
    const int a = cudnn_graph_tensor(&g, q), b = cudnn_graph_tensor(&g, q);
    cr_assert_eq(cudnn_graph_matmul(&g, a, b, cudnn_graph_tensor(&g, q)), 0);
    cr_assert_not_null(strstr(shoal_last_error(), "cuDNN: matmul operation: finalize: "), "%s",
                       shoal_last_error());
    cudnn_graph_fini(&g);
}

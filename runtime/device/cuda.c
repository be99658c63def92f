#include "runtime/device/cuda.h"

#include "runtime/device/device_internal.h"

#include <stdio.h>
#include <stdlib.h>

/*
 * CUDA through the runtime's C interface.  A queue is a non-blocking stream, so that nothing ever
 * waits for the default stream; communication has the highest priority, as its kernels are short
 * and others wait for them.
 *
 * The synchronous copies and zeros run on a stream of their own and wait for it: cudaMemcpy from
 * pageable memory may return before the device has the bytes, and non-blocking streams would
 * not wait for those.
 */

enum { OLDEST_CAPABILITY = 80 }; /* the oldest that kernels are compiled for */

struct cuda {
    struct device device;
    int ordinal, sm_count, capability;
    size_t shared_bytes; /* of a block, at most */
    cudaStream_t streams[QUEUE_COUNT];
    cudaStream_t own; /* of the synchronous calls */
    char text[256];
};

/* Events are the runtime's own; this type never exists. */
static cudaEvent_t event_of(struct device_event *event)
{
    return (cudaEvent_t)(void *)event;
}

static const struct cuda *cuda_of(const struct device *device)
{
    return (const struct cuda *)(const void *)device;
}

shoal_status cuda_check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return SHOAL_OK;
    (void)cudaGetLastError(); /* a failed launch must not be found again by the next check */
    return fail(error == cudaErrorMemoryAllocation ? SHOAL_ERR_NOMEM : SHOAL_ERR_UNAVAILABLE,
                "cuda: %s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

cudaStream_t device_cuda_stream(const struct device *device, enum device_queue queue)
{
    return cuda_of(device)->streams[queue];
}

shoal_status device_cuda_use(const struct device *device)
{
    return cuda_check(cudaSetDevice(cuda_of(device)->ordinal), "choose the device");
}

int device_cuda_ordinal(const struct device *device)
{
    return cuda_of(device)->ordinal;
}

int device_cuda_sm_count(const struct device *device)
{
    return cuda_of(device)->sm_count;
}

int device_cuda_capability(const struct device *device)
{
    return cuda_of(device)->capability;
}

size_t device_cuda_shared_bytes(const struct device *device)
{
    return cuda_of(device)->shared_bytes;
}

int device_cuda_count(void)
{
    int count = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return count;
}

static const char *cuda_describe(const struct device *device)
{
    return cuda_of(device)->text;
}

static void cuda_close(struct device *device)
{
    struct cuda *cuda = (struct cuda *)(void *)device;

    cudaSetDevice(cuda->ordinal);
    for (int queue = 0; queue < QUEUE_COUNT; queue++)
        if (cuda->streams[queue] != NULL)
            cudaStreamDestroy(cuda->streams[queue]);
    if (cuda->own != NULL)
        cudaStreamDestroy(cuda->own);
    free(cuda);
}

static shoal_status cuda_alloc(struct device *device, const char *name, size_t n_bytes,
                               void **ptr_out)
{
    void *ptr = NULL;

    SHOAL_TRY(device_cuda_use(device));
    shoal_status status = cuda_check(cudaMalloc(&ptr, n_bytes == 0 ? 1 : n_bytes), name);
    if (status != SHOAL_OK)
        return fail_context(status, "%zu bytes of device memory", n_bytes);
    *ptr_out = ptr;
    return SHOAL_OK;
}

static void cuda_free(struct device *device, void *ptr, size_t n_bytes)
{
    (void)n_bytes;
    if (ptr != NULL && device_cuda_use(device) == SHOAL_OK)
        cudaFree(ptr);
}

static shoal_status cuda_host_alloc(struct device *device, const char *name, size_t n_bytes,
                                    void **ptr_out)
{
    void *ptr = NULL;

    SHOAL_TRY(device_cuda_use(device));
    shoal_status status =
        cuda_check(cudaHostAlloc(&ptr, n_bytes == 0 ? 1 : n_bytes, cudaHostAllocPortable), name);
    if (status != SHOAL_OK)
        return fail_context(status, "%zu bytes of pinned host memory", n_bytes);
    *ptr_out = ptr;
    return SHOAL_OK;
}

static void cuda_host_free(struct device *device, void *ptr, size_t n_bytes)
{
    (void)n_bytes;
    if (ptr != NULL && device_cuda_use(device) == SHOAL_OK)
        cudaFreeHost(ptr);
}

static shoal_status cuda_memory(struct device *device, size_t *free_out, size_t *total_out)
{
    size_t left = 0, total = 0;

    SHOAL_TRY(device_cuda_use(device));
    SHOAL_TRY(cuda_check(cudaMemGetInfo(&left, &total), "ask for free memory"));
    *free_out = left;
    *total_out = total;
    return SHOAL_OK;
}

static shoal_status cuda_copy(struct device *device, void *dst, const void *src, size_t n_bytes)
{
    cudaStream_t own = cuda_of(device)->own;

    SHOAL_TRY(device_cuda_use(device));
    SHOAL_TRY(cuda_check(cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDefault, own), "copy"));
    return cuda_check(cudaStreamSynchronize(own), "copy");
}

static shoal_status cuda_zero(struct device *device, void *ptr, size_t n_bytes)
{
    cudaStream_t own = cuda_of(device)->own;

    SHOAL_TRY(device_cuda_use(device));
    SHOAL_TRY(cuda_check(cudaMemsetAsync(ptr, 0, n_bytes, own), "zero"));
    return cuda_check(cudaStreamSynchronize(own), "zero");
}

static shoal_status cuda_copy_async(struct device *device, enum device_queue queue, void *dst,
                                    const void *src, size_t n_bytes)
{
    return cuda_check(
        cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDefault, device_cuda_stream(device, queue)),
        "issue a copy");
}

static shoal_status cuda_queue_sync(struct device *device, enum device_queue queue)
{
    return cuda_check(cudaStreamSynchronize(device_cuda_stream(device, queue)), "wait for a queue");
}

static shoal_status cuda_event_create(struct device *device, struct device_event **event_out)
{
    cudaEvent_t event = NULL;

    SHOAL_TRY(device_cuda_use(device));
    SHOAL_TRY(cuda_check(cudaEventCreate(&event), "create an event"));
    *event_out = (struct device_event *)(void *)event;
    return SHOAL_OK;
}

static void cuda_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    if (event != NULL)
        cudaEventDestroy(event_of(event));
}

static shoal_status cuda_event_record(struct device *device, struct device_event *event,
                                      enum device_queue queue)
{
    return cuda_check(cudaEventRecord(event_of(event), device_cuda_stream(device, queue)),
                      "record an event");
}

static shoal_status cuda_event_wait(struct device *device, struct device_event *event,
                                    enum device_queue queue)
{
    return cuda_check(cudaStreamWaitEvent(device_cuda_stream(device, queue), event_of(event), 0),
                      "let a queue wait");
}

static shoal_status cuda_event_sync(struct device *device, struct device_event *event)
{
    (void)device;
    return cuda_check(cudaEventSynchronize(event_of(event)), "wait for an event");
}

static shoal_status cuda_event_seconds(struct device *device, struct device_event *from,
                                       struct device_event *to, double *seconds_out)
{
    float ms = 0;

    (void)device;
    SHOAL_TRY(cuda_check(cudaEventElapsedTime(&ms, event_of(from), event_of(to)),
                         "read the time of an event"));
    *seconds_out = 1e-3 * (double)ms;
    return SHOAL_OK;
}

/* Only this thread's calls are held to what may be recorded: others allocate and copy. */
static shoal_status cuda_record_begin(struct device *device, enum device_queue queue)
{
    return cuda_check(
        cudaStreamBeginCapture(device_cuda_stream(device, queue), cudaStreamCaptureModeThreadLocal),
        "record a queue");
}

static shoal_status cuda_record_end(struct device *device, enum device_queue queue,
                                    struct device_graph **graph_out)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;

    SHOAL_TRY(cuda_check(cudaStreamEndCapture(device_cuda_stream(device, queue), &graph),
                         "end the recording of a queue"));
    shoal_status status = cuda_check(cudaGraphInstantiate(&exec, graph, 0), "make a graph");
    cudaGraphDestroy(graph);
    SHOAL_TRY(status);
    *graph_out = (struct device_graph *)(void *)exec;
    return SHOAL_OK;
}

static cudaGraphExec_t graph_of(struct device_graph *graph)
{
    return (cudaGraphExec_t)(void *)graph;
}

static shoal_status cuda_graph_launch(struct device *device, struct device_graph *graph,
                                      enum device_queue queue)
{
    return cuda_check(cudaGraphLaunch(graph_of(graph), device_cuda_stream(device, queue)),
                      "issue a graph");
}

static void cuda_graph_destroy(struct device *device, struct device_graph *graph)
{
    (void)device;
    if (graph != NULL)
        cudaGraphExecDestroy(graph_of(graph));
}

static const struct device_ops cuda_ops = {.name = "cuda",
                                           .separate = true,
                                           .describe = cuda_describe,
                                           .close = cuda_close,
                                           .alloc = cuda_alloc,
                                           .free = cuda_free,
                                           .host_alloc = cuda_host_alloc,
                                           .host_free = cuda_host_free,
                                           .memory = cuda_memory,
                                           .copy = cuda_copy,
                                           .zero = cuda_zero,
                                           .copy_async = cuda_copy_async,
                                           .queue_sync = cuda_queue_sync,
                                           .event_create = cuda_event_create,
                                           .event_destroy = cuda_event_destroy,
                                           .event_record = cuda_event_record,
                                           .event_wait = cuda_event_wait,
                                           .event_sync = cuda_event_sync,
                                           .event_seconds = cuda_event_seconds,
                                           .record_begin = cuda_record_begin,
                                           .record_end = cuda_record_end,
                                           .graph_launch = cuda_graph_launch,
                                           .graph_destroy = cuda_graph_destroy};

/* A fact for people: 0 where the driver does not tell. */
static double fact(int ordinal, enum cudaDeviceAttr which)
{
    int value = 0;

    if (cudaDeviceGetAttribute(&value, which, ordinal) == cudaSuccess)
        return value;
    (void)cudaGetLastError();
    return 0;
}

/* Name, size and the memory's peak by its clock in kHz (two transfers a cycle) and width in bits. */
static shoal_status read_facts(struct cuda *cuda)
{
    struct cudaDeviceProp properties;
    double rate = 2e3 / 8.0 * fact(cuda->ordinal, cudaDevAttrMemoryClockRate) *
                  fact(cuda->ordinal, cudaDevAttrGlobalMemoryBusWidth);

    SHOAL_TRY(cuda_check(cudaGetDeviceProperties(&properties, cuda->ordinal), "describe a device"));
    cuda->sm_count = properties.multiProcessorCount;
    cuda->shared_bytes = properties.sharedMemPerBlockOptin;
    cuda->capability = 10 * properties.major + properties.minor;
    if (cuda->capability < OLDEST_CAPABILITY)
        return fail(SHOAL_ERR_UNAVAILABLE, "%.100s has compute capability %d.%d, at least %d.%d",
                    properties.name, properties.major, properties.minor, OLDEST_CAPABILITY / 10,
                    OLDEST_CAPABILITY % 10);
    int n =
        snprintf(cuda->text, sizeof cuda->text, "%.100s (GPU %d), compute %d.%d, %d SMs, %.1f GiB",
                 properties.name, cuda->ordinal, properties.major, properties.minor, cuda->sm_count,
                 (double)properties.totalGlobalMem / (1 << 30));
    if (rate > 0 && n > 0 && (size_t)n < sizeof cuda->text)
        snprintf(cuda->text + n, sizeof cuda->text - (size_t)n, ", %.2f TB/s", 1e-12 * rate);
    return SHOAL_OK;
}

static shoal_status open_streams(struct cuda *cuda)
{
    int least = 0, greatest = 0;

    SHOAL_TRY(
        cuda_check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "ask for priorities"));
    for (int queue = 0; queue < QUEUE_COUNT; queue++)
        SHOAL_TRY(
            cuda_check(cudaStreamCreateWithPriority(&cuda->streams[queue], cudaStreamNonBlocking,
                                                    queue == QUEUE_COMM ? greatest : least),
                       "create a stream"));
    return cuda_check(cudaStreamCreateWithFlags(&cuda->own, cudaStreamNonBlocking),
                      "create a stream");
}

shoal_status device_cuda_open(int ordinal, struct device **device_out)
{
    shoal_status status = SHOAL_OK;
    struct cuda *cuda = calloc(1, sizeof *cuda);

    if (cuda == NULL)
        return fail(SHOAL_ERR_NOMEM, "device cuda: cannot allocate its record");
    cuda->device.ops = &cuda_ops;
    cuda->ordinal = ordinal;
    SHOAL_TRY_GOTO(cuda_check(cudaSetDevice(ordinal), "choose the device"), err);
    SHOAL_TRY_GOTO(read_facts(cuda), err);
    SHOAL_TRY_GOTO(open_streams(cuda), err);
    *device_out = &cuda->device;
    return SHOAL_OK;

err:
    cuda_close(&cuda->device);
    return fail_context(status, "device cuda: GPU %d", ordinal);
}

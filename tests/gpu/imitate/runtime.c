/*
 * The CUDA runtime beside what tests/gpu/emulate has: one device, whose streams do all at once.
 *
 * As strict as the real one, or more: nothing goes to the default stream, for which streams that do
 * not block do not wait; to a thread that records a stream, what waits, what takes memory, events and
 * other streams are refused; time is told between events that were recorded.
 */
#include "tests/gpu/emulate/emulate.h"
#include "tests/gpu/imitate/imitate.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

struct imitate imitate;

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    (void)device;
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "imitation");
    properties->major = 9;
    properties->multiProcessorCount = 4;
    properties->sharedMemPerBlockOptin =
        imitate.shared_bytes > 0 ? imitate.shared_bytes : (size_t)227 << 10;
    properties->totalGlobalMem = (size_t)1 << 30;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    (void)attribute;
    (void)device;
    *value = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = 0;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *total = imitate.total_bytes > 0 ? imitate.total_bytes : (size_t)1 << 30;
    *left = *total - emulate_allocated;
    return cudaSuccess;
}

static _Thread_local cudaError_t last_error;

void imitate_leave_error(cudaError_t error)
{
    last_error = error;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;

    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}

/* ---- streams ---- */

/* NULL: this thread records none. */
static _Thread_local cudaStream_t recorded;

static cudaError_t unless_recording(void)
{
    return recorded == NULL ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t imitate_stream_check(cudaStream_t stream)
{
    if (stream == NULL)
        return cudaErrorInvalidResourceHandle;
    return recorded == NULL || recorded == stream ? cudaSuccess : cudaErrorStreamCaptureIsolation;
}

/* ---- memory ---- */

cudaError_t cudaHostAlloc(void **p, size_t n_bytes, unsigned flags)
{
    (void)flags;
    *p = recorded == NULL ? malloc(n_bytes) : NULL;
    return *p == NULL ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

/* `height` rows of `width` bytes: a copy, or a fill with `value` where there is no source. */
struct memory_call {
    void *dst;
    const void *src;
    int value;
    size_t pitch, width, height;
};

static void run_memory(const void *issued)
{
    const struct memory_call *call = issued;

    for (size_t row = 0; row < call->height; row++) {
        char *dst = (char *)call->dst + row * call->pitch;
        if (call->src == NULL)
            memset(dst, call->value, call->width);
        else
            memcpy(dst, call->src, call->width);
    }
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    const struct memory_call call = {.dst = dst, .src = src, .width = n_bytes, .height = 1};

    (void)kind;
    if (imitate_stream_check(stream) == cudaSuccess)
        emulate_issue(run_memory, &call, sizeof call);
    return imitate_stream_check(stream);
}

cudaError_t cudaMemset2DAsync(void *dst, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream)
{
    const struct memory_call call = {
        .dst = dst, .value = value, .pitch = pitch, .width = width, .height = height};

    if (imitate_stream_check(stream) == cudaSuccess)
        emulate_issue(run_memory, &call, sizeof call);
    return imitate_stream_check(stream);
}

/* ---- graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    if (stream == NULL || recorded != NULL || mode != cudaStreamCaptureModeThreadLocal)
        return cudaErrorIllegalState;
    recorded = stream;
    emulate_record_begin();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    if (recorded == NULL || recorded != stream)
        return cudaErrorIllegalState;
    recorded = NULL;
    *graph = (cudaGraph_t)(void *)emulate_record_end();
    return cudaSuccess;
}

/* The graph itself is what is launched. */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    *exec = (cudaGraphExec_t)(void *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    (void)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    if (stream == NULL || recorded != NULL)
        return cudaErrorStreamCaptureUnsupported;
    emulate_replay((const struct emulate_recording *)(const void *)exec);
    imitate.replays++;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    emulate_recording_free((struct emulate_recording *)(void *)exec);
    return cudaSuccess;
}

/* ---- queues and events ---- */

struct event {
    bool is_recorded;
};

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    *stream = (cudaStream_t)(void *)malloc(1);
    imitate.live_handles++;
    return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    imitate.live_handles--;
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (stream == NULL)
        return cudaErrorInvalidResourceHandle;
    return imitate.broken ? cudaErrorIllegalAddress : unless_recording();
}

static struct event *event_of(cudaEvent_t event)
{
    return (struct event *)(void *)event;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    if (stream == NULL || event == NULL || flags != 0)
        return cudaErrorInvalidResourceHandle;
    return unless_recording();
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = (cudaEvent_t)calloc(1, sizeof(struct event));
    imitate.live_handles++;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    imitate.live_handles--;
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if (stream == NULL || event == NULL)
        return cudaErrorInvalidResourceHandle;
    event_of(event)->is_recorded = true;
    return unless_recording();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return event == NULL ? cudaErrorInvalidResourceHandle : unless_recording();
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    if (from == NULL || to == NULL || !event_of(from)->is_recorded || !event_of(to)->is_recorded)
        return cudaErrorInvalidResourceHandle;
    *ms = 1.0f;
    return unless_recording();
}

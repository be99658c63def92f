/* The CUDA runtime beside what tests/gpu/emulate has: one device, one stream that runs at once. */
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

void imitate_leave_error(int error)
{
    last_error = (cudaError_t)error;
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

cudaError_t cudaHostAlloc(void **p, size_t n_bytes, unsigned flags)
{
    (void)flags;
    *p = malloc(n_bytes);
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
    (void)stream;
    emulate_issue(run_memory, &call, sizeof call);
    return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void *dst, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream)
{
    const struct memory_call call = {
        .dst = dst, .value = value, .pitch = pitch, .width = width, .height = height};

    (void)stream;
    emulate_issue(run_memory, &call, sizeof call);
    return cudaSuccess;
}

/* ---- graphs ---- */

/* What waits, and what only says how things are, is refused to a thread that records. */
static _Thread_local bool is_recording;

static cudaError_t unless_recording(void)
{
    return is_recording ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    (void)stream;
    if (is_recording || mode != cudaStreamCaptureModeThreadLocal)
        return cudaErrorIllegalState;
    is_recording = true;
    emulate_record_begin();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    (void)stream;
    if (!is_recording)
        return cudaErrorIllegalState;
    is_recording = false;
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
    (void)stream;
    emulate_replay((const struct emulate_recording *)(const void *)exec);
    imitate.replays++;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    emulate_recording_free((struct emulate_recording *)(void *)exec);
    return cudaSuccess;
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    (void)flags;
    *stream = NULL;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    (void)stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    (void)stream;
    return imitate.broken ? cudaErrorIllegalAddress : unless_recording();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)stream;
    (void)event;
    (void)flags;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = NULL;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    (void)event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    (void)event;
    (void)stream;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    (void)event;
    return unless_recording();
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    (void)from;
    (void)to;
    *ms = 1.0f;
    return cudaSuccess;
}

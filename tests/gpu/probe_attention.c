/*
 * Attention on this machine: for the shapes of GPT-2 124M and 1.5B and of Llama 8B, by cuDNN forward,
 * backward with deterministic and with free sums, and by our own kernels: the engine that
 * took it, its scratch, best time, TFLOP/s (the causal half alone counts), and whether two runs
 * give the same bits.
 *
 *     probe_attention
 */
#include "models/ops/cuda/cudnn_attention.h"
#include "models/ops/cuda/kernels.h"
#include "tests/gpu/probe.h"

#include <stdio.h>

enum { RUNS = 10 };

struct model {
    const char *name;
    struct attention_shape s;
};

static const struct model models[] = {
    {"GPT-2 124M", {.B = 16, .T = 1024, .H = 12, .K = 12, .D = 64, .dtype = DTYPE_BF16}},
    {"GPT-2 1.5B", {.B = 8, .T = 1024, .H = 25, .K = 25, .D = 64, .dtype = DTYPE_BF16}},
    {"Llama 8B", {.B = 1, .T = 8192, .H = 32, .K = 8, .D = 128, .dtype = DTYPE_BF16}},
    {"Llama 8B", {.B = 2, .T = 2048, .H = 32, .K = 8, .D = 128, .dtype = DTYPE_BF16}},
};

struct probe {
    struct device *device;
    cudaStream_t stream;
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t properties;
    struct attention_shape s;
    size_t qkv_bytes, y_bytes, lse_bytes;
    char *qkv, *y, *dy, *dqkv;
    float *lse;
    /* Of the way that is being timed. */
    struct cudnn_attention *cudnn; /* NULL: own kernels */
    bool backward;
    void *scratch;
};

static shoal_status run(void *arg)
{
    struct probe *p = arg;
    const struct attention_shape *s = &p->s;
    const size_t k = (size_t)s->H * (size_t)s->D * 2, v = k + (size_t)s->K * (size_t)s->D * 2;
    const struct cudnn_attention_data data = {.q = p->qkv,
                                              .k = p->qkv + k,
                                              .v = p->qkv + v,
                                              .y = p->y,
                                              .lse = p->lse,
                                              .dy = p->dy,
                                              .dq = p->dqkv,
                                              .dk = p->dqkv + k,
                                              .dv = p->dqkv + v};

    if (p->cudnn != NULL)
        return cudnn_attention_run(p->handle, p->cudnn, &data, p->scratch);
    if (p->backward)
        return cuda_attention_plain_backward(p->stream, *s, p->dy, p->qkv, p->y, p->lse, p->dqkv,
                                             p->scratch);
    return cuda_attention_plain(p->stream, *s, p->qkv, p->y, p->lse);
}

/* Per pair of a query and a key: two products forward, five backward. */
static double flops(const struct attention_shape *s, bool backward)
{
    return (backward ? 5.0 : 2.0) * (double)(s->B * s->H) * (double)s->T * (double)(s->T + 1) *
           s->D;
}

static shoal_status measure(struct probe *p, const char *how, size_t scratch_bytes)
{
    const void *result = p->backward ? p->dqkv : p->y;
    const size_t n_bytes = p->backward ? p->qkv_bytes : p->y_bytes;
    uint64_t first = 0, second = 0;
    double seconds = 0.0;

    SHOAL_TRY(p->device->ops->alloc(p->device, "scratch", scratch_bytes, &p->scratch));
    shoal_status status = probe_time(p->device, RUNS, run, p, &seconds);
    if (status == SHOAL_OK)
        status = probe_hash(p->device, result, n_bytes, &first);
    if (status == SHOAL_OK)
        status = run(p);
    cudaStreamSynchronize(p->stream);
    if (status == SHOAL_OK)
        status = probe_hash(p->device, result, n_bytes, &second);
    p->device->ops->free(p->device, p->scratch, scratch_bytes);
    SHOAL_TRY(status);
    printf("  %-8s %-30s %9.3f ms %7.1f TFLOP/s  scratch %8.1f MiB  %s\n",
           p->backward ? "backward" : "forward", how, 1e3 * seconds,
           1e-12 * flops(&p->s, p->backward) / seconds, (double)scratch_bytes / (1 << 20),
           first == second ? "same bits" : "OTHER BITS");
    return SHOAL_OK;
}

static shoal_status measure_cudnn(struct probe *p, bool backward, bool deterministic)
{
    const struct cudnn_attention_shape s = {.B = p->s.B,
                                            .T = p->s.T,
                                            .H = p->s.H,
                                            .K = p->s.K,
                                            .D = p->s.D,
                                            .qkv_row = (int64_t)(p->s.H + 2 * p->s.K) * p->s.D,
                                            .y_row = (int64_t)p->s.H * p->s.D,
                                            .deterministic = deterministic};
    char how[64];

    p->backward = backward;
    if (cudnn_attention_create(&s, backward ? CUDNN_ATTENTION_BACKWARD : CUDNN_ATTENTION_FORWARD,
                               p->properties, (size_t)64 << 30, true, &p->cudnn) != SHOAL_OK) {
        printf("  %-8s cuDNN refuses: %s\n", backward ? "backward" : "forward", shoal_last_error());
        return SHOAL_OK;
    }
    const struct cudnn_plan *plan = cudnn_attention_plan(p->cudnn);
    snprintf(how, sizeof how, "cuDNN engine %lld of %d%s", (long long)plan->engine, plan->n_configs,
             !backward       ? ""
             : deterministic ? ", fixed sums"
                             : ", free sums");
    shoal_status status = measure(p, how, cudnn_attention_scratch_bytes(p->cudnn));
    cudaStreamSynchronize(p->stream);
    cudnn_attention_destroy(p->cudnn);
    p->cudnn = NULL;
    return status;
}

static shoal_status measure_plain(struct probe *p, bool backward)
{
    p->backward = backward;
    return measure(p, "own kernels",
                   backward ? cuda_attention_plain_backward_scratch_bytes(p->s) : 256);
}

static shoal_status measure_ways(struct probe *p)
{
    SHOAL_TRY(measure_plain(p, false));
    SHOAL_TRY(measure_cudnn(p, false, true));
    SHOAL_TRY(measure_cudnn(p, true, true));
    SHOAL_TRY(measure_cudnn(p, true, false));
    return measure_plain(p, true);
}

static shoal_status measure_model(struct probe *p, const struct model *model)
{
    const int64_t tokens = model->s.B * model->s.T;
    const int64_t y = tokens * model->s.H * model->s.D;
    const int64_t qkv = tokens * (model->s.H + 2 * model->s.K) * model->s.D;
    void *memory[5] = {NULL};

    p->s = model->s;
    p->qkv_bytes = (size_t)qkv * 2;
    p->y_bytes = (size_t)y * 2;
    p->lse_bytes = (size_t)(tokens * model->s.H) * sizeof(float);
    printf("%s: B %lld T %lld H %d K %d D %d\n", model->name, (long long)p->s.B, (long long)p->s.T,
           p->s.H, p->s.K, p->s.D);
    SHOAL_TRY(probe_random(p->device, DTYPE_BF16, qkv, &memory[0]));
    SHOAL_TRY(probe_random(p->device, DTYPE_BF16, qkv, &memory[1]));
    SHOAL_TRY(probe_random(p->device, DTYPE_BF16, y, &memory[2]));
    SHOAL_TRY(probe_random(p->device, DTYPE_BF16, y, &memory[3]));
    SHOAL_TRY(probe_random(p->device, DTYPE_F32, tokens * model->s.H, &memory[4]));
    p->qkv = memory[0];
    p->dqkv = memory[1];
    p->y = memory[2];
    p->dy = memory[3];
    p->lse = memory[4];
    shoal_status status = measure_ways(p);
    for (int i = 0; i < 5; i++)
        p->device->ops->free(p->device, memory[i], 0);
    return status;
}

static shoal_status probe_all(struct probe *p)
{
    SHOAL_TRY(cudnn_check(cudnnCreate(&p->handle), "create a handle"));
    SHOAL_TRY(cudnn_check(cudnnSetStream(p->handle, p->stream), "set the stream"));
    SHOAL_TRY(cudnn_properties_of_handle(p->handle, &p->properties));
    printf("cuDNN %zu\n", cudnnGetVersion());
    for (size_t i = 0; i < sizeof models / sizeof *models; i++)
        SHOAL_TRY(measure_model(p, &models[i]));
    return SHOAL_OK;
}

int main(void)
{
    struct probe probe = {.device = probe_open()};

    probe.stream = device_cuda_stream(probe.device, QUEUE_COMPUTE);
    return probe_end(probe_all(&probe));
}

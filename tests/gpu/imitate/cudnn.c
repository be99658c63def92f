/*
 * cuDNN's backend API: descriptors hold the attributes that they are given; executing a plan
 * interprets the operations of its graph in their order (cudnn_run.c).
 */
#include "tests/gpu/emulate/emulate.h"
#include "tests/gpu/imitate/cudnn_imitated.h"

#include <stdlib.h>
#include <string.h>

enum { BACKWARD_OPERATIONS = 20 };

static size_t width_of(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return 8;
    case CUDNN_TYPE_BOOLEAN:
    case CUDNN_TYPE_CHAR:
        return 1;
    default:
        return 4;
    }
}

size_t cudnnGetVersion(void)
{
    return imitate.cudnn_version > 0 ? imitate.cudnn_version : CUDNN_VERSION;
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_NOT_SUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED"
                                                : "CUDNN_STATUS_BAD_PARAM";
}

void cudnnGetLastErrorString(char *message, size_t max_size)
{
    strncpy(message, "imitated", max_size);
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    if (imitate.no_cudnn)
        return CUDNN_STATUS_NOT_INITIALIZED;
    imitate.live_descriptors++;
    *handle = calloc(1, 1);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    imitate.live_descriptors--;
    free(handle);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    (void)handle;
    return imitate_stream_check(stream) == cudaSuccess ? CUDNN_STATUS_SUCCESS
                                                       : CUDNN_STATUS_BAD_PARAM;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *descriptor)
{
    struct imitated_descriptor *d = calloc(1, sizeof *d);

    d->type = type;
    imitate.live_descriptors++;
    *descriptor = d;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor)
{
    struct imitated_descriptor *d = descriptor;

    for (int i = 0; i < d->n; i++)
        free(d->attributes[i].values);
    free(d);
    imitate.live_descriptors--;
    return CUDNN_STATUS_SUCCESS;
}

const struct imitated_attribute *imitated_find(const struct imitated_descriptor *d,
                                               cudnnBackendAttributeName_t name)
{
    for (int i = 0; i < d->n; i++)
        if (d->attributes[i].name == name)
            return &d->attributes[i];
    return NULL;
}

const void *imitated_get(const struct imitated_descriptor *d, cudnnBackendAttributeName_t name)
{
    const struct imitated_attribute *a = imitated_find(d, name);

    return a == NULL ? NULL : a->values;
}

const struct imitated_descriptor *imitated_child(const struct imitated_descriptor *d,
                                                 cudnnBackendAttributeName_t name, int index)
{
    const struct imitated_descriptor *const *children = imitated_get(d, name);

    return children == NULL ? NULL : children[index];
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t n,
                                       const void *values)
{
    struct imitated_descriptor *d = descriptor;

    if (imitate.fail_attribute > 0 && --imitate.fail_attribute == 0)
        return CUDNN_STATUS_BAD_PARAM;
    if (d->finalized || d->n == IMITATED_ATTRIBUTES || imitated_find(d, name) != NULL || n < 1)
        return CUDNN_STATUS_BAD_PARAM;
    struct imitated_attribute *a = &d->attributes[d->n++];
    a->name = name;
    a->n = n;
    a->values = malloc((size_t)n * width_of(type));
    memcpy(a->values, values, (size_t)n * width_of(type));
    /* Descriptors must be finalized before another refers to them. */
    for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < n; i++)
        if (!((struct imitated_descriptor **)a->values)[i]->finalized)
            return CUDNN_STATUS_BAD_PARAM;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor)
{
    struct imitated_descriptor *d = descriptor;

    if (d->finalized || d->n == 0 || !imitated_operation_is_valid(d))
        return CUDNN_STATUS_BAD_PARAM;
    d->finalized = true;
    return CUDNN_STATUS_SUCCESS;
}

/* A backward without fp32 sums of dQ keeps all of dS, as 9.19's does. */
static int64_t workspace_of(const struct imitated_descriptor *graph)
{
    const struct imitated_attribute *operations =
        imitated_find(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    const struct imitated_descriptor *first = NULL;

    if (operations->n < BACKWARD_OPERATIONS)
        return 256;
    for (int i = 0; i < (int)operations->n; i++) {
        first = imitated_child(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, i);
        if (imitated_child(first, CUDNN_ATTR_OPERATION_MATMUL_CDESC, 0) != NULL)
            break;
    }
    const struct imitated_descriptor *scores =
        imitated_child(first, CUDNN_ATTR_OPERATION_MATMUL_CDESC, 0);
    const int64_t *dims = imitated_get(scores, CUDNN_ATTR_TENSOR_DIMENSIONS);
    const int64_t by_64 = (dims[2] + 63) / 64 * 64, by_128 = (dims[2] + 127) / 128 * 128;
    return 256 + 2 * dims[0] * dims[1] * by_64 * by_128;
}

static cudnnStatus_t fill_configs(const struct imitated_descriptor *heuristics, int64_t requested,
                                  int64_t *n, void *values)
{
    struct imitated_descriptor **configs = values;

    *n = 0;
    if (imitate.refuse_graphs || requested < 1)
        return CUDNN_STATUS_SUCCESS;
    configs[0]->graph = imitated_child(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, 0);
    configs[0]->finalized = true;
    *n = 1;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t requested,
                                       int64_t *n, void *values)
{
    const struct imitated_descriptor *d = descriptor;
    const struct imitated_descriptor *config = NULL;

    (void)type;
    *n = 1;
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        return fill_configs(d, requested, n, values);
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
        *(int64_t *)values = workspace_of(d->graph);
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        config = imitated_child(d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 0);
        *(int64_t *)values = workspace_of(config->graph);
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        *(int64_t *)values = 0;
        return CUDNN_STATUS_SUCCESS;
    default:
        return CUDNN_STATUS_BAD_PARAM;
    }
}

struct execution {
    const struct imitated_descriptor *graph;
    struct imitated_pack pack;
    void *workspace;
};

static cudnnStatus_t last_execution;

static void run_execution(const void *issued)
{
    const struct execution *execution = issued;

    /* All of the workspace may be written. */
    memset(execution->workspace, 0xff, (size_t)workspace_of(execution->graph));
    imitate.graphs++;
    last_execution = imitated_run(execution->graph, &execution->pack);
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack)
{
    const struct imitated_descriptor *config =
        imitated_child(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 0);
    const struct imitated_descriptor *p = pack;
    const struct imitated_attribute *ids = imitated_find(p, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    void *const *pointers = imitated_get(p, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    void *const *workspace = imitated_get(p, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    struct execution execution = {.graph = config->graph};

    if (handle == NULL || !p->finalized || ids->n > IMITATED_TENSORS)
        return CUDNN_STATUS_BAD_PARAM;
    execution.workspace = *workspace;
    execution.pack.n = (int)ids->n;
    memcpy(execution.pack.ids, ids->values, (size_t)ids->n * sizeof execution.pack.ids[0]);
    memcpy(execution.pack.pointers, pointers, (size_t)ids->n * sizeof(void *));
    last_execution = CUDNN_STATUS_SUCCESS;
    emulate_issue(run_execution, &execution, sizeof execution);
    return last_execution;
}

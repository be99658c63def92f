/* The operations that attention is made of, as descriptors of the cuDNN 9 backend API. */
#include "models/ops/cuda/cudnn_graph.h"

#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static const cudnnDataType_t fp32 = CUDNN_DATA_FLOAT;

/* Create a descriptor that the graph owns; NULL after a failure, now or before. */
static cudnnBackendDescriptor_t add(struct cudnn_graph *g, cudnnBackendDescriptorType_t type,
                                    const char *what, const struct cudnn_attribute *attributes,
                                    int n_attributes)
{
    cudnnBackendDescriptor_t descriptor = NULL;

    if (g->status != SHOAL_OK)
        return NULL;
    if (g->n_descriptors == CUDNN_GRAPH_DESCRIPTORS) {
        g->status = fail(SHOAL_ERR_INTERNAL, "cuDNN graph: more than %d descriptors",
                         CUDNN_GRAPH_DESCRIPTORS);
        return NULL;
    }
    g->status = cudnn_descriptor_create(type, what, attributes, n_attributes, &descriptor);
    if (g->status != SHOAL_OK)
        return NULL;
    g->descriptors[g->n_descriptors++] = descriptor;
    return descriptor;
}

/* An operation of the graph; returns its result y, 0 after a failure. */
static int add_operation(struct cudnn_graph *g, cudnnBackendDescriptorType_t type, const char *what,
                         const struct cudnn_attribute *attributes, int n_attributes, int y)
{
    cudnnBackendDescriptor_t operation = add(g, type, what, attributes, n_attributes);

    if (operation == NULL)
        return 0;
    if (g->n_operations == CUDNN_GRAPH_OPERATIONS) {
        g->status = fail(SHOAL_ERR_INTERNAL, "cuDNN graph: more than %d operations",
                         CUDNN_GRAPH_OPERATIONS);
        return 0;
    }
    g->operations[g->n_operations++] = operation;
    return y;
}

int cudnn_graph_tensor(struct cudnn_graph *g, struct cudnn_tensor tensor)
{
    const int64_t id = g->n_tensors + 1;
    const int64_t alignment = 16;
    const bool is_virtual = tensor.place == CUDNN_VIRTUAL;
    const bool by_value = tensor.place == CUDNN_SCALAR;
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(TENSOR_DATA_TYPE, DATA_TYPE, 1, &tensor.type),
        CUDNN_SET(TENSOR_DIMENSIONS, INT64, 4, tensor.dims),
        CUDNN_SET(TENSOR_STRIDES, INT64, 4, tensor.strides),
        CUDNN_SET(TENSOR_UNIQUE_ID, INT64, 1, &id),
        CUDNN_SET(TENSOR_BYTE_ALIGNMENT, INT64, 1, &alignment),
        CUDNN_SET(TENSOR_IS_VIRTUAL, BOOLEAN, 1, &is_virtual),
        CUDNN_SET(TENSOR_IS_BY_VALUE, BOOLEAN, 1, &by_value),
    };

    if (g->status == SHOAL_OK && g->n_tensors == CUDNN_GRAPH_TENSORS)
        g->status =
            fail(SHOAL_ERR_INTERNAL, "cuDNN graph: more than %d tensors", CUDNN_GRAPH_TENSORS);
    cudnnBackendDescriptor_t descriptor =
        add(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR, "tensor", attributes, COUNT(attributes));
    if (descriptor == NULL)
        return 0;
    g->n_tensors = (int)id;
    g->tensors[id] = descriptor;
    g->shapes[id] = tensor;
    return (int)id;
}

int cudnn_graph_matmul(struct cudnn_graph *g, int a, int b, int c)
{
    const struct cudnn_attribute matmul[] = {CUDNN_SET(MATMUL_COMP_TYPE, DATA_TYPE, 1, &fp32)};
    cudnnBackendDescriptor_t descriptor =
        add(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR, "matmul", matmul, COUNT(matmul));
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(OPERATION_MATMUL_ADESC, BACKEND_DESCRIPTOR, 1, &g->tensors[a]),
        CUDNN_SET(OPERATION_MATMUL_BDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[b]),
        CUDNN_SET(OPERATION_MATMUL_CDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[c]),
        CUDNN_SET(OPERATION_MATMUL_DESC, BACKEND_DESCRIPTOR, 1, &descriptor),
    };

    return add_operation(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, "matmul operation",
                         attributes, COUNT(attributes), c);
}

/* A pointwise operation on up to three inputs, ids of 0 left out; axis < 0: the mode has none. */
struct pointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t precision;
    int64_t axis;
    int x, b, t, y;
};

static int add_pointwise(struct cudnn_graph *g, struct pointwise p)
{
    const float one = 1.0f;
    const struct cudnn_attribute mode[] = {
        CUDNN_SET(POINTWISE_MODE, POINTWISE_MODE, 1, &p.mode),
        CUDNN_SET(POINTWISE_MATH_PREC, DATA_TYPE, 1, &p.precision),
        CUDNN_SET(POINTWISE_AXIS, INT64, 1, &p.axis),
    };
    cudnnBackendDescriptor_t descriptor =
        add(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, "pointwise", mode, p.axis < 0 ? 2 : 3);
    struct cudnn_attribute attributes[7] = {
        CUDNN_SET(OPERATION_POINTWISE_PW_DESCRIPTOR, BACKEND_DESCRIPTOR, 1, &descriptor),
        CUDNN_SET(OPERATION_POINTWISE_XDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[p.x]),
        CUDNN_SET(OPERATION_POINTWISE_YDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[p.y]),
        CUDNN_SET(OPERATION_POINTWISE_ALPHA1, FLOAT, 1, &one),
        CUDNN_SET(OPERATION_POINTWISE_ALPHA2, FLOAT, 1, &one),
    };
    int n = 5;

    if (p.b != 0)
        attributes[n++] = (struct cudnn_attribute)CUDNN_SET(
            OPERATION_POINTWISE_BDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[p.b]);
    if (p.t != 0)
        attributes[n++] = (struct cudnn_attribute)CUDNN_SET(
            OPERATION_POINTWISE_TDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[p.t]);
    return add_operation(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, "pointwise operation",
                         attributes, n, p.y);
}

int cudnn_graph_unary(struct cudnn_graph *g, cudnnPointwiseMode_t mode, int x, int y)
{
    return add_pointwise(
        g, (struct pointwise){.mode = mode, .precision = fp32, .axis = -1, .x = x, .y = y});
}

int cudnn_graph_binary(struct cudnn_graph *g, cudnnPointwiseMode_t mode, int x, int b, int y)
{
    return add_pointwise(
        g, (struct pointwise){.mode = mode, .precision = fp32, .axis = -1, .x = x, .b = b, .y = y});
}

int cudnn_graph_index(struct cudnn_graph *g, int64_t axis, int x, int y)
{
    return add_pointwise(
        g, (struct pointwise){
               .mode = CUDNN_POINTWISE_GEN_INDEX, .precision = fp32, .axis = axis, .x = x, .y = y});
}

int cudnn_graph_not_less(struct cudnn_graph *g, int x, int b, int y)
{
    return add_pointwise(g, (struct pointwise){.mode = CUDNN_POINTWISE_CMP_GE,
                                               .precision = CUDNN_DATA_BOOLEAN,
                                               .axis = -1,
                                               .x = x,
                                               .b = b,
                                               .y = y});
}

int cudnn_graph_select(struct cudnn_graph *g, int keep, int x, int b, int y)
{
    return add_pointwise(g, (struct pointwise){.mode = CUDNN_POINTWISE_BINARY_SELECT,
                                               .precision = fp32,
                                               .axis = -1,
                                               .x = x,
                                               .b = b,
                                               .t = keep,
                                               .y = y});
}

int cudnn_graph_reduce(struct cudnn_graph *g, cudnnReduceTensorOp_t op, int x, int y)
{
    const struct cudnn_attribute reduction[] = {
        CUDNN_SET(REDUCTION_OPERATOR, REDUCTION_OPERATOR_TYPE, 1, &op),
        CUDNN_SET(REDUCTION_COMP_TYPE, DATA_TYPE, 1, &fp32),
    };
    cudnnBackendDescriptor_t descriptor =
        add(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR, "reduction", reduction, COUNT(reduction));
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(OPERATION_REDUCTION_XDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[x]),
        CUDNN_SET(OPERATION_REDUCTION_YDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[y]),
        CUDNN_SET(OPERATION_REDUCTION_DESC, BACKEND_DESCRIPTOR, 1, &descriptor),
    };

    return add_operation(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, "reduction operation",
                         attributes, COUNT(attributes), y);
}

int cudnn_graph_reshape(struct cudnn_graph *g, int x, int y)
{
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(OPERATION_RESHAPE_XDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[x]),
        CUDNN_SET(OPERATION_RESHAPE_YDESC, BACKEND_DESCRIPTOR, 1, &g->tensors[y]),
    };

    return add_operation(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, "reshape operation",
                         attributes, COUNT(attributes), y);
}

shoal_status cudnn_graph_build(struct cudnn_graph *g)
{
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(OPERATIONGRAPH_OPS, BACKEND_DESCRIPTOR, g->n_operations, g->operations)};

    g->graph = add(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "operation graph", attributes,
                   COUNT(attributes));
    return g->status;
}

void cudnn_graph_fini(struct cudnn_graph *g)
{
    while (g->n_descriptors > 0)
        cudnn_descriptor_destroy(g->descriptors[--g->n_descriptors]);
    memset(g, 0, sizeof *g);
}

/*
 * A graph, one operation after the other.  Memory of a virtual tensor holds doubles at the offsets
 * that its strides give, each rounded to the tensor's type when it is stored.
 */
#include "tests/gpu/imitate/cudnn_imitated.h"

#include "runtime/base/dtype.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TENSORS = 64 };

struct tensor {
    int64_t id;
    cudnnDataType_t type;
    int64_t dims[4], strides[4];
    bool is_virtual, by_value;
    double *own;  /* of a virtual tensor */
    void *memory; /* of the others */
};

struct run {
    const struct imitated_pack *pack;
    int n;
    struct tensor tensors[TENSORS];
    bool good;
};

static void describe(const struct imitated_descriptor *d, struct tensor *t)
{
    memset(t, 0, sizeof *t);
    t->id = *(const int64_t *)imitated_get(d, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    t->type = *(const cudnnDataType_t *)imitated_get(d, CUDNN_ATTR_TENSOR_DATA_TYPE);
    memcpy(t->dims, imitated_get(d, CUDNN_ATTR_TENSOR_DIMENSIONS), sizeof t->dims);
    memcpy(t->strides, imitated_get(d, CUDNN_ATTR_TENSOR_STRIDES), sizeof t->strides);
    t->is_virtual = *(const bool *)imitated_get(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    t->by_value = *(const bool *)imitated_get(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE);
}

static int64_t extent(const struct tensor *t)
{
    int64_t last = 0;

    for (int i = 0; i < 4; i++)
        last += (t->dims[i] - 1) * t->strides[i];
    return last + 1;
}

static void *packed_pointer(const struct imitated_pack *pack, int64_t id)
{
    for (int i = 0; i < pack->n; i++)
        if (pack->ids[i] == id)
            return pack->pointers[i];
    return NULL;
}

/* The tensor of a descriptor, with memory; one more if it is new to the run. */
static struct tensor *tensor_of(struct run *run, const struct imitated_descriptor *d)
{
    struct tensor t;

    describe(d, &t);
    for (int i = 0; i < run->n; i++)
        if (run->tensors[i].id == t.id)
            return &run->tensors[i];
    if (t.is_virtual) {
        t.own = malloc((size_t)extent(&t) * sizeof *t.own);
        for (int64_t i = 0; i < extent(&t); i++)
            t.own[i] = NAN;
    } else {
        t.memory = packed_pointer(run->pack, t.id);
        run->good = run->good && t.memory != NULL;
    }
    run->tensors[run->n] = t;
    return &run->tensors[run->n++];
}

static double load_at(const struct tensor *t, int64_t offset)
{
    if (t->own != NULL)
        return t->own[offset];
    return t->type == CUDNN_DATA_FLOAT ? (double)((const float *)t->memory)[offset]
                                       : (double)bf16_to_f32(((const bf16_t *)t->memory)[offset]);
}

static void store_at(const struct tensor *t, int64_t offset, double value)
{
    const double rounded = t->type == CUDNN_DATA_BFLOAT16
                               ? (double)bf16_to_f32(bf16_from_f32((float)value))
                           : t->type == CUDNN_DATA_FLOAT ? (double)(float)value
                                                         : value;

    if (t->own != NULL)
        t->own[offset] = rounded;
    else if (t->type == CUDNN_DATA_FLOAT)
        ((float *)t->memory)[offset] = (float)rounded;
    else
        ((bf16_t *)t->memory)[offset] = bf16_from_f32((float)rounded);
}

/* Where index i of a tensor of `dims` lies in t, whose dimensions may be shorter: 1, or groups. */
static int64_t offset_of(const struct tensor *t, const int64_t dims[4], const int64_t i[4])
{
    int64_t offset = 0;

    for (int d = 0; d < 4; d++)
        offset += i[d] * t->dims[d] / dims[d] * t->strides[d];
    return offset;
}

static bool next(const int64_t dims[4], int64_t i[4])
{
    for (int d = 3; d >= 0; d--) {
        if (++i[d] < dims[d])
            return true;
        i[d] = 0;
    }
    return false;
}

static struct tensor *operand(struct run *run, const struct imitated_descriptor *operation,
                              cudnnBackendAttributeName_t name)
{
    const struct imitated_descriptor *d = imitated_child(operation, name, 0);

    return d == NULL ? NULL : tensor_of(run, d);
}

static void run_matmul(struct run *run, const struct imitated_descriptor *operation)
{
    const struct tensor *a = operand(run, operation, CUDNN_ATTR_OPERATION_MATMUL_ADESC);
    const struct tensor *b = operand(run, operation, CUDNN_ATTR_OPERATION_MATMUL_BDESC);
    const struct tensor *c = operand(run, operation, CUDNN_ATTR_OPERATION_MATMUL_CDESC);
    int64_t i[4] = {0};

    do {
        const int64_t *dims = c->dims;
        const int64_t a_first = offset_of(a, dims, (int64_t[4]){i[0], i[1], 0, 0});
        const int64_t b_first = offset_of(b, dims, (int64_t[4]){i[0], i[1], 0, 0});
        double sum = 0.0;
        for (int64_t k = 0; k < a->dims[3]; k++)
            sum += load_at(a, a_first + i[2] * a->strides[2] + k * a->strides[3]) *
                   load_at(b, b_first + k * b->strides[2] + i[3] * b->strides[3]);
        store_at(c, offset_of(c, dims, i), sum);
    } while (next(c->dims, i));
}

static double pointwise(cudnnPointwiseMode_t mode, double x, double b, double t, int64_t index)
{
    switch (mode) {
    case CUDNN_POINTWISE_ADD:
        return x + b;
    case CUDNN_POINTWISE_SUB:
        return x - b;
    case CUDNN_POINTWISE_MUL:
        return x * b;
    case CUDNN_POINTWISE_DIV:
        return x / b;
    case CUDNN_POINTWISE_EXP:
        return exp(x);
    case CUDNN_POINTWISE_LOG:
        return log(x);
    case CUDNN_POINTWISE_IDENTITY:
        return x;
    case CUDNN_POINTWISE_GEN_INDEX:
        return (double)index;
    case CUDNN_POINTWISE_CMP_GE:
        return x >= b ? 1.0 : 0.0;
    case CUDNN_POINTWISE_BINARY_SELECT:
        return t != 0.0 ? x : b;
    default:
        return NAN;
    }
}

static void run_pointwise(struct run *run, const struct imitated_descriptor *operation)
{
    const struct imitated_descriptor *what =
        imitated_child(operation, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, 0);
    const cudnnPointwiseMode_t mode =
        *(const cudnnPointwiseMode_t *)imitated_get(what, CUDNN_ATTR_POINTWISE_MODE);
    const int64_t *axis = imitated_get(what, CUDNN_ATTR_POINTWISE_AXIS);
    const struct tensor *x = operand(run, operation, CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
    const struct tensor *b = operand(run, operation, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    const struct tensor *t = operand(run, operation, CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
    const struct tensor *y = operand(run, operation, CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    int64_t i[4] = {0};

    do {
        const double value = pointwise(mode, load_at(x, offset_of(x, y->dims, i)),
                                       b == NULL ? 0.0 : load_at(b, offset_of(b, y->dims, i)),
                                       t == NULL ? 0.0 : load_at(t, offset_of(t, y->dims, i)),
                                       axis == NULL ? 0 : i[*axis]);
        store_at(y, offset_of(y, y->dims, i), value);
    } while (next(y->dims, i));
}

static void run_reduction(struct run *run, const struct imitated_descriptor *operation)
{
    const struct imitated_descriptor *what =
        imitated_child(operation, CUDNN_ATTR_OPERATION_REDUCTION_DESC, 0);
    const cudnnReduceTensorOp_t op =
        *(const cudnnReduceTensorOp_t *)imitated_get(what, CUDNN_ATTR_REDUCTION_OPERATOR);
    const struct tensor *x = operand(run, operation, CUDNN_ATTR_OPERATION_REDUCTION_XDESC);
    const struct tensor *y = operand(run, operation, CUDNN_ATTR_OPERATION_REDUCTION_YDESC);
    const bool max = op == CUDNN_REDUCE_TENSOR_MAX;
    double *sums = malloc((size_t)extent(y) * sizeof *sums);
    int64_t i[4] = {0};

    for (int64_t at = 0; at < extent(y); at++)
        sums[at] = max ? -INFINITY : 0.0;
    do {
        double *sum = &sums[offset_of(y, x->dims, i)];
        const double value = load_at(x, offset_of(x, x->dims, i));
        *sum = max ? fmax(*sum, value) : *sum + value;
    } while (next(x->dims, i));
    memset(i, 0, sizeof i);
    do {
        const int64_t at = offset_of(y, y->dims, i);
        store_at(y, at, sums[at]);
    } while (next(y->dims, i));
    free(sums);
}

/* The same memory, seen with other dimensions and strides. */
static void run_reshape(struct run *run, const struct imitated_descriptor *operation)
{
    const struct tensor *x = operand(run, operation, CUDNN_ATTR_OPERATION_RESHAPE_XDESC);
    const struct tensor *y = operand(run, operation, CUDNN_ATTR_OPERATION_RESHAPE_YDESC);
    int64_t i[4] = {0};

    do {
        const int64_t at = offset_of(y, y->dims, i);
        store_at(y, at, load_at(x, at));
    } while (next(y->dims, i));
}

bool imitated_operation_is_valid(const struct imitated_descriptor *d)
{
    struct tensor a, b, c;

    if (d->type != CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)
        return true;
    describe(imitated_child(d, CUDNN_ATTR_OPERATION_MATMUL_ADESC, 0), &a);
    describe(imitated_child(d, CUDNN_ATTR_OPERATION_MATMUL_BDESC, 0), &b);
    describe(imitated_child(d, CUDNN_ATTR_OPERATION_MATMUL_CDESC, 0), &c);
    return a.dims[3] == b.dims[2] && a.dims[2] == c.dims[2] && b.dims[3] == c.dims[3] &&
           c.dims[1] % a.dims[1] == 0 && c.dims[1] % b.dims[1] == 0;
}

cudnnStatus_t imitated_run(const struct imitated_descriptor *graph,
                           const struct imitated_pack *pack)
{
    const struct imitated_attribute *operations =
        imitated_find(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS);
    struct run run = {.pack = pack, .good = true};

    for (int i = 0; i < (int)operations->n; i++) {
        const struct imitated_descriptor *operation =
            imitated_child(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, i);
        if (operation->type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)
            run_matmul(&run, operation);
        else if (operation->type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
            run_pointwise(&run, operation);
        else if (operation->type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)
            run_reduction(&run, operation);
        else
            run_reshape(&run, operation);
    }
    for (int i = 0; i < run.n; i++)
        free(run.tensors[i].own);
    return run.good ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}

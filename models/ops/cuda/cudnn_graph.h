#pragma once

#include "models/ops/cuda/cudnn_descriptor.h"

#include <stdbool.h>
#include <stddef.h>

/*
 * A cuDNN operation graph, written as a list of formulas.
 *
 * Tensors are numbers (their unique ids, counted from 1; 0 is none).  The first failure is kept in
 * `status`, and every later call returns 0 at once, so that a graph reads without checks between its
 * lines; cudnn_graph_build returns that failure.
 *
 * The graph owns every descriptor until cudnn_graph_fini, which must come after its plan is gone.
 */
enum { CUDNN_GRAPH_TENSORS = 48, CUDNN_GRAPH_OPERATIONS = 32, CUDNN_GRAPH_DESCRIPTORS = 128 };

enum cudnn_place {
    CUDNN_VIRTUAL, /* exists inside the graph only */
    CUDNN_REAL,    /* memory given at each run */
    CUDNN_SCALAR   /* one fp32 in host memory, given at each run */
};

struct cudnn_tensor {
    enum cudnn_place place;
    cudnnDataType_t type;
    int64_t dims[4];
    int64_t strides[4];
};

struct cudnn_graph {
    shoal_status status;
    int n_tensors, n_operations, n_descriptors;
    cudnnBackendDescriptor_t
        tensors[CUDNN_GRAPH_TENSORS + 1]; /* by id; borrowed from descriptors */
    struct cudnn_tensor shapes[CUDNN_GRAPH_TENSORS + 1];
    cudnnBackendDescriptor_t operations[CUDNN_GRAPH_OPERATIONS];
    cudnnBackendDescriptor_t descriptors[CUDNN_GRAPH_DESCRIPTORS]; /* in order of creation */
    cudnnBackendDescriptor_t graph;
};

int cudnn_graph_tensor(struct cudnn_graph *g, struct cudnn_tensor tensor);

/* c = a b */
int cudnn_graph_matmul(struct cudnn_graph *g, int a, int b, int c);

/* y = mode(x) or mode(x, b); fp32 arithmetic. */
int cudnn_graph_unary(struct cudnn_graph *g, cudnnPointwiseMode_t mode, int x, int y);
int cudnn_graph_binary(struct cudnn_graph *g, cudnnPointwiseMode_t mode, int x, int b, int y);

/* y = the index of x's elements along `axis`, int32. */
int cudnn_graph_index(struct cudnn_graph *g, int64_t axis, int x, int y);
/* y = x >= b, boolean */
int cudnn_graph_not_less(struct cudnn_graph *g, int x, int b, int y);
/* y = keep ? x : b */
int cudnn_graph_select(struct cudnn_graph *g, int keep, int x, int b, int y);

/* y = max or sum of x over the dimensions that y has shorter. */
int cudnn_graph_reduce(struct cudnn_graph *g, cudnnReduceTensorOp_t op, int x, int y);
/* y = x seen with y's dimensions and strides. */
int cudnn_graph_reshape(struct cudnn_graph *g, int x, int y);

shoal_status cudnn_graph_build(struct cudnn_graph *g);
void cudnn_graph_fini(struct cudnn_graph *g);

/* ---- plans ---- */

struct cudnn_plan {
    cudnnBackendDescriptor_t plan; /* NULL: only chosen, not compiled */
    cudnnBackendDescriptor_t config;
    int64_t engine;
    int n_configs; /* that the library offered */
    size_t workspace_bytes;
};

/*
 * The first configuration of heuristic mode A that needs at most limit_bytes of workspace, on the
 * device that `properties` (a DEVICEPROP descriptor) tells of.  No candidate is timed, so the choice
 * is the same in every run.  With `compile` false nothing is built: what can be known without a
 * device.  SHOAL_ERR_UNAVAILABLE if there is none.
 */
shoal_status cudnn_plan_init(const struct cudnn_graph *g, cudnnBackendDescriptor_t properties,
                             size_t limit_bytes, bool compile, struct cudnn_plan *plan_out);
void cudnn_plan_fini(struct cudnn_plan *plan);

/* Run on the handle's stream; ids and pointers of every real tensor and scalar. */
shoal_status cudnn_plan_run(cudnnHandle_t handle, const struct cudnn_plan *plan, int n,
                            const int64_t *ids, void *const *pointers, void *workspace);

/* The device of a handle, or one described by cuDNN's own JSON. */
shoal_status cudnn_properties_of_handle(cudnnHandle_t handle,
                                        cudnnBackendDescriptor_t *properties_out);
shoal_status cudnn_properties_of_text(const char *json, cudnnBackendDescriptor_t *properties_out);

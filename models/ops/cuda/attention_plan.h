#pragma once

#include "models/ops/cuda/cuda_internal.h"
#include "models/ops/cuda/cudnn_attention.h"

/* What attention.c (the ops) and attention_plan.c (the choice) share. */

/* How one shape runs; a pass that is NULL runs on our own kernels. */
struct attention_plan {
    struct attention_shape s;
    struct cudnn_attention *forward, *backward;
    /* Of one call of backward. */
    int64_t batches;
    int kv_heads;
    shoal_status refused; /* cuDNN was demanded and does not take the shape */
    char why[256];        /* the reason for a pass of our own */
};

struct cuda_attention {
    enum ops_cuda_attention choice;
    size_t limit_bytes;
    int capability;
    size_t shared_bytes;  /* that a block may take */
    cudnnHandle_t handle; /* NULL: no cuDNN here */
    cudnnBackendDescriptor_t properties;
    struct attention_plan *plans;
    int n_plans, capacity;
    char without[256]; /* why there is no handle */
};

/* NULL: the shape's scratch was never asked for. */
struct attention_plan *attention_plan_find(const struct cuda_attention *a,
                                           const struct attention_shape *s);

/* Whether it can run here; the failure says why not. */
shoal_status attention_plan_check(const struct cuda_attention *a,
                                  const struct attention_plan *plan);

#pragma once

#include "models/ops/cuda/cublas.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

/* What cublas.c (contexts, running), cublas_plan.c (plans) and cublas_time.c (yardstick) share. */

enum {
    CUBLAS_CANDIDATES = 8,
    CUBLAS_ALIGNMENT_BYTES = 16,
    CUBLAS_AUX_LD_MULTIPLE = 8,
    CUBLAS_SHAPE_BYTES = 240 /* of its description */
};

struct cublas_plan {
    struct cublas_shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t first, second, result; /* in the library's order */
    /* What the heuristic offers, best first; those before `chosen` were refused when they were run. */
    cublasLtMatmulHeuristicResult_t found[CUBLAS_CANDIDATES];
    int n_found, chosen;
    bool was_run; /* the chosen one, once */
    /* Of all that was offered, also with more inside the product. */
    int n_refused;
    cublasStatus_t refusal; /* the last */
    /* What the library has no algorithm for is done by our own kernels, after the product. */
    bool bias_after;
    enum cublas_epilogue inside; /* the shape's, or NONE: after */
};

struct cublas {
    struct device *device; /* borrowed */
    cudaStream_t stream;
    cublasLtHandle_t handle;
    cublasComputeType_t fp32_compute;
    void *workspace;
    struct cublas_plan *plans;
    int n_plans, capacity;
};

/* The one place where a cublasStatus_t becomes ours. */
shoal_status cublas_check(cublasStatus_t result, const char *what);

/* The library's words for what it does not do, if the device is well; else something failed. */
bool cublas_is_refusal(cublasStatus_t result);

/* Build what a shape needs and choose its algorithm.  On failure, too, cublas_plan_fini. */
shoal_status cublas_plan_init(const struct cublas *cublas, const struct cublas_shape *shape,
                              struct cublas_plan *plan);
void cublas_plan_fini(struct cublas_plan *plan);

/* Choose anew after `refusal`: the next that was offered, or else less inside the product.
 * SHOAL_ERR_UNAVAILABLE: nothing is left. */
shoal_status cublas_plan_next(const struct cublas *cublas, struct cublas_plan *plan,
                              cublasStatus_t refusal);

/*
 * Issue the product of a plan by one of its algorithms, and what the plan does behind it.  What the
 * library refuses is a failure or, where refusal_out is given, told by that, and nothing was issued.
 */
shoal_status cublas_run(struct cublas *cublas, struct cublas_plan *plan,
                        const cublasLtMatmulAlgo_t *algorithm, const struct cublas_data *data,
                        cublasStatus_t *refusal_out);

/* Prepare a shape and, if that was not done yet, choose what is not refused.  Waits. */
shoal_status cublas_try(struct cublas *cublas, const struct cublas_shape *shape,
                        const struct cublas_data *data, struct cublas_plan **plan_out);

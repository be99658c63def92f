#pragma once

#include "models/ops/cuda/cublas.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

/* What cublas.c (contexts, running) and cublas_plan.c (plans) share. */

enum { CUBLAS_CANDIDATES = 8, CUBLAS_ALIGNMENT_BYTES = 16, CUBLAS_AUX_LD_MULTIPLE = 8 };

struct cublas_plan {
    struct cublas_shape shape;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t first, second, result; /* in the library's order */
    cublasLtMatmulHeuristicResult_t chosen;
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

/* Build what a shape needs and choose its algorithm.  On failure, too, cublas_plan_fini. */
shoal_status cublas_plan_init(const struct cublas *cublas, const struct cublas_shape *shape,
                              struct cublas_plan *plan);
void cublas_plan_fini(struct cublas_plan *plan);

/* What the heuristic offers for a plan, best first; none is SHOAL_ERR_UNAVAILABLE. */
shoal_status cublas_plan_candidates(const struct cublas *cublas, const struct cublas_plan *plan,
                                    cublasLtMatmulHeuristicResult_t found[CUBLAS_CANDIDATES],
                                    int *n_out);

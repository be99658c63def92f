#pragma once

#include "runtime/base/dtype.h"
#include "runtime/device/device.h"

#include <stdbool.h>
#include <stdint.h>

/*
 * Matrix products by cuBLASLt, row-major.  The only file that knows the library.
 *
 * A shape's algorithm is the first one that the library's heuristic names, that fits the workspace
 * and that the library does not refuse when it is run: nothing is timed, so every run of one program
 * on one kind of device takes the same one.
 * Algorithms that split k may add up their parts in the workspace, in a step of its own, and never
 * in the output: so the same inputs give the same bits.
 *
 * Sums are fp32.  fp32 inputs are multiplied as fp32, or with `tf32` after rounding to 11 bits.
 *
 * A bias, a GELU, its gradient or a bias gradient is made inside the product (the library's
 * epilogues) where the library has an algorithm for that and runs it.  Else the plan is one for less,
 * our own kernels do the rest behind it, and cublas_plan_describe says so.
 */
struct cublas;

/* C [m, n] = A B, where the stored matrices are A [m, k] or, for TN, [k, m]; B [k, n] or, for NT,
 * [n, k]. */
enum cublas_kind { CUBLAS_NT, CUBLAS_NN, CUBLAS_TN };

/* What is made beside the product, over rows without padding. */
enum cublas_epilogue {
    CUBLAS_EPILOGUE_NONE,
    CUBLAS_EPILOGUE_GELU,          /* pre = A B (+ bias), D = gelu of that before it was rounded */
    CUBLAS_EPILOGUE_GELU_GRADIENT, /* D = A B * gelu'(pre), without a bias */
    CUBLAS_EPILOGUE_BIAS_GRADIENT  /* of TN with `out` fp32: dbias [m] = column sums of stored A */
};

struct cublas_shape {
    enum cublas_kind kind;
    enum dtype in, out;
    bool accumulate; /* D = C + A B, D and C of type `out` and leading dimension ldc */
    bool bias;       /* D += bias [n] of type `out`, on every row */
    enum cublas_epilogue epilogue;
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
};

/* Device memory, aligned to 16 bytes.  c is read if the shape accumulates, and may be d. */
struct cublas_data {
    const void *a, *b, *c, *bias;
    void *d;
    void *pre_out;   /* [m, n] of type `out`: what GELU takes, written beside D */
    const void *pre; /* the same, read by GELU's gradient; never d */
    float *dbias;
    void *scratch; /* of cuda_bias_gradient_scratch_bytes, for a bias gradient */
};

enum { CUBLAS_WORKSPACE_BYTES = 32 << 20 };

/* Allocates the workspace.  The device is borrowed; work goes to its QUEUE_COMPUTE. */
shoal_status cublas_create(struct device *device, bool tf32, struct cublas **cublas_out);
void cublas_destroy(struct cublas *cublas);

/* CUBLAS_WORKSPACE_BYTES of device memory that a product may overwrite: scratch for short uses on
 * the same queue. */
void *cublas_workspace(const struct cublas *cublas);

/* Choose a shape's algorithm by the heuristic; idempotent.  Allocates host memory only. */
shoal_status cublas_prepare(struct cublas *cublas, const struct cublas_shape *shape);

/* The product of a prepared shape. */
shoal_status cublas_multiply(struct cublas *cublas, const struct cublas_shape *shape,
                             const struct cublas_data *data);

/* Shapes prepared so far, and what was chosen for each, for people. */
int cublas_plan_count(const struct cublas *cublas);
void cublas_plan_describe(const struct cublas *cublas, int index, char *text, size_t n_bytes);
/* The largest operand of all plans, in bytes. */
size_t cublas_largest_operand(const struct cublas *cublas);
/*
 * Run every plan once with all operands at `zeros`, so that the library loads its kernels; plans whose
 * algorithm is refused change to the next that is not.  No plan changes in cublas_multiply: there a
 * refusal is a failure.
 */
shoal_status cublas_run_all(struct cublas *cublas, void *zeros);

/*
 * The yardstick: every algorithm that the heuristic names is timed on the data, after `sweep` was
 * overwritten to empty the caches; the best of all, and the chosen one's best.  Waits.
 */
struct cublas_sweep {
    void *p;
    size_t n_bytes;
};

struct cublas_timing {
    double best_seconds;
    double chosen_seconds;
    int n_algorithms;
};

shoal_status cublas_time(struct cublas *cublas, const struct cublas_shape *shape,
                         const struct cublas_data *data, const struct cublas_sweep *sweep,
                         struct cublas_timing *timing_out);

/* "cuBLASLt 13.1.0" */
void cublas_describe(char *text, size_t n_bytes);

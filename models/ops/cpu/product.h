#pragma once

#include "models/ops/cpu/cpu.h"

/*
 * A whole matrix product, cut into tiles of the output by its shape and run on the pool.  A tile
 * sums over all of k in one call, so nothing depends on the number of threads.  `struct
 * matmul_shape` describes the whole here; a tile is the same with smaller m and n.
 */

/* C starts as residual + bias, either of them NULL; for shapes that accumulate. */
struct product_start {
    const float *residual; /* [m, n], leading dimension ldc; may be C */
    const void *bias;      /* [n] */
    enum dtype bias_dtype;
};

struct product_data {
    const void *a;
    const void *b;
    const void *bias; /* for shapes with bias */
    void *c;
    const struct product_start *start; /* NULL: C as it is */
};

shoal_status product_prepare(struct cpu_ops *cpu, const struct matmul_shape *shape);
shoal_status product_run(struct cpu_ops *cpu, const struct matmul_shape *shape,
                         const struct product_data *data);

#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * One matrix product on one thread: C[m, n] = A B, row-major with leading dimensions, sums in
 * fp32.  The only file that knows oneDNN is matmul.c.
 *
 * fp32 inputs go to dnnl_sgemm and need no preparation.  bf16 inputs go to our own AMX kernel where
 * there is AMX, elsewhere to matmul primitives, which take milliseconds to build: matmul_prepare
 * builds them, or reserves the kernel's memory, before the first step.  During a product oneDNN
 * takes its packing buffers from malloc; the API has no way to lend it ours.
 */
struct matmul_library;

enum matmul_kind {
    MATMUL_NT, /* A [m, k], B [n, k] transposed */
    MATMUL_NN, /* A [m, k], B [k, n] */
    MATMUL_TN  /* A [k, m] transposed, B [k, n] */
};

struct matmul_shape {
    enum matmul_kind kind;
    enum dtype in;   /* of A and B */
    enum dtype out;  /* of C; bf16 only for bf16 inputs */
    bool accumulate; /* C += A B; fp32 C only */
    bool bias;       /* C = A B + bias[n]; bf16 C only, bias bf16 */
    int64_t m, n, k, lda, ldb, ldc;
};

/* Where the operands of one product lie. */
struct matmul_data {
    const void *a;
    const void *b;
    const void *bias; /* [n]; NULL without shape->bias, unless there is a residual */
    const float
        *residual; /* [m, n], leading dimension ldc: C = residual + bias + A B; tiles only */
    void *c;
};

shoal_status matmul_library_create(int n_threads, struct matmul_library **library_out);
void matmul_library_destroy(struct matmul_library *library);

/* "oneDNN 2.6.3 avx512_core_amx" into the caller's buffer. */
void matmul_library_describe(char *out, size_t n_bytes);

/* Idempotent. */
shoal_status matmul_prepare(struct matmul_library *library, const struct matmul_shape *shape);

/* True if matmul_run can serve the shape. */
bool matmul_is_prepared(const struct matmul_library *library, const struct matmul_shape *shape);

/*
 * True if the shape runs on AMX tiles (amx.h) instead of oneDNN; such a product takes a residual.
 */
bool matmul_uses_tiles(const struct matmul_library *library, const struct matmul_shape *shape);

/* Compute; `thread` < n_threads names the calling thread's objects. */
shoal_status matmul_run(struct matmul_library *library, const struct matmul_shape *shape,
                        int thread, const struct matmul_data *data);

/* C = alpha op(A) op(B) + beta C in fp32: the small products of attention. */
shoal_status matmul_f32(enum matmul_kind kind, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                        float *c, int64_t ldc);

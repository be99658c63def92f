#pragma once

#include "tests/models/ops/array.h"

#include <cuda_runtime_api.h>

/*
 * Arrays on a device, for tests of kernels.  Behind each lies a guard, a new one holds NaN, as
 * tests/models/ops/array.h does on the host.  With `shift` 1 arrays start one element behind an
 * aligned address.  Failures end the test.
 */
enum { GPU_ARRAYS_MAX = 48 };

struct gpu {
    int shift;
    int n;
    struct gpu_array {
        enum dtype dtype;
        int64_t n;
        void *p;
        void *start; /* of its memory */
    } arrays[GPU_ARRAYS_MAX];
};

/* Ends the test as skipped where there is no device. */
void gpu_require(void);

void *gpu_new(struct gpu *gpu, enum dtype dtype, int64_t n);
void *gpu_put(struct gpu *gpu, struct array a);
/* Scratch of n bytes, 256-byte aligned whatever the shift. */
void *gpu_scratch(struct gpu *gpu, size_t n_bytes);
/* A copy on the host; the guard must be whole. */
struct array gpu_take(struct gpu *gpu, const void *p);
/* Checks all guards. */
void gpu_free_all(struct gpu *gpu);

/* The same values in fp32. */
struct array array_widen(struct array a);
/* The values rounded to a type. */
struct array array_round(struct array a, enum dtype dtype);

/* What a run of kernels made, on the host. */
enum { OUTPUTS_MAX = 8 };

struct outputs {
    int n;
    struct array arrays[OUTPUTS_MAX];
};

/* Take array p and add it to the outputs. */
void outputs_take(struct outputs *out, struct gpu *gpu, const void *p);

/*
 * run(arg, gpu, out) three times: twice on aligned arrays and, if `shifted`, once on shifted ones:
 * the bits must be the same.  Returns the outputs; the caller frees them by outputs_free.
 */
struct outputs run_repeatedly(void (*run)(void *arg, struct gpu *gpu, struct outputs *out),
                              void *arg, bool shifted);
void outputs_free(struct outputs *out);

/* Output `i` against an fp32 result of the cpu's. */
void outputs_expect(const struct outputs *out, int i, struct array want, double tolerance,
                    const char *what);

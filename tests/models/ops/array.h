#pragma once

#include "models/ops/ops.h"

/*
 * Arrays of either element type on the heap, for tests.  Behind the elements lies a guard: ops may
 * not write there.  A new array holds NaN, so that an element that was not written shows.
 * Failures end the test.
 */
struct array {
    enum dtype dtype;
    int64_t n;
    void *p;
};

struct array array_create(enum dtype dtype, int64_t n);
/* Uniform in [-scale, scale), rounded to the type; a pure function of (seed, index). */
struct array array_random(enum dtype dtype, int64_t n, uint64_t seed, double scale);
struct array array_copy(struct array a);
void array_free(struct array *a);

double array_get(struct array a, int64_t i);
void array_set(struct array a, int64_t i, double value);
/* All elements as doubles; the caller frees. */
double *array_doubles(struct array a);

/* The largest |a - want| relative to the largest |want| is at most `tolerance`; the guard is whole. */
void array_expect(struct array a, const double *want, double tolerance, const char *what);
void array_expect_same_bits(struct array a, struct array b, const char *what);
void array_expect_guard(struct array a, const char *what);

double random_value(uint64_t seed, uint64_t index);

/* An ops context with a pool of its own. */
struct ops_rig {
    struct pool *pool;
    struct ops *ops;
};

struct ops_rig ops_rig_create(int n_threads);
void ops_rig_destroy(struct ops_rig *rig);

void *scratch_create(size_t n_bytes);

/* The call succeeds, or the test ends with its message. */
#define EXPECT_OK(expr) cr_assert_eq((expr), SHOAL_OK, "%s: %s", #expr, shoal_last_error())

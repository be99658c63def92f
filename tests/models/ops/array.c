#include "tests/models/ops/array.h"

#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 64, GUARD_BYTES = 256, GUARD_BYTE = 0xa5 };

static size_t array_bytes(struct array a)
{
    return (size_t)a.n * dtype_bytes(a.dtype);
}

struct array array_create(enum dtype dtype, int64_t n)
{
    struct array a = {dtype, n, NULL};

    a.p = aligned_alloc(LINE_BYTES, (array_bytes(a) + GUARD_BYTES + LINE_BYTES - 1) / LINE_BYTES *
                                        LINE_BYTES); /* as arenas align */
    cr_assert_not_null(a.p);
    memset(a.p, 0xff, array_bytes(a)); /* NaN in both types */
    memset((char *)a.p + array_bytes(a), GUARD_BYTE, GUARD_BYTES);
    return a;
}

double random_value(uint64_t seed, uint64_t index)
{
    return 2.0 * rng_uniform(seed, RNG_STREAM_INIT, 0, index) - 1.0;
}

struct array array_random(enum dtype dtype, int64_t n, uint64_t seed, double scale)
{
    struct array a = array_create(dtype, n);

    for (int64_t i = 0; i < n; i++)
        array_set(a, i, scale * random_value(seed, (uint64_t)i));
    return a;
}

struct array array_copy(struct array a)
{
    struct array copy = array_create(a.dtype, a.n);

    memcpy(copy.p, a.p, array_bytes(a));
    return copy;
}

void array_free(struct array *a)
{
    free(a->p);
    a->p = NULL;
}

double array_get(struct array a, int64_t i)
{
    return a.dtype == DTYPE_F32 ? (double)((float *)a.p)[i]
                                : (double)bf16_to_f32(((bf16_t *)a.p)[i]);
}

void array_set(struct array a, int64_t i, double value)
{
    if (a.dtype == DTYPE_F32)
        ((float *)a.p)[i] = (float)value;
    else
        ((bf16_t *)a.p)[i] = bf16_from_f32((float)value);
}

double *array_doubles(struct array a)
{
    double *values = malloc((size_t)a.n * sizeof *values);

    cr_assert_not_null(values);
    for (int64_t i = 0; i < a.n; i++)
        values[i] = array_get(a, i);
    return values;
}

void array_expect_guard(struct array a, const char *what)
{
    const unsigned char *guard = (unsigned char *)a.p + array_bytes(a);

    for (int i = 0; i < GUARD_BYTES; i++)
        cr_assert_eq(guard[i], GUARD_BYTE, "%s: byte %d behind the array was written", what, i);
}

void array_expect(struct array a, const double *want, double tolerance, const char *what)
{
    double scale = 0.0;

    for (int64_t i = 0; i < a.n; i++)
        scale = fmax(scale, fabs(want[i]));
    for (int64_t i = 0; i < a.n; i++) {
        const double error = fabs(array_get(a, i) - want[i]);
        cr_assert(error <= tolerance * scale,
                  "%s: element %lld of %lld is %.9g, expected %.9g: %.3g of the largest (%.3g), "
                  "allowed %.3g",
                  what, (long long)i, (long long)a.n, array_get(a, i), want[i], error / scale,
                  scale, tolerance);
    }
    array_expect_guard(a, what);
}

void array_expect_same_bits(struct array a, struct array b, const char *what)
{
    const size_t width = dtype_bytes(a.dtype);

    cr_assert_eq(a.n, b.n);
    for (int64_t i = 0; i < a.n; i++)
        cr_assert_eq(
            memcmp((char *)a.p + (size_t)i * width, (char *)b.p + (size_t)i * width, width), 0,
            "%s: element %lld of %lld is %.9g and %.9g", what, (long long)i, (long long)a.n,
            array_get(a, i), array_get(b, i));
}

struct ops_rig ops_rig_create(int n_threads)
{
    struct ops_rig rig = {0};

    EXPECT_OK(pool_create(n_threads, -1, &rig.pool));
    EXPECT_OK(ops_create_cpu(rig.pool, &rig.ops));
    return rig;
}

void ops_rig_destroy(struct ops_rig *rig)
{
    ops_destroy(rig->ops);
    pool_destroy(rig->pool);
    *rig = (struct ops_rig){0};
}

void *scratch_create(size_t n_bytes)
{
    void *scratch = aligned_alloc(256, (n_bytes + 511) / 256 * 256);

    cr_assert_not_null(scratch);
    memset(scratch, 0xff, n_bytes);
    return scratch;
}

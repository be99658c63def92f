#include "optim/optim.h"
#include "optim/optim_internal.h"
#include "runtime/base/isa.h"
#include "runtime/base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { N_QUANTA = 1200, N = N_QUANTA * QUANTUM };

static float grad[N];

/* Gradients over many binades, so that sums in another order would round differently. */
static void draw_gradients(void)
{
    rng_fill_normal(6, RNG_STREAM_INIT, 0, 0, N, 1.0f, grad);
    for (int i = 0; i < N; i++)
        grad[i] = ldexpf(grad[i], i * 7 % 90 - 60);
}

TestSuite(squares, .init = draw_gradients);

static struct exact_sum squares_of(int n_threads, const size_t *cuts, int n_cuts)
{
    struct pool *pool = NULL;
    struct exact_sum sum;
    size_t begin = 0;

    exact_sum_clear(&sum);
    cr_assert_eq(pool_create(n_threads, -1, &pool), SHOAL_OK);
    for (int i = 0; i < n_cuts; i++) {
        optim_sum_squares(pool, grad + begin * QUANTUM, (cuts[i] - begin) * QUANTUM, &sum);
        begin = cuts[i];
    }
    pool_destroy(pool);
    return sum;
}

static const size_t no_cut[] = {N_QUANTA};

Test(squares, do_not_depend_on_threads_or_cuts)
{
    const size_t cuts[] = {1, 3, 255, 256, 257, 600, 600, N_QUANTA};
    const struct exact_sum one = squares_of(1, no_cut, 1);
    const struct exact_sum three = squares_of(3, no_cut, 1);
    const struct exact_sum pieces = squares_of(2, cuts, sizeof cuts / sizeof cuts[0]);

    cr_assert(exact_sum_value(&one) > 0.0);
    cr_assert_arr_eq(&three, &one, sizeof one);
    cr_assert_arr_eq(&pieces, &one, sizeof one);
}

/* 256 squares of 48 bits: a quantum's sum rounds at most 20 times in double. */
Test(squares, agree_with_an_exact_sum_of_squares)
{
    const struct exact_sum got = squares_of(2, no_cut, 1);
    struct exact_sum want;

    exact_sum_clear(&want);
    for (int i = 0; i < N; i++)
        exact_sum_add(&want, (double)grad[i] * (double)grad[i]);
    cr_assert_leq(fabs(exact_sum_value(&got) / exact_sum_value(&want) - 1.0), 20 * 0x1p-53);
}

Test(squares, all_instruction_sets_give_the_same_doubles)
{
    static double want[N_QUANTA];
    static double got[N_QUANTA];

    optim_squares_scalar(grad, N_QUANTA, want);
    if (isa_best() >= ISA_AVX2) {
        optim_squares_avx2(grad, N_QUANTA, got);
        cr_assert_arr_eq(got, want, sizeof want);
    }
    if (isa_best() >= ISA_AVX512) {
        optim_squares_avx512(grad, N_QUANTA, got);
        cr_assert_arr_eq(got, want, sizeof want);
    }
}

Test(squares, count_every_element_that_is_not_finite_and_keep_the_largest)
{
    grad[5] = NAN;
    grad[6] = INFINITY;
    grad[N - 1] = -INFINITY;

    struct exact_sum sum = squares_of(2, no_cut, 1);
    cr_assert_eq(sum.nonfinite, 3);

    for (int i = 0; i < N; i++)
        grad[i] = 0x1p127f;
    sum = squares_of(2, no_cut, 1);
    cr_assert_eq(sum.nonfinite, 0);
    cr_assert(exact_sum_value(&sum) == (double)N * 0x1p254);
}

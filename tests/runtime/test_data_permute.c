#include "runtime/data/data.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static void assert_bijection(uint64_t seed, uint64_t epoch, uint64_t n)
{
    unsigned char seen[5000] = {0};

    for (uint64_t i = 0; i < n; i++) {
        uint64_t x = data_permute(seed, epoch, i, n);

        cr_assert_lt(x, n, "n %lu index %lu", n, i);
        cr_assert_eq(seen[x], 0, "n %lu: %lu is met twice", n, x);
        seen[x] = 1;
    }
}

Test(data_permute, is_a_bijection_for_small_n_and_around_powers_of_two)
{
    for (uint64_t n = 1; n <= 2000; n++)
        assert_bijection(7, n % 5, n);
    for (uint64_t n = 2000; n <= 5000; n += 7)
        assert_bijection(n, 3, n);
    for (uint64_t n = 4094; n <= 4098; n++)
        assert_bijection(1, 1, n);
    assert_bijection(UINT64_MAX, UINT64_MAX, 5000);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

Test(data_permute, stays_in_range_and_never_repeats_for_large_n)
{
    enum { N_SAMPLES = 20000 };
    static const uint64_t sizes[] = {(UINT64_C(1) << 40) + 3, UINT64_C(1) << 33,
                                     (UINT64_C(1) << 63) + 1, UINT64_MAX};
    static uint64_t seen[N_SAMPLES];

    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (uint64_t i = 0; i < N_SAMPLES; i++) {
            seen[i] = data_permute(9, s, i, sizes[s]);
            cr_assert_lt(seen[i], sizes[s]);
        }
        qsort(seen, N_SAMPLES, sizeof *seen, by_value);
        for (size_t i = 1; i < N_SAMPLES; i++)
            cr_assert_neq(seen[i - 1], seen[i]);
    }
}

/*
 * Each index lands on each place equally often over the epochs.  Chi-square with n - 1 degrees of
 * freedom has mean n - 1 and variance 2 (n - 1); 6 deviations above it is far out in the tail.
 */
Test(data_permute, puts_each_index_everywhere_equally_often)
{
    enum { N_EPOCHS = 6000, N_MAX = 33 };
    static const uint64_t sizes[] = {2, 3, 4, 5, 7, 16, 17, N_MAX};

    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        uint64_t n = sizes[s];
        double df = (double)n - 1;

        for (uint64_t index = 0; index < n; index += n / 2) {
            double counts[N_MAX] = {0};
            double chi2 = 0;

            for (uint64_t epoch = 0; epoch < N_EPOCHS; epoch++)
                counts[data_permute(3, epoch, index, n)]++;
            for (uint64_t x = 0; x < n; x++) {
                double expected = (double)N_EPOCHS / (double)n;

                chi2 += (counts[x] - expected) * (counts[x] - expected) / expected;
            }
            cr_assert_lt(chi2, df + 6 * 1.4143 * (df < 4 ? 2 : df), "n %lu index %lu: %f", n, index,
                         chi2);
        }
    }
}

Test(data_permute, reaches_every_order_of_four)
{
    enum { N_EPOCHS = 2000 };
    unsigned char seen[256] = {0};
    int n_orders = 0;

    for (uint64_t epoch = 0; epoch < N_EPOCHS; epoch++) {
        size_t order = 0;

        for (uint64_t i = 0; i < 4; i++)
            order = order << 2 | data_permute(11, epoch, i, 4);
        n_orders += seen[order] == 0;
        seen[order] = 1;
    }
    cr_assert_eq(n_orders, 24);
}

Test(data_permute, differs_between_epochs_and_seeds_and_from_file_order)
{
    enum { N = 10000 };
    int n_same_epoch = 0;
    int n_same_seed = 0;
    int n_fixed = 0;

    for (uint64_t i = 0; i < N; i++) {
        uint64_t x = data_permute(1, 0, i, N);

        n_same_epoch += x == data_permute(1, 1, i, N);
        n_same_seed += x == data_permute(2, 0, i, N);
        n_fixed += x == i;
    }
    /* Two random orders agree at a Poisson number of places with mean 1. */
    cr_assert_lt(n_same_epoch, 12);
    cr_assert_lt(n_same_seed, 12);
    cr_assert_lt(n_fixed, 12);
}

/* Values of a second implementation, in Python, written from the descriptions in the headers. */
Test(data_permute, keeps_its_golden_values)
{
    static const uint64_t ten[2][10] = {{2, 1, 6, 9, 7, 0, 5, 8, 4, 3},
                                        {9, 6, 2, 5, 1, 8, 3, 0, 4, 7}};
    static const uint64_t million[4][2] = {
        {0, 269129}, {1, 640642}, {2, 392550}, {1000002, 397314}};
    static const uint64_t huge[3][2] = {{0, UINT64_C(0x1c3a5e660e5ef4b6)},
                                        {1, UINT64_C(0x7cc8647988732644)},
                                        {UINT64_C(1) << 63, UINT64_C(0x1eeb2e9e514435a6)}};

    for (uint64_t epoch = 0; epoch < 2; epoch++)
        for (uint64_t i = 0; i < 10; i++)
            cr_assert_eq(data_permute(1, epoch, i, 10), ten[epoch][i]);
    for (int i = 0; i < 4; i++)
        cr_assert_eq(data_permute(42, 7, million[i][0], 1000003), million[i][1]);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(data_permute(UINT64_MAX, UINT64_C(1) << 40, huge[i][0], UINT64_MAX),
                     huge[i][1]);
    cr_assert_eq(data_permute(1, 2, 0, 1), 0);
}

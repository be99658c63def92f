#include "runtime/base/isa.h"
#include "runtime/base/rng.h"
#include "runtime/base/rng_internal.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SAMPLES = 1000000 };

static float *samples;

static void draw_samples(void)
{
    samples = malloc(N_SAMPLES * sizeof *samples);
    rng_fill_normal(1234, RNG_STREAM_INIT, 5, 0, N_SAMPLES, 1.0f, samples);
}

static void free_samples(void)
{
    free(samples);
}

TestSuite(rng_samples, .init = draw_samples, .fini = free_samples);

static double moment(int power)
{
    double sum = 0.0;

    for (int i = 0; i < N_SAMPLES; i++)
        sum += pow(samples[i], power);
    return sum / N_SAMPLES;
}

static double share_above(double threshold)
{
    int count = 0;

    for (int i = 0; i < N_SAMPLES; i++)
        count += fabs(samples[i]) > threshold;
    return (double)count / N_SAMPLES;
}

/* Random123 1.09, tests/kat_vectors, the lines "philox4x32 10". */
Test(rng, philox_gives_the_published_known_answers)
{
    static const struct {
        uint32_t counter[4];
        struct philox_key key;
        uint32_t want[4];
    } cases[] = {
        {{0, 0, 0, 0}, {{0, 0}}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {{~0u, ~0u}}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {{0xa4093822, 0x299f31d0}},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t got[4];

        philox_block(cases[i].key, cases[i].counter, got);
        cr_assert_arr_eq(got, cases[i].want, sizeof got, "case %zu", i);
    }
}

/* Bits that runs and checkpoints depend on: a change here is a change of every initialization. */
Test(rng, block_and_normals_keep_their_bits)
{
    static const uint32_t want_block[4] = {0xb170d681, 0x2f23d701, 0x589c4193, 0x035c2fa7};
    static const uint32_t want_normals[4] = {0x3d0a7ea7, 0x3cca2971, 0xbceaf681, 0x3c34e72a};
    uint32_t block[4];
    float normals[4];

    rng_block(42, RNG_STREAM_DATA, 7, UINT64_C(1) << 40, block);
    rng_fill_normal(42, RNG_STREAM_INIT, 3, 10, 4, 0.02f, normals);
    cr_assert_arr_eq(block, want_block, sizeof block);
    cr_assert_arr_eq(normals, want_normals, sizeof normals);
}

Test(rng, every_argument_changes_the_block)
{
    uint32_t blocks[5][4];

    rng_block(1, 1, 1, 1, blocks[0]);
    rng_block(2, 1, 1, 1, blocks[1]);
    rng_block(1, 2, 1, 1, blocks[2]);
    rng_block(1, 1, UINT64_C(1) << 32 | 1, 1, blocks[3]);
    rng_block(1, 1, 1, UINT64_C(1) << 32 | 1, blocks[4]);
    for (int i = 0; i < 5; i++) {
        for (int j = 0; j < i; j++)
            cr_assert_arr_neq(blocks[i], blocks[j], sizeof blocks[0], "blocks %d and %d", i, j);
    }
}

/* n draws of U(0, 1): the mean has a standard deviation of sqrt(1 / 12 n); 5 of them allowed. */
Test(rng, uniform_stays_in_its_range_with_the_right_mean)
{
    enum { N = 100000 };
    double sum = 0.0;

    for (int i = 0; i < N; i++) {
        const double u = rng_uniform(9, RNG_STREAM_SAMPLE, 0, (uint64_t)i);

        cr_assert(u >= 0.0 && u < 1.0);
        sum += u;
    }
    cr_assert_lt(fabs(sum / N - 0.5), 5.0 * sqrt(1.0 / (12.0 * N)));
}

Test(rng, all_instruction_sets_give_the_same_normals)
{
    enum { N_BLOCKS = 4099 };
    /* The first blocks lie below index 2^32, the others above. */
    const uint64_t first = (UINT64_C(1) << 32) - 1001;
    const struct philox_key key = {{0xdeadbeef, 0x01234567}};
    static float want[4 * N_BLOCKS];
    static float got[4 * N_BLOCKS];

    rng_normal_blocks_scalar(key, 99, first, N_BLOCKS, 0.02f, want);
    if (isa_best() >= ISA_AVX2) {
        rng_normal_blocks_avx2(key, 99, first, N_BLOCKS, 0.02f, got);
        cr_assert_arr_eq(got, want, sizeof want);
    }
    if (isa_best() >= ISA_AVX512) {
        rng_normal_blocks_avx512(key, 99, first, N_BLOCKS, 0.02f, got);
        cr_assert_arr_eq(got, want, sizeof want);
    }
}

Test(rng, normals_do_not_depend_on_the_cut)
{
    enum { N = 301 };
    float whole[N];
    float part[N];

    rng_fill_normal(7, RNG_STREAM_INIT, 2, 1000, N, 0.5f, whole);
    for (size_t begin = 0; begin < N; begin++) {
        for (size_t n = 0; n <= 9 && begin + n <= N; n++) {
            part[n] = -77.0f;
            rng_fill_normal(7, RNG_STREAM_INIT, 2, 1000 + begin, n, 0.5f, part);
            cr_assert_arr_eq(part, whole + begin, n * sizeof *part, "%zu from %zu", n, begin);
            cr_assert_eq(part[n], -77.0f);
        }
    }
    rng_fill_normal(7, RNG_STREAM_INIT, 2, 1003, N - 3, 0.5f, part);
    cr_assert_arr_eq(part, whole + 3, (N - 3) * sizeof *part);
}

Test(rng, normals_follow_box_muller_in_double)
{
    const struct philox_key key = {{11, 22}};
    double worst = 0.0;

    for (uint32_t block = 0; block < 50000; block++) {
        const uint32_t counter[4] = {block, 0, 33, 0};
        uint32_t x[4];
        float got[4];

        philox_block(key, counter, x);
        rng_normal_blocks_scalar(key, 33, block, 1, 1.0f, got);
        for (int pair = 0; pair < 4; pair += 2) {
            const float u = (float)(((double)x[pair] + 0.5) * 0x1p-32);
            const double radius = sqrt(-2.0 * log((double)u));
            const double angle = 2.0 * M_PI * (double)x[pair + 1] * 0x1p-32;
            const double error = fmax(fabs(got[pair] - radius * cos(angle)),
                                      fabs(got[pair + 1] - radius * sin(angle)));

            worst = fmax(worst, radius > 0.0 ? error / radius : error);
        }
    }
    cr_assert_lt(worst, TOL_BOX_MULLER, "error of %g radii", worst);
}

/* Moments of N(0, 1): the mean of x^k deviates by sqrt(Var(x^k) / n); 5 deviations allowed. */
Test(rng_samples, moments_are_those_of_the_normal_distribution)
{
    cr_assert_lt(fabs(moment(1)), 5.0 * sqrt(1.0 / N_SAMPLES));
    cr_assert_lt(fabs(moment(2) - 1.0), 5.0 * sqrt(2.0 / N_SAMPLES));
    cr_assert_lt(fabs(moment(3)), 5.0 * sqrt(15.0 / N_SAMPLES));
    cr_assert_lt(fabs(moment(4) - 3.0), 5.0 * sqrt(96.0 / N_SAMPLES));
}

Test(rng_samples, tails_hold_their_share)
{
    for (double threshold = 0.5; threshold <= 4.0; threshold += 0.5) {
        const double want = erfc(threshold / M_SQRT2);
        const double got = share_above(threshold);

        cr_assert_lt(fabs(got - want), 5.0 * sqrt(want / N_SAMPLES), "beyond %g: %g, expected %g",
                     threshold, got, want);
    }
}

/* Elements up to one block and one pair apart share counters or words; none may be correlated. */
Test(rng_samples, neighbours_are_uncorrelated)
{
    for (int lag = 1; lag <= 8; lag++) {
        double sum = 0.0;
        double sum_of_squares = 0.0;

        for (int i = 0; i + lag < N_SAMPLES; i++) {
            const double a = samples[i];
            const double b = samples[i + lag];

            sum += a * b;
            sum_of_squares += (a * a - 1.0) * (b * b - 1.0);
        }
        cr_assert_lt(fabs(sum / N_SAMPLES), 5.0 * sqrt(1.0 / N_SAMPLES), "lag %d", lag);
        cr_assert_lt(fabs(sum_of_squares / N_SAMPLES), 5.0 * sqrt(4.0 / N_SAMPLES), "lag %d", lag);
    }
}

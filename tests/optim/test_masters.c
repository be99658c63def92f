#include "runtime/base/rng_internal.h"
#include "tests/optim/codecs.h"

/* Master weights: what comes back, and what compute reads. */

enum { N_CHUNK = 4096 };

static void round_trip(const char *name, enum isa isa, const float *x, size_t n, bf16_t *hi,
                       float *back)
{
    static _Alignas(64) uint8_t low[4 * N_CHUNK];
    const struct master_codec *codec = find_master(name);

    master_encode_for(codec, isa)(x, n, 5, 0, hi, low);
    master_decode_for(codec, isa)(hi, low, n, back);
}

/* Calls `check` for all floats (--long) or some 4 million of them, in every form of the codec. */
static void sweep(const char *name, void (*check)(float x, bf16_t hi, float back))
{
    static float x[N_CHUNK];
    static float back[N_CHUNK];
    static bf16_t hi[N_CHUNK];

    for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
        for (uint64_t bits = 0; bits >> 32 == 0;) {
            size_t n = 0;

            for (; n < N_CHUNK && bits >> 32 == 0; bits += sweep_stride())
                x[n++] = float_of((uint32_t)bits);
            round_trip(name, isa, x, n, hi, back);
            for (size_t i = 0; i < n; i++)
                check(x[i], hi[i], back[i]);
        }
    }
}

static bool is_finite_in_bf16(float x)
{
    return fabsf(x) < float_of(0x7f7f8000);
}

static void check_fp32(float x, bf16_t hi, float back)
{
    if (bits_of(back) != bits_of(x) || hi != bf16_from_f32(x))
        cr_assert_fail("%a: %04x %a", (double)x, hi, (double)back);
}

Test(masters, fp32_keeps_every_weight_and_rounds_it_to_nearest_even)
{
    sweep("fp32", check_fp32);
}

static void check_split16(float x, bf16_t hi, float back)
{
    if (bits_of(back) != bits_of(x))
        cr_assert_fail("%08x came back as %08x", bits_of(x), bits_of(back));
    if (!is_finite_in_bf16(x))
        return;

    /* Half an ulp at most, and away from zero at half. */
    const double error = fabs((double)bf16_to_f32(hi)) - fabs((double)x);
    const double half = ldexp(1.0, ilogb((double)x) < -126 ? -134 : ilogb((double)x) - 8);
    if (!(error <= half && error > -half) ||
        (x != 0.0f && !signbit(bf16_to_f32(hi)) != !signbit(x)))
        cr_assert_fail("%a was rounded to %04x", (double)x, hi);
}

Test(masters, split16_keeps_every_weight_and_rounds_halves_away_from_zero)
{
    sweep("split16", check_split16);
}

Test(masters, split16_reads_as_its_comment_says_where_weights_are_not_numbers)
{
    static const struct {
        uint32_t bits;
        bf16_t hi;
    } cases[] = {
        {0x7fc00000, 0x7fc0}, {0xffc00000, 0xffc0}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
        {0x7f800001, 0x7f80}, {0x7f807fff, 0x7f80}, {0x7f808000, 0x7f81}, {0x7fff7fff, 0x7fff},
        {0x7fff8000, 0x8000}, {0xffff8000, 0x0000}, {0x7f7fffff, 0x7f80}, {0x3f808000, 0x3f81},
        {0xbf808000, 0xbf81}, {0x00008000, 0x0001}, {0x80007fff, 0x8000},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const float x = float_of(cases[i].bits);
        float back;
        bf16_t hi;

        round_trip("split16", isa_best(), &x, 1, &hi, &back);
        cr_assert_eq(hi, cases[i].hi, "%08x: %04x", cases[i].bits, hi);
        cr_assert_eq(bits_of(back), cases[i].bits);
    }
}

/* x rounded to 24 bits (16 of significand), ties to even, in double. */
static float in_24_bits(float x)
{
    const int exponent = x == 0.0f || ilogb((double)x) < -126 ? -126 : ilogb((double)x);
    const double ulp = ldexp(1.0, exponent - 15);

    return (float)(nearbyint((double)x / ulp) * ulp);
}

static void check_ecc8(float x, bf16_t hi, float back)
{
    if (isnan(x)) {
        if (hi != 0x7fc0 || bits_of(back) != 0x7fc00000)
            cr_assert_fail("NaN %08x: %04x %08x", bits_of(x), hi, bits_of(back));
        return;
    }
    if (fabsf(x) < float_of(0x7f7fff80) && bits_of(back) != bits_of(in_24_bits(x)))
        cr_assert_fail("%a came back as %a", (double)x, (double)back);
    if (fabsf(x) >= float_of(0x7f7fff80) && (!isinf(back) || !signbit(back) != !signbit(x)))
        cr_assert_fail("%a came back as %a", (double)x, (double)back);

    /* Half an ulp of bf16, which is up to 2^-8 of x, from what comes back. */
    if (is_finite_in_bf16(back) &&
        fabs((double)bf16_to_f32(hi) - (double)back) > fabs((double)back) * 0x1p-8 + 0x1p-134)
        cr_assert_fail("%a was rounded to %04x", (double)x, hi);
}

Test(masters, ecc8_rounds_weights_to_24_bits)
{
    sweep("ecc8", check_ecc8);
}

/* All numbers of 24 bits, those that come back from a first time. */
Test(masters, ecc8_keeps_what_it_has_rounded)
{
    static float x[N_CHUNK];
    static float back[N_CHUNK];
    static bf16_t hi[N_CHUNK];

    for (uint32_t begin = 0; begin < 1u << 24; begin += N_CHUNK) {
        for (uint32_t i = 0; i < N_CHUNK; i++)
            x[i] = float_of((begin + i) << 8);
        round_trip("ecc8", isa_best(), x, N_CHUNK, hi, back);
        for (size_t i = 0; i < N_CHUNK; i++) {
            if (!isnan(x[i]) && bits_of(back[i]) != bits_of(x[i]))
                cr_assert_fail("%a came back as %a", (double)x[i], (double)back[i]);
        }
    }
}

/* The words of Philox that the format names, by the implementation under rng.h. */
static uint32_t noise_of(uint64_t key, uint64_t element)
{
    const struct philox_key philox_key = {{(uint32_t)key, (uint32_t)(key >> 32)}};
    const uint64_t block = element / 256 * 32 + element % 32;
    const uint64_t half = element % 256 / 32;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
    uint32_t words[4];

    philox_block(philox_key, counter, words);
    return words[half / 2] >> 16 * (half % 2) & 0xffff;
}

Test(masters, bf16sr_adds_the_noise_of_key_and_element)
{
    static const uint64_t firsts[] = {0, 3, 8, 255, 256, 1000003, (UINT64_C(5) << 33) - 100};
    static float x[N_CHUNK];
    static bf16_t hi[N_CHUNK];
    const struct master_codec *codec = find_master("bf16sr");

    for (size_t i = 0; i < N_CHUNK; i++)
        x[i] = corner_value(8, i);
    for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
        for (size_t f = 0; f < sizeof firsts / sizeof firsts[0]; f++) {
            for (size_t n = 1; n <= N_CHUNK; n = n * 5 + 2) {
                const uint64_t key = master_key(1 + f, 77, n);

                master_encode_for(codec, isa)(x, n, key, firsts[f], hi, NULL);
                for (size_t i = 0; i < n; i++) {
                    const uint32_t bits = bits_of(x[i]);
                    uint32_t want = (bits + noise_of(key, firsts[f] + i)) >> 16;

                    if (!isfinite(x[i]))
                        want = isnan(x[i]) ? 0x7fc0 : bits >> 16;
                    cr_assert_eq(hi[i], want, "element %zu of %08x: %04x, expected %04x", i, bits,
                                 hi[i], want);
                }
            }
        }
    }
}

/*
 * 100000 elements of one value: the mean is off by its ulp (2^-7) * sqrt(p (1 - p) / 100000), with
 * p = 0.3 by 1.45e-3 ulp; four times that is allowed.  Values of bf16 stay what they are.
 */
Test(masters, bf16sr_is_right_on_average)
{
    enum { N_DRAWS = 100000 };
    static float x[N_DRAWS];
    static bf16_t hi[N_DRAWS];
    const struct master_codec *codec = find_master("bf16sr");
    const double values[] = {1.0 + 0.3 * 0x1p-7, -1.5 - 0.3 * 0x1p-7, 1.25, -0.0};

    for (int k = 0; k < 4; k++) {
        double sum = 0.0;

        for (int i = 0; i < N_DRAWS; i++)
            x[i] = (float)values[k];
        codec->encode(x, N_DRAWS, master_key(3, 4, (uint64_t)k), 0, hi, NULL);
        for (int i = 0; i < N_DRAWS; i++)
            sum += (double)bf16_to_f32(hi[i]);
        if (k < 2)
            cr_assert_leq(fabs(sum / N_DRAWS - values[k]), 4 * 1.45e-3 * 0x1p-7);
        else
            cr_assert_eq(sum, values[k] * N_DRAWS);
    }
}

Test(masters, keys_are_words_of_the_generator_by_seed_step_and_tensor)
{
    uint32_t words[4];

    rng_block(11, RNG_STREAM_ROUNDING, 22, 33, words);
    cr_assert_eq(master_key(11, 22, 33), (uint64_t)words[1] << 32 | words[0]);
    cr_assert_neq(master_key(11, 22, 33), master_key(12, 22, 33));
    cr_assert_neq(master_key(11, 22, 33), master_key(11, 23, 33));
    cr_assert_neq(master_key(11, 22, 33), master_key(11, 22, 34));
}

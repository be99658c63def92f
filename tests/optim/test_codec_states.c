#include "tests/optim/codecs.h"
#include "tests/optim/sha256.h"

/* What codes stand for, and what states become over many steps. */

enum { BLOCK = 256 };

static void round_trip(const struct optim_codec *codec, enum codec_sign sign, float *x, size_t n)
{
    _Alignas(64) uint8_t codes[4 * BLOCK];
    _Alignas(64) float scales[BLOCK / 32];

    codec->encode[sign](x, n, codes, scales);
    codec->decode[sign](codes, scales, n, x);
}

/* ---- maps ---- */

static void values_of(const char *name, enum codec_sign sign, float *values)
{
    const struct optim_codec *codec = find_codec(name);
    const float ones[2] = {1.0f, 1.0f};
    uint8_t codes[BLOCK];

    for (int i = 0; i < BLOCK; i++)
        codes[i] = (uint8_t)(codec->bits == 8 ? i : (2 * i % 16) | (2 * i + 1) % 16 << 4);
    codec->decode[sign](codes, ones, codec->bits == 8 ? 256 : 16, values);
}

/* Hashes of the tables as little-endian fp32, each value the rational rounded once. */
Test(codec_states, the_maps_of_8_bits_are_the_canonical_ones)
{
    static const char *const want[] = {
        "035c4114538df2a03bbcb4d8a39b9325d26d84a00cf6cf29018d1a6608ab14c4",
        "02a9b523750e21348029626da435f2adadb851b687d86349cd20752f9255de26",
    };
    float values[BLOCK];
    char hex[65];

    sha256_of((const uint8_t *)"", 0, hex);
    cr_assert_str_eq(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (int sign = 0; sign < 2; sign++) {
        values_of("bnb8", (enum codec_sign)sign, values);
        sha256_of((const uint8_t *)values, sizeof values, hex);
        cr_assert_str_eq(hex, want[sign]);
        values_of("ao8", (enum codec_sign)sign, values);
        sha256_of((const uint8_t *)values, sizeof values, hex);
        cr_assert_str_eq(hex, want[sign]);
    }
}

Test(codec_states, the_maps_of_4_bits_are_the_published_ones)
{
    static const float dynamic[16] = {-.8875f, -.6625f, -.4375f, -.2125f, -.0775f, -.0325f,
                                      -.0055f, 0,       .0055f,  .0325f,  .0775f,  .2125f,
                                      .4375f,  .6625f,  .8875f,  1};
    float values[BLOCK];

    values_of("lpmm4", CODEC_SIGNED, values);
    cr_assert_arr_eq(values, dynamic, sizeof dynamic);
    values_of("int4", CODEC_SIGNED, values);
    for (int i = 0; i < 9; i++)
        cr_assert_eq(values[i], dynamic[7 + i]);
    for (int i = 9; i < 16; i++)
        cr_assert_eq(values[i], dynamic[i - 9]);
    for (int i = 0; i < 16; i++) {
        values_of("lpmm4", CODEC_UNSIGNED, values);
        cr_assert_eq(values[i], (float)(i + 1) / 16.0f);
        values_of("int4", CODEC_UNSIGNED, values);
        cr_assert_eq(values[i], (float)(i + 1) / 16.0f);
    }
}

Test(codec_states, values_of_e4m3_are_those_of_the_format)
{
    float values[BLOCK];

    values_of("fp8", CODEC_SIGNED, values);
    for (int code = 0; code < 256; code++) {
        const int exponent = code >> 3 & 15;
        const int fraction = code & 7;
        const double size =
            exponent == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, exponent - 10);

        if ((code & 127) == 127)
            cr_assert_eq(bits_of(values[code]), 0x7fc00000u);
        else
            cr_assert_eq(bits_of(values[code]), bits_of((float)(code < 128 ? size : -size)));
    }
    cr_assert_eq(values[126], 448.0f);
}

/* Softsign and root of codes in double; a decoder rounds at most 3 times. */
Test(codec_states, values_of_int8_are_softsigns_and_squares)
{
    const struct optim_codec *codec = find_codec("int8");
    const float scales[8] = {3, 3, 3, 3, 3, 3, 3, 3};
    uint8_t codes[BLOCK];
    float values[BLOCK];

    for (int i = 0; i < BLOCK; i++)
        codes[i] = (uint8_t)i;
    codec->decode[CODEC_SIGNED](codes, scales, BLOCK, values);
    for (int i = 0; i < BLOCK; i++) {
        const double y = (i < 128 ? i : i - 256) / 127.0;

        if (i != 128)
            cr_assert_leq(fabs(values[i] - 3.0 * y / (2.0 - fabs(y))), 3.0 * 3 * 0x1p-24, "%d", i);
    }
    codec->decode[CODEC_UNSIGNED](codes, scales, BLOCK, values);
    for (int i = 0; i < BLOCK; i++)
        cr_assert_leq(fabs(values[i] - 3.0 * i * i / 65025.0), 3.0 * 3 * 0x1p-24, "%d", i);
    cr_assert_eq(values[255], 3.0f);
}

/* The division of the definition, in every form and behind every scale. */
Test(codec_states, values_of_int8_have_the_same_bits_for_every_instruction_set)
{
    const struct optim_codec *codec = find_codec("int8");
    static const float kinds[8] = {1.0f, 3.0f, 0x1.234567p-120f, 0x1p127f, 0.0f, 1e-3f, 7.7f, NAN};
    int8_t codes[BLOCK];
    float values[BLOCK];

    for (int first = -128; first < 128; first += 32) {
        for (int i = 0; i < BLOCK; i++)
            codes[i] = (int8_t)(first + i % 32);
        for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
            codec_decode_for(codec, CODEC_SIGNED, isa)(codes, kinds, BLOCK, values);
            for (int i = 0; i < BLOCK; i++) {
                const float q = codes[i];
                const float want = q / (254.0f - fabsf(q)) * kinds[i / 32];

                cr_assert(bits_of(values[i]) == bits_of(want) || isnan(want), "%s: %d of %a",
                          isa_name(isa), codes[i], (double)kinds[i / 32]);
            }
        }
    }
}

/*
 * The code is the nearest in the companded domain.  x, its product with 254 (or root and 255) and
 * the quotient are each off by at most an ulp of 2^-23, 4 in all of at most 255: 1.3e-4 of a code.
 */
Test(codec_states, codes_of_int8_are_the_nearest)
{
    const struct optim_codec *codec = find_codec("int8");
    float x[BLOCK];
    uint8_t codes[BLOCK];
    float scales[8];

    for (uint64_t seed = 0; seed < 4096; seed++) {
        rng_fill_normal(seed, RNG_STREAM_INIT, 0, 0, BLOCK, 0x1p-20f, x);
        codec->encode[CODEC_SIGNED](x, BLOCK, codes, scales);
        for (int i = 0; i < BLOCK; i++) {
            const double share = (double)x[i] / (double)scales[i / 32];
            const double y = 254.0 * share / (1.0 + fabs(share));

            cr_assert_leq(fabs(y - (int8_t)codes[i]), 0.5 + 1.3e-4, "%a of %a", (double)x[i],
                          (double)scales[i / 32]);
        }
        for (int i = 0; i < BLOCK; i++)
            x[i] *= x[i];
        codec->encode[CODEC_UNSIGNED](x, BLOCK, codes, scales);
        for (int i = 0; i < BLOCK; i++) {
            const double y = 255.0 * sqrt((double)x[i] / (double)scales[i / 32]);
            const double nearest = y < 1.0 ? 1.0 : y;

            cr_assert_leq(fabs(nearest - codes[i]), 0.5 + 1.3e-4, "%a", (double)x[i]);
        }
    }
}

/* ---- elements beside others ---- */

static const char *const block_codecs[] = {"int8", "int4", "bnb8", "fp8", "ao8", "ao4", "lpmm4"};

enum { N_BLOCK_CODECS = sizeof block_codecs / sizeof block_codecs[0] };

Test(codec_states, a_zero_beside_others_stays_zero)
{
    for (int k = 0; k < N_BLOCK_CODECS; k++) {
        const struct optim_codec *codec = find_codec(block_codecs[k]);
        float x[BLOCK];

        rng_fill_normal(1, RNG_STREAM_INIT, 0, 0, BLOCK, 1.0f, x);
        x[77] = 0.0f;
        for (int step = 0; step < 3; step++)
            round_trip(codec, CODEC_SIGNED, x, BLOCK);
        cr_assert(x[77] == 0.0f, "%s", codec->name);

        /* Second moments of 4 bits have no zero. */
        if (codec->bits == 4)
            continue;
        for (int i = 0; i < BLOCK; i++)
            x[i] *= x[i];
        round_trip(codec, CODEC_UNSIGNED, x, BLOCK);
        cr_assert(x[77] == 0.0f, "%s", codec->name);
    }
}

/* Else the quotient of the moments would be m / eps. */
Test(codec_states, a_positive_second_moment_of_int8_and_int4_never_becomes_zero)
{
    for (int k = 0; k < 2; k++) {
        float x[BLOCK];

        for (int i = 0; i < BLOCK; i++)
            x[i] = i % 32 == 5 ? 1.0f : ldexpf(1.0f, -i % 149);
        round_trip(find_codec(block_codecs[k]), CODEC_UNSIGNED, x, BLOCK);
        for (int i = 0; i < BLOCK; i++)
            cr_assert(x[i] > 0.0f, "%s element %d", block_codecs[k], i);
    }
}

/* bitsandbytes' rule of signs: negative values, -0 among them, are never stored as zero. */
Test(codec_states, a_tiny_negative_of_bnb8_becomes_the_least_negative_value)
{
    const float tiny[] = {-0.0f, -1e-30f, -2e-7f, 0.0f, 1e-30f, 2e-7f};
    float x[BLOCK] = {1.0f};

    memcpy(x + 1, tiny, sizeof tiny);
    round_trip(find_codec("bnb8"), CODEC_SIGNED, x, BLOCK);
    for (int i = 1; i <= 3; i++)
        cr_assert_eq(x[i], -5.5e-7f);
    for (int i = 4; i <= 6; i++)
        cr_assert_eq(x[i], 0.0f);
}

Test(codec_states, what_is_not_a_number_shows_in_its_whole_block)
{
    static const char *const names[] = {"int8", "int4", "fp8"};
    static const uint32_t bad[] = {0x7fc00000, 0xffc00000, 0x7f800001, 0x7f800000};

    for (int k = 0; k < 3; k++) {
        const struct optim_codec *codec = find_codec(names[k]);

        for (int sign = 0; sign < 2; sign++) {
            for (int b = 0; b < 4; b++) {
                float x[BLOCK];

                for (int i = 0; i < BLOCK; i++)
                    x[i] = (float)i;
                x[40] = float_of(bad[b]);
                round_trip(codec, (enum codec_sign)sign, x, BLOCK);
                for (int i = 0; i < BLOCK; i++) {
                    if (i / codec->block == 40 / codec->block)
                        cr_assert_eq(bits_of(x[i]), 0x7fc00000u, "%s %d", names[k], i);
                    else
                        cr_assert(isfinite(x[i]), "%s %d", names[k], i);
                }
            }
        }
    }
}

/* ---- averages over many steps ---- */

/*
 * The element that leads a block, with a gradient of -1 at every step, settles at
 * (1 - beta) / (1 - c beta) of it, where c is what a step of the codec leaves of its average.
 * Each step rounds the average some 4 times by 2^-24 at most, which adds up over 1 / (1 - c beta).
 */
static void check_leading_average(const char *name, double beta, double c)
{
    const struct optim_codec *codec = find_codec(name);
    float m[BLOCK] = {0};

    for (int step = 0; step < 20.0 / (1.0 - beta); step++) {
        for (int i = 0; i < BLOCK; i++) {
            const float gradient = i == 3 ? -1.0f : 0.01f * (float)(i % 7);

            m[i] = m[i] * (float)beta + gradient * (float)(1.0 - beta);
        }
        round_trip(codec, CODEC_SIGNED, m, BLOCK);
    }
    const double before = (double)m[3] / c; /* what the last step's codec was given */
    const double want = (1.0 - beta) / (1.0 - c * beta);
    cr_assert_leq(fabs(-before / want - 1.0), 4 * 0x1p-24 / (1.0 - c * beta) + 0x1p-23,
                  "%s beta %g: %g, expected %g", name, beta, before, want);
}

Test(codec_states, a_negative_average_that_leads_its_block_keeps_its_mean_where_promised)
{
    static const double betas[] = {0.9, 0.99, 0.999};

    for (int k = 0; k < 3; k++) {
        check_leading_average("fp32", betas[k], 1.0);
        check_leading_average("int8", betas[k], 1.0);
        check_leading_average("int4", betas[k], 1.0);
        check_leading_average("fp8", betas[k], 1.0);
        check_leading_average("bnb8", betas[k], (double)0.99296875f);
        check_leading_average("ao8", betas[k], (double)0.99296875f);
        check_leading_average("ao4", betas[k], (double)0.8875f);
        check_leading_average("lpmm4", betas[k], (double)0.8875f);
    }
}

enum { N_STEPS = 100000, N_AVERAGED = 32 };

/*
 * Second moments with beta2 = 0.999, whose steps are far below the distance of two codes, while
 * gradients become ten times smaller half way: the stored average must follow the exact one.
 * Returns the root mean square of the logarithm of their ratio, and the ratio of the largest.
 */
static double second_moments(const char *name, double *leading_out)
{
    const struct optim_codec *codec = find_codec(name);
    const double beta = 0.999;
    float v[N_AVERAGED] = {0};
    double exact[N_AVERAGED] = {0};
    float noise[N_AVERAGED];
    double sum = 0.0;

    for (int step = 0; step < N_STEPS; step++) {
        rng_fill_normal(7, RNG_STREAM_INIT, (uint64_t)step, 0, N_AVERAGED, 1.0f, noise);
        for (int i = 0; i < N_AVERAGED; i++) {
            const float size = ldexpf(1.0f, -i % 5) * (step < N_STEPS / 2 ? 1.0f : 0.1f);
            const float g = size * noise[i] * (i == 0 ? 2.0f : 1.0f);

            v[i] = v[i] * (float)beta + (g * (float)(1.0 - beta)) * g;
            exact[i] = exact[i] * beta + (double)g * (double)g * (1.0 - beta);
        }
        round_trip(codec, CODEC_UNSIGNED, v, N_AVERAGED);
    }
    for (int i = 0; i < N_AVERAGED; i++) {
        const double error = log((double)v[i] / exact[i]);

        sum += error * error / N_AVERAGED;
    }
    *leading_out = (double)v[0] / exact[0];
    return sqrt(sum);
}

/*
 * A factor of sqrt(2) in root mean square, hence 1.2 in the root that steps are divided by, is
 * allowed; an average that stalls is wrong by a factor of 100 here.  The leading element is stored
 * exactly and only rounds, 4 times 2^-24 per step at most, over 1000 steps of memory.  4 bits cannot
 * tell moments below 1/16 of the largest apart.
 */
Test(codec_states, second_moments_follow_small_steps_for_100000_steps)
{
    for (int i = 0; codec_name(i) != NULL; i++) {
        const char *name = codec_name(i);
        double leading;

        if (strcmp(name, "bf16") == 0)
            continue;
        const double error = second_moments(name, &leading);
        cr_assert_leq(fabs(leading - 1.0), 4 * 0x1p-24 * 1000, "%s: %g", name, leading);
        if (find_codec(name)->bits >= 8)
            cr_assert_leq(error, 0.5 * log(2.0), "%s: %g", name, error);
    }
}

/* Why bf16 is not for averages of such small steps: half an ulp is 2^-9 to 2^-8 of the value. */
Test(codec_states, second_moments_in_bf16_stall)
{
    double leading;

    second_moments("bf16", &leading);
    cr_assert_geq(leading, 10.0);
}

/* An average of gradients with beta 0.999, as exp_avg_slow of ademamix: its error in units of its size. */
static double slow_average_error(const char *name)
{
    const struct optim_codec *codec = find_codec(name);
    const double beta = 0.999;
    float m[N_AVERAGED] = {0};
    double exact[N_AVERAGED] = {0};
    float noise[N_AVERAGED];
    double errors = 0.0, squares = 0.0;

    for (int step = 0; step < 5000; step++) {
        rng_fill_normal(8, RNG_STREAM_INIT, (uint64_t)step, 0, N_AVERAGED, 1.0f, noise);
        for (int i = 0; i < N_AVERAGED; i++) {
            m[i] = m[i] * (float)beta + noise[i] * (float)(1.0 - beta);
            exact[i] = exact[i] * beta + (double)noise[i] * (1.0 - beta);
        }
        round_trip(codec, CODEC_SIGNED, m, N_AVERAGED);
    }
    for (int i = 0; i < N_AVERAGED; i++) {
        errors += ((double)m[i] - exact[i]) * ((double)m[i] - exact[i]);
        squares += exact[i] * exact[i];
    }
    return sqrt(errors / squares);
}

/*
 * Why states that are slow (struct optim_rule) rest in int8 where a coarse codec is asked for.  fp8 is
 * between: it stalls on this noise, and trains ademamix as fp32 does (docs/results).
 */
Test(codec_states, slow_averages_stall_between_the_codes_of_coarse_codecs)
{
    for (int i = 0; codec_name(i) != NULL; i++) {
        const double error = slow_average_error(codec_name(i));

        if (strcmp(codec_name(i), "fp8") == 0)
            continue;
        if (find_codec(codec_name(i))->coarse)
            cr_assert_geq(error, 1.0, "%s: %g", codec_name(i), error);
        else
            cr_assert_leq(error, 0.5, "%s: %g", codec_name(i), error);
    }
}

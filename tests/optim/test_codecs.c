#include "runtime/layout/layout.h"
#include "tests/optim/codecs.h"

/*
 * What every codec promises: the same bytes for every instruction set, extents of any length that
 * leave the bytes behind them alone, zero planes that decode to zeros.
 */

enum { MAX_N = 4097, GUARD = 64, CODE_BYTES = 4 * MAX_N + GUARD, SCALE_BYTES = 2 * MAX_N + GUARD };

static const size_t lengths[] = {1, 31, 32, 33, 127, 128, 129, 255, 256, 257, 511, 4096, 4097};

enum { N_LENGTHS = sizeof lengths / sizeof lengths[0] };

struct planes {
    _Alignas(64) uint8_t codes[CODE_BYTES];
    _Alignas(64) uint8_t scales[SCALE_BYTES];
};

/* Kinds of contents: those of a run, of tiny and of huge ones, one value everywhere, corners. */
enum { N_CONTENTS = 8 };

static void fill(float *x, size_t n, int contents, enum codec_sign sign)
{
    rng_fill_normal(41 + (uint64_t)contents, RNG_STREAM_INIT, 0, 0, n, 1.0f, x);
    for (size_t i = 0; i < n; i++) {
        if (contents == 1)
            x[i] = corner_value(3, i);
        if (contents == 2)
            x[i] = ldexpf(x[i], (int)(i % 60) - 30);
        if (contents == 3)
            x[i] *= 0x1p-128f;
        if (contents == 4)
            x[i] *= 0x1p126f;
        if (contents == 5)
            x[i] = -3.0f;
        if (contents == 6)
            x[i] = i % 37 == 0 ? float_of(0xffc12345) : i % 300 == 7 ? -INFINITY : x[i];
        if (contents == 7)
            x[i] = i % 128 == 100 ? -x[i] : i % 2 == 0 ? 0.0f : -0.0f;
        if (sign == CODEC_UNSIGNED && contents != 1)
            x[i] = fabsf(x[i]);
    }
}

static void encode(const struct optim_codec *codec, enum codec_sign sign, enum isa isa,
                   const float *x, size_t n, struct planes *planes)
{
    memset(planes, 0xa5, sizeof *planes);
    codec_encode_for(codec, sign, isa)(x, n, planes->codes, planes->scales);
}

Test(codecs, all_instruction_sets_give_the_same_bytes_and_keep_within_the_extent)
{
    static float x[MAX_N];
    static float want[MAX_N + GUARD];
    static float got[MAX_N + GUARD];
    static struct planes want_planes;
    static struct planes got_planes;

    for (int k = 0; codec_name(k) != NULL; k++) {
        const struct optim_codec *codec = find_codec(codec_name(k));

        for (int contents = 0; contents < N_CONTENTS; contents++) {
            for (int l = 0; l < 2 * N_LENGTHS; l++) {
                const enum codec_sign sign = (enum codec_sign)(l % 2);
                const size_t n = lengths[l / 2];

                fill(x, n, contents, sign);
                encode(codec, sign, ISA_SCALAR, x, n, &want_planes);
                for (size_t i = codec_code_bytes(codec, n); i < CODE_BYTES; i++)
                    cr_assert_eq(want_planes.codes[i], 0xa5, "%s code byte %zu", codec->name, i);
                for (size_t i = codec_scale_bytes(codec, n); i < SCALE_BYTES; i++)
                    cr_assert_eq(want_planes.scales[i], 0xa5, "%s scale byte %zu", codec->name, i);
                memset(want, 0xa5, sizeof want);
                codec_decode_for(codec, sign, ISA_SCALAR)(want_planes.codes, want_planes.scales, n,
                                                          want);
                for (size_t i = n; i < n + GUARD; i++)
                    cr_assert_eq(bits_of(want[i]), 0xa5a5a5a5u, "%s", codec->name);

                for (enum isa isa = ISA_AVX2; isa <= isa_best(); isa++) {
                    encode(codec, sign, isa, x, n, &got_planes);
                    cr_assert_arr_eq(&got_planes, &want_planes, sizeof got_planes,
                                     "%s sign %d %s: encoding %zu of kind %d", codec->name, sign,
                                     isa_name(isa), n, contents);
                    memset(got, 0xa5, sizeof got);
                    codec_decode_for(codec, sign, isa)(want_planes.codes, want_planes.scales, n,
                                                       got);
                    cr_assert_arr_eq(got, want, sizeof got,
                                     "%s sign %d %s: decoding %zu of kind %d", codec->name, sign,
                                     isa_name(isa), n, contents);
                }
            }
        }
    }
}

/* What a tile writes is what the whole tensor writes: blocks are anchored at its start. */
Test(codecs, tiles_give_the_bytes_of_the_whole)
{
    static float x[MAX_N];
    static struct planes whole;
    static struct planes tiles;

    for (int k = 0; codec_name(k) != NULL; k++) {
        const struct optim_codec *codec = find_codec(codec_name(k));

        for (int sign = 0; sign < 2; sign++) {
            fill(x, MAX_N, 2, (enum codec_sign)sign);
            encode(codec, (enum codec_sign)sign, isa_best(), x, MAX_N, &whole);
            memset(&tiles, 0xa5, sizeof tiles);
            for (size_t at = 0; at < MAX_N; at += 3 * QUANTUM) {
                const size_t n = MAX_N - at < 3 * QUANTUM ? MAX_N - at : 3 * QUANTUM;

                codec->encode[sign](x + at, n, tiles.codes + codec_code_bytes(codec, at),
                                    tiles.scales + codec_scale_bytes(codec, at));
            }
            cr_assert_arr_eq(&tiles, &whole, sizeof tiles, "%s", codec->name);
        }
    }
}

Test(codecs, planes_of_zero_bytes_decode_to_zeros)
{
    static struct planes planes;
    static float x[MAX_N];

    for (int k = 0; codec_name(k) != NULL; k++) {
        const struct optim_codec *codec = find_codec(codec_name(k));

        for (int sign = 0; sign < 2; sign++) {
            memset(x, 0xff, sizeof x);
            codec->decode[sign](planes.codes, planes.scales, MAX_N, x);
            for (size_t i = 0; i < MAX_N; i++)
                cr_assert(x[i] == 0.0f, "%s", codec->name);
        }
    }
}

Test(codecs, an_unknown_name_is_refused_with_the_nearest_one)
{
    const struct optim_codec *codec = NULL;
    const struct master_codec *master = NULL;

    cr_assert_eq(codec_find("itn8", &codec), SHOAL_ERR_CONFIG);
    cr_assert_null(codec);
    cr_assert_not_null(strstr(shoal_last_error(), "state codec \"itn8\""));
    cr_assert_not_null(strstr(shoal_last_error(), "\"int8\"?"), "%s", shoal_last_error());
    cr_assert_eq(codec_find("", &codec), SHOAL_ERR_CONFIG);

    cr_assert_eq(master_codec_find("split", &master), SHOAL_ERR_CONFIG);
    cr_assert_null(master);
    cr_assert_not_null(strstr(shoal_last_error(), "\"split16\"?"), "%s", shoal_last_error());
    cr_assert_eq(master_codec_find("int8", &master), SHOAL_ERR_CONFIG);
    cr_assert_not_null(strstr(shoal_last_error(), "fp32 split16 ecc8 bf16sr"));
}

Test(codecs, masters_have_the_same_bytes_for_every_instruction_set_and_length)
{
    static float x[MAX_N];
    static float decoded[2][MAX_N + GUARD];
    static struct planes planes[2]; /* codes: low; scales: hi */

    for (int k = 0; master_codec_name(k) != NULL; k++) {
        const struct master_codec *codec = find_master(master_codec_name(k));

        for (int contents = 0; contents < N_CONTENTS; contents++) {
            for (int l = 0; l < N_LENGTHS; l++) {
                const size_t n = lengths[l];
                const uint64_t first = l % 3 == 0 ? 0 : (UINT64_C(1) << 32) - 3 - (uint64_t)l;

                fill(x, n, contents, CODEC_SIGNED);
                for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
                    struct planes *to = &planes[isa != ISA_SCALAR];
                    float *back = decoded[isa != ISA_SCALAR];

                    memset(to, 0xa5, sizeof *to);
                    memset(back, 0xa5, sizeof decoded[0]);
                    master_encode_for(codec, isa)(x, n, 99, first, (bf16_t *)to->scales, to->codes);
                    master_decode_for(codec, isa)((bf16_t *)to->scales, to->codes, n, back);
                    if (isa == ISA_SCALAR)
                        continue;
                    cr_assert_arr_eq(&planes[1], &planes[0], sizeof planes[0], "%s %s, %zu",
                                     codec->name, isa_name(isa), n);
                    cr_assert_arr_eq(decoded[1], decoded[0], sizeof decoded[0], "%s %s, %zu",
                                     codec->name, isa_name(isa), n);
                }
                for (size_t i = n * (size_t)codec->bits / 8; i < CODE_BYTES; i++)
                    cr_assert_eq(planes[0].codes[i], 0xa5, "%s", codec->name);
                for (size_t i = 2 * n; i < SCALE_BYTES; i++)
                    cr_assert_eq(planes[0].scales[i], 0xa5, "%s", codec->name);
                cr_assert_eq(bits_of(decoded[0][n]), 0xa5a5a5a5u, "%s", codec->name);
            }
        }
    }
}

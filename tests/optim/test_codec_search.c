#include "tests/optim/codecs.h"

#include <criterion/parameterized.h>

/*
 * Encoders against searches of the values that the codes stand for, written here a second time
 * from the definitions: for every float (--long) or some 4 million of them, and around each place
 * where the code changes.
 */

enum { MAX_BLOCK = 256 };

struct format {
    const char *name;
    enum codec_sign sign;
    float (*scale_of)(const struct format *format, const float *x, size_t n);
    int (*code_of)(const struct format *format, float value, float scale);
    bool first_high; /* of two codes in a byte */
    /* Filled by prepare(). */
    const struct optim_codec *codec;
    int n_values;
    float values[256]; /* by code */
    float middles[256];
};

/* ---- searches ---- */

/* How many of the sorted n are below x, or below and equal. */
static int count_below(const float *sorted, int n, float x, bool or_equal)
{
    int low = 0;

    while (n > low) {
        const int middle = (low + n) / 2;

        if (sorted[middle] < x || (or_equal && sorted[middle] == x))
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

/* The nearest by fp32 midpoints, ties to the even code; state 1 keeps the sign of the value. */
static int code_of_bnb8(const struct format *f, float value, float scale)
{
    const float x = value / scale;
    int code = 0;

    if (!isnan(x)) {
        code = count_below(f->middles, 255, x, false);
        if (code < 255 && f->middles[code] == x && code % 2 == 1)
            code++;
    }
    if (f->sign == CODEC_SIGNED && !signbit(f->values[code]) != !signbit(value))
        code += value > 0.0f ? 1 : -1;
    return code & 255;
}

static int code_of_ao(const struct format *f, float value, float scale)
{
    const float x = value / scale;
    const int n_below = isnan(x) ? 0 : count_below(f->values, f->n_values, x, true);
    const int code = n_below > 0 ? n_below - 1 : 0;

    if (code == f->n_values - 1)
        return code;
    const float rest = x - f->values[code];
    const float gap = f->values[code + 1] - f->values[code];
    return code + (rest >= gap * 0.5f ? 1 : 0);
}

static int code_of_lpmm4(const struct format *f, float value, float scale)
{
    const float x = value / scale;

    return isnan(x) ? 0 : count_below(f->middles, 15, x, false);
}

static const float de4[9] = {0, 0.0055f, 0.0325f, 0.0775f, 0.2125f, 0.4375f, 0.6625f, 0.8875f, 1};

static int code_of_int4(const struct format *f, float value, float scale)
{
    if (scale == 0.0f || isnan(scale))
        return 0;
    const float inverse = 1.0f / scale;
    const float x = value * inverse;
    int nearest = 0;

    if (f->sign == CODEC_UNSIGNED) {
        const double code = nearbyint((double)(value > 0.0f ? x : 0.0f) * 16.0 - 1.0);

        return code < 0.0 ? 0 : (int)code;
    }
    /* In fp32, as midpoints are; of two as near, the later, which is the larger. */
    for (int k = 0; k < 9; k++) {
        const float middle = k > 0 ? (de4[k - 1] + de4[k]) * 0.5f : 0.0f;

        if (fabsf(x) >= middle)
            nearest = k;
    }
    if (x < 0.0f)
        return nearest == 0 ? 0 : nearest == 8 ? 9 : 16 - nearest;
    return nearest;
}

/* The value of an e4m3fn code without its sign. */
static double e4m3(int code)
{
    return code < 8 ? ldexp(code, -9) : ldexp(8 + code % 8, code / 8 - 10);
}

static int code_of_fp8(const struct format *f, float value, float scale)
{
    const double x = fabs((double)(value / scale));
    int code = 0;
    int beyond = 126;

    (void)f;
    if (scale == 0.0f || isnan(scale))
        return 0;
    while (beyond > code) {
        const int middle = (code + beyond + 1) / 2;

        if (e4m3(middle) <= x)
            code = middle;
        else
            beyond = middle - 1;
    }
    if (code < 126) {
        const double middle = (e4m3(code) + e4m3(code + 1)) / 2;

        if (x > middle || (x == middle && code % 2 == 1))
            code++;
    }
    return code | (signbit(value) ? 128 : 0);
}

/* ---- scales ---- */

static float largest_number(const struct format *f, const float *x, size_t n)
{
    float largest = 0.0f;

    (void)f;
    for (size_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    return largest;
}

static bool has_nan(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return true;
    }
    return false;
}

static float scale_of_ao(const struct format *f, const float *x, size_t n)
{
    const float largest = largest_number(f, x, n);

    if (has_nan(x, n))
        return float_of(0x7fc00000);
    return largest < 1e-12f ? 1e-12f : largest;
}

static float scale_of_fp8(const struct format *f, const float *x, size_t n)
{
    const float largest = largest_number(f, x, n);

    if (has_nan(x, n) || isinf(largest))
        return float_of(0x7fc00000);
    return largest / 448.0f < 0x1p-126f ? 0.0f : largest / 448.0f;
}

static float scale_of_int4(const struct format *f, const float *x, size_t n)
{
    float largest = 0.0f;
    float least = 0.0f;

    if (has_nan(x, n))
        return float_of(0x7fc00000);
    for (size_t i = 0; i < n; i++) {
        largest = x[i] > largest ? x[i] : largest;
        least = x[i] < least && f->sign == CODEC_SIGNED ? x[i] : least;
    }
    const float scale = -least > largest ? least : largest;
    if (isinf(scale))
        return float_of(0x7fc00000);
    return fabsf(scale) < 0x1p-126f ? 0.0f : scale;
}

static struct format formats[] = {
    {"bnb8", CODEC_SIGNED, largest_number, code_of_bnb8, false},
    {"bnb8", CODEC_UNSIGNED, largest_number, code_of_bnb8, false},
    {"ao8", CODEC_SIGNED, scale_of_ao, code_of_ao, false},
    {"ao8", CODEC_UNSIGNED, scale_of_ao, code_of_ao, false},
    {"ao4", CODEC_SIGNED, scale_of_ao, code_of_ao, true},
    {"ao4", CODEC_UNSIGNED, scale_of_ao, code_of_ao, true},
    {"lpmm4", CODEC_SIGNED, largest_number, code_of_lpmm4, false},
    {"lpmm4", CODEC_UNSIGNED, largest_number, code_of_lpmm4, false},
    {"int4", CODEC_SIGNED, scale_of_int4, code_of_int4, false},
    {"int4", CODEC_UNSIGNED, scale_of_int4, code_of_int4, false},
    {"fp8", CODEC_SIGNED, scale_of_fp8, code_of_fp8, false},
    {"fp8", CODEC_UNSIGNED, scale_of_fp8, code_of_fp8, false},
};

enum { N_FORMATS = sizeof formats / sizeof formats[0] };

/* The values of all codes, by decoding them with scale 1. */
static void prepare(struct format *f)
{
    const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    uint8_t codes[256];

    f->codec = find_codec(f->name);
    f->n_values = 1 << f->codec->bits;
    for (int i = 0; i < 256; i++) {
        const int second = (2 * i + 1) % 16;
        const int first = 2 * i % 16;

        codes[i] = (uint8_t)i;
        if (f->codec->bits == 4)
            codes[i] = (uint8_t)(f->first_high ? first << 4 | second : second << 4 | first);
    }
    f->codec->decode[f->sign](codes, ones, (size_t)f->n_values, f->values);
    for (int i = 0; i + 1 < f->n_values; i++)
        f->middles[i] = (f->values[i] + f->values[i + 1]) * 0.5f;
}

/* ---- blocks ---- */

static int code_in(const struct format *f, const uint8_t *codes, size_t i)
{
    if (f->codec->bits == 8)
        return codes[i];
    return codes[i / 2] >> ((i % 2 == 1) != f->first_high ? 4 : 0) & 15;
}

/* One block, in all forms of the encoder. */
static void check_block(const struct format *f, const float *x, size_t n)
{
    const float want_scale = f->scale_of(f, x, n);
    int want[MAX_BLOCK];

    for (size_t i = 0; i < n; i++)
        want[i] = f->code_of(f, x[i], want_scale);
    for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
        _Alignas(64) uint8_t codes[MAX_BLOCK] = {0};
        float scale = -1.0f;

        codec_encode_for(f->codec, f->sign, isa)(x, n, codes, &scale);
        if (bits_of(scale) != bits_of(want_scale))
            cr_assert_fail("%s %d %s: scale %a, expected %a", f->name, f->sign, isa_name(isa),
                           (double)scale, (double)want_scale);
        for (size_t i = 0; i < n; i++) {
            if (code_in(f, codes, i) != want[i])
                cr_assert_fail("%s %d %s: %a of %a has code %d, expected %d", f->name, f->sign,
                               isa_name(isa), (double)x[i], (double)scale, code_in(f, codes, i),
                               want[i]);
        }
    }
}

/* Magnitudes up to 1 stand beside a 1, so that the scale is 1 and they are what is searched. */
static void check_range(const struct format *f, uint64_t begin, uint64_t end, uint64_t stride,
                        bool beside_one)
{
    const size_t block = (size_t)f->codec->block;
    float x[MAX_BLOCK];

    for (uint64_t bits = begin; bits < end;) {
        size_t n = 0;

        if (beside_one)
            x[n++] = strcmp(f->name, "fp8") == 0 ? 448.0f : 1.0f;
        for (; n < block && bits < end; bits += stride)
            x[n++] = float_of((uint32_t)bits);
        check_block(f, x, n);
    }
}

static void check_all_floats(int format)
{
    struct format *f = &formats[format];
    const uint64_t one = strcmp(f->name, "fp8") == 0 ? bits_of(448.0f) : 0x3f800000;
    const uint64_t stride = sweep_stride();

    prepare(f);
    for (uint64_t sign = 0; sign <= 0x80000000u; sign += 0x80000000u) {
        check_range(f, sign, sign + one + 1, stride, true);
        check_range(f, sign + one + 1, sign + 0x80000000u, stride, false);
    }
}

ParameterizedTestParameters(codec_search, finds_the_code_of_every_float)
{
    static int indices[N_FORMATS];

    for (int i = 0; i < N_FORMATS; i++)
        indices[i] = i;
    return cr_make_param_array(int, indices, N_FORMATS);
}

ParameterizedTest(const int *format, codec_search, finds_the_code_of_every_float)
{
    check_all_floats(*format);
}

/* Around a place where the code changes, at some scales: itself and its neighbours on both sides. */
static void check_around(const struct format *f, float x)
{
    static const float scales[] = {1.0f, 0x1p-100f, 3.0f, 0.0123f, 1e-9f};

    for (int s = 0; s < 5; s++) {
        float block[12] = {scales[s] * (strcmp(f->name, "fp8") == 0 ? 448.0f : 1.0f)};

        for (int i = 0; i < 5; i++) {
            const uint32_t bits = bits_of(x) + (uint32_t)(i - 2);

            block[1 + i] = float_of(bits) * scales[s];
            block[6 + i] = -float_of(bits) * scales[s];
        }
        check_block(f, block, 11);
        block[0] = -block[0];
        check_block(f, block, 11);
    }
}

Test(codec_search, finds_the_codes_on_both_sides_of_every_value_and_midpoint)
{
    for (int i = 0; i < N_FORMATS; i++) {
        struct format *f = &formats[i];
        float sorted[256];

        prepare(f);
        int n = 0;

        for (int k = 0; k < f->n_values; k++) {
            if (f->values[k] >= 0.0f)
                sorted[n++] = f->values[k];
        }
        for (int k = 0; k < n; k++) {
            check_around(f, sorted[k]);
            if (k + 1 < n)
                check_around(f, (sorted[k] + sorted[k + 1]) * 0.5f);
        }
        check_around(f, -0.0f);
    }
}

Test(codec_search, encodes_blocks_of_what_is_not_a_number_of_zeros_and_of_subnormals)
{
    static const uint32_t kinds[] = {0x00000000, 0x80000000, 0x00000001, 0x80000001,
                                     0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
                                     0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001};

    for (int i = 0; i < N_FORMATS; i++) {
        prepare(&formats[i]);
        for (int pair = 0; pair < 144; pair++) {
            float x[100];

            for (int k = 0; k < 100; k++)
                x[k] = float_of(kinds[k % 7 == 3 ? pair % 12 : pair / 12]);
            check_block(&formats[i], x, 100);
        }
    }
}

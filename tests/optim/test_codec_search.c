#include "tests/optim/codecs.h"

#include <criterion/parameterized.h>

/*
 * Encoders against searches of the values that the codes stand for, written here a second time
 * from the definitions: for every float (--long) or some 4 million of them, and around each place
 * where the code changes.
 */

enum { MAX_N = 1024, EXTENT = 256, MAX_SCALES = MAX_N / 32 };

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

static int code_of_int8(const struct format *f, float value, float scale)
{
    if (scale == 0.0f || isnan(scale))
        return 0;
    const float inverse = 1.0f / scale;
    const float x = value * inverse;

    if (f->sign == CODEC_SIGNED)
        return (int)nearbyintf(x * 254.0f / (1.0f + fabsf(x))) & 255;
    if (!(value > 0.0f))
        return 0;
    const int code = (int)nearbyintf(sqrtf(x) * 255.0f);
    return code < 1 ? 1 : code;
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

static float scale_of_int8(const struct format *f, const float *x, size_t n)
{
    return fabsf(scale_of_int4(f, x, n));
}

/* Each as a codec of signed and of unsigned states. */
#define BOTH(...)                                                                                  \
    {.sign = CODEC_SIGNED, __VA_ARGS__},                                                           \
    {                                                                                              \
        .sign = CODEC_UNSIGNED, __VA_ARGS__                                                        \
    }

static struct format formats[] = {
    BOTH(.name = "bnb8", .scale_of = largest_number, .code_of = code_of_bnb8),
    BOTH(.name = "ao8", .scale_of = scale_of_ao, .code_of = code_of_ao),
    BOTH(.name = "ao4", .scale_of = scale_of_ao, .code_of = code_of_ao, .first_high = true),
    BOTH(.name = "lpmm4", .scale_of = largest_number, .code_of = code_of_lpmm4),
    BOTH(.name = "int4", .scale_of = scale_of_int4, .code_of = code_of_int4),
    BOTH(.name = "int8", .scale_of = scale_of_int8, .code_of = code_of_int8),
    BOTH(.name = "fp8", .scale_of = scale_of_fp8, .code_of = code_of_fp8),
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

/* In all forms of the encoder. */
static void check_extent(const struct format *f, const float *x, size_t n)
{
    const size_t block = (size_t)f->codec->block;
    float want_scales[MAX_SCALES];
    int want[MAX_N];

    for (size_t i = 0; i < n; i++) {
        if (i % block == 0)
            want_scales[i / block] = f->scale_of(f, x + i, n - i < block ? n - i : block);
        want[i] = f->code_of(f, x[i], want_scales[i / block]);
    }
    for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
        _Alignas(64) uint8_t codes[MAX_N] = {0};
        float scales[MAX_SCALES] = {0};

        codec_encode_for(f->codec, f->sign, isa)(x, n, codes, scales);
        for (size_t i = 0; i < n; i++) {
            const size_t b = i / block;

            if (bits_of(scales[b]) != bits_of(want_scales[b]))
                cr_assert_fail("%s %d %s: scale %a, expected %a", f->name, f->sign, isa_name(isa),
                               (double)scales[b], (double)want_scales[b]);
            if (code_in(f, codes, i) != want[i])
                cr_assert_fail("%s %d %s: %a of %a has code %d, expected %d", f->name, f->sign,
                               isa_name(isa), (double)x[i], (double)scales[b], code_in(f, codes, i),
                               want[i]);
        }
    }
}

/* The largest element of a block with scale 1. */
static float largest_of_one(const struct format *f)
{
    return strcmp(f->name, "fp8") == 0 ? 448.0f : 1.0f;
}

/* Magnitudes up to 1 stand beside a 1, so that the scale is 1 and they are what is searched. */
static void check_range(const struct format *f, uint64_t begin, uint64_t end, uint64_t stride,
                        bool beside_one)
{
    const size_t block = (size_t)f->codec->block;
    float x[EXTENT];

    for (uint64_t bits = begin; bits < end;) {
        size_t n = 0;

        for (; n < EXTENT && bits < end; bits += stride) {
            if (beside_one && n % block == 0)
                x[n++] = largest_of_one(f);
            x[n++] = float_of((uint32_t)bits);
        }
        check_extent(f, x, n);
    }
}

static void check_all_floats(int format)
{
    struct format *f = &formats[format];
    const uint64_t one = bits_of(largest_of_one(f));
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

/*
 * Around a place where the code changes: itself and its neighbours on both sides, in blocks with
 * these scales, of one sign or of both.
 */
static void check_neighbours(const struct format *f, float place, const float *scales, bool both)
{
    const size_t block = (size_t)f->codec->block;
    float x[MAX_N];

    for (size_t i = 0; i < MAX_N; i++) {
        const uint32_t bits = bits_of(place) + (uint32_t)(i % 31) - 15;
        const float lead = largest_of_one(f) * scales[i / block % 4];
        const float near = float_of(bits) * fabsf(scales[i / block % 4]);

        x[i] = i % block == 0 ? lead : both && i / 8 % 2 == 1 ? -near : near;
    }
    check_extent(f, x, MAX_N);
    for (size_t at = 0; at < MAX_N; at += block)
        check_extent(f, x + at, 11);
}

static void check_around(const struct format *f, float place)
{
    static const float scales[3][4] = {
        {1.0f, 3.0f, 0.0123f, 1e-9f},
        {0x1p-100f, 0x1.fffffep99f, 0x1.8p-60f, 7e20f},
        {-3.0f, 0x1p110f, 0x1.5p-110f, -0x1.7p126f},
    };

    for (int i = 0; i < 3; i++) {
        check_neighbours(f, place, scales[i], true);
        check_neighbours(f, place, scales[i], false);
    }
}

/* Halves between the codes of int8, where they lie among values. */
static void check_around_halves(const struct format *f)
{
    for (int k = 0; k < (f->sign == CODEC_SIGNED ? 127 : 255); k++) {
        const double half = k + 0.5;

        check_around(
            f, (float)(f->sign == CODEC_SIGNED ? half / (254.0 - half) : half * half / 65025.0));
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
        if (strcmp(f->name, "int8") == 0)
            check_around_halves(f);
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
            float x[EXTENT];

            for (int k = 0; k < EXTENT; k++)
                x[k] = float_of(kinds[k % 7 == 3 ? pair % 12 : pair / 12]);
            check_extent(&formats[i], x, 100);
            check_extent(&formats[i], x, EXTENT);
        }
    }
}

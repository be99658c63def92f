#include "models/ops/cpu/attention_tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

/* ---- a unit of X: `rows` of its rows exist, `columns` of its columns ---- */

typedef void pack_fn(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns, char *unit);

static inline __m512i load_row(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns,
                               int64_t i)
{
    return _mm512_maskz_loadu_epi16(i < rows ? first(columns) : 0, x + i * ld);
}

static void pack_left(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns, char *unit)
{
    for (int64_t i = 0; i < UNIT; i++)
        _mm512_store_si512(unit + i * 64, load_row(x, ld, rows, columns, i));
}

static void pack_right_turned(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns,
                              char *unit)
{
    for (int64_t half = 0; half < UNIT; half += TILE) {
        __m512i r[TILE];
        for (int64_t i = 0; i < TILE; i++)
            r[i] = load_row(x, ld, rows, columns, half + i);
        transpose16(r);
        for (int64_t i = 0; i < TILE; i++)
            _mm512_store_si512(unit + (half + i) * 64, r[i]);
    }
}

/* Rows 2i and 2i + 1 side by side: columns 0 to 15 in `low`, the others in `high`. */
static inline void pair_rows(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns,
                             __m512i low[TILE], __m512i high[TILE])
{
    const __m512i lows =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i highs = _mm512_add_epi16(lows, _mm512_set1_epi16(TILE));

    for (int64_t i = 0; i < TILE; i++) {
        const __m512i a = load_row(x, ld, rows, columns, 2 * i);
        const __m512i b = load_row(x, ld, rows, columns, 2 * i + 1);
        low[i] = _mm512_permutex2var_epi16(a, lows, b);
        high[i] = _mm512_permutex2var_epi16(a, highs, b);
    }
}

static inline void store_tiles(const __m512i low[TILE], const __m512i high[TILE], char *unit)
{
    for (int64_t i = 0; i < TILE; i++) {
        _mm512_store_si512(unit + i * 64, low[i]);
        _mm512_store_si512(unit + TILE_BYTES + i * 64, high[i]);
    }
}

static void pack_right(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns, char *unit)
{
    __m512i low[TILE];
    __m512i high[TILE];

    pair_rows(x, ld, rows, columns, low, high);
    store_tiles(low, high, unit);
}

static void pack_left_turned(const bf16_t *x, int64_t ld, int64_t rows, int64_t columns, char *unit)
{
    __m512i low[TILE];
    __m512i high[TILE];

    pair_rows(x, ld, rows, columns, low, high);
    transpose16(low);
    transpose16(high);
    store_tiles(low, high, unit);
}

/* ---- a matrix ---- */

/*
 * The unit of rows after this one: rows lie in pages of their own, and the processor does not guess
 * the next.
 */
static inline void prefetch_next(const bf16_t *x, int64_t ld, int64_t rows, int64_t D)
{
    for (int64_t i = UNIT; i < rows && i < 2 * UNIT; i++)
        for (int64_t d = 0; d < D; d += UNIT)
            __builtin_prefetch(x + i * ld + d, 0, 2);
}

void attention_pack(enum packing packing, const bf16_t *x, int64_t ld, int64_t rows, int64_t D,
                    char *units)
{
    static pack_fn *const functions[] = {[PACK_LEFT] = pack_left,
                                         [PACK_LEFT_TURNED] = pack_left_turned,
                                         [PACK_RIGHT] = pack_right,
                                         [PACK_RIGHT_TURNED] = pack_right_turned};

    for (int64_t i = 0; i < rows; i += UNIT) {
        prefetch_next(x + i * ld, ld, rows - i, D);
        for (int64_t d = 0; d < D; d += UNIT, units += UNIT_BYTES)
            functions[packing](x + i * ld + d, ld, rows - i, D - d, units);
    }
}

static inline __m512 widen_lower(__m512i h)
{
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16);
}

static inline __m512 widen_upper(__m512i h)
{
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16);
}

static __m512 products(const bf16_t *a, const bf16_t *b, int64_t D)
{
    __m512 lower = _mm512_setzero_ps();
    __m512 upper = _mm512_setzero_ps();

    for (int64_t d = 0; d < D; d += 2 * TILE) {
        const __m512i x = _mm512_maskz_loadu_epi16(first(D - d), a + d);
        const __m512i y = _mm512_maskz_loadu_epi16(first(D - d), b + d);
        lower = _mm512_add_ps(lower, _mm512_mul_ps(widen_lower(x), widen_lower(y)));
        upper = _mm512_add_ps(upper, _mm512_mul_ps(widen_upper(x), widen_upper(y)));
    }
    return _mm512_add_ps(lower, upper);
}

void attention_row_dots(const bf16_t *a, const bf16_t *b, int64_t ld, int64_t count, int64_t D,
                        float sums[UNIT])
{
    prefetch_next(a, ld, count, D);
    prefetch_next(b, ld, count, D);
    for (int64_t half = 0; half < UNIT; half += TILE) {
        __m512i r[TILE];
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < TILE; i++)
            r[i] = half + i < count ? (__m512i)products(a + (half + i) * ld, b + (half + i) * ld, D)
                                    : _mm512_setzero_si512();
        transpose16(r);
        for (int64_t i = 0; i < TILE; i++)
            sum = _mm512_add_ps(sum, (__m512)r[i]);
        _mm512_storeu_ps(sums + half, sum);
    }
}

static inline void write_row(__m512 lower, __m512 upper, int64_t D, bf16_t *dst)
{
    _mm512_mask_storeu_epi16(dst, first(D), (__m512i)_mm512_cvtne2ps_pbh(upper, lower));
}

void attention_write(const float *unit, float factor, int64_t rows, int64_t D, bf16_t *dst,
                     int64_t ld)
{
    const __m512 f = _mm512_set1_ps(factor);

    for (int64_t i = 0; i < rows && i < UNIT; i++)
        write_row(_mm512_mul_ps(f, _mm512_loadu_ps(unit + i * UNIT)),
                  _mm512_mul_ps(f, _mm512_loadu_ps(unit + i * UNIT + TILE)), D, dst + i * ld);
}

/* Sixteen columns of unit from `column` on, rows first .. first + 15, as rows. */
static inline void columns(const float *unit, int64_t first_row, int64_t column, __m512 factors,
                           __m512i r[TILE])
{
    for (int64_t i = 0; i < TILE; i++)
        r[i] = (__m512i)_mm512_mul_ps(factors,
                                      _mm512_loadu_ps(unit + (first_row + i) * UNIT + column));
    transpose16(r);
}

void attention_write_turned(const float *unit, const float factors[UNIT], int64_t rows, int64_t D,
                            bf16_t *dst, int64_t ld)
{
    for (int64_t half = 0; half < UNIT && half < rows; half += TILE) {
        const __m512 f = _mm512_loadu_ps(factors + half);
        __m512i lower[TILE];
        __m512i upper[TILE];
        columns(unit, 0, half, f, lower);
        columns(unit, TILE, half, f, upper);
        for (int64_t i = 0; i < TILE && half + i < rows; i++)
            write_row((__m512)lower[i], (__m512)upper[i], D, dst + (half + i) * ld);
    }
}

#endif

#include "models/ops/cpu/attention_tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "models/ops/cpu/amx_pack.h"

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
    static pack_fn *const functions[] = {[PACK_LEFT] = pack_rows,
                                         [PACK_LEFT_TURNED] = pack_columns_turned,
                                         [PACK_RIGHT] = pack_columns,
                                         [PACK_RIGHT_TURNED] = pack_rows_turned};
    const bool along_rows = packing == PACK_LEFT_TURNED || packing == PACK_RIGHT;

    for (int64_t i = 0; i < rows; i += UNIT) {
        prefetch_next(x + i * ld, ld, rows - i, D);
        for (int64_t d = 0; d < D; d += UNIT, units += UNIT_BYTES)
            functions[packing](x + i * ld + d, ld, along_rows ? D - d : rows - i,
                               along_rows ? rows - i : D - d, units);
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

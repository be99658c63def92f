#pragma once

#include "models/ops/cpu/attention_internal.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "models/ops/cpu/tiles.h"

/*
 * Matrices of bf16 attention on AMX tiles (Intel SDM vol. 1, ch. 18), for attention_amx*.c and
 * attention_tiles.c, which are compiled for the instructions used here.
 *
 * Everything is made of units of 32 x 32: four tiles of fp32 for a sum, row-major in memory, or
 * two tiles of bf16 for an operand.  The left operand's unit is two tiles of 16 rows x 32 k, the
 * right one's two tiles of 16 pairs of k x 16 columns.  Numbers behind a matrix' end are zero.
 *
 * q, k, v and dy are bf16 as they come, so their products are exact and summed in fp32.  What is
 * made here, P and dS, is split into two bf16 parts whose sum is within 2^-17 of it, and each part
 * is multiplied: the results are those of fp32 factors.
 */
enum {
    UNIT = 32,
    UNIT_BYTES = UNIT * UNIT * 2,
    UNIT_FLOATS = UNIT * UNIT,
    SPLIT_BYTES = 2 * UNIT_BYTES, /* the high parts of a unit, then the low ones */
};

static inline int64_t units_of(int64_t n)
{
    return ceil_div(n, UNIT);
}

/* ---- attention_tiles.c ---- */

/* Which operand becomes of X [rows, D], and whether transposed: X Z, Xᵀ Z, Z X or Z Xᵀ. */
enum packing { PACK_LEFT, PACK_LEFT_TURNED, PACK_RIGHT, PACK_RIGHT_TURNED };

/* Unit (i, d) of X, its rows `ld` apart, goes to place i * units_of(D) + d. */
void attention_pack(enum packing packing, const bf16_t *x, int64_t ld, int64_t rows, int64_t D,
                    char *units);

/* sums[i] = a_i · b_i for rows i < count <= UNIT, their elements contiguous; 0 up to UNIT. */
void attention_row_dots(const bf16_t *a, const bf16_t *b, int64_t ld, int64_t count, int64_t D,
                        float sums[UNIT]);

/* dst [rows, D] = factor * unit, and dst [rows, D] = unitᵀ, row i times factors[i]. */
void attention_write(const float *unit, float factor, int64_t rows, int64_t D, bf16_t *dst,
                     int64_t ld);
void attention_write_turned(const float *unit, const float factors[UNIT], int64_t rows, int64_t D,
                            bf16_t *dst, int64_t ld);

/* ---- tile registers: 0 to 3 hold the sum, 4 to 7 the operands ---- */

static inline void sum_from_zero(void)
{
    tiles_barrier();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void sum_from(const float *unit)
{
    tiles_barrier();
    _tile_loadd(0, unit, 4 * UNIT);
    _tile_loadd(1, unit + TILE, 4 * UNIT);
    _tile_loadd(2, unit + UNIT_FLOATS / 2, 4 * UNIT);
    _tile_loadd(3, unit + UNIT_FLOATS / 2 + TILE, 4 * UNIT);
}

static inline void sum_to(float *unit)
{
    _tile_stored(0, unit, 4 * UNIT);
    _tile_stored(1, unit + TILE, 4 * UNIT);
    _tile_stored(2, unit + UNIT_FLOATS / 2, 4 * UNIT);
    _tile_stored(3, unit + UNIT_FLOATS / 2 + TILE, 4 * UNIT);
    tiles_barrier();
}

/* The sum += left * right. */
static inline void sum_product(const char *left, const char *right)
{
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, right + TILE_BYTES, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, left + TILE_BYTES, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* ---- vectors: four at a time, so that their chains of dependent operations overlap ---- */

enum { FOUR = 4 };

/*
 * x = e^x for x up to 88 or NaN: below -87.3, where results would be subnormal, 0.  As exp_in_range
 * of vector.h with fma, which needs no form of its own here, and to the term r^6 / 720: the first
 * neglected one is r^7 / 5040 < 1.2e-7.
 */
static inline void exp_four(__m512 x[FOUR])
{
    const __m512 low = _mm512_set1_ps(-87.3f);
    const __m512 to_int = _mm512_set1_ps(0x1.8p23f);
    const float coefficients[] = {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
    __m512 n[FOUR];
    __m512 p[FOUR];
    __mmask16 keep[FOUR];

    for (int i = 0; i < FOUR; i++)
        keep[i] = _mm512_cmp_ps_mask(x[i], low, _CMP_NLT_UQ);
    for (int i = 0; i < FOUR; i++)
        x[i] = _mm512_max_ps(low, x[i]); /* of a number and NaN: NaN */
    for (int i = 0; i < FOUR; i++)
        n[i] = _mm512_fmadd_ps(x[i], _mm512_set1_ps(0x1.715476p+0f), to_int);
    for (int i = 0; i < FOUR; i++)
        n[i] = _mm512_sub_ps(n[i], to_int);
    for (int i = 0; i < FOUR; i++)
        x[i] = _mm512_fnmadd_ps(n[i], _mm512_set1_ps(0x1.63p-1f), x[i]);
    for (int i = 0; i < FOUR; i++)
        x[i] = _mm512_fnmadd_ps(n[i], _mm512_set1_ps(-0x1.bd0106p-13f), x[i]);
    for (int i = 0; i < FOUR; i++)
        p[i] = _mm512_set1_ps(1.0f / 720.0f);
    for (int k = 0; k < 6; k++)
        for (int i = 0; i < FOUR; i++)
            p[i] = _mm512_fmadd_ps(p[i], x[i], _mm512_set1_ps(coefficients[k]));
    for (int i = 0; i < FOUR; i++)
        x[i] = _mm512_maskz_scalef_ps(keep[i], p[i], n[i]);
}

/* Bits of two bf16 numbers in the upper halves of 32; what lies below them is not meant. */
struct parts {
    __m512i high[FOUR], low[FOUR];
};

static inline struct parts split_four(const __m512 x[FOUR])
{
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    struct parts p;

    for (int i = 0; i < FOUR; i++)
        p.high[i] = _mm512_and_si512(_mm512_add_epi32((__m512i)x[i], half), upper);
    for (int i = 0; i < FOUR; i++)
        p.low[i] = _mm512_add_epi32((__m512i)_mm512_sub_ps(x[i], (__m512)p.high[i]), half);
    return p;
}

/* A row of a left operand: the 16 columns of a, then those of b. */
static inline __m512i left_row(__m512i a, __m512i b)
{
    const __m512i uppers =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);

    return _mm512_permutex2var_epi16(a, uppers, b);
}

/* A row of a right operand's tile: each column's number of a beside that of b. */
static inline __m512i right_row(__m512i a, __m512i b)
{
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a, 16), b);
}

/* Two rows (keys) of a unit of [keys, queries]: vectors 0 and 1 are the first, 2 and 3 the second. */
static inline void load_two_rows(const float *unit, int64_t key, __m512 x[FOUR])
{
    for (int i = 0; i < FOUR; i++)
        x[i] = _mm512_loadu_ps(unit + key * UNIT + i * TILE);
}

/* Both as a row of a right operand. */
static inline void store_right_rows(const struct parts *p, int64_t key, char *operand)
{
    for (int half = 0; half < 2; half++) {
        char *row = operand + half * TILE_BYTES + key / 2 * 64;
        _mm512_store_si512(row, right_row(p->high[half], p->high[half + 2]));
        _mm512_store_si512(row + UNIT_BYTES, right_row(p->low[half], p->low[half + 2]));
    }
}

static inline void store_left_rows(const struct parts *p, int64_t key, char *operand)
{
    for (int i = 0; i < 2; i++) {
        char *row = operand + (key + i) * 64;
        _mm512_store_si512(row, left_row(p->high[2 * i], p->high[2 * i + 1]));
        _mm512_store_si512(row + UNIT_BYTES, left_row(p->low[2 * i], p->low[2 * i + 1]));
    }
}

/* Of a unit on the diagonal: the queries of vector i that may see its key, as lanes. */
static inline __mmask16 queries_seeing(int64_t key, int i)
{
    const uint64_t seeing = ~UINT64_C(0) << (key + i / 2); /* a bit per query */

    return (__mmask16)(seeing >> (i % 2 * TILE));
}

static inline void hide_later_keys(int64_t key, __m512 x[FOUR])
{
    for (int i = 0; i < FOUR; i++)
        x[i] = _mm512_maskz_mov_ps(queries_seeing(key, i), x[i]);
}

#endif

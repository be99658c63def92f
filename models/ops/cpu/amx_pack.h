#pragma once

#include "models/ops/cpu/tiles.h"
#include "runtime/base/dtype.h"

/*
 * How operands of amx.c lie in memory, and their packing; for amx.c only, which is compiled for the
 * instructions used here.
 *
 * A block is 32 x 32 numbers of C: two tiles by two, each 16 x 16 fp32, kept in tile registers 0 to 3
 * while k runs in steps of 32.  A step of A is two tiles of 16 rows x 32 k; a step of B two tiles of
 * 16 pairs of k x 16 columns, the pair's two numbers side by side (SDM, TDPBF16PS).
 */
enum {
    STEP = 32,        /* k per step */
    BLOCK = 2 * TILE, /* rows and columns per block */
    STEP_BYTES = 2 * TILE_BYTES,
    BLOCK_BYTES = 4 * TILE_BYTES,
};

static inline int64_t min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t blocks_of(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

/*
 * ---- packing: one step of 32 rows of A or columns of B, or a tile of B ----
 *
 * `count` of the rows or columns exist and `k` of the step's numbers; the others become zero.
 */
typedef void pack_fn(const bf16_t *src, int64_t ld, int64_t count, int64_t k, char *dst);

/* A, contiguous in k. */
static void pack_rows(const bf16_t *src, int64_t ld, int64_t count, int64_t k, char *dst)
{
    const __mmask32 mask = first(k);

    for (int64_t i = 0; i < BLOCK; i++)
        _mm512_store_si512(dst + i * 64,
                           _mm512_maskz_loadu_epi16(i < count ? mask : 0, src + i * ld));
}

/* A tile of B, 16 columns, contiguous in k. */
static void pack_rows_turned(const bf16_t *src, int64_t ld, int64_t count, int64_t k, char *dst)
{
    const __mmask32 mask = first(k);
    __m512i r[TILE];

    for (int64_t i = 0; i < TILE; i++)
        r[i] = _mm512_maskz_loadu_epi16(i < count ? mask : 0, src + i * ld);
    transpose16(r);
    for (int64_t i = 0; i < TILE; i++)
        _mm512_store_si512(dst + i * 64, r[i]);
}

/*
 * Pairs of k side by side, of rows that are contiguous in m or n: of every eight columns the first
 * four in `low`, the others in `high`.
 */
static inline void pair_rows(const bf16_t *src, int64_t ld, int64_t count, int64_t k,
                             __m512i low[TILE], __m512i high[TILE])
{
    const __mmask32 mask = first(count);

    for (int64_t i = 0; i < TILE; i++) {
        __m512i a = _mm512_maskz_loadu_epi16(2 * i < k ? mask : 0, src + 2 * i * ld);
        __m512i b = _mm512_maskz_loadu_epi16(2 * i + 1 < k ? mask : 0, src + (2 * i + 1) * ld);
        low[i] = _mm512_unpacklo_epi16(a, b);
        high[i] = _mm512_unpackhi_epi16(a, b);
    }
}

/* B, contiguous in n. */
static void pack_columns(const bf16_t *src, int64_t ld, int64_t count, int64_t k, char *dst)
{
    const __m512i first_half = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i second_half = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    __m512i low[TILE];
    __m512i high[TILE];

    pair_rows(src, ld, count, k, low, high);
    for (int64_t i = 0; i < TILE; i++) {
        _mm512_store_si512(dst + i * 64, _mm512_permutex2var_epi64(low[i], first_half, high[i]));
        _mm512_store_si512(dst + TILE_BYTES + i * 64,
                           _mm512_permutex2var_epi64(low[i], second_half, high[i]));
    }
}

/* A, contiguous in m. */
static void pack_columns_turned(const bf16_t *src, int64_t ld, int64_t count, int64_t k, char *dst)
{
    __m512i low[TILE];
    __m512i high[TILE];

    pair_rows(src, ld, count, k, low, high);
    transpose16(low);
    transpose16(high);
    for (int64_t i = 0; i < TILE; i++) {
        char *row = dst + (i / 4 * 8 + i % 4) * 64;
        _mm512_store_si512(row, low[i]);
        _mm512_store_si512(row + 4 * 64, high[i]);
    }
}

/* ---- on the way to a product ---- */

/* A strip of A; a step is at src + s * step. */
struct packing {
    pack_fn *pack;
    const bf16_t *src;
    int64_t ld, step, count, k;
    char *dst;
};

static inline void pack_step(const struct packing *p, int64_t s)
{
    p->pack(p->src + s * p->step, p->ld, p->count, p->k - s * STEP, p->dst + s * STEP_BYTES);
}

/* Rows that are read later come to the second cache, a few lines at a time: a burst would stall. */
struct fetching {
    const char *row;
    int64_t row_bytes, rows, lines, line, per_step;
};

static inline void fetch_lines(struct fetching *f)
{
    for (int64_t i = f->rows > 0 ? f->per_step : 0; i > 0; i--) {
        __builtin_prefetch(f->row + f->line * 64, 0, 2);
        if (++f->line == f->lines) {
            f->line = 0;
            f->row += f->row_bytes;
            f->rows--;
        }
    }
}

#pragma once

#include <immintrin.h>
#include <stdint.h>

/*
 * AMX tile registers of 16 rows of 64 bytes (Intel SDM vol. 1, ch. 18), for files that are compiled
 * for them: a tile is 16 x 16 fp32, 16 x 32 bf16, or 16 pairs of rows x 16 columns of bf16.
 */
enum { TILE = 16, TILE_BYTES = 1024 };

/* The intrinsics of gcc 12 do not say what memory they read and write. */
static inline void tiles_barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

static inline void tiles_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = TILE;
    }
    tiles_barrier();
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

static inline void tiles_end(void)
{
    _tile_release();
}

/* The first n of 32. */
static inline __mmask32 first(int64_t n)
{
    return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1u;
}

/* Row i becomes column i of 16 x 16 numbers of 32 bits. */
static inline void transpose16(__m512i r[TILE])
{
    __m512i t[TILE];

    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        r[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
        r[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
    }
}

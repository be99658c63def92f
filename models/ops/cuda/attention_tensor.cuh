#pragma once

#include "models/ops/cuda/attention_plain.cuh"

/*
 * Attention on tensor cores: bf16, head size D = 64 or 128, tiles of 64 rows in shared memory, four
 * warps of 16 rows each.  Rows of tiles are D + 8 numbers apart: the eight rows that load_matrices
 * reads at once start in different banks.  Fragments are described at mma_bf16 (machine.cuh).
 */
enum {
    ROWS = 64,
    WARP_ROWS = 16,
    TENSOR_THREADS = ROWS / WARP_ROWS * WARP,
    COLUMN_TILES = ROWS / 8
};

#define LOG2_E 1.4426950408889634f

template <int D> static constexpr int tile_ld = D + 8;

template <int D> static constexpr size_t tile_bytes = (size_t)ROWS *tile_ld<D> * sizeof(bf16_t);

/* Rows [first, first + ROWS) of a head, zero behind the sequence's end. */
template <int D>
static __device__ __forceinline__ void load_rows(bf16_t *tile, const bf16_t *head, int64_t stride,
                                                 int64_t first, int64_t rows)
{
    enum { CHUNK = 8, CHUNKS = D / CHUNK };

#pragma unroll 4
    for (int n = 0; n < ROWS * CHUNKS / TENSOR_THREADS; n++) {
        const int i = (int)threadIdx.x + n * TENSOR_THREADS;
        const int r = i / CHUNKS;
        const int c = i % CHUNKS * CHUNK;
        uint4 chunk = {0, 0, 0, 0};
        if (first + r < rows)
            chunk = *(const uint4 *)(head + (first + r) * stride + c);
        *(uint4 *)(tile + r * tile_ld<D> + c) = chunk;
    }
}

/* The left matrix tile[row .. row + 16, column .. column + 16]. */
template <int D>
static __device__ __forceinline__ void load_left(uint32_t r[4], const bf16_t *tile, int row,
                                                 int column)
{
    const int lane = (int)threadIdx.x % WARP;

    load_matrices(r, tile + (row + lane % 16) * tile_ld<D> + column + lane / 16 * 8);
}

/*
 * The transpose of tile[n .. n + 16, k .. k + 16] as right matrices: r[0], r[1] are its columns
 * n .. n + 7, r[2], r[3] the next eight.
 */
template <int D>
static __device__ __forceinline__ void load_right_of_rows(uint32_t r[4], const bf16_t *tile, int n,
                                                          int k)
{
    const int lane = (int)threadIdx.x % WARP;

    load_matrices(r, tile + (n + lane % 8 + lane / 16 * 8) * tile_ld<D> + k + lane / 8 % 2 * 8);
}

/* tile[k .. k + 16, n .. n + 16] itself as right matrices, in the same order. */
template <int D>
static __device__ __forceinline__ void load_right(uint32_t r[4], const bf16_t *tile, int k, int n)
{
    const int lane = (int)threadIdx.x % WARP;

    load_matrices_transposed(r, tile + (k + lane % 16) * tile_ld<D> + n + lane / 16 * 8);
}

/* s [16 x 64] = rows `row` .. of `left` times the transpose of `right`, both [64, D]. */
template <int D>
static __device__ __forceinline__ void
multiply_transposed(float s[COLUMN_TILES][4], const bf16_t *left, int row, const bf16_t *right)
{
#pragma unroll
    for (int n = 0; n < COLUMN_TILES; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4];
        load_left<D>(a, left, row, k);
#pragma unroll
        for (int n = 0; n < COLUMN_TILES; n += 2) {
            uint32_t b[4];
            load_right_of_rows<D>(b, right, n * 8, k);
            mma_bf16(s[n], a, b[0], b[1]);
            mma_bf16(s[n + 1], a, b[2], b[3]);
        }
    }
}

/* out [16 x D] += s [16 x 64], rounded to bf16, times tile [64, D]. */
template <int D>
static __device__ __forceinline__ void
multiply_add(float out[D / 8][4], const float s[COLUMN_TILES][4], const bf16_t *tile)
{
#pragma unroll
    for (int k = 0; k < COLUMN_TILES; k += 2) {
        const uint32_t a[4] = {pack_bf16(s[k][0], s[k][1]), pack_bf16(s[k][2], s[k][3]),
                               pack_bf16(s[k + 1][0], s[k + 1][1]),
                               pack_bf16(s[k + 1][2], s[k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            load_right<D>(b, tile, k * 8, n * 8);
            mma_bf16(out[n], a, b[0], b[1]);
            mma_bf16(out[n + 1], a, b[2], b[3]);
        }
    }
}

/* Row g (half 0) or g + 8 (half 1) of the lane's part of out, times factor, into a head's row. */
template <int D>
static __device__ __forceinline__ void store_fragment_row(bf16_t *row, const float out[D / 8][4],
                                                          int half, float factor)
{
    const int column = (int)threadIdx.x % 4 * 2;

#pragma unroll
    for (int n = 0; n < D / 8; n++)
        *(uint32_t *)(row + n * 8 + column) =
            pack_bf16(out[n][2 * half] * factor, out[n][2 * half + 1] * factor);
}

/* The row of a warp's 16 that the lane's elements 2 * half and 2 * half + 1 lie in. */
static __device__ __forceinline__ int fragment_row(int half)
{
    return (int)threadIdx.x / WARP * WARP_ROWS + (int)threadIdx.x % WARP / 4 + 8 * half;
}

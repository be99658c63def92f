#pragma once

#include "models/ops/cuda/attention_plain.cuh"

/*
 * Attention in fp32 arithmetic: tiles of 32 queries by 32 keys, 256 threads.  Rows of tiles lie
 * D + 1 numbers apart, so that neighbouring rows fall into different banks.
 *
 * A thread (ty, tx) = (t / 16, t % 16) makes scores (ty | ty + 16, tx | tx + 16); for products with
 * D columns thread t owns row t / 8 and columns t % 8 + 8 j, j < COLUMNS.
 */
enum { TILE = 32, SIMT_THREADS = 256, SCORES_LD = TILE + 1, PER_ROW = SIMT_THREADS / TILE };

/* Rows [first, first + TILE) of a head, zero behind the sequence's end. */
template <typename T>
static __device__ __forceinline__ void load_tile(float *tile, const T *head, int64_t stride,
                                                 int64_t first, int64_t rows, int D)
{
    for (int r = (int)threadIdx.x / WARP; r < TILE; r += SIMT_THREADS / WARP)
        for (int c = (int)threadIdx.x % WARP; c < D; c += WARP)
            tile[r * (D + 1) + c] =
                first + r < rows ? to_float(head[(first + r) * stride + c]) : 0.0f;
}

/* dots[i][j] = a[ty + 16 i] · b[tx + 16 j] */
static __device__ __forceinline__ void dot_tiles(float dots[2][2], const float *a, const float *b,
                                                 int D)
{
    const int ld = D + 1;
    const float *a0 = a + (threadIdx.x / 16) * ld;
    const float *b0 = b + (threadIdx.x % 16) * ld;
    const float *a1 = a0 + 16 * ld;
    const float *b1 = b0 + 16 * ld;

    dots[0][0] = dots[0][1] = dots[1][0] = dots[1][1] = 0.0f;
    for (int d = 0; d < D; d++) {
        dots[0][0] = fmaf(a0[d], b0[d], dots[0][0]);
        dots[0][1] = fmaf(a0[d], b1[d], dots[0][1]);
        dots[1][0] = fmaf(a1[d], b0[d], dots[1][0]);
        dots[1][1] = fmaf(a1[d], b1[d], dots[1][1]);
    }
}

/* sums[j] += weight * row[column of j] */
template <int COLUMNS>
static __device__ __forceinline__ void add_row(float sums[COLUMNS], float weight, const float *row,
                                               int D)
{
    const int first = (int)threadIdx.x % PER_ROW;

#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        if (first + PER_ROW * j < D)
            sums[j] = fmaf(weight, row[first + PER_ROW * j], sums[j]);
}

/* The thread's row of a head, if the sequence has it: factor * sums. */
template <typename T, int COLUMNS>
static __device__ __forceinline__ void store_row(T *head, int64_t stride, int64_t row, int64_t rows,
                                                 float factor, const float sums[COLUMNS], int D)
{
    const int first = (int)threadIdx.x % PER_ROW;

    if (row >= rows)
        return;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        if (first + PER_ROW * j < D)
            head[row * stride + first + PER_ROW * j] = from_float<T>(factor * sums[j]);
}

/* Call f<T, COLUMNS>(...) for a type and a head size. */
#define SIMT_DISPATCH(f, s, ...)                                                                   \
    ((s)->dtype == DTYPE_F32 ? ((s)->D <= 64    ? f<float, 8>(__VA_ARGS__)                         \
                                : (s)->D <= 128 ? f<float, 16>(__VA_ARGS__)                        \
                                                : f<float, 32>(__VA_ARGS__))                       \
                             : ((s)->D <= 64    ? f<bf16_t, 8>(__VA_ARGS__)                        \
                                : (s)->D <= 128 ? f<bf16_t, 16>(__VA_ARGS__)                       \
                                                : f<bf16_t, 32>(__VA_ARGS__)))

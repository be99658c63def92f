/* Kernels: conversions, sums of arrays, sums of columns. */
#include "models/ops/cpu/kernels_internal.h"
#include "models/ops/cpu/vector.h"

OP_INLINE void convert(int64_t n, float scale, enum dtype src_dtype, const void *src,
                       enum dtype dst_dtype, void *dst)
{
    for (int64_t i = 0; i < n; i += LANES)
        store_some(dst_dtype, dst, i, n, scale * load_some(src_dtype, src, i, n));
}

void kernel_convert(int64_t n, float scale, enum dtype src_dtype, const void *src,
                    enum dtype dst_dtype, void *dst)
{
    if (src_dtype == DTYPE_F32 && dst_dtype == DTYPE_F32)
        convert(n, scale, DTYPE_F32, src, DTYPE_F32, dst);
    else if (src_dtype == DTYPE_F32)
        convert(n, scale, DTYPE_F32, src, DTYPE_BF16, dst);
    else if (dst_dtype == DTYPE_F32)
        convert(n, scale, DTYPE_BF16, src, DTYPE_F32, dst);
    else
        convert(n, scale, DTYPE_BF16, src, DTYPE_BF16, dst);
}

void kernel_accumulate(int64_t n, const float *src, float *dst)
{
    for (int64_t i = 0; i < n; i += LANES)
        store_some(DTYPE_F32, dst, i, n,
                   load_some(DTYPE_F32, dst, i, n) + load_some(DTYPE_F32, src, i, n));
}

void kernel_clear(int64_t n, float *x)
{
#if defined(__AVX512F__)
    const int64_t behind_line = (int64_t)((uintptr_t)x / sizeof *x % LANES);
    const int64_t whole = behind_line == 0 ? 0 : LANES - behind_line; /* the first whole line */
    int64_t i = whole;

    if (whole < n) {
        for (; i + LANES <= n; i += LANES)
            _mm512_stream_ps(x + i, _mm512_setzero_ps());
        memset(x, 0, (size_t)whole * sizeof *x);
        memset(x + i, 0, (size_t)(n - i) * sizeof *x);
        _mm_sfence(); /* before other threads may look */
        return;
    }
#endif
    memset(x, 0, (size_t)n * sizeof *x);
}

OP_INLINE void add(int64_t n, enum dtype a_dtype, const void *a, enum dtype b_dtype, const void *b,
                   float *y)
{
    for (int64_t i = 0; i < n; i += LANES) {
        f32x16 sum = a != NULL ? load_some(a_dtype, a, i, n) : splat(0.0f);
        if (b != NULL)
            sum = sum + load_some(b_dtype, b, i, n);
        store_some(DTYPE_F32, y, i, n, sum);
    }
}

void kernel_add(int64_t n, enum dtype dtype, const float *a, const void *b, float *y)
{
    if (dtype == DTYPE_F32)
        add(n, DTYPE_F32, a, DTYPE_F32, b, y);
    else
        add(n, DTYPE_F32, a, DTYPE_BF16, b, y);
}

void kernel_add_embeddings(int64_t n, enum dtype dtype, const void *a, const void *b, float *y)
{
    if (dtype == DTYPE_F32)
        add(n, DTYPE_F32, a, DTYPE_F32, b, y);
    else
        add(n, DTYPE_BF16, a, DTYPE_BF16, b, y);
}

/*
 * A sum over blocks of rows, each block summed alone: the rounding error grows with the block and
 * with the number of blocks, not with the number of rows.
 */
OP_INLINE void column_sums(int64_t rows, int64_t n, int64_t ld, enum dtype dtype, const void *x,
                           float *sums)
{
    enum { BLOCK_ROWS = 64, TOGETHER = 4 };

    for (int64_t j = 0; j < n; j += TOGETHER * LANES) {
        f32x16 total[TOGETHER] = {{0}};
        for (int64_t block = 0; block < rows; block += BLOCK_ROWS) {
            int64_t end = block + BLOCK_ROWS < rows ? block + BLOCK_ROWS : rows;
            f32x16 sum[TOGETHER] = {{0}};
            for (int64_t i = block; i < end; i++)
                for (int g = 0; g < TOGETHER; g++)
                    if (j + g * LANES < n)
                        sum[g] += load_some(dtype, at(dtype, x, i * ld), j + g * LANES, n);
            for (int g = 0; g < TOGETHER; g++)
                total[g] += sum[g];
        }
        for (int g = 0; g < TOGETHER; g++)
            if (j + g * LANES < n)
                store_some(DTYPE_F32, sums, j + g * LANES, n, total[g]);
    }
}

void kernel_column_sums(int64_t rows, int64_t n, int64_t ld, enum dtype dtype, const void *x,
                        float *sums)
{
    if (dtype == DTYPE_F32)
        column_sums(rows, n, ld, DTYPE_F32, x, sums);
    else
        column_sums(rows, n, ld, DTYPE_BF16, x, sums);
}

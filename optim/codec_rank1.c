#include "optim/codec.h"

#include <math.h>

/* Elements from `element` on that are in its row, n at most. */
static size_t row_rest(int64_t cols, int64_t element, size_t n)
{
    const size_t rest = (size_t)(cols - element % cols);

    return rest < n ? rest : n;
}

void codec_rank1_scales(const float *row, const float *col, int64_t cols, int64_t first, size_t n,
                        float *scales)
{
    for (size_t at = 0, run = 0; at < n; at += run) {
        const int64_t element = first + (int64_t)at;
        const float of_row = row[element / cols];
        const float *of_col = col + element % cols;

        run = row_rest(cols, element, n - at);
        for (size_t i = 0; i < run; i++)
            scales[at + i] = of_col[i] < of_row ? of_col[i] : of_row;
    }
}

void codec_rank1_maxima(const float *x, int64_t cols, int64_t first, size_t n, float *row,
                        float *col)
{
    for (size_t i = 0; i < n; i++) {
        const int64_t element = first + (int64_t)i;
        const float magnitude = fabsf(x[i]);

        if (magnitude > row[element / cols])
            row[element / cols] = magnitude;
        if (magnitude > col[element % cols])
            col[element % cols] = magnitude;
    }
}

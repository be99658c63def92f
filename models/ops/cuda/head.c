/*
 * The output projection with cross-entropy.  For each chunk of rows: logits into scratch, softmax
 * and gradient in place of the logits, then the two products of the gradient.
 *
 * Rows of logits are padded to a multiple of 64 elements, because a vocabulary of an odd size would
 * leave rows that start at odd addresses, on which the library is several times slower.  The padding
 * holds a number so low that its exponential is zero: the loss and the gradient do not see it.
 */
#include "models/ops/cuda/cuda_internal.h"

#include <limits.h>

enum { CHUNK_QUANTUM = 64, ROW_QUANTUM = 64 };

/* Of either type, four or two bytes of this are -1.7e38. */
enum { LOW_BYTE = 0xfe };

static int64_t ceil_div(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

static int64_t row_elements(const struct head_shape *s)
{
    return ceil_div(s->V, ROW_QUANTUM) * ROW_QUANTUM;
}

/* Even chunks of whole quanta, at most the option's bytes of logits unless one quantum is more. */
static int64_t chunk_rows(const struct cuda_ops *cuda, const struct head_shape *s)
{
    const int64_t row_bytes = row_elements(s) * (int64_t)dtype_bytes(s->dtype);
    const int64_t most = (int64_t)cuda->options.head_chunk_bytes / row_bytes / CHUNK_QUANTUM;
    const int64_t rows = (most > 0 ? most : 1) * CHUNK_QUANTUM;
    const int64_t even = ceil_div(ceil_div(s->N, ceil_div(s->N, rows)), CHUNK_QUANTUM);

    return s->N < even * CHUNK_QUANTUM ? s->N : even * CHUNK_QUANTUM;
}

size_t ops_cuda_head_scratch_bytes(const struct ops *ops, struct head_shape s)
{
    return (size_t)(chunk_rows(cuda_of_const(ops), &s) * row_elements(&s)) * dtype_bytes(s.dtype);
}

static struct cublas_shape logits_shape(const struct head_shape *s, int64_t rows)
{
    return (struct cublas_shape){.kind = CUBLAS_NT,
                                 .in = s->dtype,
                                 .out = s->dtype,
                                 .m = rows,
                                 .n = s->V,
                                 .k = s->C,
                                 .lda = s->C,
                                 .ldb = s->C,
                                 .ldc = row_elements(s)};
}

static struct cublas_shape input_shape(const struct head_shape *s, int64_t rows)
{
    return (struct cublas_shape){.kind = CUBLAS_NN,
                                 .in = s->dtype,
                                 .out = s->dtype,
                                 .m = rows,
                                 .n = s->C,
                                 .k = s->V,
                                 .lda = row_elements(s),
                                 .ldb = s->C,
                                 .ldc = s->C};
}

static struct cublas_shape weight_shape(const struct head_shape *s, int64_t rows, bool first)
{
    return (struct cublas_shape){.kind = CUBLAS_TN,
                                 .in = s->dtype,
                                 .out = DTYPE_F32,
                                 .accumulate = !first,
                                 .m = s->V,
                                 .n = s->C,
                                 .k = rows,
                                 .lda = row_elements(s),
                                 .ldb = s->C,
                                 .ldc = s->C};
}

static shoal_status prepare_chunk(struct cublas *cublas, const struct head_shape *s, int64_t rows)
{
    const struct cublas_shape shapes[] = {logits_shape(s, rows), input_shape(s, rows),
                                          weight_shape(s, rows, true),
                                          weight_shape(s, rows, false)};

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        SHOAL_TRY(cublas_prepare(cublas, &shapes[i]));
    return SHOAL_OK;
}

shoal_status ops_cuda_head_prepare(struct ops *ops, struct head_shape s)
{
    struct cublas *cublas = cuda_of(ops)->cublas;
    const int64_t rows = chunk_rows(cuda_of(ops), &s);

    if (row_elements(&s) > INT_MAX)
        return fail(SHOAL_ERR_INTERNAL, "head: a vocabulary of %lld is too large", (long long)s.V);
    SHOAL_TRY(prepare_chunk(cublas, &s, rows));
    return s.N % rows == 0 ? SHOAL_OK : prepare_chunk(cublas, &s, s.N % rows);
}

/* A chunk of rows and what belongs to it. */
struct chunk {
    int64_t rows;
    const void *x;
    const int32_t *targets;
    double *row_loss;
};

static struct chunk chunk_at(const struct head_shape *s, int64_t first, int64_t rows, const void *x,
                             const int32_t *targets, double *row_loss)
{
    return (struct chunk){.rows = s->N - first < rows ? s->N - first : rows,
                          .x = cuda_element(s->dtype, x, first * s->C),
                          .targets = targets + first,
                          .row_loss = row_loss + first};
}

static shoal_status lower_padding(struct cuda_ops *cuda, const struct head_shape *s, int64_t rows,
                                  void *logits)
{
    const size_t width = dtype_bytes(s->dtype);
    const size_t row = (size_t)row_elements(s) * width;
    const size_t used = (size_t)s->V * width;

    if (used == row)
        return SHOAL_OK;
    return cuda_check(cudaMemset2DAsync((char *)logits + used, row, LOW_BYTE, row - used,
                                        (size_t)rows, cuda->stream),
                      "pad the logits");
}

/* Logits, losses and, with `backward`, dlogits of a chunk. */
static shoal_status loss_chunk(struct cuda_ops *cuda, const struct head_shape *s,
                               const struct chunk *c, const void *w, bool backward, float scale,
                               void *logits)
{
    const struct cublas_shape shape = logits_shape(s, c->rows);
    const struct cublas_data data = {.a = c->x, .b = w, .d = logits};

    SHOAL_TRY(cublas_multiply(cuda->cublas, &shape, &data));
    SHOAL_TRY(lower_padding(cuda, s, c->rows, logits));
    return cuda_cross_entropy(cuda->stream, c->rows, row_elements(s), logits, s->dtype, c->targets,
                              scale, backward, c->row_loss);
}

shoal_status ops_cuda_head_loss(struct ops *ops, struct head_shape s, const void *x, const void *w,
                                const int32_t *targets, double *row_loss, void *scratch)
{
    const int64_t step = chunk_rows(cuda_of(ops), &s);

    for (int64_t first = 0; first < s.N; first += step) {
        const struct chunk c = chunk_at(&s, first, step, x, targets, row_loss);
        SHOAL_TRY(loss_chunk(cuda_of(ops), &s, &c, w, false, 1.0f, scratch));
    }
    return SHOAL_OK;
}

shoal_status ops_cuda_head_loss_backward(struct ops *ops, struct head_shape s, const void *x,
                                         const void *w, const int32_t *targets, float scale,
                                         double *row_loss, void *dx, float *dw, void *scratch)
{
    struct cuda_ops *cuda = cuda_of(ops);
    const int64_t step = chunk_rows(cuda_of(ops), &s);

    for (int64_t first = 0; first < s.N; first += step) {
        const struct chunk c = chunk_at(&s, first, step, x, targets, row_loss);
        SHOAL_TRY(loss_chunk(cuda, &s, &c, w, true, scale, scratch));

        const struct cublas_shape to_dx = input_shape(&s, c.rows);
        const struct cublas_data dx_data = {
            .a = scratch, .b = w, .d = cuda_element_mut(s.dtype, dx, first * s.C)};
        SHOAL_TRY(cublas_multiply(cuda->cublas, &to_dx, &dx_data));

        const struct cublas_shape to_dw = weight_shape(&s, c.rows, first == 0);
        const struct cublas_data dw_data = {.a = scratch, .b = c.x, .c = dw, .d = dw};
        SHOAL_TRY(cublas_multiply(cuda->cublas, &to_dw, &dw_data));
    }
    return SHOAL_OK;
}

/*
 * The output projection with cross-entropy.  For each chunk of rows: logits into scratch, softmax
 * and gradient in place of the logits, then the two products of the gradient.
 */
#include "models/ops/cpu/product.h"

#include <string.h>

enum { CHUNK_BYTES = 256 << 20, CHUNK_QUANTUM = 64 };

/* Rows of logits start at lines of the cache. */
static int64_t logits_ld(const struct head_shape *s)
{
    return round_up(s->V, 16);
}

/* Even chunks of whole quanta, at most CHUNK_BYTES of logits unless one quantum is more. */
static int64_t chunk_rows(const struct head_shape *s)
{
    const int64_t most = CHUNK_BYTES / (logits_ld(s) * (int64_t)sizeof(float)) / CHUNK_QUANTUM;
    const int64_t rows = (most > 0 ? most : 1) * CHUNK_QUANTUM;

    return min_i64(s->N, round_up(ceil_div(s->N, ceil_div(s->N, rows)), CHUNK_QUANTUM));
}

size_t cpu_head_scratch_bytes(const struct ops *ops, struct head_shape s)
{
    (void)ops;
    return (size_t)(chunk_rows(&s) * logits_ld(&s)) * sizeof(float);
}

static struct matmul_shape logits_shape(const struct head_shape *s, int64_t rows)
{
    return (struct matmul_shape){.kind = MATMUL_NT,
                                 .in = s->dtype,
                                 .out = DTYPE_F32,
                                 .m = rows,
                                 .n = s->V,
                                 .k = s->C,
                                 .lda = s->C,
                                 .ldb = s->C,
                                 .ldc = logits_ld(s)};
}

/* A row of dlogits lies where its logits were: bf16 numbers fill the first half of it. */
static int64_t dlogits_ld(const struct head_shape *s)
{
    return s->dtype == DTYPE_F32 ? logits_ld(s) : 2 * logits_ld(s);
}

static struct matmul_shape input_shape(const struct head_shape *s, int64_t rows)
{
    return (struct matmul_shape){.kind = MATMUL_NN,
                                 .in = s->dtype,
                                 .out = s->dtype,
                                 .m = rows,
                                 .n = s->C,
                                 .k = s->V,
                                 .lda = dlogits_ld(s),
                                 .ldb = s->C,
                                 .ldc = s->C};
}

static struct matmul_shape weight_shape(const struct head_shape *s, int64_t rows, bool first)
{
    return (struct matmul_shape){.kind = MATMUL_TN,
                                 .in = s->dtype,
                                 .out = DTYPE_F32,
                                 .accumulate = !first,
                                 .m = s->V,
                                 .n = s->C,
                                 .k = rows,
                                 .lda = dlogits_ld(s),
                                 .ldb = s->C,
                                 .ldc = s->C};
}

static shoal_status prepare_chunk(struct cpu_ops *cpu, const struct head_shape *s, int64_t rows)
{
    const struct matmul_shape shapes[] = {logits_shape(s, rows), input_shape(s, rows),
                                          weight_shape(s, rows, true),
                                          weight_shape(s, rows, false)};

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        SHOAL_TRY(product_prepare(cpu, &shapes[i]));
    return SHOAL_OK;
}

shoal_status cpu_head_prepare(struct ops *ops, struct head_shape s)
{
    const int64_t rows = chunk_rows(&s);

    SHOAL_TRY(prepare_chunk(cpu_of(ops), &s, rows));
    return s.N % rows == 0 ? SHOAL_OK : prepare_chunk(cpu_of(ops), &s, s.N % rows);
}

struct loss_task {
    const struct op_kernels *kernels;
    struct head_shape s;
    bool gradient;
    float scale;
    const int32_t *targets; /* of the chunk, as row_loss */
    double *row_loss;
    float *logits;
};

static void loss_range(void *arg, int64_t begin, int64_t end)
{
    const struct loss_task *t = arg;
    const int64_t V = t->s.V;

    for (int64_t i = begin; i < end; i++) {
        float *logits = t->logits + i * logits_ld(&t->s);
        if (t->targets[i] < 0) {
            t->row_loss[i] = 0.0;
            if (t->gradient)
                memset(logits, 0, (size_t)V * dtype_bytes(t->s.dtype));
        } else if (t->gradient) {
            t->row_loss[i] =
                t->kernels->cross_entropy_backward(V, logits, t->targets[i], t->scale, t->s.dtype);
        } else {
            t->row_loss[i] = t->kernels->cross_entropy(V, logits, t->targets[i]);
        }
    }
}

/* Logits, losses and, if wanted, dlogits of rows [first, first + rows). */
static shoal_status loss_chunk(struct cpu_ops *cpu, struct loss_task *task, int64_t first,
                               int64_t rows, const void *x, const void *w)
{
    const struct head_shape *s = &task->s;
    const struct matmul_shape shape = logits_shape(s, rows);
    const struct product_data data = {
        .a = element(s->dtype, x, first * s->C), .b = w, .c = task->logits};

    SHOAL_TRY(product_run(cpu, &shape, &data));
    cpu_for_blocks(cpu, rows, 4, loss_range, task);
    return SHOAL_OK;
}

shoal_status cpu_head_loss(struct ops *ops, struct head_shape s, const void *x, const void *w,
                           const int32_t *targets, double *row_loss, void *scratch)
{
    struct cpu_ops *cpu = cpu_of(ops);
    const int64_t chunk = chunk_rows(&s);

    for (int64_t first = 0; first < s.N; first += chunk) {
        struct loss_task task = {.kernels = cpu->kernels,
                                 .s = s,
                                 .targets = targets + first,
                                 .row_loss = row_loss + first,
                                 .logits = scratch};
        SHOAL_TRY(loss_chunk(cpu, &task, first, min_i64(chunk, s.N - first), x, w));
    }
    return SHOAL_OK;
}

shoal_status cpu_head_loss_backward(struct ops *ops, struct head_shape s, const void *x,
                                    const void *w, const int32_t *targets, float scale,
                                    double *row_loss, void *dx, float *dw, void *scratch)
{
    struct cpu_ops *cpu = cpu_of(ops);
    const int64_t chunk = chunk_rows(&s);

    for (int64_t first = 0; first < s.N; first += chunk) {
        const int64_t rows = min_i64(chunk, s.N - first);
        const void *x_chunk = element(s.dtype, x, first * s.C);
        struct loss_task task = {.kernels = cpu->kernels,
                                 .s = s,
                                 .gradient = true,
                                 .scale = scale,
                                 .targets = targets + first,
                                 .row_loss = row_loss + first,
                                 .logits = scratch};
        SHOAL_TRY(loss_chunk(cpu, &task, first, rows, x, w));

        const struct matmul_shape to_dx = input_shape(&s, rows);
        const struct product_data dx_data = {
            .a = scratch, .b = w, .c = element_mut(s.dtype, dx, first * s.C)};
        SHOAL_TRY(product_run(cpu, &to_dx, &dx_data));

        const struct matmul_shape to_dw = weight_shape(&s, rows, first == 0);
        const struct product_data dw_data = {.a = scratch, .b = x_chunk, .c = dw};
        SHOAL_TRY(product_run(cpu, &to_dw, &dw_data));
    }
    return SHOAL_OK;
}

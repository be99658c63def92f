#include "models/ops/cpu/cpu.h"

#include <string.h>

struct norm_task {
    const struct op_kernels *kernels;
    enum norm_kind kind;
    enum dtype dtype;
    int64_t N, C;
    float eps;
    const float *x;
    const void *w;
    const void *b;
    void *y;
    float *stats;
    const void *dy; /* backward from here on */
    float *dx;
    void *dx_rounded;  /* or NULL */
    float *partial_dw; /* [blocks, C] */
    float *partial_db; /* [blocks, C] or NULL */
    int64_t block_rows;
};

static void norm_range(void *arg, int64_t begin, int64_t end)
{
    const struct norm_task *t = arg;

    t->kernels->norm(t->kind, end - begin, t->C, t->eps, t->dtype, t->x + begin * t->C, t->w, t->b,
                     element_mut(t->dtype, t->y, begin * t->C), t->stats + 2 * begin);
}

shoal_status cpu_norm(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                      enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                      float *stats)
{
    enum { BLOCK_ROWS = 16 };
    struct cpu_ops *cpu = cpu_of(ops);
    struct norm_task task = {.kernels = cpu->kernels,
                             .kind = kind,
                             .dtype = dtype,
                             .C = C,
                             .eps = eps,
                             .x = x,
                             .w = w,
                             .b = b,
                             .y = y,
                             .stats = stats};

    cpu_for_blocks(cpu, N, BLOCK_ROWS, norm_range, &task);
    return SHOAL_OK;
}

/* Rows whose dw and db are summed together; at most 256 blocks keep the partial sums small. */
static int64_t backward_block_rows(int64_t N)
{
    const int64_t rows = ceil_div(N, 256);

    return rows > 32 ? rows : 32;
}

size_t cpu_norm_backward_scratch_bytes(const struct ops *ops, int64_t N, int64_t C)
{
    (void)ops;
    return (size_t)(2 * ceil_div(N, backward_block_rows(N)) * C) * sizeof(float);
}

static void norm_backward_range(void *arg, int64_t begin, int64_t end)
{
    const struct norm_task *t = arg;
    const int64_t block = begin / t->block_rows;
    float *dw = t->partial_dw + block * t->C;
    float *db = t->partial_db == NULL ? NULL : t->partial_db + block * t->C;
    void *rounded =
        t->dx_rounded == NULL ? NULL : element_mut(t->dtype, t->dx_rounded, begin * t->C);

    memset(dw, 0, (size_t)t->C * sizeof *dw);
    if (db != NULL)
        memset(db, 0, (size_t)t->C * sizeof *db);
    t->kernels->norm_backward(t->kind, end - begin, t->C, t->dtype,
                              element(t->dtype, t->dy, begin * t->C), t->x + begin * t->C, t->w,
                              t->stats + 2 * begin, t->dx + begin * t->C, rounded, dw, db);
}

shoal_status cpu_norm_backward(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                               enum dtype dtype, const void *dy, const float *x, const void *w,
                               const float *stats, float *dx, void *dx_rounded, float *dw,
                               float *db, void *scratch)
{
    struct cpu_ops *cpu = cpu_of(ops);
    const int64_t block_rows = backward_block_rows(N);
    const int64_t blocks = ceil_div(N, block_rows);
    float *partial = scratch;
    struct norm_task task = {.kernels = cpu->kernels,
                             .kind = kind,
                             .dtype = dtype,
                             .C = C,
                             .x = x,
                             .w = w,
                             .stats = (float *)(uintptr_t)stats,
                             .dy = dy,
                             .dx = dx,
                             .dx_rounded = dx_rounded,
                             .partial_dw = partial,
                             .partial_db = db == NULL ? NULL : partial + blocks * C,
                             .block_rows = block_rows};

    cpu_for_blocks(cpu, N, block_rows, norm_backward_range, &task);
    cpu_column_sums(cpu, blocks, C, DTYPE_F32, task.partial_dw, dw);
    if (db != NULL)
        cpu_column_sums(cpu, blocks, C, DTYPE_F32, task.partial_db, db);
    return SHOAL_OK;
}

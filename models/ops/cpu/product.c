#include "models/ops/cpu/product.h"

#include "models/ops/cpu/amx.h"

#include <stdatomic.h>

/*
 * Largest tiles, measured best on GPT-2's shapes with 2 threads (AVX-512 and AMX, 2026-11-22).  From
 * 1536 x 768 on oneDNN's sgemm packs a transposed A: 190 GFLOP/s per core instead of 130 to 180.
 * Few large tiles suit few threads per rank: more cores are better used by more ranks.
 */
enum { TILE_QUANTUM = 32, TILE_SMALL = 128, TILES_MIN = 2 };

static int64_t tile_m_max(const struct matmul_shape *shape)
{
    if (shape->in == DTYPE_BF16)
        return shape->kind == MATMUL_NT ? 256 : 1024;
    if (shape->kind != MATMUL_TN)
        return 512;
    return shape->m >= shape->n ? 1536 : 768;
}

static int64_t tile_n_max(const struct matmul_shape *shape)
{
    if (shape->in == DTYPE_BF16)
        return shape->kind == MATMUL_NT ? 768 : 384;
    return shape->kind == MATMUL_TN && shape->m < shape->n ? 1536 : 768;
}

/* The largest even cut into tiles of at most `most`. */
static int64_t even_cut(int64_t n, int64_t most)
{
    return round_up(ceil_div(n, ceil_div(n, most)), TILE_QUANTUM);
}

/* Tiles of a shape: the largest, or smaller ones where those would leave threads without work. */
static void cut(const struct cpu_ops *cpu, const struct matmul_shape *shape, int64_t *tile_m_out,
                int64_t *tile_n_out)
{
    int64_t m = tile_m_max(shape);
    int64_t n = tile_n_max(shape);

    if (matmul_uses_tiles(cpu->matmul, shape))
        amx_cut(shape, &m, &n);
    m = even_cut(shape->m, m);
    n = even_cut(shape->n, n);
    while (ceil_div(shape->m, m) * ceil_div(shape->n, n) < TILES_MIN &&
           (m > TILE_SMALL || n > TILE_SMALL)) {
        if (m >= n)
            m = even_cut(m, m / 2);
        else
            n = even_cut(n, n / 2);
    }
    *tile_m_out = m;
    *tile_n_out = n;
}

struct product_task {
    struct cpu_ops *cpu;
    const struct matmul_shape *shape;
    const struct product_data *data;
    int64_t tile_m, tile_n, tiles_m;
    _Atomic int status;
};

/* The at most four sizes of tiles: inner ones and those cut by the last row or column. */
static shoal_status for_each_tile_shape(struct cpu_ops *cpu, const struct matmul_shape *shape,
                                        shoal_status (*fn)(struct cpu_ops *cpu,
                                                           const struct matmul_shape *tile))
{
    int64_t rows = 0, columns = 0;

    cut(cpu, shape, &rows, &columns);
    const int64_t ms[2] = {min_i64(rows, shape->m), shape->m % rows};
    const int64_t ns[2] = {min_i64(columns, shape->n), shape->n % columns};

    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            struct matmul_shape tile = *shape;
            tile.m = ms[i];
            tile.n = ns[j];
            if (tile.m > 0 && tile.n > 0)
                SHOAL_TRY(fn(cpu, &tile));
        }
    }
    return SHOAL_OK;
}

static shoal_status prepare_tile(struct cpu_ops *cpu, const struct matmul_shape *tile)
{
    return matmul_prepare(cpu->matmul, tile);
}

shoal_status product_prepare(struct cpu_ops *cpu, const struct matmul_shape *shape)
{
    return for_each_tile_shape(cpu, shape, prepare_tile);
}

static shoal_status require_tile(struct cpu_ops *cpu, const struct matmul_shape *tile)
{
    if (matmul_is_prepared(cpu->matmul, tile))
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "bf16 tile %lld x %lld x %lld: not prepared",
                (long long)tile->m, (long long)tile->n, (long long)tile->k);
}

static void fill_tile(const struct product_task *task, int64_t m0, int64_t n0, int64_t m, int64_t n)
{
    const struct product_start *start = task->data->start;
    const int64_t ldc = task->shape->ldc;
    const void *bias = start->bias == NULL ? NULL : element(start->bias_dtype, start->bias, n0);

    for (int64_t i = m0; i < m0 + m; i++) {
        const float *residual = start->residual == NULL ? NULL : start->residual + i * ldc + n0;
        task->cpu->kernels->add(n, start->bias_dtype, residual, bias,
                                (float *)task->data->c + i * ldc + n0);
    }
}

/* What C starts as: handed to a product that takes it, else written there first. */
static void start_tile(const struct product_task *task, const struct matmul_shape *tile, int64_t m0,
                       int64_t n0, struct matmul_data *operands)
{
    const struct product_start *start = task->data->start;

    if (start->residual != NULL && matmul_uses_tiles(task->cpu->matmul, tile)) {
        operands->residual = start->residual + m0 * tile->ldc + n0;
        operands->bias = start->bias == NULL ? NULL : element(start->bias_dtype, start->bias, n0);
    } else {
        fill_tile(task, m0, n0, tile->m, tile->n);
    }
}

static void product_tile(void *arg, size_t index, int thread)
{
    struct product_task *task = arg;
    const struct product_data *data = task->data;
    struct matmul_shape tile = *task->shape;
    const int64_t m0 = (int64_t)index % task->tiles_m * task->tile_m;
    const int64_t n0 = (int64_t)index / task->tiles_m * task->tile_n;
    const int64_t a0 = tile.kind == MATMUL_TN ? m0 : m0 * tile.lda;
    const int64_t b0 = tile.kind == MATMUL_NT ? n0 * tile.ldb : n0;

    tile.m = min_i64(task->tile_m, tile.m - m0);
    tile.n = min_i64(task->tile_n, tile.n - n0);
    struct matmul_data operands = {.a = element(tile.in, data->a, a0),
                                   .b = element(tile.in, data->b, b0),
                                   .bias =
                                       data->bias == NULL ? NULL : element(tile.in, data->bias, n0),
                                   .c = element_mut(tile.out, data->c, m0 * tile.ldc + n0)};
    if (data->start != NULL)
        start_tile(task, &tile, m0, n0, &operands);
    shoal_status status = matmul_run(task->cpu->matmul, &tile, thread, &operands);
    if (status != SHOAL_OK)
        atomic_store(&task->status, (int)status);
}

shoal_status product_run(struct cpu_ops *cpu, const struct matmul_shape *shape,
                         const struct product_data *data)
{
    struct product_task task = {.cpu = cpu, .shape = shape, .data = data, .status = SHOAL_OK};

    cut(cpu, shape, &task.tile_m, &task.tile_n);
    task.tiles_m = ceil_div(shape->m, task.tile_m);
    SHOAL_TRY(for_each_tile_shape(cpu, shape, require_tile));
    pool_run(cpu->pool, (size_t)(task.tiles_m * ceil_div(shape->n, task.tile_n)), product_tile,
             &task);
    shoal_status status = (shoal_status)atomic_load(&task.status);
    if (status != SHOAL_OK) /* the worker's own message stayed on its thread */
        return fail(status, "matmul %lld x %lld x %lld: oneDNN refused a tile", (long long)shape->m,
                    (long long)shape->n, (long long)shape->k);
    return SHOAL_OK;
}

#include "comm/comm_internal.h"
#include "runtime/base/isa.h"

#include <string.h>

/* Tiles are fixed by shape, never by the number of threads. */
enum { TILE_ELEMENTS = 16384, TILE_BYTES = 256 * 1024 };

struct sum_work {
    tree_sum_fn *kernel;
    const float *const *in;
    float *out;
    size_t n;
    int count;
};

struct copy_work {
    char *to;
    const char *from;
    size_t n_bytes;
};

static size_t tile_size(size_t total, size_t begin, size_t tile)
{
    return total - begin < tile ? total - begin : tile;
}

static void sum_tile(void *arg, size_t tile, int thread)
{
    const struct sum_work *work = arg;
    size_t begin = tile * TILE_ELEMENTS;

    (void)thread;
    work->kernel(work->in, work->count, begin, tile_size(work->n, begin, TILE_ELEMENTS), work->out);
}

static void copy_tile(void *arg, size_t tile, int thread)
{
    const struct copy_work *work = arg;
    size_t begin = tile * TILE_BYTES;

    (void)thread;
    memcpy(work->to + begin, work->from + begin, tile_size(work->n_bytes, begin, TILE_BYTES));
}

static void run_tiles(struct comm *comm, size_t n_tiles, pool_fn *fn, void *arg)
{
    if (comm->pool != NULL && n_tiles > 1) {
        pool_run(comm->pool, n_tiles, fn, arg);
        return;
    }
    for (size_t tile = 0; tile < n_tiles; tile++)
        fn(arg, tile, 0);
}

static tree_sum_fn *best_kernel(void)
{
    switch (isa_best()) {
    case ISA_AVX512:
        return comm_tree_sum_avx512;
    case ISA_AVX2:
        return comm_tree_sum_avx2;
    case ISA_SCALAR:
        break;
    }
    return comm_tree_sum_scalar;
}

void comm_tree_sum(struct comm *comm, const float *const *in, int count, size_t n, float *out)
{
    struct sum_work work = {.kernel = best_kernel(), .in = in, .count = count, .n = n, .out = out};

    run_tiles(comm, (n + TILE_ELEMENTS - 1) / TILE_ELEMENTS, sum_tile, &work);
}

void comm_parallel_copy(struct comm *comm, void *to, const void *from, size_t n_bytes)
{
    struct copy_work work = {.to = to, .from = from, .n_bytes = n_bytes};

    run_tiles(comm, (n_bytes + TILE_BYTES - 1) / TILE_BYTES, copy_tile, &work);
}

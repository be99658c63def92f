#include "runtime/base/copy_rate.h"

#include "runtime/base/clock.h"
#include "runtime/base/pages.h"

#include <string.h>

enum { TILE_BYTES = 1 << 20 };

struct copy {
    char *dst;
    const char *src;
    size_t n_bytes;
};

static void copy_tile(void *arg, size_t tile, int thread)
{
    const struct copy *copy = arg;
    const size_t begin = tile * TILE_BYTES, left = copy->n_bytes - begin;

    (void)thread;
    memcpy(copy->dst + begin, copy->src + begin, left < TILE_BYTES ? left : TILE_BYTES);
}

shoal_status copy_rate(struct pool *pool, size_t n_bytes, int repeats, double *rate_out)
{
    double best = 1e30;
    void *memory = NULL;

    SHOAL_TRY(pages_alloc("copy", 2 * n_bytes, &memory));
    memset(memory, 1, 2 * n_bytes);

    struct copy copy = {memory, (const char *)memory + n_bytes, n_bytes};
    for (int i = 0; i < repeats; i++) {
        const double start = clock_seconds();
        pool_run(pool, (n_bytes + TILE_BYTES - 1) / TILE_BYTES, copy_tile, &copy);
        const double seconds = clock_seconds() - start;
        best = seconds < best ? seconds : best;
    }
    pages_free(memory, 2 * n_bytes);
    *rate_out = 2 * (double)n_bytes / best;
    return SHOAL_OK;
}

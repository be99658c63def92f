#include "runtime/base/pool.h"

#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

struct counts {
    atomic_int hits[1000];
    atomic_int bad_thread;
    int n_threads;
};

static void count(void *arg, size_t tile, int thread)
{
    struct counts *counts = arg;

    atomic_fetch_add(&counts->hits[tile], 1);
    if (thread < 0 || thread >= counts->n_threads)
        atomic_store(&counts->bad_thread, 1);
}

Test(pool, runs_every_tile_exactly_once_for_any_number_of_threads)
{
    for (int n = 1; n <= 5; n++) {
        static struct counts counts;
        struct pool *pool = NULL;

        cr_assert_eq(pool_create(n, -1, &pool), SHOAL_OK);
        cr_assert_eq(pool_size(pool), n);
        for (size_t tiles = 0; tiles <= 1000; tiles += 37) {
            memset(&counts, 0, sizeof counts);
            counts.n_threads = n;
            pool_run(pool, tiles, count, &counts);
            for (size_t i = 0; i < 1000; i++)
                cr_assert_eq(counts.hits[i], i < tiles);
            cr_assert_eq(counts.bad_thread, 0);
        }
        pool_destroy(pool);
    }
}

static void add(void *arg, size_t tile, int thread)
{
    (void)thread;
    ((uint64_t *)arg)[tile] += tile;
}

Test(pool, writes_of_one_run_are_seen_by_the_next, .timeout = 60)
{
    struct pool *pool = NULL;
    static uint64_t cells[64];

    cr_assert_eq(pool_create(4, 0, &pool), SHOAL_OK);
    for (int i = 0; i < 20000; i++)
        pool_run(pool, 64, add, cells);
    for (size_t i = 0; i < 64; i++)
        cr_assert_eq(cells[i], 20000 * i);
    pool_destroy(pool);
}

Test(pool, without_a_pool_the_caller_does_the_work)
{
    uint64_t cells[8] = {0};

    pool_run(NULL, 8, add, cells);
    cr_assert_eq(cells[7], 7);
}

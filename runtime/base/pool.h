#pragma once

#include "runtime/base/status.h"

#include <stddef.h>

/*
 * Thread pool of one rank.  Work is cut into tiles by shape, never by the number
 * of threads, and tiles write disjoint results: so results do not depend on the
 * number of threads.  Threads sleep on a futex after a spin of some microseconds:
 * ranks may outnumber the cores.
 *
 * One thread (the one that made the pool) calls pool_run; it takes part in the
 * work as thread 0.
 */
struct pool;

/* fn(arg, tile, thread): `thread` < pool_size() names per-thread scratch. */
typedef void pool_fn(void *arg, size_t tile, int thread);

/*
 * Start n_threads - 1 workers.  With `first_cpu` >= 0 thread i is bound to the
 * (first_cpu + i)-th CPU that the process may use; -1 leaves them unbound.
 */
shoal_status pool_create(int n_threads, int first_cpu, struct pool **pool_out);
void pool_destroy(struct pool *pool);
int pool_size(const struct pool *pool);

/* Call fn for tiles 0 .. n_tiles-1, in any order, and return when all are done. */
void pool_run(struct pool *pool, size_t n_tiles, pool_fn *fn, void *arg);

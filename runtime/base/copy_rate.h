#pragma once

#include "runtime/base/pool.h"
#include "runtime/base/status.h"

#include <stddef.h>

/*
 * The memory's speed as benchmarks need it: bytes per second, read and written, of the best of
 * `repeats` copies of n_bytes, in tiles of 1 MiB, with all
 * threads of the pool.  Allocates 2 n_bytes for the time of the call.  Local.
 */
shoal_status copy_rate(struct pool *pool, size_t n_bytes, int repeats, double *rate_out);

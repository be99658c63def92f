#pragma once

#include "tests/gpu/emulate/emulate.h"

/*
 * Races of emulated kernels.  Kernels compiled with -fsanitize=thread report their accesses to
 * races.c, which stands in the place of the sanitizer's own library: what orders the threads of a
 * GPU is simpler than what orders those of a host.
 *
 * Two accesses of one launch to the same byte, one of them a write, race unless
 *   - one thread makes both, or
 *   - a __syncthreads of their block lies between them, or
 *   - a __syncwarp of their warp does (shuffles and matrix instructions order no memory), or
 *   - both are atomic.
 * Threads of different blocks are never ordered.  Shared memory is another one in each block.
 * So a race is found whichever way the threads ran, on the arrays that a test gives.
 */
#ifdef __cplusplus
extern "C" {
#endif

/* How many pairs of places in kernels raced since the last call; each was named on stderr once. */
unsigned emulate_races(void);

#ifdef __cplusplus
}
#endif

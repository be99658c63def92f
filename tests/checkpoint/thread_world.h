#pragma once

#include "comm/comm.h"

/*
 * A world whose ranks are threads of one process: the few functions of comm.h that checkpoint/
 * uses, over a barrier.  Tests link this instead of comm/, so that every world size runs in a
 * plain Criterion process and under the sanitizers; the real thing is in tests/world/.
 */
typedef shoal_status world_fn(struct comm *comm, void *arg);

/* Run fn on n ranks.  Returns rank 0's status and leaves its message with the caller. */
shoal_status world_run(int n, world_fn *fn, void *arg);

/* How often a rank of any world has called comm_note. */
int world_notes(void);

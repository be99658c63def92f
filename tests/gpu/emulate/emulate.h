#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A GPU for tests, on the CPU: kernels are compiled as C++ (include/ gives what their language and
 * machine.cuh need), the threads of a block are fibers, and blocks run one after another.
 *
 * A fiber waits for its block at __syncthreads and for its warp at shuffles and matrix instructions;
 * between barriers one warp after another runs as far as it can.  The order of blocks, warps and
 * lanes is another one in each launch.  So a missing barrier shows as wrong numbers, or as
 * different bits in two runs, and whatever the numbers as a race (races.h).  A barrier that not
 * all threads reach, and operands that a GPU would fault on, end the process with a message.
 * It says nothing about speed, nor about what the hardware's own arithmetic does (expf, mma).
 *
 * One thread uses it.  Dynamic shared memory holds NaN when a block starts.
 */
#ifdef __cplusplus
extern "C" {
#endif

/*
 * Limits of an sm_80, the oldest that we serve, that launches are held to: of its 163 KiB of shared
 * memory 16 are left to static arrays, which are not seen here.
 */
enum { EMULATE_WARP = 32, EMULATE_SHARED_MAX = 147 << 10, EMULATE_STACK = 128 << 10 };

struct emulate_index {
    unsigned x, y, z;
};

/* What the running fiber sees as threadIdx, blockIdx, blockDim and gridDim. */
extern struct emulate_index emulate_thread, emulate_block, emulate_block_size, emulate_grid;
extern void *emulate_shared;

/* Where the running fiber is; launches, and blocks of all launches, count from 1. */
extern struct emulate_moment {
    const char *what;
    bool in_kernel;
    uint32_t launch, block_life;
    uint32_t block, thread;
    uint32_t block_syncs, warp_syncs; /* of this block and this warp so far */
    uintptr_t stack;                  /* EMULATE_STACK bytes of the fiber's own */
} emulate_now;

/* The most dynamic shared memory that a launch took; to be set to 0 by who asks. */
extern size_t emulate_shared_most;

/* Bytes of cudaMalloc that are not freed. */
extern size_t emulate_allocated;

/*
 * The kernels of one .cu file, which a GPU loads at their first use unless each was loaded before.
 * Where emulate_lazy is set, a launch of one that is not loaded ends the process.
 */
enum { EMULATE_FUNCTIONS = 3 };

struct emulate_module {
    bool loaded[EMULATE_FUNCTIONS];
    struct emulate_module *next;
};

extern bool emulate_lazy;
void emulate_add_module(struct emulate_module *module);
/* NULL: it is none of them. */
struct emulate_module *emulate_module_at(const void *p);
void emulate_expect_loaded(const struct emulate_module *module, const char *what);

/* Run kernel(arg) in every thread of the grid; `what` names it in messages.  arg has n_bytes. */
void emulate_launch(const char *what, struct emulate_index grid, unsigned threads,
                    size_t shared_bytes, void (*kernel)(const void *arg), const void *arg,
                    size_t n_bytes);

/*
 * The work of streams: run(arg) now or, between record_begin and record_end, kept with a copy of
 * arg's n_bytes and run by each replay.
 */
struct emulate_recording;
void emulate_issue(void (*run)(const void *arg), const void *arg, size_t n_bytes);
void emulate_record_begin(void);
struct emulate_recording *emulate_record_end(void);
void emulate_replay(const struct emulate_recording *recording);
void emulate_recording_free(struct emulate_recording *recording);

/* Wait for all threads of the block, or of the warp, and see what they wrote. */
void emulate_sync_block(void);
void emulate_sync_warp(void);

/*
 * Wait for all lanes of the warp; the last one calls act with what the lanes gave, which it may
 * change, before any goes on.
 */
void emulate_warp(void (*act)(void *const *lanes), void *operand);

/* End the process with `message` and where we are, unless `good`. */
void emulate_expect(bool good, const char *message);

#ifdef __cplusplus
}
#endif

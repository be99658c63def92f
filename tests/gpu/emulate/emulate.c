#include "tests/gpu/emulate/emulate.h"

#include "runtime/device/cuda.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { THREADS_MAX = 1024, WARPS_MAX = THREADS_MAX / EMULATE_WARP, PARAMETERS_MAX = 4096 };

enum state { RUNNING, WAITS_FOR_BLOCK, WAITS_FOR_WARP, DONE };

/*
 * A fiber is entered once by its context and switched to by _longjmp from then on, which, unlike
 * swapcontext, makes no system call.  It never ends: each kernel is another round of its loop.
 */
struct fiber {
    ucontext_t context;
    bool entered;
    jmp_buf resume;
    enum state state;
    void *operand; /* of the warp's operation it waits for */
};

/* The launch that runs now. */
static struct {
    void (*kernel)(const void *arg);
    const void *arg;
    unsigned threads;
    jmp_buf scheduler;
    struct fiber *fibers;
    void (*act[WARPS_MAX])(void *const *lanes);
    unsigned warp_syncs[WARPS_MAX];
} now;

struct emulate_index emulate_thread, emulate_block, emulate_block_size, emulate_grid;
struct emulate_moment emulate_now;
void *emulate_shared;
size_t emulate_shared_most;
size_t emulate_allocated;

void emulate_expect(bool good, const char *message)
{
    if (good)
        return;
    fprintf(stderr, "emulated kernel \"%s\", block (%u, %u, %u), thread %u: %s\n", emulate_now.what,
            emulate_block.x, emulate_block.y, emulate_block.z, emulate_now.thread, message);
    abort();
}

/* ---- loading ---- */

bool emulate_lazy;
static struct emulate_module *modules;

void emulate_add_module(struct emulate_module *module)
{
    module->next = modules;
    modules = module;
}

struct emulate_module *emulate_module_at(const void *p)
{
    struct emulate_module *module = modules;

    while (module != NULL && module != p)
        module = module->next;
    return module;
}

void emulate_expect_loaded(const struct emulate_module *module, const char *what)
{
    bool loaded = true;

    for (int i = 0; i < EMULATE_FUNCTIONS; i++)
        loaded = loaded && module->loaded[i];
    emulate_now.what = what;
    emulate_expect(loaded || !emulate_lazy, "it was not loaded before its first launch");
}

/* ---- fibers ---- */

static void yield_as(enum state state)
{
    struct fiber *fiber = &now.fibers[emulate_now.thread];

    fiber->state = state;
    if (_setjmp(fiber->resume) == 0)
        _longjmp(now.scheduler, 1);
}

void emulate_sync_block(void)
{
    yield_as(WAITS_FOR_BLOCK);
}

void emulate_warp(void (*act)(void *const *lanes), void *operand)
{
    const unsigned warp = emulate_now.thread / EMULATE_WARP;
    const struct fiber *first = &now.fibers[warp * EMULATE_WARP];

    for (int i = 0; i < EMULATE_WARP; i++)
        emulate_expect(first[i].state != WAITS_FOR_WARP || now.act[warp] == act,
                       "the lanes of a warp do different operations");
    now.act[warp] = act;
    now.fibers[emulate_now.thread].operand = operand;
    yield_as(WAITS_FOR_WARP);
}

/* Of the warp that emulate_now is in. */
static void count_warp_sync(void *const *lanes)
{
    (void)lanes;
    now.warp_syncs[emulate_now.thread / EMULATE_WARP]++;
}

void emulate_sync_warp(void)
{
    emulate_warp(count_warp_sync, NULL);
}

static void fiber_main(void)
{
    for (;;) {
        now.kernel(now.arg);
        yield_as(DONE);
    }
}

static void create_fiber(struct fiber *fiber)
{
    void *stack = mmap(NULL, EMULATE_STACK, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    emulate_expect(stack != MAP_FAILED && getcontext(&fiber->context) == 0, "no fiber");
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = EMULATE_STACK;
    makecontext(&fiber->context, fiber_main, 0);
}

static void create_fibers(void)
{
    if (now.fibers != NULL)
        return;
    now.fibers = calloc(THREADS_MAX, sizeof *now.fibers);
    emulate_shared = aligned_alloc(128, EMULATE_SHARED_MAX);
    emulate_expect(now.fibers != NULL && emulate_shared != NULL, "no memory");
    for (int i = 0; i < THREADS_MAX; i++)
        create_fiber(&now.fibers[i]);
}

static void resume(unsigned index)
{
    struct fiber *fiber = &now.fibers[index];

    emulate_now.thread = index;
    emulate_now.warp_syncs = now.warp_syncs[index / EMULATE_WARP];
    emulate_now.stack = (uintptr_t)fiber->context.uc_stack.ss_sp;
    emulate_now.in_kernel = true;
    emulate_thread = (struct emulate_index){index, 0, 0};
    if (_setjmp(now.scheduler) != 0) {
        emulate_now.in_kernel = false;
        return;
    }
    if (fiber->entered)
        _longjmp(fiber->resume, 1);
    fiber->entered = true;
    setcontext(&fiber->context);
}

/* ---- scheduling ---- */

/* Position `i` of n in an order that depends on `seed`; seed 0 is the natural one. */
static unsigned permuted(unsigned i, unsigned n, unsigned seed)
{
    static const unsigned strides[] = {1, 11, 17, 29, 37, 61};
    unsigned stride = strides[seed % 6];

    while (n % stride == 0 && stride > 1)
        stride = stride == 11 ? 1 : 11; /* a prime that divides n would not reach all */
    const unsigned forward = (unsigned)(((uint64_t)i * stride + seed * 7919u) % n);
    return seed % 2 == 1 ? n - 1 - forward : forward;
}

static unsigned count(unsigned first, unsigned n, enum state state)
{
    unsigned found = 0;

    for (unsigned i = first; i < first + n; i++)
        found += now.fibers[i].state == state;
    return found;
}

static void wake(unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++)
        now.fibers[i].state = RUNNING;
}

/* A warp runs until none of its lanes can: it overtakes the others wherever nothing holds it. */
static void run_warp(unsigned first, unsigned seed)
{
    void *operands[EMULATE_WARP];

    for (;;) {
        for (unsigned i = 0; i < EMULATE_WARP; i++) {
            const unsigned index = first + permuted(i, EMULATE_WARP, seed);
            if (now.fibers[index].state == RUNNING)
                resume(index);
        }
        if (count(first, EMULATE_WARP, WAITS_FOR_WARP) < EMULATE_WARP)
            return;
        for (unsigned i = 0; i < EMULATE_WARP; i++)
            operands[i] = now.fibers[first + i].operand;
        now.act[first / EMULATE_WARP](operands);
        wake(first, EMULATE_WARP);
    }
}

static void run_block(unsigned seed)
{
    const unsigned warps = now.threads / EMULATE_WARP;

    emulate_now.block_life++;
    emulate_now.block_syncs = 0;
    memset(now.warp_syncs, 0, sizeof now.warp_syncs);
    wake(0, now.threads);
    while (count(0, now.threads, DONE) < now.threads) {
        for (unsigned i = 0; i < warps; i++)
            run_warp(permuted(i, warps, seed) * EMULATE_WARP, seed);
        if (count(0, now.threads, WAITS_FOR_BLOCK) == now.threads) {
            emulate_now.block_syncs++;
            wake(0, now.threads);
        } else {
            emulate_expect(count(0, now.threads, DONE) == now.threads,
                           "threads wait for others that never come");
        }
    }
}

struct call {
    const char *what;
    struct emulate_index grid;
    unsigned threads;
    size_t shared_bytes;
    void (*kernel)(const void *arg);
    _Alignas(16) char arg[PARAMETERS_MAX];
};

static void run_call(const void *issued)
{
    const struct call *call = issued;
    const unsigned seed = emulate_now.launch++;
    const struct emulate_index grid = call->grid;
    const unsigned blocks = grid.x * grid.y * grid.z;

    create_fibers();
    emulate_now.what = call->what;
    now.kernel = call->kernel;
    now.arg = call->arg;
    now.threads = call->threads;
    emulate_block_size = (struct emulate_index){call->threads, 1, 1};
    emulate_grid = grid;
    for (unsigned i = 0; i < blocks; i++) {
        const unsigned block = permuted(i, blocks, seed);
        emulate_block = (struct emulate_index){block % grid.x, block / grid.x % grid.y,
                                               block / grid.x / grid.y};
        emulate_now.block = block;
        memset(emulate_shared, 0xff, call->shared_bytes);
        run_block(seed);
    }
}

void emulate_launch(const char *what, struct emulate_index grid, unsigned threads,
                    size_t shared_bytes, void (*kernel)(const void *arg), const void *arg,
                    size_t n_bytes)
{
    const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    struct call call = {.what = what,
                        .grid = grid,
                        .threads = threads,
                        .shared_bytes = shared_bytes,
                        .kernel = kernel};

    emulate_now.what = what;
    emulate_expect(grid.x > 0 && grid.x <= INT32_MAX && grid.y > 0 && grid.y <= 65535 &&
                       grid.z > 0 && grid.z <= 65535 && blocks <= UINT32_MAX,
                   "bad grid");
    emulate_expect(threads > 0 && threads <= THREADS_MAX && threads % EMULATE_WARP == 0,
                   "bad number of threads");
    emulate_expect(shared_bytes <= EMULATE_SHARED_MAX, "too much shared memory");
    if (shared_bytes > emulate_shared_most)
        emulate_shared_most = shared_bytes;
    emulate_expect(n_bytes <= sizeof call.arg, "too many parameters");
    memcpy(call.arg, arg, n_bytes);
    emulate_issue(run_call, &call, sizeof call);
}

/* ---- recordings ---- */

struct step {
    struct step *next;
    void (*run)(const void *arg);
    _Alignas(16) char arg[];
};

struct emulate_recording {
    struct step *first, **end;
};

static struct emulate_recording *open_recording;

void emulate_issue(void (*run)(const void *arg), const void *arg, size_t n_bytes)
{
    if (open_recording == NULL) {
        run(arg);
        return;
    }
    struct step *step = calloc(1, sizeof *step + n_bytes);
    emulate_expect(step != NULL, "no memory");
    step->run = run;
    memcpy(step->arg, arg, n_bytes);
    *open_recording->end = step;
    open_recording->end = &step->next;
}

void emulate_record_begin(void)
{
    emulate_expect(open_recording == NULL, "a recording is open already");
    open_recording = calloc(1, sizeof *open_recording);
    emulate_expect(open_recording != NULL, "no memory");
    open_recording->end = &open_recording->first;
}

struct emulate_recording *emulate_record_end(void)
{
    struct emulate_recording *recording = open_recording;

    emulate_expect(recording != NULL, "no recording is open");
    open_recording = NULL;
    return recording;
}

void emulate_replay(const struct emulate_recording *recording)
{
    for (const struct step *step = recording->first; step != NULL; step = step->next)
        step->run(step->arg);
}

void emulate_recording_free(struct emulate_recording *recording)
{
    while (recording->first != NULL) {
        struct step *step = recording->first;
        recording->first = step->next;
        free(step);
    }
    free(recording);
}

/* ---- the runtime, on host memory ---- */

/* Weak: a program with operations for CUDA links the device's own as well. */
__attribute__((weak)) void device_cuda_add_module(struct device_cuda_module *module)
{
    (void)module;
}

__attribute__((weak)) cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

__attribute__((weak)) shoal_status cuda_check(cudaError_t error, const char *what)
{
    return error == cudaSuccess
               ? SHOAL_OK
               : fail(SHOAL_ERR_UNAVAILABLE, "%s: %s", what, cudaGetErrorString(error));
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "out of memory";
}

cudaError_t cudaGetDeviceCount(int *count_out)
{
    *count_out = 1;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t n_bytes)
{
    /* The exact size, which aligned_alloc does not promise to take: sanitizers see the end. */
    const int error = posix_memalign(p, 256, n_bytes > 0 ? n_bytes : 1);

    emulate_expect(open_recording == NULL, "memory is taken while work is recorded");
    if (error != 0)
        return cudaErrorMemoryAllocation;
    emulate_allocated += malloc_usable_size(*p);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    emulate_allocated -= malloc_usable_size(p);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *dst, const void *src, size_t n_bytes, enum cudaMemcpyKind kind)
{
    (void)kind;
    memcpy(dst, src, n_bytes);
    return cudaSuccess;
}

struct memset_call {
    void *dst;
    int value;
    size_t n_bytes;
};

static void run_memset(const void *issued)
{
    const struct memset_call *call = issued;

    memset(call->dst, call->value, call->n_bytes);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t n_bytes, cudaStream_t stream)
{
    const struct memset_call call = {.dst = dst, .value = value, .n_bytes = n_bytes};

    (void)stream;
    emulate_issue(run_memset, &call, sizeof call);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    return cudaSuccess;
}

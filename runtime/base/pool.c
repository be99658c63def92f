#include "runtime/base/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * A run is published by bumping `generation`; workers take tiles from `next` until none is
 * left, then count themselves out of `busy`.  Whoever finds nothing to do spins briefly (the gap
 * between two ops is short) and then sleeps on a futex.
 */
enum { SPIN_ROUNDS = 2000 };

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int n_threads;
    int spin;
    struct worker *workers; /* n_threads - 1 */
    pool_fn *fn;
    void *arg;
    size_t n_tiles;
    atomic_size_t next;
    atomic_uint generation;
    atomic_uint busy;
    atomic_uint sleeping;
    atomic_bool stop;
};

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void bind_to(int first_cpu, int index)
{
    cpu_set_t allowed, one;
    int wanted = first_cpu + index;

    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    int count = CPU_COUNT(&allowed);
    if (count == 0)
        return;
    wanted %= count;
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed) && wanted-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(pthread_self(), sizeof one, &one);
            return;
        }
}

static void take_tiles(struct pool *pool, int index)
{
    for (;;) {
        size_t tile = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (tile >= pool->n_tiles)
            return;
        pool->fn(pool->arg, tile, index);
    }
}

static unsigned wait_for_work(struct pool *pool, unsigned seen)
{
    for (int i = 0; i < pool->spin; i++) {
        unsigned now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (now != seen)
            return now;
        pause_cpu();
    }
    for (;;) {
        atomic_fetch_add(&pool->sleeping, 1);
        unsigned now = atomic_load(&pool->generation);
        if (now == seen)
            futex_wait(&pool->generation, seen);
        atomic_fetch_sub(&pool->sleeping, 1);
        now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (now != seen)
            return now;
    }
}

static void *work(void *arg)
{
    struct worker *worker = arg;
    struct pool *pool = worker->pool;
    unsigned seen = 0;

    for (;;) {
        seen = wait_for_work(pool, seen);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire))
            return NULL;
        take_tiles(pool, worker->index);
        if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel) == 1)
            futex_wake(&pool->busy, 1);
    }
}

struct start {
    struct worker *worker;
    int first_cpu;
};

static void *start_worker(void *arg)
{
    struct start start = *(struct start *)arg;

    free(arg);
    if (start.first_cpu >= 0)
        bind_to(start.first_cpu, start.worker->index);
    return work(start.worker);
}

static shoal_status spawn(struct pool *pool, int index, int first_cpu)
{
    struct worker *worker = &pool->workers[index - 1];
    struct start *start = malloc(sizeof *start);

    if (start == NULL)
        return fail(SHOAL_ERR_NOMEM, "thread pool: cannot allocate thread %d", index);
    worker->pool = pool;
    worker->index = index;
    *start = (struct start){.worker = worker, .first_cpu = first_cpu};
    int error = pthread_create(&worker->thread, NULL, start_worker, start);
    if (error != 0) {
        free(start);
        return fail(SHOAL_ERR_NOMEM, "thread pool: cannot start thread %d: %s", index,
                    strerror(error));
    }
    return SHOAL_OK;
}

shoal_status pool_create(int n_threads, int first_cpu, struct pool **pool_out)
{
    struct pool *pool = calloc(1, sizeof *pool);

    if (pool == NULL)
        return fail(SHOAL_ERR_NOMEM, "thread pool: cannot allocate it");
    pool->spin = SPIN_ROUNDS;
    pool->n_threads = 1;
    pool->workers = calloc((size_t)n_threads, sizeof *pool->workers);
    if (pool->workers == NULL) {
        free(pool);
        return fail(SHOAL_ERR_NOMEM, "thread pool: cannot allocate %d threads", n_threads);
    }
    for (int i = 1; i < n_threads; i++) {
        shoal_status status = spawn(pool, i, first_cpu);
        if (status != SHOAL_OK) {
            pool_destroy(pool);
            return status;
        }
        pool->n_threads++;
    }
    if (first_cpu >= 0)
        bind_to(first_cpu, 0); /* after the workers, which inherit the wider mask */
    *pool_out = pool;
    return SHOAL_OK;
}

void pool_destroy(struct pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->generation, 1);
    futex_wake(&pool->generation, pool->n_threads);
    for (int i = 1; i < pool->n_threads; i++)
        pthread_join(pool->workers[i - 1].thread, NULL);
    free(pool->workers);
    free(pool);
}

int pool_size(const struct pool *pool)
{
    return pool->n_threads;
}

static void wait_for_workers(struct pool *pool)
{
    for (int i = 0; i < pool->spin; i++) {
        if (atomic_load_explicit(&pool->busy, memory_order_acquire) == 0)
            return;
        pause_cpu();
    }
    for (;;) {
        unsigned busy = atomic_load_explicit(&pool->busy, memory_order_acquire);
        if (busy == 0)
            return;
        futex_wait(&pool->busy, busy);
    }
}

void pool_run(struct pool *pool, size_t n_tiles, pool_fn *fn, void *arg)
{
    if (pool == NULL || pool->n_threads == 1 || n_tiles <= 1) {
        for (size_t tile = 0; tile < n_tiles; tile++)
            fn(arg, tile, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->n_tiles = n_tiles;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->busy, (unsigned)pool->n_threads - 1, memory_order_relaxed);
    atomic_fetch_add(&pool->generation, 1); /* sequentially consistent: pairs with `sleeping` */
    if (atomic_load(&pool->sleeping) != 0)
        futex_wake(&pool->generation, pool->n_threads);
    take_tiles(pool, 0);
    wait_for_workers(pool);
}

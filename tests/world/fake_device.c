#include "tests/world/fake_device.h"
#include "tests/world/fake_nccl.h"

#include "runtime/base/pages.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MAX_REGIONS = 16 };

struct device_event {
    _Atomic int pending;
};

struct task {
    struct task *next;
    void (*fn)(void *arg);
    void *arg;
};

static struct fake {
    struct device device;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct task *first, **last;
    bool is_busy, is_closing;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static struct {
    char *base, *shadow;
    size_t n_bytes;
} regions[MAX_REGIONS];
static int n_regions;

void *fake_host(const void *ptr)
{
    for (int i = 0; i < n_regions; i++) {
        size_t offset = (size_t)((const char *)ptr - regions[i].base);

        if ((const char *)ptr >= regions[i].base && offset < regions[i].n_bytes)
            return regions[i].shadow + offset;
    }
    return (void *)(uintptr_t)ptr;
}

/* ---- queue ---- */

/* Now and then something takes longer. */
static void dawdle(void)
{
    static unsigned turn;
    const struct timespec nap = {.tv_nsec = 300 * 1000};

    if ((++turn * 2654435761u + (unsigned)getpid()) % 16 == 0)
        nanosleep(&nap, NULL);
}

static void *queue_main(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&fake.lock);
    for (;;) {
        while (fake.first == NULL && !fake.is_closing)
            pthread_cond_wait(&fake.changed, &fake.lock);
        struct task *task = fake.first;

        if (task == NULL)
            break;
        fake.first = task->next;
        if (fake.first == NULL)
            fake.last = &fake.first;
        fake.is_busy = true;
        pthread_mutex_unlock(&fake.lock);
        dawdle();
        task->fn(task->arg);
        free(task);
        pthread_mutex_lock(&fake.lock);
        fake.is_busy = false;
        pthread_cond_broadcast(&fake.changed);
    }
    pthread_mutex_unlock(&fake.lock);
    return NULL;
}

void fake_enqueue(struct device *device, void (*fn)(void *arg), void *arg)
{
    struct task *task = calloc(1, sizeof *task);

    (void)device;
    if (task == NULL)
        abort();
    task->fn = fn;
    task->arg = arg;
    pthread_mutex_lock(&fake.lock);
    *fake.last = task;
    fake.last = &task->next;
    pthread_cond_broadcast(&fake.changed);
    pthread_mutex_unlock(&fake.lock);
}

void fake_drain(void)
{
    pthread_mutex_lock(&fake.lock);
    while (fake.first != NULL || fake.is_busy)
        pthread_cond_wait(&fake.changed, &fake.lock);
    pthread_mutex_unlock(&fake.lock);
}

static shoal_status fake_queue_sync(struct device *device, enum device_queue queue)
{
    (void)device;
    (void)queue;
    fake_drain();
    return SHOAL_OK;
}

/* ---- memory ---- */

static shoal_status fake_alloc(struct device *device, const char *name, size_t n_bytes,
                               void **ptr_out)
{
    int fd = memfd_create("fake-device", MFD_CLOEXEC);
    const char *full = getenv("FAKE_FULL_RANK"), *rank = getenv("PMI_RANK");

    (void)device;
    if (full != NULL && rank != NULL && strcmp(full, rank) == 0)
        return fail(SHOAL_ERR_NOMEM, "%s: the fake device is full", name);
    n_bytes = (n_bytes + 4095) & ~(size_t)4095;
    if (fd < 0 || n_regions == MAX_REGIONS || ftruncate(fd, (off_t)n_bytes) != 0)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory of the fake device", name);
    void *base = mmap(NULL, n_bytes, PROT_NONE, MAP_SHARED, fd, 0);
    void *shadow = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    close(fd);
    if (base == MAP_FAILED || shadow == MAP_FAILED)
        return fail(SHOAL_ERR_NOMEM, "%s: cannot map the fake device's memory", name);
    regions[n_regions].base = base;
    regions[n_regions].shadow = shadow;
    regions[n_regions++].n_bytes = n_bytes;
    *ptr_out = base;
    return SHOAL_OK;
}

/* The address stays taken, so that late accesses fault. */
static void fake_free(struct device *device, void *ptr, size_t n_bytes)
{
    (void)device;
    (void)ptr;
    (void)n_bytes;
}

static shoal_status fake_copy(struct device *device, void *dst, const void *src, size_t n_bytes)
{
    (void)device;
    memcpy(fake_host(dst), fake_host(src), n_bytes);
    return SHOAL_OK;
}

static shoal_status fake_zero(struct device *device, void *ptr, size_t n_bytes)
{
    (void)device;
    memset(fake_host(ptr), 0, n_bytes);
    return SHOAL_OK;
}

struct copy {
    void *dst;
    const void *src;
    size_t n_bytes;
};

static void run_copy(void *arg)
{
    struct copy *copy = arg;

    memcpy(copy->dst, copy->src, copy->n_bytes);
    free(copy);
}

static shoal_status fake_copy_async(struct device *device, enum device_queue queue, void *dst,
                                    const void *src, size_t n_bytes)
{
    struct copy *copy = malloc(sizeof *copy);

    (void)queue;
    if (copy == NULL)
        return fail(SHOAL_ERR_NOMEM, "copy: out of memory");
    *copy = (struct copy){.dst = fake_host(dst), .src = fake_host(src), .n_bytes = n_bytes};
    fake_enqueue(device, run_copy, copy);
    return SHOAL_OK;
}

/* ---- events ---- */

static shoal_status fake_event_create(struct device *device, struct device_event **event_out)
{
    (void)device;
    *event_out = calloc(1, sizeof **event_out);
    return *event_out != NULL ? SHOAL_OK : fail(SHOAL_ERR_NOMEM, "event: out of memory");
}

/* As CUDA does: an event that is still to be reached goes afterwards. */
static void fake_event_destroy(struct device *device, struct device_event *event)
{
    fake_enqueue(device, free, event);
}

static void reach(void *arg)
{
    struct device_event *event = arg;

    atomic_fetch_sub(&event->pending, 1);
}

static shoal_status fake_event_record(struct device *device, struct device_event *event,
                                      enum device_queue queue)
{
    (void)queue;
    atomic_fetch_add(&event->pending, 1);
    fake_enqueue(device, reach, event);
    return SHOAL_OK;
}

shoal_status fake_event_is_done(struct device *device, struct device_event *event, bool *out)
{
    (void)device;
    *out = atomic_load(&event->pending) == 0;
    return SHOAL_OK;
}

static shoal_status fake_event_sync(struct device *device, struct device_event *event)
{
    const struct timespec nap = {.tv_nsec = 20 * 1000};

    (void)device;
    while (atomic_load(&event->pending) > 0)
        nanosleep(&nap, NULL);
    return SHOAL_OK;
}

/* ---- the device ---- */

static void fake_close(struct device *device)
{
    (void)device;
    pthread_mutex_lock(&fake.lock);
    fake.is_closing = true;
    pthread_cond_broadcast(&fake.changed);
    pthread_mutex_unlock(&fake.lock);
    pthread_join(fake.thread, NULL);
}

static const struct device_ops fake_ops = {.name = "fake",
                                           .separate = true,
                                           .close = fake_close,
                                           .alloc = fake_alloc,
                                           .free = fake_free,
                                           .copy = fake_copy,
                                           .zero = fake_zero,
                                           .copy_async = fake_copy_async,
                                           .queue_sync = fake_queue_sync,
                                           .event_create = fake_event_create,
                                           .event_destroy = fake_event_destroy,
                                           .event_record = fake_event_record,
                                           .event_sync = fake_event_sync};

shoal_status fake_device_open(struct device **device_out)
{
    fake.device.ops = &fake_ops;
    fake.last = &fake.first;
    if (pthread_create(&fake.thread, NULL, queue_main, NULL) != 0)
        return fail(SHOAL_ERR_UNAVAILABLE, "device fake: no thread");
    fake_nccl_install();
    *device_out = &fake.device;
    return SHOAL_OK;
}

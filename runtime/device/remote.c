#include "runtime/base/host.h"
#include "runtime/base/pages.h"
#include "runtime/device/device_internal.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * The test device.  Its memory is host memory without any access rights but inside copies and
 * inside `expose`, so that host code which follows a device pointer faults as it would on a GPU
 * without a way to read it; `limit` takes rights from copies and operations, and to the host memory
 * beside the device from everyone.
 *
 * Its queues complete at once.  Their time is one that tests can foretell: an operation takes a
 * second of its queue, of COMPUTE four, waits take as long as a GPU's would, and all else takes none.
 */

enum { MAX_REGIONS = 64 };

struct device_event {
    double seconds;
};

struct remote {
    struct device device;
    pthread_mutex_t lock;
    int exposed; /* nesting */
    const struct device_range *limits;
    int n_limits;
    double queue_seconds[QUEUE_COUNT], host_seconds;
    int n_regions;
    struct region {
        void *base;
        size_t n_bytes;
        bool on_host; /* from host_alloc: open but for limits */
    } regions[MAX_REGIONS];
};

static struct remote *remote_of(struct device *device)
{
    return (struct remote *)(void *)device;
}

/* Of a range that mmap gave. */
static void set_rights(void *base, size_t n_bytes, int rights)
{
    if (mprotect(base, n_bytes, rights) != 0)
        abort();
}

static bool is_open(const struct remote *remote, const struct region *region)
{
    return region->on_host || remote->exposed > 0;
}

static bool is_limited_in(const struct region *region, const struct device_range *range)
{
    return (uintptr_t)range->base - (uintptr_t)region->base < region->n_bytes;
}

static void protect(struct remote *remote)
{
    static const int limited[] = {[DEVICE_NO_ACCESS] = PROT_NONE,
                                  [DEVICE_READ] = PROT_READ,
                                  [DEVICE_WRITE] = PROT_READ | PROT_WRITE};

    for (int i = 0; i < remote->n_regions; i++) {
        const struct region *region = &remote->regions[i];
        const bool open = is_open(remote, region);

        set_rights(region->base, region->n_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
        for (int k = 0; open && k < remote->n_limits; k++)
            if (is_limited_in(region, &remote->limits[k]))
                set_rights(remote->limits[k].base, remote->limits[k].n_bytes,
                           limited[remote->limits[k].rights]);
    }
}

static void set_exposed(struct remote *remote, bool on)
{
    pthread_mutex_lock(&remote->lock);
    if ((on && remote->exposed++ == 0) || (!on && --remote->exposed == 0))
        protect(remote);
    pthread_mutex_unlock(&remote->lock);
}

static void remote_expose(struct device *device, enum device_queue queue, bool on)
{
    struct remote *remote = remote_of(device);

    set_exposed(remote, on);
    if (!on)
        remote->queue_seconds[queue] += queue == QUEUE_COMPUTE ? 4 : 1;
}

static void remote_limit(struct device *device, const struct device_range *ranges, int n)
{
    struct remote *remote = remote_of(device);

    pthread_mutex_lock(&remote->lock);
    remote->limits = ranges;
    remote->n_limits = n;
    protect(remote);
    pthread_mutex_unlock(&remote->lock);
}

static const char *remote_describe(const struct device *device)
{
    (void)device;
    return "test device: host memory behind copies";
}

static void remote_close(struct device *device)
{
    pthread_mutex_destroy(&remote_of(device)->lock);
    free(device);
}

static shoal_status add_region(struct remote *remote, const char *name, struct region region)
{
    shoal_status status = SHOAL_OK;

    pthread_mutex_lock(&remote->lock);
    if (remote->n_regions == MAX_REGIONS) {
        status = fail(SHOAL_ERR_NOMEM, "%s: the test device holds %d regions already", name,
                      MAX_REGIONS);
    } else {
        remote->regions[remote->n_regions++] = region;
        if (!is_open(remote, &region))
            set_rights(region.base, region.n_bytes, PROT_NONE);
    }
    pthread_mutex_unlock(&remote->lock);
    return status;
}

static void remove_region(struct remote *remote, const void *base)
{
    pthread_mutex_lock(&remote->lock);
    for (int i = 0; i < remote->n_regions; i++)
        if (remote->regions[i].base == base) {
            remote->regions[i] = remote->regions[--remote->n_regions];
            break;
        }
    pthread_mutex_unlock(&remote->lock);
}

static shoal_status alloc_region(struct device *device, const char *name, size_t n_bytes,
                                 bool on_host, void **ptr_out)
{
    void *base = NULL;

    SHOAL_TRY(pages_alloc(name, n_bytes, &base));
    shoal_status status =
        add_region(remote_of(device), name, (struct region){base, n_bytes, on_host});
    if (status != SHOAL_OK) {
        pages_free(base, n_bytes);
        return status;
    }
    *ptr_out = base;
    return SHOAL_OK;
}

static shoal_status remote_alloc(struct device *device, const char *name, size_t n_bytes,
                                 void **ptr_out)
{
    return alloc_region(device, name, n_bytes, false, ptr_out);
}

static shoal_status remote_host_alloc(struct device *device, const char *name, size_t n_bytes,
                                      void **ptr_out)
{
    return alloc_region(device, name, n_bytes, true, ptr_out);
}

static void remote_free(struct device *device, void *ptr, size_t n_bytes)
{
    if (ptr == NULL)
        return;
    remove_region(remote_of(device), ptr);
    pages_free(ptr, n_bytes);
}

static shoal_status remote_memory(struct device *device, size_t *free_out, size_t *total_out)
{
    (void)device;
    *free_out = host_memory_available_bytes();
    *total_out = host_memory_bytes();
    return SHOAL_OK;
}

static shoal_status remote_copy(struct device *device, void *dst, const void *src, size_t n_bytes)
{
    set_exposed(remote_of(device), true);
    memcpy(dst, src, n_bytes);
    set_exposed(remote_of(device), false);
    return SHOAL_OK;
}

static shoal_status remote_zero(struct device *device, void *ptr, size_t n_bytes)
{
    set_exposed(remote_of(device), true);
    memset(ptr, 0, n_bytes);
    set_exposed(remote_of(device), false);
    return SHOAL_OK;
}

static shoal_status remote_copy_async(struct device *device, enum device_queue queue, void *dst,
                                      const void *src, size_t n_bytes)
{
    (void)queue;
    return remote_copy(device, dst, src, n_bytes);
}

static void wait_until(double *seconds, double moment)
{
    if (*seconds < moment)
        *seconds = moment;
}

static shoal_status remote_queue_sync(struct device *device, enum device_queue queue)
{
    struct remote *remote = remote_of(device);

    wait_until(&remote->host_seconds, remote->queue_seconds[queue]);
    return SHOAL_OK;
}

static shoal_status remote_event_create(struct device *device, struct device_event **event_out)
{
    struct device_event *event = calloc(1, sizeof *event);

    (void)device;
    if (event == NULL)
        return fail(SHOAL_ERR_NOMEM, "device remote: cannot allocate an event");
    *event_out = event;
    return SHOAL_OK;
}

static void remote_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    free(event);
}

/* What is issued now starts no earlier than the host is. */
static shoal_status remote_event_record(struct device *device, struct device_event *event,
                                        enum device_queue queue)
{
    struct remote *remote = remote_of(device);

    wait_until(&remote->queue_seconds[queue], remote->host_seconds);
    event->seconds = remote->queue_seconds[queue];
    return SHOAL_OK;
}

static shoal_status remote_event_wait(struct device *device, struct device_event *event,
                                      enum device_queue queue)
{
    wait_until(&remote_of(device)->queue_seconds[queue], event->seconds);
    return SHOAL_OK;
}

static shoal_status remote_event_sync(struct device *device, struct device_event *event)
{
    wait_until(&remote_of(device)->host_seconds, event->seconds);
    return SHOAL_OK;
}

static shoal_status remote_event_seconds(struct device *device, struct device_event *from,
                                         struct device_event *to, double *seconds_out)
{
    (void)device;
    *seconds_out = to->seconds - from->seconds;
    return SHOAL_OK;
}

static const struct device_ops remote_ops = {.name = "remote",
                                             .separate = true,
                                             .describe = remote_describe,
                                             .close = remote_close,
                                             .alloc = remote_alloc,
                                             .free = remote_free,
                                             .host_alloc = remote_host_alloc,
                                             .host_free = remote_free,
                                             .memory = remote_memory,
                                             .copy = remote_copy,
                                             .zero = remote_zero,
                                             .copy_async = remote_copy_async,
                                             .queue_sync = remote_queue_sync,
                                             .event_create = remote_event_create,
                                             .event_destroy = remote_event_destroy,
                                             .event_record = remote_event_record,
                                             .event_wait = remote_event_wait,
                                             .event_sync = remote_event_sync,
                                             .event_seconds = remote_event_seconds,
                                             .expose = remote_expose,
                                             .limit = remote_limit};

shoal_status device_remote_open(struct device **device_out)
{
    struct remote *remote = calloc(1, sizeof *remote);

    if (remote == NULL)
        return fail(SHOAL_ERR_NOMEM, "device remote: cannot allocate its record");
    pthread_mutex_init(&remote->lock, NULL);
    remote->device.ops = &remote_ops;
    *device_out = &remote->device;
    return SHOAL_OK;
}

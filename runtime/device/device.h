#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>

/*
 * Device: where a rank computes.  One interface; `cpu` (the host's own memory and cores) is the
 * embedded default, `cuda` is in builds with CUDA.  Memory of a device is taken as whole arenas at
 * start; nothing allocates during a step.
 *
 * On `cpu`, device memory is host memory: copies are memcpy, there are no queues, and everything
 * is complete when a call returns.  A device with `separate` memory is reached by copies only:
 * host code must not follow its pointers.
 *
 * A queue runs what was issued to it in order and apart from the other queues; an event marks a
 * point in a queue.  The thread that opened the device issues work; the synchronous calls (alloc,
 * free, copy, zero) may come from any thread.
 */
struct device;

/* A point in the work of a queue; made by the device's ops. */
struct device_event;

/* Work of a queue that was recorded, to be issued again in one call (a CUDA graph). */
struct device_graph;

enum device_queue { QUEUE_COMPUTE, QUEUE_COMM, QUEUE_H2D, QUEUE_D2H, QUEUE_COUNT };

enum device_rights { DEVICE_NO_ACCESS, DEVICE_READ, DEVICE_WRITE };

struct device_range {
    void *base; /* on a page's boundary */
    size_t n_bytes;
    enum device_rights rights; /* to write is also to read */
};

struct device_ops {
    const char *name;
    bool separate; /* host code cannot read or write its memory */

    /* One line for people: "NVIDIA H200, 132 SMs, 139.8 GiB, 4.9 TB/s".  Valid until close. */
    const char *(*describe)(const struct device *device);
    void (*close)(struct device *device);

    /* Device memory, zeroed by nobody.  `name` appears in errors. */
    shoal_status (*alloc)(struct device *device, const char *name, size_t n_bytes, void **ptr_out);
    void (*free)(struct device *device, void *ptr, size_t n_bytes);

    /* Host memory that copies reach at full speed (pinned). */
    shoal_status (*host_alloc)(struct device *device, const char *name, size_t n_bytes,
                               void **ptr_out);
    void (*host_free)(struct device *device, void *ptr, size_t n_bytes);

    /* Free and total bytes of device memory now. */
    shoal_status (*memory)(struct device *device, size_t *free_out, size_t *total_out);

    /*
     * Copy (any direction) and zero, complete when they return.  They do not wait for the queues:
     * synchronize those that use this memory first.
     */
    shoal_status (*copy)(struct device *device, void *dst, const void *src, size_t n_bytes);
    shoal_status (*zero)(struct device *device, void *ptr, size_t n_bytes);

    /* The rest is NULL on a device without queues. */

    /* Issue a copy to a queue; host memory from host_alloc must stay until it is done. */
    shoal_status (*copy_async)(struct device *device, enum device_queue queue, void *dst,
                               const void *src, size_t n_bytes);
    shoal_status (*queue_sync)(struct device *device, enum device_queue queue);

    shoal_status (*event_create)(struct device *device, struct device_event **event_out);
    void (*event_destroy)(struct device *device, struct device_event *event);
    /* The point after all that `queue` was given so far. */
    shoal_status (*event_record)(struct device *device, struct device_event *event,
                                 enum device_queue queue);
    /* What `queue` is given from now on starts after `event`, as recorded last. */
    shoal_status (*event_wait)(struct device *device, struct device_event *event,
                               enum device_queue queue);
    /* The calling thread waits for `event`. */
    shoal_status (*event_sync)(struct device *device, struct device_event *event);
    /* Seconds between two events that are done. */
    shoal_status (*event_seconds)(struct device *device, struct device_event *from,
                                  struct device_event *to, double *seconds_out);

    /*
     * Between begin and end what the calling thread issues to `queue` is recorded and does not run;
     * events are not part of it.  A launch issues all of it with the addresses and numbers of the
     * recording.  NULL on a device that cannot record.
     */
    shoal_status (*record_begin)(struct device *device, enum device_queue queue);
    shoal_status (*record_end)(struct device *device, enum device_queue queue,
                               struct device_graph **graph_out);
    shoal_status (*graph_launch)(struct device *device, struct device_graph *graph,
                                 enum device_queue queue);
    void (*graph_destroy)(struct device *device, struct device_graph *graph);

    /*
     * Around the `run` of an operation that `queue` executes.  Only for devices that tests make of
     * host memory; NULL elsewhere.
     */
    void (*expose)(struct device *device, enum device_queue queue, bool on);
    /*
     * Until the next call: what kernels and copies may do with some of the memory, the later ranges
     * over the earlier ones.  Borrowed; no ranges: anything.  For tests, like expose.
     */
    void (*limit)(struct device *device, const struct device_range *ranges, int n);
};

struct device {
    const struct device_ops *ops;
};

/*
 * Open a device for rank `local_rank` of this machine: "cpu"; "cuda": GPU number local_rank modulo
 * their count, or SHOAL_ERR_UNAVAILABLE where there is none; "auto": cuda where it is, else cpu,
 * which a build with CUDA says in the log.  Another name is SHOAL_ERR_UNAVAILABLE.  Local.
 *
 * Test hook: SHOAL_TEST_DEVICE=remote makes "auto" a device whose memory is host memory that faults
 * when host code touches it outside of copies and operations, and an operation beyond its limits.
 */
shoal_status device_open(const char *name, int local_rank, struct device **device_out);
void device_close(struct device *device);

/* What "auto" would open on this machine, without opening it: "cpu" or "cuda". */
const char *device_auto_name(void);

static inline bool device_has_queues(const struct device *device)
{
    return device != NULL && device->ops->event_create != NULL;
}

static inline bool device_is_separate(const struct device *device)
{
    return device != NULL && device->ops->separate;
}

/*
 * Copy as a step of an operation: issued to `queue` where the device has queues, complete on
 * return elsewhere.
 */
shoal_status device_copy(struct device *device, enum device_queue queue, void *dst, const void *src,
                         size_t n_bytes);

#pragma once

#include "runtime/base/status.h"

#include <stddef.h>

/*
 * Device: where a rank computes.  One interface; `cpu` (the host's own memory and
 * cores) is the embedded default.  Memory of a device is taken as whole arenas at
 * start; nothing allocates during a step.
 *
 * On `cpu`, device memory is host memory: copies are memcpy and the lanes H2D and
 * D2H have no work, so a stream is complete when the call returns.
 */
struct device;

struct device_ops {
    const char *name;
    shoal_status (*alloc)(struct device *device, const char *name, size_t n_bytes, void **ptr_out);
    void (*free)(struct device *device, void *ptr, size_t n_bytes);
    shoal_status (*copy)(struct device *device, void *dst, const void *src, size_t n_bytes);
    shoal_status (*zero)(struct device *device, void *ptr, size_t n_bytes);
};

struct device {
    const struct device_ops *ops;
};

/*
 * Open the device called `name`.  Only "cpu" is built in; another name refuses with
 * SHOAL_ERR_UNAVAILABLE.  Local.
 */
shoal_status device_open(const char *name, struct device **device_out);
void device_close(struct device *device);

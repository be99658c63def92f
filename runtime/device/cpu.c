#include "runtime/base/host.h"
#include "runtime/base/pages.h"
#include "runtime/device/device_internal.h"

#include <stdlib.h>
#include <string.h>

static const char *cpu_describe(const struct device *device)
{
    (void)device;
    return "the host's cores";
}

static void cpu_close(struct device *device)
{
    free(device);
}

static shoal_status cpu_alloc(struct device *device, const char *name, size_t n_bytes,
                              void **ptr_out)
{
    (void)device;
    return pages_alloc(name, n_bytes, ptr_out);
}

static void cpu_free(struct device *device, void *ptr, size_t n_bytes)
{
    (void)device;
    pages_free(ptr, n_bytes);
}

static shoal_status cpu_memory(struct device *device, size_t *free_out, size_t *total_out)
{
    (void)device;
    *free_out = host_memory_available_bytes();
    *total_out = host_memory_bytes();
    return SHOAL_OK;
}

static shoal_status cpu_copy(struct device *device, void *dst, const void *src, size_t n_bytes)
{
    (void)device;
    memcpy(dst, src, n_bytes);
    return SHOAL_OK;
}

static shoal_status cpu_zero(struct device *device, void *ptr, size_t n_bytes)
{
    (void)device;
    memset(ptr, 0, n_bytes);
    return SHOAL_OK;
}

static const struct device_ops cpu_ops = {.name = "cpu",
                                          .describe = cpu_describe,
                                          .close = cpu_close,
                                          .alloc = cpu_alloc,
                                          .free = cpu_free,
                                          .host_alloc = cpu_alloc,
                                          .host_free = cpu_free,
                                          .memory = cpu_memory,
                                          .copy = cpu_copy,
                                          .zero = cpu_zero};

shoal_status device_cpu_open(struct device **device_out)
{
    struct device *device = calloc(1, sizeof *device);

    if (device == NULL)
        return fail(SHOAL_ERR_NOMEM, "device cpu: cannot allocate its record");
    device->ops = &cpu_ops;
    *device_out = device;
    return SHOAL_OK;
}

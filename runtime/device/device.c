#include "runtime/device/device.h"

#include "runtime/base/log.h"
#include "runtime/device/device_internal.h"

#include <stdlib.h>
#include <string.h>

static bool wants_remote(void)
{
    const char *hook = getenv("SHOAL_TEST_DEVICE");

    return hook != NULL && strcmp(hook, "remote") == 0;
}

const char *device_auto_name(void)
{
#ifdef SHOAL_WITH_CUDA
    if (device_cuda_count() > 0)
        return "cuda";
#endif
    return "cpu";
}

static shoal_status no_cuda(const char *why)
{
    fail(SHOAL_ERR_UNAVAILABLE, "device cuda: not available");
    fail_why(SHOAL_ERR_UNAVAILABLE, "%s", why);
    return fail_hint(SHOAL_ERR_UNAVAILABLE, "set run.device=auto or run.device=cpu");
}

shoal_status device_open(const char *name, int local_rank, struct device **device_out)
{
    bool automatic = strcmp(name, "auto") == 0;

    if (automatic && wants_remote())
        return device_remote_open(device_out);
    if (strcmp(name, "cpu") == 0)
        return device_cpu_open(device_out);
    if (!automatic && strcmp(name, "cuda") != 0) {
        fail(SHOAL_ERR_UNAVAILABLE, "device %s: there is no such device", name);
        return fail_hint(SHOAL_ERR_UNAVAILABLE, "set run.device to auto, cpu or cuda");
    }
#ifdef SHOAL_WITH_CUDA
    int count = device_cuda_count();
    if (count > 0)
        return device_cuda_open(local_rank % count, device_out);
    if (!automatic)
        return no_cuda("the CUDA driver reports no GPU");
    log_line("device", "no CUDA device: running on the CPU");
#else
    (void)local_rank;
    if (!automatic)
        return no_cuda(
            "this build is without CUDA (SHOAL_CUDA was OFF, or its parts were missing)");
#endif
    return device_cpu_open(device_out);
}

void device_close(struct device *device)
{
    if (device != NULL)
        device->ops->close(device);
}

shoal_status device_copy(struct device *device, enum device_queue queue, void *dst, const void *src,
                         size_t n_bytes)
{
    if (device->ops->copy_async != NULL)
        return device->ops->copy_async(device, queue, dst, src, n_bytes);
    return device->ops->copy(device, dst, src, n_bytes);
}

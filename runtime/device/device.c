#include "runtime/device/device.h"

#include "runtime/device/device_internal.h"

#include <stdlib.h>
#include <string.h>

shoal_status device_open(const char *name, struct device **device_out)
{
    if (strcmp(name, "cpu") == 0)
        return device_cpu_open(device_out);
    fail(SHOAL_ERR_UNAVAILABLE, "device %s: this build has no such device", name);
    fail_why(SHOAL_ERR_UNAVAILABLE, "only cpu is built in");
    return fail_hint(SHOAL_ERR_UNAVAILABLE, "set run.device=cpu");
}

void device_close(struct device *device)
{
    free(device);
}

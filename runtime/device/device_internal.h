#pragma once

#include "runtime/device/device.h"

/* The host's own memory and cores. */
shoal_status device_cpu_open(struct device **device_out);

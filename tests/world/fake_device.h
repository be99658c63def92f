#pragma once

#include "runtime/device/device.h"

/*
 * What the fake device offers to the fake NCCL.  Its memory has two addresses: the device's, where
 * every access faults, and one that its own work uses.
 */

/* The address that can be read and written; host memory is its own. */
void *fake_host(const void *ptr);

/* Let the queue's thread call fn(arg) after all that was given to it before. */
void fake_enqueue(struct device *device, void (*fn)(void *arg), void *arg);

/* Until nothing is left in the queue. */
void fake_drain(void);

/* Whether all records of this event have been reached. */
shoal_status fake_event_is_done(struct device *device, struct device_event *event, bool *out);

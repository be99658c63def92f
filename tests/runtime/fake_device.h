#pragma once

#include "runtime/device/device.h"

#include <stdbool.h>

/*
 * A device of threads: each queue is a thread that works through its jobs, with random pauses, so
 * that whatever is not ordered by events runs in any order.  Memory is the host's.
 */

struct fake_device;

typedef void fake_job_fn(void *arg);

struct device *fake_device_open(unsigned seed);
void fake_device_close(struct device *device);

/* Issue a job to a queue: what the `run` of a test's operation does. */
void fake_device_issue(struct device *device, enum device_queue queue, fake_job_fn *fn, void *arg);

/* Waits that were issued to queues, and waits of the calling thread, since open. */
int fake_device_queue_waits(const struct device *device);
int fake_device_host_waits(const struct device *device);

/* Graphs that exist, and launches of graphs since open. */
int fake_device_graphs(const struct device *device);
int fake_device_launches(const struct device *device);
void fake_device_refuse_recording(struct device *device);

/* Ignore event_wait (to see a test notice it); let the next queue_sync fail. */
void fake_device_ignore_waits(struct device *device);
void fake_device_break(struct device *device);

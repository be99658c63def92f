#pragma once

#include "runtime/base/dtype.h"
#include "runtime/device/cuda.h"

/*
 * What the probes share: plain programs that print figures of the machine.  They exit 0, 1 after a
 * failure, which is printed, and 77 where there is no CUDA device.
 */

/* Open the first device and print it; ends the process with 77 where there is none. */
struct device *probe_open(void);

/* Device memory with random numbers in [-1, 1) of a type; with `n` 0 elements it is NULL. */
shoal_status probe_random(struct device *device, enum dtype dtype, int64_t n, void **p_out);

/* The best of `runs` times of `run`, in seconds of the device, after one that does not count. */
shoal_status probe_time(struct device *device, int runs, shoal_status (*run)(void *arg), void *arg,
                        double *seconds_out);

/* FNV-1a of the bytes of device memory: the same bits give the same number. */
shoal_status probe_hash(struct device *device, const void *p, size_t n_bytes, uint64_t *hash_out);

/* The exit code of a finished probe. */
int probe_end(shoal_status status);

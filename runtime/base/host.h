#pragma once

#include <stddef.h>
#include <stdint.h>

/* Facts of this host and process, read from the kernel.  Local. */

/* CPUs that this process may run on. */
int host_cpus(void);

/* Resident bytes now, and the highest ever (VmHWM). */
uint64_t host_resident_bytes(void);
uint64_t host_peak_resident_bytes(void);

/* Of the resident bytes now: the process' own memory (RssAnon), without files and shared memory. */
uint64_t host_anonymous_resident_bytes(void);

/* Bytes of physical memory and those now available to new work. */
uint64_t host_memory_bytes(void);
uint64_t host_memory_available_bytes(void);

/* "Intel(R) Xeon(R) Processor" or so, into the caller's buffer. */
void host_cpu_name(char *out, size_t n_bytes);

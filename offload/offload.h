#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Offload: the I/O engine under checkpoints (and, later, the host and NVMe tiers).
 *
 * An engine keeps up to `depth` requests in flight on one thread through io_uring; where the
 * kernel refuses io_uring (containers, seccomp), a pread/pwrite loop does the same work.
 * Files are opened O_DIRECT where offset, length and address are 4 KiB aligned, buffered for the
 * rest (tails).  Short reads and writes are continued; errors name file, offset and errno.
 * An engine belongs to one thread.
 */
struct io_engine;

enum { IO_ALIGN = 4096 };

/* `force_sync`: skip io_uring (tests; SHOAL_IO=sync in the environment does the same).  Local. */
shoal_status io_engine_create(int depth, bool force_sync, struct io_engine **engine_out);
void io_engine_destroy(struct io_engine *engine);
const char *io_engine_name(const struct io_engine *engine); /* "io_uring" or "pwrite" */

struct io_file;

/*
 * Open for writing an existing file (checkpoint skeleton) or for reading.  Local.  A missing or
 * unreadable file is SHOAL_ERR_NOINPUT, no memory SHOAL_ERR_NOMEM, anything else SHOAL_ERR_IO.
 */
shoal_status io_file_open(struct io_engine *engine, const char *path, bool writable,
                          struct io_file **file_out);
void io_file_close(struct io_file *file);

/* Reserve space.  ENOSPC is SHOAL_ERR_IO; the file's size and bytes are as they were.  Local. */
shoal_status io_file_reserve(struct io_file *file, uint64_t size_bytes);

/*
 * Queue a transfer; the buffer must stay until io_wait.  Blocks only when `depth`
 * requests are in flight.  A failure is reported here or by io_wait; after the first one nothing
 * more is queued until io_wait has reported it.  Local.
 */
shoal_status io_write(struct io_file *file, const void *data, size_t n_bytes, uint64_t offset);
shoal_status io_read(struct io_file *file, void *data, size_t n_bytes, uint64_t offset);

/*
 * Wait until everything queued on the engine is done; returns the first failure and forgets it.
 * Afterwards, also after a failure, no buffer is in use.  Local.
 */
shoal_status io_wait(struct io_engine *engine);

/* The file's size now, bytes.  Local. */
shoal_status io_file_size(struct io_file *file, uint64_t *size_out);

/* fdatasync.  Everything queued must have been waited for.  Local. */
shoal_status io_file_sync(struct io_file *file);

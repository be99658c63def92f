#pragma once

#include <stddef.h>

/*
 * What every writer of files needs, in the manner of the system's calls: 0, or -1 with errno, so
 * that the caller says what it was about.  Any thread.
 */

/* Write all of it, whatever signals and short writes there are; what was written stays. */
int files_write_all(int fd, const void *data, size_t n_bytes);

/* Make the entries of a directory durable, where the file system knows how. */
int files_sync_dir(const char *path);

#pragma once

#include "offload/offload.h"

#include <liburing.h>

/*
 * Private to offload/ (and its tests, which break a file's descriptors on purpose).
 */

/* Longest single transfer: large enough for the drive, short enough to fill the queue. */
enum { IO_PIECE_BYTES = 4 << 20 };

/* What went wrong first, kept until io_wait reports it. */
struct io_failure {
    int error; /* errno; 0: none */
    bool write, end_of_file;
    uint64_t offset;
    size_t n_bytes;
    char path[1024]; /* copied: the file may be closed before the report */
};

/* A transfer in flight; `data`, `n_bytes` and `offset` shrink as short transfers are continued. */
struct io_request {
    struct io_file *file;
    char *data;
    size_t n_bytes;
    uint64_t offset;
    bool write, direct;
    struct io_request *next_free;
};

struct io_engine {
    int depth;
    bool uring;
    struct io_uring ring;
    struct io_request *requests; /* depth of them */
    struct io_request *free;
    int in_flight;
    struct io_failure failure;
};

struct io_file {
    struct io_engine *engine;
    char *path;
    bool writable;
    int fd;        /* buffered */
    int direct_fd; /* O_DIRECT, or -1 where the file system has none */
};

/* SHOAL_ERR_IO with file, range and the text of `error`; ENOSPC and EDQUOT get a hint. */
shoal_status io_fail(const char *path, const char *what, int error);

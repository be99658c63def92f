#include "offload/offload_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * A transfer is cut into an unaligned head, whole pages and a tail, and the whole pages into
 * pieces, so that one large call fills the queue.  Each piece is one request.  A completion that
 * moved fewer bytes than asked for queues its request again with the rest; only an end of file,
 * an error or a write of nothing ends it early.
 */

static bool sync_forced(void)
{
    const char *mode = getenv("SHOAL_IO");

    return mode != NULL && strcmp(mode, "sync") == 0;
}

shoal_status io_engine_create(int depth, bool force_sync, struct io_engine **engine_out)
{
    if (depth < 1 || depth > 1024)
        return fail(SHOAL_ERR_INTERNAL, "i/o engine: depth %d is not in 1..1024", depth);

    struct io_engine *engine = calloc(1, sizeof *engine);

    if (engine == NULL)
        return fail(SHOAL_ERR_NOMEM, "i/o engine: no memory");
    engine->requests = calloc((size_t)depth, sizeof *engine->requests);
    if (engine->requests == NULL) {
        free(engine);
        return fail(SHOAL_ERR_NOMEM, "i/o engine: no memory for %d requests", depth);
    }
    engine->depth = depth;
    for (int i = 0; i < depth; i++) {
        engine->requests[i].next_free = engine->free;
        engine->free = &engine->requests[i];
    }
    /* Containers and hardened kernels refuse io_uring; the pwrite loop is slower, not different. */
    if (!force_sync && !sync_forced())
        engine->uring = io_uring_queue_init((unsigned)depth, &engine->ring, 0) == 0;
    *engine_out = engine;
    return SHOAL_OK;
}

void io_engine_destroy(struct io_engine *engine)
{
    if (engine == NULL)
        return;
    (void)io_wait(engine);
    if (engine->uring)
        io_uring_queue_exit(&engine->ring);
    free(engine->requests);
    free(engine);
}

const char *io_engine_name(const struct io_engine *engine)
{
    return engine->uring ? "io_uring" : "pwrite";
}

/* The first failure counts, or one before it in the same file: completions come in any order. */
static void note_failure(struct io_engine *engine, const struct io_request *r, int error,
                         bool end_of_file)
{
    struct io_failure *f = &engine->failure;

    if (f->error != 0 && (strcmp(f->path, r->file->path) != 0 || r->offset >= f->offset))
        return;
    *f = (struct io_failure){.error = error,
                             .write = r->write,
                             .end_of_file = end_of_file,
                             .offset = r->offset,
                             .n_bytes = r->n_bytes};
    snprintf(f->path, sizeof f->path, "%s", r->file->path);
}

static shoal_status report_failure(const struct io_failure *f)
{
    char what[128];

    if (f->end_of_file)
        return fail(SHOAL_ERR_IO, "%s: file ends at byte %llu, %zu more bytes were expected",
                    f->path, (unsigned long long)f->offset, f->n_bytes);
    snprintf(what, sizeof what, "cannot %s %zu bytes at offset %llu", f->write ? "write" : "read",
             f->n_bytes, (unsigned long long)f->offset);
    return io_fail(f->path, what, f->error);
}

static bool is_aligned(const struct io_request *r)
{
    return ((uintptr_t)r->data | r->n_bytes | r->offset) % IO_ALIGN == 0;
}

/* Account for a result (bytes moved or -errno).  True: the request has more to do. */
static bool request_advance(struct io_engine *engine, struct io_request *r, long result)
{
    if (result == -EINTR || result == -EAGAIN)
        return true;
    if (result == -EINVAL && r->direct) {
        /* The device wants a coarser alignment than 4 KiB. */
        r->direct = false;
        return true;
    }
    if (result < 0) {
        note_failure(engine, r, (int)-result, false);
        return false;
    }
    if (result == 0) {
        note_failure(engine, r, EIO, !r->write);
        return false;
    }
    r->data += result;
    r->n_bytes -= (size_t)result;
    r->offset += (uint64_t)result;
    r->direct = r->direct && is_aligned(r);
    return r->n_bytes > 0;
}

static int request_fd(const struct io_request *r)
{
    return r->direct ? r->file->direct_fd : r->file->fd;
}

static void run_now(struct io_engine *engine, struct io_request *r)
{
    long result;

    do {
        ssize_t n = r->write ? pwrite(request_fd(r), r->data, r->n_bytes, (off_t)r->offset)
                             : pread(request_fd(r), r->data, r->n_bytes, (off_t)r->offset);
        result = n < 0 ? -errno : (long)n;
    } while (request_advance(engine, r, result));
}

static void request_release(struct io_engine *engine, struct io_request *r)
{
    r->next_free = engine->free;
    engine->free = r;
}

/* Hand over every entry that is ready; 0 or a negative error. */
static int submit_all(struct io_uring *ring)
{
    int rc = 0;

    do
        rc = io_uring_submit(ring);
    while (rc == -EINTR || rc == -EAGAIN || rc == -EBUSY ||
           (rc > 0 && io_uring_sq_ready(ring) > 0));
    return rc < 0 ? rc : 0;
}

/* The ring has as many entries as there are requests, so that one is free unless submitting fails. */
static void ring_submit(struct io_engine *engine, struct io_request *r)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);
    int rc = -EBUSY;

    if (sqe != NULL) {
        if (r->write)
            io_uring_prep_write(sqe, request_fd(r), r->data, (unsigned)r->n_bytes, r->offset);
        else
            io_uring_prep_read(sqe, request_fd(r), r->data, (unsigned)r->n_bytes, r->offset);
        io_uring_sqe_set_data(sqe, r);
        rc = submit_all(&engine->ring);
    }
    if (rc == 0) {
        engine->in_flight++;
        return;
    }
    note_failure(engine, r, -rc, false);
    request_release(engine, r);
    if (sqe == NULL)
        return;
    /* It goes with the next one, when the caller's buffer may be something else. */
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, NULL);
}

/* Take one completion, waiting for it. */
static void ring_reap(struct io_engine *engine)
{
    struct io_uring_cqe *cqe = NULL;
    int rc;

    do
        rc = io_uring_wait_cqe(&engine->ring, &cqe);
    while (rc == -EINTR || rc == -EAGAIN);
    if (rc < 0) {
        /* The ring itself is gone: nothing in flight can be waited for any more. */
        if (engine->failure.error == 0)
            engine->failure = (struct io_failure){.error = -rc, .path = "io_uring"};
        engine->in_flight = 0;
        return;
    }

    struct io_request *r = io_uring_cqe_get_data(cqe);
    long result = cqe->res;

    io_uring_cqe_seen(&engine->ring, cqe);
    if (r == NULL)
        return; /* of an entry that could not be submitted in time */
    engine->in_flight--;
    if (request_advance(engine, r, result))
        ring_submit(engine, r);
    else
        request_release(engine, r);
}

static shoal_status queue_piece(struct io_file *file, char *data, size_t n_bytes, uint64_t offset,
                                bool write, bool direct)
{
    struct io_engine *engine = file->engine;

    while (engine->free == NULL && engine->failure.error == 0)
        ring_reap(engine);
    if (engine->failure.error != 0)
        return report_failure(&engine->failure);

    struct io_request *r = engine->free;

    engine->free = r->next_free;
    *r = (struct io_request){.file = file,
                             .data = data,
                             .n_bytes = n_bytes,
                             .offset = offset,
                             .write = write,
                             .direct = direct && file->direct_fd >= 0};
    if (engine->uring) {
        ring_submit(engine, r);
    } else {
        run_now(engine, r);
        request_release(engine, r);
    }
    return engine->failure.error == 0 ? SHOAL_OK : report_failure(&engine->failure);
}

static shoal_status queue(struct io_file *file, char *data, size_t n_bytes, uint64_t offset,
                          bool write)
{
    size_t head = n_bytes;

    if (offset > INT64_MAX - n_bytes)
        return fail(SHOAL_ERR_INTERNAL, "%s: offset %llu is out of range", file->path,
                    (unsigned long long)offset);
    /* Direct pages exist only where address and offset are misaligned by the same amount. */
    if (((uintptr_t)data - offset) % IO_ALIGN == 0)
        head = (IO_ALIGN - offset % IO_ALIGN) % IO_ALIGN;
    if (head > n_bytes)
        head = n_bytes;

    size_t pages = (n_bytes - head) / IO_ALIGN * IO_ALIGN;

    for (size_t done = 0; done < n_bytes;) {
        bool direct = done >= head && done < head + pages;
        size_t end = done < head ? head : direct ? head + pages : n_bytes;
        size_t n = end - done < IO_PIECE_BYTES ? end - done : IO_PIECE_BYTES;

        SHOAL_TRY(queue_piece(file, data + done, n, offset + done, write, direct));
        done += n;
    }
    return SHOAL_OK;
}

shoal_status io_write(struct io_file *file, const void *data, size_t n_bytes, uint64_t offset)
{
    if (!file->writable)
        return fail(SHOAL_ERR_INTERNAL, "%s: opened for reading only", file->path);
    /* The engine only reads from a write's buffer. */
    return queue(file, (char *)(uintptr_t)data, n_bytes, offset, true);
}

shoal_status io_read(struct io_file *file, void *data, size_t n_bytes, uint64_t offset)
{
    return queue(file, data, n_bytes, offset, false);
}

shoal_status io_wait(struct io_engine *engine)
{
    while (engine->in_flight > 0)
        ring_reap(engine);
    if (engine->failure.error == 0)
        return SHOAL_OK;

    shoal_status status = report_failure(&engine->failure);

    engine->failure.error = 0;
    return status;
}

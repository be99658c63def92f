#include "checkpoint/save_internal.h"

#include <string.h>

/*
 * The payload's way to disk: block by block, from the caller's memory where address and offset
 * are misaligned by the same amount, else through the staging buffer; from memory that only the
 * piece's copy function reaches, always through the staging buffer.  Nothing is allocated here.
 */

/* Staged runs end at a multiple of this in their extent, so that no item is cut. */
enum { STAGE_UNIT = 4 };

struct payload {
    struct ckpt_store *store;
    struct io_file *file;
    struct save_plan *plan;
    int64_t step;
    size_t staged;     /* bytes of the staging buffer in use */
    size_t piece;      /* the piece of the extent that is read next ... */
    size_t piece_done; /* ... and how many of its bytes are done */
    uint64_t written;
    bool fault_armed;
};

static const struct ckpt_piece *piece_cursor(const struct payload *w, const struct extent *e,
                                             const char **from_out, size_t *left_out)
{
    const struct ckpt_piece *p = w->plan->pieces[e->first_piece + w->piece];

    *left_out = (size_t)(p->end - p->begin) * ckpt_type_bytes(p->type) - w->piece_done;
    *from_out = (const char *)p->data + w->piece_done;
    return p;
}

static void piece_advance(struct payload *w, size_t n_bytes, size_t left)
{
    w->piece_done += n_bytes;
    if (n_bytes == left) {
        w->piece++;
        w->piece_done = 0;
    }
}

static shoal_status gather(struct payload *w, const struct extent *e, char *to, size_t n_bytes)
{
    while (n_bytes > 0) {
        size_t left;
        const char *from;
        const struct ckpt_piece *p = piece_cursor(w, e, &from, &left);
        size_t n = left < n_bytes ? left : n_bytes;

        if (p->copy != NULL)
            SHOAL_TRY(p->copy(p->copy_arg, to, from, n, false));
        else
            memcpy(to, from, n);
        piece_advance(w, n, left);
        to += n;
        n_bytes -= n;
    }
    return SHOAL_OK;
}

/*
 * Room for up to n_bytes whose address is congruent to `offset` modulo a page, so that whole pages
 * go out directly.  When the buffer is full everything in flight is waited for.
 */
static shoal_status stage(struct payload *w, uint64_t offset, size_t n_bytes, char **to_out,
                          size_t *room_out)
{
    size_t capacity = w->store->staging_bytes;
    size_t at = w->staged + (size_t)((offset - w->staged) % IO_ALIGN);

    if (at + STAGE_UNIT > capacity || (at + n_bytes > capacity && at > capacity / 2)) {
        SHOAL_TRY(io_wait(w->store->engine));
        at = (size_t)(offset % IO_ALIGN);
    }

    size_t room = (capacity - at) / STAGE_UNIT * STAGE_UNIT;

    *to_out = w->store->staging + at;
    *room_out = room < n_bytes ? room : n_bytes;
    w->staged = at + *room_out;
    return SHOAL_OK;
}

/* Write up to n_bytes of the extent at `offset`; *done_out says how many, *crc covers them. */
static shoal_status write_some(struct payload *w, const struct extent *e, uint64_t offset,
                               size_t n_bytes, uint32_t *crc, size_t *done_out)
{
    size_t left;
    const char *from;
    const struct ckpt_piece *p = piece_cursor(w, e, &from, &left);
    bool direct = p->copy == NULL && left >= n_bytes && ((uintptr_t)from - offset) % IO_ALIGN == 0;
    size_t n = n_bytes;

    if (direct) {
        piece_advance(w, n, left);
    } else {
        char *to;

        SHOAL_TRY(stage(w, offset, n_bytes, &to, &n));
        SHOAL_TRY(gather(w, e, to, n));
        from = to;
    }
    *crc = ckpt_crc32c(*crc, from, n);
    *done_out = n;
    return io_write(w->file, from, n, offset);
}

static shoal_status write_extent(struct payload *w, const struct extent *e)
{
    uint64_t n_bytes = extent_bytes(e);

    w->piece = 0;
    w->piece_done = 0;
    for (uint64_t done = 0; done < n_bytes;) {
        uint64_t in_block = done % CKPT_BLOCK_BYTES;
        uint64_t want = CKPT_BLOCK_BYTES - in_block;
        uint32_t *crc = &w->plan->crcs[e->first_block + done / CKPT_BLOCK_BYTES];
        size_t n;

        if (want > n_bytes - done)
            want = n_bytes - done;
        if (in_block == 0) {
            *crc = 0;
            /* Progress: the other ranks may be waiting already, and a large file takes its time. */
            comm_note(w->store->comm, w->step, "checkpoint: writing");
        }
        SHOAL_TRY(write_some(w, e, e->byte_off + done, (size_t)want, crc, &n));
        done += n;
        w->written += n;
        if (w->fault_armed && 2 * w->written >= w->plan->payload_bytes) {
            w->fault_armed = false;
            SHOAL_TRY(io_wait(w->store->engine));
            ckpt_fault("payload", comm_rank(w->store->comm), w->store->n_saves);
        }
    }
    return SHOAL_OK;
}

shoal_status ckpt_payload_write(struct ckpt_store *store, struct io_file *file,
                                struct save_plan *plan, int64_t step)
{
    struct payload w = {
        .store = store, .file = file, .plan = plan, .step = step, .fault_armed = true};
    shoal_status status = SHOAL_OK;

    for (size_t i = 0; i < plan->n_extents && status == SHOAL_OK; i++)
        status = write_extent(&w, &plan->extents[i]);
    if (status != SHOAL_OK) {
        /* The caller's memory must be free again after a failure too: drain, keep the cause. */
        char why[1024];

        strncpy(why, shoal_last_error(), sizeof why - 1);
        why[sizeof why - 1] = '\0';
        (void)io_wait(store->engine);
        return fail_adopt(status, why);
    }
    return io_wait(store->engine);
}

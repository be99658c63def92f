#include "checkpoint/checkpoint_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * The shard table says where every item of every state lies.  It is checked as a whole, by the
 * writer before the commit and by every reader: afterwards the table can be trusted as arithmetic.
 */

static int by_tensor(const void *pa, const void *pb)
{
    const struct shard_row *a = pa;
    const struct shard_row *b = pb;

    if (a->tensor != b->tensor)
        return a->tensor < b->tensor ? -1 : 1;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

static int by_place(const void *pa, const void *pb)
{
    const struct shard_row *a = *(const struct shard_row *const *)pa;
    const struct shard_row *b = *(const struct shard_row *const *)pb;

    if (a->rank != b->rank)
        return a->rank < b->rank ? -1 : 1;
    return a->byte_off < b->byte_off ? -1 : a->byte_off > b->byte_off;
}

void ckpt_shards_sort(struct shard_row *rows, size_t n_rows)
{
    qsort(rows, n_rows, sizeof *rows, by_tensor);
}

uint64_t ckpt_shard_bytes(const struct shard_space *space, const struct shard_row *row)
{
    const struct state *state = ckpt_states_find(space, row->tensor, row->kind);

    return (uint64_t)(row->end - row->begin) * ckpt_type_bytes(state->type);
}

static shoal_status check_row(shoal_status code, const char *where, const struct shard_space *space,
                              const struct shard_row *row, size_t index)
{
    if (row->tensor >= space->n_tensors || row->kind >= space->n_kinds ||
        row->rank >= space->n_files)
        return fail(code, "%s: shard %zu names a tensor, kind or rank that does not exist", where,
                    index);

    const struct tensor *t = &space->tensors[row->tensor];
    const struct file_row *f = &space->files[row->rank];
    const struct state *state = ckpt_states_find(space, row->tensor, row->kind);

    if (state == NULL)
        return fail(code, "%s: shard %zu holds %s of %s, which the table of states does not list",
                    where, index, space->kinds[row->kind], t->name);
    if (row->begin < 0 || row->begin >= row->end || row->end > state->n_items)
        return fail(
            code,
            "%s: shard %zu holds items %" PRId64 "..%" PRId64 " of %s of %s, which has %" PRId64,
            where, index, row->begin, row->end, space->kinds[row->kind], t->name, state->n_items);

    /* n_items is bounded so that neither product nor sum can wrap. */
    uint64_t n_bytes = (uint64_t)(row->end - row->begin) * ckpt_type_bytes(state->type);

    if (row->byte_off < f->header_bytes || row->byte_off > f->payload_end ||
        n_bytes > f->payload_end - row->byte_off)
        return fail(code,
                    "%s: shard %zu (%s) lies at bytes %" PRIu64 " + %" PRIu64
                    ", outside the payload %" PRIu64 "..%" PRIu64 " of rank %u's file",
                    where, index, t->name, row->byte_off, n_bytes, f->header_bytes, f->payload_end,
                    row->rank);
    if (row->first_block > f->n_blocks ||
        (n_bytes + CKPT_BLOCK_BYTES - 1) / CKPT_BLOCK_BYTES > f->n_blocks - row->first_block)
        return fail(code, "%s: shard %zu (%s) has checksums outside rank %u's table", where, index,
                    t->name, row->rank);
    return SHOAL_OK;
}

/*
 * Rows and states are sorted alike and each row has its state; the rows of a state must be
 * 0..n_items without gap or overlap.
 */
static shoal_status check_cover(shoal_status code, const char *where,
                                const struct shard_space *space, const struct shard_row *rows,
                                size_t n_rows)
{
    size_t i = 0;

    for (size_t s = 0; s < space->n_states; s++) {
        const struct state *state = &space->states[s];
        const char *name = space->tensors[state->tensor].name;
        const char *kind = space->kinds[state->kind];
        int64_t at = 0;

        for (; i < n_rows && rows[i].tensor == state->tensor && rows[i].kind == state->kind; i++) {
            if (rows[i].begin != at)
                return fail(code, "%s: %s of %s: items %" PRId64 "..%" PRId64 " are stored %s",
                            where, kind, name, rows[i].begin < at ? rows[i].begin : at,
                            rows[i].begin < at ? at : rows[i].begin,
                            rows[i].begin < at ? "twice" : "nowhere");
            at = rows[i].end;
        }
        if (at != state->n_items)
            return fail(code, "%s: %s of %s: items %" PRId64 "..%" PRId64 " are stored nowhere",
                        where, kind, name, at, state->n_items);
    }
    return SHOAL_OK;
}

static shoal_status check_every_tensor(shoal_status code, const char *where,
                                       const struct shard_space *space,
                                       const struct shard_row *rows, size_t n_rows)
{
    size_t at = 0;

    for (uint32_t t = 0; t < space->n_tensors; t++) {
        if (at >= n_rows || rows[at].tensor != t)
            return fail(code, "%s: tensor %s is stored nowhere", where, space->tensors[t].name);
        while (at < n_rows && rows[at].tensor == t)
            at++;
    }
    return SHOAL_OK;
}

static shoal_status check_overlap(shoal_status code, const char *where,
                                  const struct shard_space *space, const struct shard_row *rows,
                                  size_t n_rows)
{
    const struct shard_row **place = calloc(n_rows, sizeof *place);
    shoal_status status = SHOAL_OK;

    if (place == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %zu shards", where, n_rows);
    for (size_t i = 0; i < n_rows; i++)
        place[i] = &rows[i];
    qsort(place, n_rows, sizeof *place, by_place);
    for (size_t i = 1; i < n_rows && status == SHOAL_OK; i++) {
        const struct shard_row *a = place[i - 1];
        const struct shard_row *b = place[i];

        if (a->rank == b->rank && a->byte_off + ckpt_shard_bytes(space, a) > b->byte_off)
            status = fail(code, "%s: %s and %s share bytes of rank %u's file", where,
                          space->tensors[a->tensor].name, space->tensors[b->tensor].name, a->rank);
    }
    free(place);
    return status;
}

shoal_status ckpt_shards_check(shoal_status code, const char *where,
                               const struct shard_space *space, struct shard_row *rows,
                               size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++)
        SHOAL_TRY(check_row(code, where, space, &rows[i], i));
    ckpt_shards_sort(rows, n_rows);
    SHOAL_TRY(check_cover(code, where, space, rows, n_rows));
    SHOAL_TRY(check_every_tensor(code, where, space, rows, n_rows));
    return check_overlap(code, where, space, rows, n_rows);
}

size_t ckpt_shards_find(const struct shard_row *rows, size_t n_rows, uint32_t tensor, uint32_t kind,
                        size_t *n_out)
{
    struct shard_row key = {.tensor = tensor, .kind = kind};
    size_t low = 0;
    size_t high = n_rows;

    while (low < high) {
        size_t mid = low + (high - low) / 2;

        if (by_tensor(&rows[mid], &key) < 0)
            low = mid + 1;
        else
            high = mid;
    }

    size_t n = 0;

    while (low + n < n_rows && rows[low + n].tensor == tensor && rows[low + n].kind == kind)
        n++;
    *n_out = n;
    return low;
}

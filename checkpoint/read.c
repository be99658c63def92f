#include "checkpoint/checkpoint_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Reading: the wanted ranges are intersected with the shards and cut at checksum blocks; uses of
 * the same block are brought together, so that each block is read and checked once, whatever
 * the cut was that wrote it.  Memory is READ_SLOTS blocks and one small record per use.
 */

/* A part of a block that somebody wants. */
struct use {
    struct block block;
    size_t from; /* first byte within the block */
    size_t n_bytes;
    char *to;
    const struct ckpt_piece *piece; /* whose copy function knows `to`; NULL: host memory */
};

/* Wanted items of one tensor and kind of the checkpoint. */
struct want {
    int tensor, kind;
    int64_t begin, end;
    char *to;
    const struct ckpt_piece *piece;
};

struct use_list {
    struct use *uses;
    size_t n, capacity;
};

/* ---- blocks ---- */

size_t ckpt_block_bytes(const struct ckpt *ckpt, const struct block *b)
{
    uint64_t n_bytes = ckpt_shard_bytes(&ckpt->space, &ckpt->shards[b->shard]);
    uint64_t from = (uint64_t)b->index * CKPT_BLOCK_BYTES;
    uint64_t left = n_bytes - from;

    return left < CKPT_BLOCK_BYTES ? (size_t)left : CKPT_BLOCK_BYTES;
}

static uint64_t block_offset(const struct ckpt *ckpt, const struct block *b)
{
    return ckpt->shards[b->shard].byte_off + (uint64_t)b->index * CKPT_BLOCK_BYTES;
}

/* Slots start on a page, as datasets of a page and more do: so O_DIRECT can read into them. */
static char *slot_data(const struct ckpt *ckpt, size_t slot)
{
    return ckpt->buffer + slot * CKPT_BLOCK_BYTES;
}

static shoal_status open_rank_file(struct ckpt *ckpt, uint32_t rank)
{
    char name[CKPT_NAME_BYTES];
    char path[CKPT_PATH_BYTES];

    if (ckpt->file != NULL && ckpt->file_rank == rank)
        return SHOAL_OK;
    io_file_close(ckpt->file);
    ckpt->file = NULL;
    ckpt_rank_file_name(name, rank);
    SHOAL_TRY(ckpt_fs_join(path, sizeof path, ckpt->path, name));
    SHOAL_TRY(io_file_open(ckpt->engine, path, false, &ckpt->file));
    ckpt->file_rank = rank;
    return SHOAL_OK;
}

static shoal_status block_check(const struct ckpt *ckpt, const struct block *b, const char *data)
{
    const struct shard_row *s = &ckpt->shards[b->shard];
    size_t n = ckpt_block_bytes(ckpt, b);
    uint32_t want = ckpt->crcs[s->rank][s->first_block + b->index];
    uint32_t got = ckpt_crc32c(0, data, n);
    char name[CKPT_NAME_BYTES];

    if (got == want)
        return SHOAL_OK;
    ckpt_rank_file_name(name, s->rank);
    fail(SHOAL_ERR_DATA, "%s/%s: %s of %s is damaged in bytes %" PRIu64 "..%" PRIu64, ckpt->path,
         name, ckpt->kinds[s->kind], ckpt->tensors[s->tensor].name, block_offset(ckpt, b),
         block_offset(ckpt, b) + n);
    fail_why(SHOAL_ERR_DATA, "crc32c is %08" PRIx32 ", the checkpoint's table says %08" PRIx32, got,
             want);
    return fail_hint(SHOAL_ERR_DATA, "use another step; `shoal ckpt ls` lists them");
}

shoal_status ckpt_blocks_load(struct ckpt *ckpt, const struct block *blocks, size_t n)
{
    shoal_status status = open_rank_file(ckpt, ckpt->shards[blocks[0].shard].rank);

    SHOAL_TRY(status);
    ckpt_note(ckpt, "checkpoint: reading");
    for (size_t i = 0; i < n && status == SHOAL_OK; i++)
        status = io_read(ckpt->file, slot_data(ckpt, i), ckpt_block_bytes(ckpt, &blocks[i]),
                         block_offset(ckpt, &blocks[i]));

    shoal_status waited = io_wait(ckpt->engine);

    SHOAL_TRY(status);
    SHOAL_TRY(waited);
    for (size_t i = 0; i < n; i++)
        SHOAL_TRY(block_check(ckpt, &blocks[i], slot_data(ckpt, i)));
    return SHOAL_OK;
}

/* ---- uses ---- */

static shoal_status add_use(struct use_list *list, struct use use)
{
    if (list->n == list->capacity) {
        size_t capacity = list->capacity > 0 ? 2 * list->capacity : 256;
        struct use *uses = realloc(list->uses, capacity * sizeof *uses);

        if (uses == NULL)
            return fail(SHOAL_ERR_NOMEM, "checkpoint: no memory to plan a read of %zu blocks",
                        capacity);
        list->uses = uses;
        list->capacity = capacity;
    }
    list->uses[list->n++] = use;
    return SHOAL_OK;
}

static shoal_status add_want(const struct ckpt *ckpt, const struct want *w, struct use_list *list)
{
    size_t n;
    size_t first =
        ckpt_shards_find(ckpt->shards, ckpt->n_shards, (uint32_t)w->tensor, (uint32_t)w->kind, &n);

    if (w->begin == w->end)
        return SHOAL_OK;
    if (n == 0)
        return fail(SHOAL_ERR_DATA, "checkpoint %s: has no %s of %s", ckpt->path,
                    ckpt->kinds[w->kind], ckpt->tensors[w->tensor].name);

    const struct state *state =
        ckpt_states_find(&ckpt->space, (uint32_t)w->tensor, (uint32_t)w->kind);
    size_t width = ckpt_type_bytes(state->type);
    int64_t block_items = (int64_t)(CKPT_BLOCK_BYTES / width);

    for (size_t i = first; i < first + n; i++) {
        const struct shard_row *s = &ckpt->shards[i];
        int64_t begin = w->begin > s->begin ? w->begin : s->begin;
        int64_t end = w->end < s->end ? w->end : s->end;

        while (begin < end) {
            int64_t index = (begin - s->begin) / block_items;
            int64_t block_begin = s->begin + index * block_items;
            int64_t stop = end < block_begin + block_items ? end : block_begin + block_items;
            struct use use = {.block = {.shard = (uint32_t)i, .index = (uint32_t)index},
                              .from = (size_t)(begin - block_begin) * width,
                              .n_bytes = (size_t)(stop - begin) * width,
                              .to = w->to + (size_t)(begin - w->begin) * width,
                              .piece = w->piece};

            SHOAL_TRY(add_use(list, use));
            begin = stop;
        }
    }
    return SHOAL_OK;
}

/* In the order of the files: by rank, then by offset. */
static int by_place(const void *pa, const void *pb, void *arg)
{
    const struct ckpt *ckpt = arg;
    const struct use *a = pa;
    const struct use *b = pb;
    uint32_t rank_a = ckpt->shards[a->block.shard].rank;
    uint32_t rank_b = ckpt->shards[b->block.shard].rank;
    uint64_t at_a = block_offset(ckpt, &a->block);
    uint64_t at_b = block_offset(ckpt, &b->block);

    if (rank_a != rank_b)
        return rank_a < rank_b ? -1 : 1;
    return at_a < at_b ? -1 : at_a > at_b;
}

static bool same_block(const struct use *a, const struct use *b)
{
    return a->block.shard == b->block.shard && a->block.index == b->block.index;
}

static shoal_status deliver(const struct use *u, const char *block)
{
    const struct ckpt_piece *p = u->piece;

    if (p != NULL && p->copy != NULL)
        return p->copy(p->copy_arg, u->to, block + u->from, u->n_bytes, true);
    memcpy(u->to, block + u->from, u->n_bytes);
    return SHOAL_OK;
}

static shoal_status run_uses(struct ckpt *ckpt, struct use_list *list)
{
    if (list->n > 1)
        qsort_r(list->uses, list->n, sizeof *list->uses, by_place, ckpt);
    for (size_t i = 0; i < list->n;) {
        struct block blocks[READ_SLOTS];
        uint32_t rank = ckpt->shards[list->uses[i].block.shard].rank;
        size_t n_blocks = 0;
        size_t end = i;

        for (; end < list->n && ckpt->shards[list->uses[end].block.shard].rank == rank; end++) {
            if (end > i && same_block(&list->uses[end], &list->uses[end - 1]))
                continue;
            if (n_blocks == READ_SLOTS)
                break;
            blocks[n_blocks++] = list->uses[end].block;
        }
        SHOAL_TRY(ckpt_blocks_load(ckpt, blocks, n_blocks));
        for (size_t slot = 0; i < end; i++) {
            const struct use *u = &list->uses[i];

            if (u->block.shard != blocks[slot].shard || u->block.index != blocks[slot].index)
                slot++;
            SHOAL_TRY(deliver(u, slot_data(ckpt, slot)));
        }
    }
    return SHOAL_OK;
}

/* ---- pieces ---- */

static void shape_text(const struct tensor *t, char out[96])
{
    int n = snprintf(out, 96, "[");

    for (int d = 0; d < t->ndim; d++)
        n += snprintf(out + n, 96 - (size_t)n, "%s%" PRId64, d > 0 ? ", " : "", t->shape[d]);
    snprintf(out + n, 96 - (size_t)n, "]");
}

static shoal_status match_tensor(const struct ckpt *ckpt, const struct tensor *want, int *index_out)
{
    int index = ckpt_find_tensor(ckpt, want->name);
    char wanted[96];
    char found[96];

    if (index < 0) {
        fail(SHOAL_ERR_DATA, "checkpoint %s: has no tensor %s", ckpt->path, want->name);
        fail_why(SHOAL_ERR_DATA, "it is a checkpoint of another model");
        return fail_hint(SHOAL_ERR_DATA,
                         "use that run's config, or another run.out for this model");
    }

    const struct tensor *have = &ckpt->tensors[index];
    bool same = have->ndim == want->ndim;

    for (int d = 0; same && d < want->ndim; d++)
        same = have->shape[d] == want->shape[d];
    if (!same) {
        shape_text(have, found);
        shape_text(want, wanted);
        fail(SHOAL_ERR_DATA, "checkpoint %s: tensor %s is %s there, %s in this model", ckpt->path,
             want->name, found, wanted);
        fail_why(SHOAL_ERR_DATA, "it is a checkpoint of another model");
        return fail_hint(SHOAL_ERR_DATA,
                         "use that run's config, or another run.out for this model");
    }
    *index_out = index;
    return SHOAL_OK;
}

static shoal_status match_kind(const struct ckpt *ckpt, const char *kind, int *index_out)
{
    int index = ckpt_find_kind(ckpt, kind);
    char list[CKPT_MAX_KINDS * (CKPT_KIND_BYTES + 2)] = "";

    if (index >= 0) {
        *index_out = index;
        return SHOAL_OK;
    }
    for (size_t i = 0, n = 0; i < ckpt->n_kinds; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i > 0 ? ", " : "", ckpt->kinds[i]);
    fail(SHOAL_ERR_DATA, "checkpoint %s: has no state %s", ckpt->path, kind);
    return fail_why(SHOAL_ERR_DATA, "it was saved by optimizer %s with: %s", ckpt->meta.optimizer,
                    list);
}

static shoal_status match_items(const struct ckpt *ckpt, const struct want *want,
                                const struct state *expected)
{
    const struct state *found =
        ckpt_states_find(&ckpt->space, (uint32_t)want->tensor, (uint32_t)want->kind);
    char here[STATE_TEXT_BYTES];
    char there[STATE_TEXT_BYTES];

    /* A tensor without this kind is for add_want to report. */
    if (found == NULL || ckpt_state_is_same(found, expected))
        return SHOAL_OK;
    ckpt_state_text(expected, here);
    ckpt_state_text(found, there);
    fail(SHOAL_ERR_CONFIG, "checkpoint %s: %s of %s is %s there, %s in this run", ckpt->path,
         ckpt->kinds[want->kind], ckpt->tensors[want->tensor].name, there, here);
    fail_why(SHOAL_ERR_CONFIG, "states are loaded as they were saved, without conversion");
    return fail_hint(SHOAL_ERR_CONFIG,
                     "use the precision and state settings of the run that saved it");
}

static shoal_status add_piece(const struct ckpt *ckpt, const struct layout *layout,
                              const struct ckpt_piece *p, struct use_list *list)
{
    struct want want = {.begin = p->begin, .end = p->end, .to = p->data, .piece = p};
    struct state expected;

    SHOAL_TRY(ckpt_piece_check(layout, p, &expected));
    SHOAL_TRY(match_tensor(ckpt, &layout->tensors[p->tensor], &want.tensor));
    SHOAL_TRY(match_kind(ckpt, p->kind, &want.kind));
    SHOAL_TRY(match_items(ckpt, &want, &expected));
    return add_want(ckpt, &want, list);
}

shoal_status ckpt_read(struct ckpt *ckpt, const struct layout *layout, struct ckpt_piece *pieces,
                       size_t n_pieces)
{
    struct use_list list = {0};
    shoal_status status = SHOAL_OK;

    for (size_t i = 0; i < n_pieces && status == SHOAL_OK; i++)
        status = add_piece(ckpt, layout, &pieces[i], &list);
    if (status == SHOAL_OK)
        status = run_uses(ckpt, &list);
    free(list.uses);
    return status;
}

shoal_status ckpt_read_range(struct ckpt *ckpt, int tensor, int kind, int64_t begin, int64_t end,
                             void *out)
{
    struct want want = {.tensor = tensor, .kind = kind, .begin = begin, .end = end, .to = out};
    struct use_list list = {0};
    shoal_status status = add_want(ckpt, &want, &list);

    if (status == SHOAL_OK)
        status = run_uses(ckpt, &list);
    free(list.uses);
    return status;
}

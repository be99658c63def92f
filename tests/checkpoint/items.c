#include "tests/checkpoint/items.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

const struct item_kind item_kinds[ITEM_KINDS] = {
    {.name = "weight", .type = CKPT_BF16, .per = 1},
    {.name = "remainder", .type = CKPT_I16, .codec = "split16", .per = 1, .spell_length = true},
    {.name = "remainder8", .type = CKPT_I8, .codec = "split8", .per = 1},
    {.name = "exp_avg.q", .type = CKPT_U8, .codec = "dyn8/256", .per = 1},
    {.name = "exp_avg.scale", .type = CKPT_F32, .codec = "dyn8/256", .per = 256},
    {.name = "exp_avg_sq.packed_codes", .type = CKPT_U8, .codec = "fifteen_letters", .per = 2},
    {.name = "exp_avg_sq.scale", .type = CKPT_BF16, .codec = "lin4/64", .per = 64},
    {.name = "counts", .type = CKPT_U16, .per = 3},
    {.name = "per_head", .type = CKPT_F32, .fixed = 7, .only_tensor = 2},
};

static void add(struct layout *layout, const char *name, int64_t rows, int64_t columns)
{
    struct tensor t = {.role = ROLE_UP, .ndim = columns > 0 ? 2 : 1, .shape = {rows, columns}};

    snprintf(t.name, sizeof t.name, "%s", name);
    if (layout_add_tensor(layout, &t) != SHOAL_OK)
        abort();
}

struct layout *items_layout(bool big)
{
    struct layout *layout = NULL;

    if (layout_create(&layout) != SHOAL_OK || layout_add_unit(layout, "block.0") != SHOAL_OK)
        abort();
    add(layout, "h.0.w", 331, 63);
    add(layout, "h.0.attn", 5, 0);
    add(layout, "a.one", 1, 0);
    add(layout, "h.0.bias", 4099, 0);
    if (big)
        add(layout, "h.0.big", 2099, 2003);
    return layout;
}

bool items_have(int tensor, int kind)
{
    return item_kinds[kind].only_tensor == 0 || item_kinds[kind].only_tensor == tensor + 1;
}

int64_t items_count(const struct layout *layout, int tensor, int kind)
{
    const struct item_kind *k = &item_kinds[kind];

    return k->per == 0 ? k->fixed : (layout->tensors[tensor].n_elements + k->per - 1) / k->per;
}

unsigned char item_byte(int tensor, int kind, int64_t byte, int64_t step)
{
    uint64_t x = (uint64_t)byte * 0x9e3779b97f4a7c15u + (uint64_t)tensor * 1000003u +
                 (uint64_t)kind * 7919u + (uint64_t)step * 104729u;

    return (unsigned char)((x ^ x >> 31) * 0xbf58476d1ce4e5b9u >> 56);
}

/* ---- the device ---- */

void far_create(struct far_memory *device, size_t n_bytes)
{
    *device = (struct far_memory){.n_bytes = n_bytes};
    device->store = malloc(n_bytes + 1);
    device->address =
        mmap(NULL, n_bytes + 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (device->store == NULL || device->address == MAP_FAILED)
        abort();
}

void far_destroy(struct far_memory *device)
{
    if (device->store != NULL)
        munmap(device->address, device->n_bytes + 1);
    free(device->store);
}

static bool is_within_a_piece(const struct far_memory *d, const char *at, size_t n_bytes)
{
    for (size_t i = 0; i < d->n_pieces; i++) {
        const struct ckpt_piece *p = &d->pieces[i];
        size_t width = ckpt_type_bytes(p->type);
        size_t size = (size_t)(p->end - p->begin) * width;
        size_t from = (size_t)(at - (const char *)p->data);

        if (at >= (const char *)p->data && from < size)
            return n_bytes <= size - from && n_bytes % width == 0 && from % width == 0;
    }
    return false;
}

shoal_status far_copy(void *arg, void *dst, const void *src, size_t n_bytes, bool to_memory)
{
    struct far_memory *d = arg;
    const char *at = to_memory ? dst : src;
    size_t offset = (size_t)(at - d->address);

    if (!is_within_a_piece(d, at, n_bytes))
        return fail(SHOAL_ERR_INTERNAL, "test device: %zu bytes at %zu are no items of one piece",
                    n_bytes, offset);
    if (++d->n_copies == d->fail_copy)
        return fail(SHOAL_ERR_UNAVAILABLE, "test device: copy %d fails", d->n_copies);
    for (size_t i = 0; i < n_bytes; i++)
        if (to_memory)
            d->store[offset + i] = (unsigned char)~((const unsigned char *)src)[i];
        else
            ((unsigned char *)dst)[i] = (unsigned char)~d->store[offset + i];
    return SHOAL_OK;
}

/* ---- a rank's pieces ---- */

enum { CAPACITY = 1 << 16 };

static struct shard items_part(int64_t n, const struct items_cut *cut, bool replicated)
{
    if (replicated)
        return (struct shard){.begin = 0, .end = cut->rank == 0 ? n : 0};
    return (struct shard){.begin = n * cut->rank / cut->n_ranks,
                          .end = n * (cut->rank + 1) / cut->n_ranks};
}

/* Every other piece starts on a page, so that some go to disk without a copy. */
static void items_add(struct items *items, const struct items_cut *cut, int tensor, int kind)
{
    const struct item_kind *k = &item_kinds[kind];
    int64_t n = items_count(items->layout, tensor, kind);
    struct shard part = items_part(n, cut, k->per == 0);

    for (int64_t at = part.begin, end; at < part.end; at = end) {
        struct ckpt_piece *p = &items->pieces[items->n];
        size_t align = items->n++ % 2 == 0 ? 4096 : 64;

        if (items->n > CAPACITY)
            abort();
        end = cut->chunk > 0 && at + cut->chunk < part.end ? at + cut->chunk : part.end;
        *p = (struct ckpt_piece){.tensor = tensor, .type = k->type, .begin = at, .end = end};
        if (k->per != 1 || k->spell_length)
            p->n_items = n;
        snprintf(p->kind, sizeof p->kind, "%s", k->name);
        snprintf(p->codec, sizeof p->codec, "%s", k->codec != NULL ? k->codec : "");
        items->n_bytes = (items->n_bytes + align - 1) / align * align;
        /* The offset, until the memory is there. */
        p->data = (void *)items->n_bytes;
        items->n_bytes += (size_t)(end - at) * ckpt_type_bytes(k->type);
    }
}

void items_create(struct items *items, const struct layout *layout, const struct items_cut *cut)
{
    *items = (struct items){.layout = layout};
    items->pieces = calloc(CAPACITY, sizeof *items->pieces);
    for (int t = 0; t < layout->n_tensors; t++)
        for (int k = 0; k < ITEM_KINDS; k++)
            if (items_have(t, k))
                items_add(items, cut, t, k);
    if (cut->device)
        far_create(&items->device, items->n_bytes);
    else
        items->data = aligned_alloc(4096, items->n_bytes / 4096 * 4096 + 4096);
    items->device.pieces = items->pieces;
    items->device.n_pieces = items->n;
    for (size_t i = 0; i < items->n; i++) {
        struct ckpt_piece *p = &items->pieces[i];
        size_t offset = (size_t)p->data;

        p->data = (cut->device ? items->device.address : items->data) + offset;
        if (cut->device) {
            p->copy = far_copy;
            p->copy_arg = &items->device;
        }
    }
}

void items_destroy(struct items *items)
{
    far_destroy(&items->device);
    free(items->data);
    free(items->pieces);
}

static int kind_number(const char *name)
{
    for (int k = 0; k < ITEM_KINDS; k++)
        if (strcmp(item_kinds[k].name, name) == 0)
            return k;
    abort();
}

/* A piece's bytes as the test may touch them; *inverse: what to xor them with. */
static unsigned char *piece_bytes(const struct items *items, const struct ckpt_piece *p,
                                  unsigned char *inverse)
{
    *inverse = items->device.store != NULL ? 0xff : 0;
    return items->device.store != NULL
               ? items->device.store + ((char *)p->data - items->device.address)
               : p->data;
}

void items_fill(struct items *items, int64_t step)
{
    for (size_t i = 0; i < items->n; i++) {
        const struct ckpt_piece *p = &items->pieces[i];
        int64_t width = (int64_t)ckpt_type_bytes(p->type);
        int kind = kind_number(p->kind);
        unsigned char inverse;
        unsigned char *bytes = piece_bytes(items, p, &inverse);

        for (int64_t b = p->begin * width; b < p->end * width; b++)
            *bytes++ = item_byte(p->tensor, kind, b, step) ^ inverse;
    }
}

int64_t items_wrong(const struct items *items, int64_t step)
{
    int64_t wrong = 0;

    for (size_t i = 0; i < items->n; i++) {
        const struct ckpt_piece *p = &items->pieces[i];
        int64_t width = (int64_t)ckpt_type_bytes(p->type);
        int kind = kind_number(p->kind);
        unsigned char inverse;
        const unsigned char *bytes = piece_bytes(items, p, &inverse);

        for (int64_t b = p->begin * width; b < p->end * width; b++)
            wrong += (*bytes++ ^ inverse) != item_byte(p->tensor, kind, b, step);
    }
    return wrong;
}

/* ---- save and read ---- */

shoal_status items_save(struct comm *comm, void *arg)
{
    const struct items_job *job = arg;
    struct ckpt_store_params params = {.root = job->root, .staging_bytes = job->staging_bytes};
    struct ckpt_meta meta = {.step = job->step,
                             .run_uuid = "run",
                             .optimizer = "adamw",
                             .topology_json = "{\"zero_stage\": 2}"};
    struct items_cut cut = {.rank = comm_rank(comm),
                            .n_ranks = comm_size(comm),
                            .chunk = job->chunk,
                            .device = job->device};
    struct ckpt_store *store = NULL;
    struct items items;

    SHOAL_TRY(ckpt_store_open(comm, &params, &store));
    items_create(&items, job->layout, &cut);
    items.device.fail_copy = job->fail_copy;
    items_fill(&items, job->step);

    shoal_status status = ckpt_save(store, job->layout, items.pieces, items.n, &meta, NULL);

    items_destroy(&items);
    ckpt_store_close(store);
    return status;
}

shoal_status given_save(struct comm *comm, void *arg)
{
    const struct given *given = arg;
    struct ckpt_store_params params = {.root = given->root};
    struct ckpt_meta meta = {.step = 1};
    struct ckpt_store *store = NULL;
    size_t first = 0;

    SHOAL_TRY(ckpt_store_open(comm, &params, &store));
    for (int r = 0; r < comm_rank(comm); r++)
        first += given->n_of_rank[r];

    shoal_status status = ckpt_save(store, given->layout, given->pieces + first,
                                    given->n_of_rank[comm_rank(comm)], &meta, NULL);

    ckpt_store_close(store);
    return status;
}

shoal_status items_read_back(const char *path, const struct layout *layout, int n_ranks,
                             bool device, int64_t *step_out, int64_t *n_wrong_out)
{
    struct ckpt *ckpt = NULL;
    int64_t wrong = 0;

    SHOAL_TRY(ckpt_open(path, &ckpt));

    int64_t step = ckpt_meta(ckpt)->step;
    shoal_status status = SHOAL_OK;

    for (int r = 0; r < n_ranks && status == SHOAL_OK; r++) {
        struct items_cut cut = {.rank = r, .n_ranks = n_ranks, .chunk = 50001, .device = device};
        struct items items;

        items_create(&items, layout, &cut);
        items_fill(&items, step + 1); /* every byte must be written */
        status = ckpt_read(ckpt, layout, items.pieces, items.n);
        if (status == SHOAL_OK)
            wrong += items_wrong(&items, step);
        items_destroy(&items);
    }
    ckpt_close(ckpt);
    if (status == SHOAL_OK) {
        *step_out = step;
        *n_wrong_out = wrong;
    }
    return status;
}

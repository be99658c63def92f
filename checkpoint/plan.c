#include "checkpoint/checkpoint_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * What this rank will write: its pieces in order, neighbours merged into extents.  The update
 * pipeline cuts a shard into chunks; merging gives one dataset per tensor and kind again.
 */

static int by_element(const void *pa, const void *pb)
{
    const struct ckpt_piece *a = *(const struct ckpt_piece *const *)pa;
    const struct ckpt_piece *b = *(const struct ckpt_piece *const *)pb;

    if (a->tensor != b->tensor)
        return a->tensor < b->tensor ? -1 : 1;

    int kind = strcmp(a->kind, b->kind);

    if (kind != 0)
        return kind;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static shoal_status check_piece(const struct layout *layout, const struct ckpt_piece *p)
{
    if (p->tensor < 0 || p->tensor >= layout->n_tensors)
        return fail(SHOAL_ERR_INTERNAL, "checkpoint piece: tensor %d of %d", p->tensor,
                    layout->n_tensors);

    const struct tensor *t = &layout->tensors[p->tensor];

    if (!ckpt_name_is_valid(p->kind, sizeof p->kind) || strchr(p->kind, '@') != NULL)
        return fail(SHOAL_ERR_INTERNAL, "checkpoint piece of %s: bad state name", t->name);
    if (!ckpt_name_is_valid(t->name, sizeof t->name))
        return fail(SHOAL_ERR_INTERNAL, "checkpoint: tensor %d has a name that cannot be stored",
                    p->tensor);
    if (p->begin < 0 || p->begin > p->end || p->end > t->n_elements ||
        (p->data == NULL && p->begin < p->end))
        return fail(SHOAL_ERR_INTERNAL,
                    "checkpoint piece: %s of %s: elements %" PRId64 "..%" PRId64 " of %" PRId64
                    "%s",
                    p->kind, t->name, p->begin, p->end, t->n_elements,
                    p->data == NULL ? ", no memory given" : "");
    return SHOAL_OK;
}

static shoal_status find_kinds(struct save_plan *plan)
{
    for (size_t i = 0; i < plan->n_pieces; i++) {
        const char *kind = plan->pieces[i]->kind;
        size_t k = 0;

        while (k < plan->n_kinds && strcmp(plan->kinds[k], kind) != 0)
            k++;
        if (k < plan->n_kinds)
            continue;
        if (plan->n_kinds == CKPT_MAX_KINDS)
            return fail(SHOAL_ERR_INTERNAL, "checkpoint: more than %d state kinds", CKPT_MAX_KINDS);
        /* The field is zero-filled: these bytes go to the manifest as they are. */
        memcpy(plan->kinds[plan->n_kinds++], kind, strlen(kind));
    }
    qsort(plan->kinds, plan->n_kinds, sizeof plan->kinds[0], by_text);
    return SHOAL_OK;
}

static int kind_index(const struct save_plan *plan, const char *kind)
{
    return (int)(((const char(*)[CKPT_KIND_BYTES])bsearch(kind, plan->kinds, plan->n_kinds,
                                                          sizeof plan->kinds[0], by_text)) -
                 (const char(*)[CKPT_KIND_BYTES])plan->kinds);
}

static shoal_status merge_pieces(const struct layout *layout, struct save_plan *plan)
{
    for (size_t i = 0; i < plan->n_pieces; i++) {
        const struct ckpt_piece *p = plan->pieces[i];
        int kind = kind_index(plan, p->kind);
        struct extent *last = plan->n_extents > 0 ? &plan->extents[plan->n_extents - 1] : NULL;

        if (last != NULL && last->tensor == p->tensor && last->kind == kind) {
            if (p->begin < last->end)
                return fail(SHOAL_ERR_INTERNAL,
                            "checkpoint: %s of %s: elements from %" PRId64 " are given twice",
                            p->kind, layout->tensors[p->tensor].name, p->begin);
            if (p->begin == last->end) {
                last->end = p->end;
                last->n_pieces++;
                continue;
            }
        }
        plan->extents[plan->n_extents++] = (struct extent){.tensor = p->tensor,
                                                           .kind = kind,
                                                           .begin = p->begin,
                                                           .end = p->end,
                                                           .first_piece = i,
                                                           .n_pieces = 1};
    }
    for (size_t i = 0; i < plan->n_extents; i++) {
        struct extent *e = &plan->extents[i];
        uint64_t n_bytes = (uint64_t)(e->end - e->begin) * sizeof(float);

        e->first_block = plan->n_blocks;
        e->n_blocks = shard_blocks(n_bytes);
        plan->n_blocks += e->n_blocks;
        plan->payload_bytes += n_bytes;
    }
    return SHOAL_OK;
}

shoal_status ckpt_save_plan_create(const struct layout *layout, const struct ckpt_piece *pieces,
                                   size_t n_pieces, struct save_plan *plan_out)
{
    struct save_plan plan = {0};
    shoal_status status = SHOAL_OK;

    plan.pieces = calloc(n_pieces + 1, sizeof *plan.pieces);
    plan.extents = calloc(n_pieces + 1, sizeof *plan.extents);
    if (plan.pieces == NULL || plan.extents == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "checkpoint: no memory to plan %zu pieces", n_pieces);
        goto err_destroy;
    }
    for (size_t i = 0; i < n_pieces; i++) {
        SHOAL_TRY_GOTO(check_piece(layout, &pieces[i]), err_destroy);
        if (pieces[i].begin < pieces[i].end)
            plan.pieces[plan.n_pieces++] = &pieces[i];
    }
    qsort(plan.pieces, plan.n_pieces, sizeof *plan.pieces, by_element);
    SHOAL_TRY_GOTO(find_kinds(&plan), err_destroy);
    SHOAL_TRY_GOTO(merge_pieces(layout, &plan), err_destroy);
    plan.crcs = calloc((size_t)plan.n_blocks + 1, sizeof *plan.crcs);
    if (plan.crcs == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "checkpoint: no memory for %u checksums", plan.n_blocks);
        goto err_destroy;
    }
    *plan_out = plan;
    return SHOAL_OK;

err_destroy:
    ckpt_save_plan_destroy(&plan);
    return status;
}

void ckpt_save_plan_destroy(struct save_plan *plan)
{
    free(plan->crcs);
    free(plan->extents);
    free(plan->pieces);
    *plan = (struct save_plan){0};
}

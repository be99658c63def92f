#include "checkpoint/save_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * What this rank will write: its pieces in order, neighbours merged into extents.  The update
 * pipeline cuts a shard into chunks; merging gives one dataset per tensor and kind again.
 */

static int by_item(const void *pa, const void *pb)
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

/* Extend `last` by a piece that begins where it ends; false if the piece begins a new extent. */
static shoal_status try_extend(const char *tensor, struct extent *last, const struct ckpt_piece *p,
                               const struct state *state, bool *extended_out)
{
    char one[STATE_TEXT_BYTES];
    char other[STATE_TEXT_BYTES];

    *extended_out = false;
    if (last->state.tensor != state->tensor || last->state.kind != state->kind)
        return SHOAL_OK;
    if (!ckpt_state_is_same(&last->state, state)) {
        ckpt_state_text(&last->state, one);
        ckpt_state_text(state, other);
        return fail(SHOAL_ERR_INTERNAL, "checkpoint: %s of %s is given as %s and as %s", p->kind,
                    tensor, one, other);
    }
    if (p->begin < last->end)
        return fail(SHOAL_ERR_INTERNAL,
                    "checkpoint: %s of %s: items from %" PRId64 " are given twice", p->kind, tensor,
                    p->begin);
    if (p->begin == last->end) {
        last->end = p->end;
        last->n_pieces++;
        *extended_out = true;
    }
    return SHOAL_OK;
}

static shoal_status merge_pieces(const struct layout *layout, struct save_plan *plan)
{
    for (size_t i = 0; i < plan->n_pieces; i++) {
        const struct ckpt_piece *p = plan->pieces[i];
        const char *tensor = layout->tensors[p->tensor].name;
        struct state state;
        bool extended = false;

        SHOAL_TRY(ckpt_piece_check(layout, p, &state));
        state.kind = (uint32_t)kind_index(plan, p->kind);
        if (plan->n_extents > 0)
            SHOAL_TRY(
                try_extend(tensor, &plan->extents[plan->n_extents - 1], p, &state, &extended));
        if (!extended)
            plan->extents[plan->n_extents++] = (struct extent){
                .state = state, .begin = p->begin, .end = p->end, .first_piece = i, .n_pieces = 1};
    }
    return SHOAL_OK;
}

static void count_blocks(struct save_plan *plan)
{
    for (size_t i = 0; i < plan->n_extents; i++) {
        struct extent *e = &plan->extents[i];

        e->first_block = plan->n_blocks;
        e->n_blocks = shard_blocks(extent_bytes(e));
        plan->n_blocks += e->n_blocks;
        plan->payload_bytes += extent_bytes(e);
    }
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
        struct state state;

        SHOAL_TRY_GOTO(ckpt_piece_check(layout, &pieces[i], &state), err_destroy);
        if (pieces[i].begin < pieces[i].end)
            plan.pieces[plan.n_pieces++] = &pieces[i];
    }
    qsort(plan.pieces, plan.n_pieces, sizeof *plan.pieces, by_item);
    SHOAL_TRY_GOTO(find_kinds(&plan), err_destroy);
    SHOAL_TRY_GOTO(merge_pieces(layout, &plan), err_destroy);
    count_blocks(&plan);
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

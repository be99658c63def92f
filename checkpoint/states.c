#include "checkpoint/checkpoint_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * Types of items, and the table that says for each (tensor, kind) what its items are.  It is taken
 * from files with every number checked; the shard table is then checked against it.
 */

static const struct {
    char name[CKPT_TYPE_NAME_BYTES];
    size_t n_bytes;
} types[CKPT_TYPE_COUNT] = {
    [CKPT_F32] = {"f32", 4}, [CKPT_BF16] = {"bf16", 2}, [CKPT_U8] = {"u8", 1},
    [CKPT_I8] = {"i8", 1},   [CKPT_U16] = {"u16", 2},   [CKPT_I16] = {"i16", 2},
};

size_t ckpt_type_bytes(enum ckpt_type type)
{
    return types[type].n_bytes;
}

const char *ckpt_type_name(enum ckpt_type type)
{
    return types[type].name;
}

static bool find_type(const char name[CKPT_TYPE_NAME_BYTES], enum ckpt_type *type_out)
{
    for (int t = 0; t < CKPT_TYPE_COUNT; t++)
        if (strncmp(types[t].name, name, CKPT_TYPE_NAME_BYTES) == 0) {
            *type_out = (enum ckpt_type)t;
            return true;
        }
    return false;
}

/* Terminated, one printable word or nothing. */
static bool codec_is_valid(const char codec[CKPT_CODEC_BYTES])
{
    size_t n = strnlen(codec, CKPT_CODEC_BYTES);

    if (n == CKPT_CODEC_BYTES)
        return false;
    for (size_t i = 0; i < n; i++)
        if (codec[i] <= 0x20 || codec[i] >= 0x7f)
            return false;
    return true;
}

void ckpt_state_text(const struct state *state, char out[STATE_TEXT_BYTES])
{
    snprintf(out, STATE_TEXT_BYTES, "%" PRId64 " x %s, %s%s", state->n_items,
             ckpt_type_name(state->type), state->codec[0] != '\0' ? "codec " : "no codec",
             state->codec);
}

bool ckpt_state_is_same(const struct state *a, const struct state *b)
{
    return a->type == b->type && a->n_items == b->n_items && strcmp(a->codec, b->codec) == 0;
}

static shoal_status check_piece_names(const struct layout *layout, const struct ckpt_piece *p)
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
    return SHOAL_OK;
}

shoal_status ckpt_piece_check(const struct layout *layout, const struct ckpt_piece *p,
                              struct state *state_out)
{
    SHOAL_TRY(check_piece_names(layout, p));

    const char *name = layout->tensors[p->tensor].name;
    struct state state = {.tensor = (uint32_t)p->tensor, .type = p->type, .n_items = p->n_items};

    if ((unsigned)p->type >= CKPT_TYPE_COUNT || !codec_is_valid(p->codec))
        return fail(SHOAL_ERR_INTERNAL, "checkpoint piece: %s of %s: bad %s", p->kind, name,
                    codec_is_valid(p->codec) ? "type" : "codec");
    if (p->n_items == 0)
        state.n_items = layout->tensors[p->tensor].n_elements;
    if (state.n_items < 0 || state.n_items > CKPT_MAX_ITEMS || p->begin < 0 || p->begin > p->end ||
        p->end > state.n_items || (p->data == NULL && p->begin < p->end))
        return fail(SHOAL_ERR_INTERNAL,
                    "checkpoint piece: %s of %s: items %" PRId64 "..%" PRId64 " of %" PRId64 "%s",
                    p->kind, name, p->begin, p->end, state.n_items,
                    p->data == NULL ? ", no memory given" : "");
    memcpy(state.codec, p->codec, strlen(p->codec));
    *state_out = state;
    return SHOAL_OK;
}

/* ---- the table ---- */

static int by_tensor(const void *pa, const void *pb)
{
    const struct state *a = pa;
    const struct state *b = pb;

    if (a->tensor != b->tensor)
        return a->tensor < b->tensor ? -1 : 1;
    return a->kind < b->kind ? -1 : a->kind > b->kind;
}

shoal_status ckpt_states_unite(shoal_status code, const char *where,
                               const struct shard_space *space, struct state *states, size_t *n)
{
    size_t kept = 0;

    qsort(states, *n, sizeof *states, by_tensor);
    for (size_t i = 0; i < *n; i++) {
        const struct state *last = &states[kept > 0 ? kept - 1 : 0];

        if (kept == 0 || by_tensor(last, &states[i]) != 0) {
            states[kept++] = states[i];
        } else if (!ckpt_state_is_same(last, &states[i])) {
            char one[STATE_TEXT_BYTES];
            char other[STATE_TEXT_BYTES];

            ckpt_state_text(last, one);
            ckpt_state_text(&states[i], other);
            return fail(code, "%s: %s of %s is given as %s and as %s", where,
                        space->kinds[last->kind], space->tensors[last->tensor].name, one, other);
        }
    }
    *n = kept;
    return SHOAL_OK;
}

static shoal_status take_state(const char *where, const struct shard_space *space,
                               const struct state_row *row, size_t index, struct state *state)
{
    if (row->tensor >= space->n_tensors || row->kind >= space->n_kinds)
        return fail(SHOAL_ERR_DATA, "%s: state %zu names a tensor or kind that does not exist",
                    where, index);

    const char *kind = space->kinds[row->kind];
    const char *name = space->tensors[row->tensor].name;

    if (!find_type(row->type, &state->type))
        return fail(SHOAL_ERR_DATA, "%s: %s of %s: items of type %.8s, not known to this program",
                    where, kind, name, row->type);
    if (row->n_items < 1 || row->n_items > CKPT_MAX_ITEMS)
        return fail(SHOAL_ERR_DATA, "%s: %s of %s: %" PRId64 " items", where, kind, name,
                    row->n_items);
    if (!codec_is_valid(row->codec))
        return fail(SHOAL_ERR_DATA, "%s: %s of %s: its codec's name is not printable", where, kind,
                    name);
    state->tensor = row->tensor;
    state->kind = row->kind;
    state->n_items = row->n_items;
    memcpy(state->codec, row->codec, strlen(row->codec));
    return SHOAL_OK;
}

shoal_status ckpt_states_take(const char *where, const struct shard_space *space,
                              const struct state_row *rows, size_t n, struct state **states_out)
{
    struct state *states = calloc(n, sizeof *states);
    size_t kept = n;
    shoal_status status = SHOAL_OK;

    if (states == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %zu states", where, n);
    for (size_t i = 0; i < n; i++)
        SHOAL_TRY_GOTO(take_state(where, space, &rows[i], i, &states[i]), err_free);
    SHOAL_TRY_GOTO(ckpt_states_unite(SHOAL_ERR_DATA, where, space, states, &kept), err_free);
    if (kept != n) {
        status = fail(SHOAL_ERR_DATA, "%s: %zu states are listed twice", where, n - kept);
        goto err_free;
    }
    *states_out = states;
    return SHOAL_OK;

err_free:
    free(states);
    return status;
}

shoal_status ckpt_states_of_version_1(const char *where, const struct shard_space *space,
                                      const struct shard_row *rows, size_t n_rows,
                                      struct state **states_out, size_t *n_out)
{
    struct state *states = calloc(n_rows, sizeof *states);
    size_t n = 0;

    if (states == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %zu states", where, n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        struct state state = {.tensor = rows[i].tensor, .kind = rows[i].kind, .type = CKPT_F32};

        /* A row out of range is the shard table's to report. */
        if (state.tensor >= space->n_tensors || state.kind >= space->n_kinds)
            continue;
        state.n_items = space->tensors[state.tensor].n_elements;
        if (n == 0 || by_tensor(&states[n - 1], &state) != 0)
            states[n++] = state;
    }
    *states_out = states;
    *n_out = n;
    return SHOAL_OK;
}

struct state_row ckpt_state_row(const struct state *state)
{
    struct state_row row = {
        .tensor = state->tensor, .kind = state->kind, .n_items = state->n_items};

    memcpy(row.type, types[state->type].name, sizeof row.type);
    memcpy(row.codec, state->codec, sizeof row.codec);
    return row;
}

const struct state *ckpt_states_find(const struct shard_space *space, uint32_t tensor,
                                     uint32_t kind)
{
    struct state key = {.tensor = tensor, .kind = kind};

    return space->n_states == 0
               ? NULL
               : bsearch(&key, space->states, space->n_states, sizeof key, by_tensor);
}

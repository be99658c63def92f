#include "launch/train/train_internal.h"
#include "optim/stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Optimizer state of another codec: read as it was stored, decoded to fp32, encoded as this run
 * keeps it.  Not exact, so only when asked for.  Scales of rows and columns are those of the whole
 * tensor: each rank reads all of it to find them.
 */

enum { CHUNK = 1 << 20 /* elements of a tensor that are read at a time for its scales */ };

/* The largest of each row and each column. */
struct maxima {
    float *row, *col;
};

struct conversion {
    struct trainer *trainer;
    struct ckpt *ckpt;
    int tensor, state;
    struct shard part;
    const struct optim_codec *from, *to;
    struct maxima from_maxima, to_maxima; /* NULL where scales are those of blocks */
};

/* The codec that the checkpoint names; NULL: the one we want, or there is no such state. */
static shoal_status other_codec(const struct ckpt *ckpt, const struct tensor *tensor,
                                const char *kind, const struct optim_codec *wanted,
                                const struct optim_codec **codec_out, bool *rank1_out)
{
    char name[CKPT_CODEC_BYTES];
    struct ckpt_items items;
    const struct optim_codec *found = NULL;

    *codec_out = NULL;
    if (!ckpt_find_items(ckpt, tensor->name, kind, &items))
        return SHOAL_OK;
    if (items.codec[0] != '\0')
        snprintf(name, sizeof name, "%.*s", (int)strcspn(items.codec, "/"), items.codec);
    else
        snprintf(name, sizeof name, "%s", items.type == CKPT_BF16 ? "bf16" : "fp32");
    SHOAL_TRY(codec_find(name, &found));
    if (found != wanted)
        *codec_out = found;
    *rank1_out = found->encode_scaled != NULL && strchr(items.codec, '/') == NULL;
    return SHOAL_OK;
}

static const struct tensor *tensor_of(const struct conversion *c)
{
    return &c->trainer->build->layout->tensors[c->tensor];
}

static const char *kind_of(const struct conversion *c)
{
    return c->trainer->build->setup->tensors[c->tensor].rule->state_names[c->state];
}

static enum codec_sign sign_of(const struct conversion *c)
{
    const struct optim_rule *rule = c->trainer->build->setup->tensors[c->tensor].rule;

    return rule->state_unsigned[c->state] ? CODEC_UNSIGNED : CODEC_SIGNED;
}

static void *allocate(size_t n_bytes, shoal_status *status)
{
    void *memory = calloc(1, n_bytes + 64);

    if (memory == NULL)
        *status = fail(SHOAL_ERR_NOMEM, "checkpoint: cannot allocate %zu bytes", n_bytes);
    return memory;
}

/* One scale per element of `range`; freed by the caller. */
static float *scales_of(const struct conversion *c, const struct maxima *maxima, struct shard range,
                        shoal_status *status)
{
    const size_t n = (size_t)(range.end - range.begin);
    float *scales = allocate(n * sizeof *scales, status);

    if (scales != NULL)
        codec_rank1_scales(maxima->row, maxima->col, tensor_of(c)->shape[1], range.begin, n,
                           scales);
    return scales;
}

/* Read both planes of elements in `range` as they are stored. */
static shoal_status read_planes(const struct conversion *c, struct shard range, void *codes,
                                void *scales)
{
    const bool blocks = c->from->block > 0 && c->from_maxima.row == NULL;
    const int64_t n_elements = tensor_of(c)->n_elements;
    struct ckpt_piece pieces[2] = {{.tensor = c->tensor}, {.tensor = c->tensor}};

    piece_codes(c->from, c->from_maxima.row != NULL, n_elements, range, &pieces[0]);
    pieces[0].data = codes;
    snprintf(pieces[0].kind, sizeof pieces[0].kind, "%s", kind_of(c));
    if (blocks) {
        piece_scales(c->from, n_elements, range, &pieces[1]);
        pieces[1].data = scales;
        snprintf(pieces[1].kind, sizeof pieces[1].kind, "%.17s.scale", kind_of(c));
    }
    return ckpt_read(c->ckpt, c->trainer->build->layout, pieces, blocks ? 2 : 1);
}

/* Elements in `range`, which begins at a quantum, as fp32. */
static shoal_status read_values(const struct conversion *c, struct shard range, float *x)
{
    const size_t n = (size_t)(range.end - range.begin);
    const bool rank1 = c->from_maxima.row != NULL;
    shoal_status status = SHOAL_OK;
    void *codes = allocate(codec_code_bytes(c->from, n), &status);
    void *scales = rank1 ? scales_of(c, &c->from_maxima, range, &status)
                         : allocate(codec_scale_bytes(c->from, n), &status);

    if (status == SHOAL_OK)
        status = read_planes(c, range, codes, scales);
    if (status == SHOAL_OK) {
        if (rank1)
            c->from->decode_scaled(codes, scales, n, x);
        else
            c->from->decode[sign_of(c)](codes, scales, n, x);
    }
    free(codes);
    free(scales);
    return status;
}

/* Encode x into fresh planes and copy these to where the state rests. */
static shoal_status write_planes(const struct conversion *c, const float *x)
{
    const struct build *build = c->trainer->build;
    const struct optim_tensor *state = &build->setup->tensors[c->tensor];
    const struct shard owned = build_owned(build, tensor_of(c)->unit);
    const struct device_ops *ops = c->trainer->device->ops;
    const size_t n = (size_t)(c->part.end - c->part.begin);
    const size_t n_bytes[2] = {codec_code_bytes(c->to, n), codec_scale_bytes(c->to, n)};
    const int kinds[2] = {state->codes[c->state], state->scales[c->state]};
    const bool rank1 = c->to_maxima.row != NULL;
    shoal_status status = SHOAL_OK;
    void *codes = allocate(n_bytes[0], &status);
    void *scales =
        rank1 ? scales_of(c, &c->to_maxima, c->part, &status) : allocate(n_bytes[1], &status);

    if (status == SHOAL_OK) {
        if (rank1)
            c->to->encode_scaled(x, scales, n, codes);
        else
            c->to->encode[sign_of(c)](x, n, codes, scales);
    }
    for (int plane = 0; plane < 2 && status == SHOAL_OK; plane++) {
        if (kinds[plane] < 0)
            continue;
        char *to = plan_ref(build->plan,
                            build->kinds[tensor_of(c)->unit * OPTIM_MAX_KINDS + kinds[plane]]);
        status = ops->copy(c->trainer->device,
                           to + optim_kind_offset(build->setup, c->tensor, kinds[plane], owned),
                           plane == 0 ? codes : scales, n_bytes[plane]);
    }
    free(codes);
    free(scales);
    return status;
}

/* The scales that the checkpoint has; freed by the caller. */
static shoal_status read_maxima(struct conversion *c)
{
    const int64_t *shape = tensor_of(c)->shape;
    struct ckpt_piece pieces[2] = {
        {.tensor = c->tensor, .kind = STATS_ROW_MAX, .n_items = shape[0], .end = shape[0]},
        {.tensor = c->tensor, .kind = STATS_COL_MAX, .n_items = shape[1], .end = shape[1]}};
    shoal_status status = SHOAL_OK;

    c->from_maxima.row = allocate((size_t)shape[0] * sizeof(float), &status);
    c->from_maxima.col = allocate((size_t)shape[1] * sizeof(float), &status);
    SHOAL_TRY(status);
    pieces[0].data = c->from_maxima.row;
    pieces[1].data = c->from_maxima.col;
    return ckpt_read(c->ckpt, c->trainer->build->layout, pieces, 2);
}

/* The scales that this run's codes have, where it keeps them. */
static shoal_status find_maxima(struct conversion *c)
{
    const struct build *build = c->trainer->build;
    const struct tensor *tensor = tensor_of(c);
    shoal_status status = SHOAL_OK;
    float *x = allocate(CHUNK * sizeof *x, &status);

    optim_rank1_vectors(build->setup, c->tensor,
                        plan_ref(build->plan, build->host_vectors[tensor->unit]), &c->to_maxima.row,
                        &c->to_maxima.col);
    memset(c->to_maxima.row, 0, (size_t)tensor->shape[0] * sizeof(float));
    memset(c->to_maxima.col, 0, (size_t)tensor->shape[1] * sizeof(float));
    for (int64_t at = 0; at < tensor->n_elements && status == SHOAL_OK; at += CHUNK) {
        const int64_t rest = tensor->n_elements - at;
        const struct shard range = {at, at + (rest < CHUNK ? rest : CHUNK)};

        status = read_values(c, range, x);
        if (status == SHOAL_OK)
            codec_rank1_maxima(x, tensor->shape[1], at, (size_t)(range.end - at), c->to_maxima.row,
                               c->to_maxima.col);
    }
    free(x);
    return status;
}

static shoal_status convert_part(const struct conversion *c)
{
    const size_t n = (size_t)(c->part.end - c->part.begin);
    shoal_status status = SHOAL_OK;

    if (n == 0)
        return SHOAL_OK;

    float *x = allocate(n * sizeof *x, &status);
    if (status == SHOAL_OK)
        status = read_values(c, c->part, x);
    if (status == SHOAL_OK)
        status = write_planes(c, x);
    free(x);
    return status;
}

static shoal_status convert(struct conversion *c, bool from_rank1, bool to_rank1)
{
    shoal_status status = from_rank1 ? read_maxima(c) : SHOAL_OK;

    if (status == SHOAL_OK && to_rank1)
        status = find_maxima(c);
    if (status == SHOAL_OK)
        status = convert_part(c);
    free(c->from_maxima.row);
    free(c->from_maxima.col);
    c->from_maxima = c->to_maxima = (struct maxima){0};
    return status;
}

static void take_out(struct state_pieces *pieces, int tensor, const char *kind)
{
    size_t kept = 0;

    for (size_t i = 0; i < pieces->n; i++)
        if (pieces->pieces[i].tensor != tensor || strcmp(pieces->pieces[i].kind, kind) != 0)
            pieces->pieces[kept++] = pieces->pieces[i];
    pieces->n = kept;
}

shoal_status state_convert(struct trainer *trainer, struct ckpt *ckpt, struct state_pieces *pieces,
                           size_t *n_out)
{
    const struct build *build = trainer->build;

    *n_out = 0;
    for (int t = 0; t < build->layout->n_tensors; t++) {
        const struct tensor *tensor = &build->layout->tensors[t];
        const struct optim_tensor *state = &build->setup->tensors[t];
        struct conversion c = {.trainer = trainer, .ckpt = ckpt, .tensor = t};

        c.part = layout_tensor_part(tensor, build_owned(build, tensor->unit));
        for (c.state = 0; c.state < state->rule->n_states; c.state++) {
            bool from_rank1 = false;

            c.to = state->codecs[c.state];
            SHOAL_TRY(other_codec(ckpt, tensor, kind_of(&c), c.to, &c.from, &from_rank1));
            if (c.from == NULL)
                continue;
            take_out(pieces, t, build->setup->kinds[state->codes[c.state]]);
            if (state->scales[c.state] >= 0)
                take_out(pieces, t, build->setup->kinds[state->scales[c.state]]);
            if (c.state == state->rank1) {
                take_out(pieces, t, STATS_ROW_MAX);
                take_out(pieces, t, STATS_COL_MAX);
            }
            SHOAL_TRY(convert(&c, from_rank1, c.state == state->rank1));
            ++*n_out;
        }
    }
    return SHOAL_OK;
}

#include "launch/train/train_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Optimizer state of another codec: read as it was stored, decoded to fp32, encoded as this run
 * keeps it.  Not exact, so only when asked for.
 */

struct conversion {
    struct trainer *trainer;
    struct ckpt *ckpt;
    int tensor, state;
    struct shard part;
    const struct optim_codec *from, *to;
};

/* The codec that the checkpoint names; NULL: the one we want, or there is no such state. */
static shoal_status other_codec(const struct ckpt *ckpt, const struct tensor *tensor,
                                const char *kind, const struct optim_codec *wanted,
                                const struct optim_codec **codec_out)
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
    return SHOAL_OK;
}

/* Read both planes of the part as they are stored; both are freed by the caller. */
static shoal_status read_planes(const struct conversion *c, const char *kind, void **codes_out,
                                void **scales_out)
{
    const struct layout *layout = c->trainer->build->layout;
    const int64_t n_elements = layout->tensors[c->tensor].n_elements;
    const size_t n = (size_t)(c->part.end - c->part.begin);
    struct ckpt_piece pieces[2] = {{.tensor = c->tensor}, {.tensor = c->tensor}};

    *codes_out = calloc(1, codec_code_bytes(c->from, n) + 1);
    *scales_out = calloc(1, codec_scale_bytes(c->from, n) + 1);
    if (*codes_out == NULL || *scales_out == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint: cannot allocate %zu elements of %s", n, kind);
    piece_codes(c->from, n_elements, c->part, &pieces[0]);
    pieces[0].data = *codes_out;
    snprintf(pieces[0].kind, sizeof pieces[0].kind, "%s", kind);
    if (c->from->block > 0) {
        piece_scales(c->from, n_elements, c->part, &pieces[1]);
        pieces[1].data = *scales_out;
        snprintf(pieces[1].kind, sizeof pieces[1].kind, "%.17s.scale", kind);
    }
    return ckpt_read(c->ckpt, layout, pieces, c->from->block > 0 ? 2 : 1);
}

/* Encode x into fresh planes and copy these to where the state rests. */
static shoal_status write_planes(const struct conversion *c, const float *x)
{
    const struct build *build = c->trainer->build;
    const struct optim_tensor *state = &build->setup->tensors[c->tensor];
    const struct tensor *tensor = &build->layout->tensors[c->tensor];
    const struct shard owned = build_owned(build, tensor->unit);
    const struct device_ops *ops = c->trainer->device->ops;
    const size_t n = (size_t)(c->part.end - c->part.begin);
    const size_t n_codes = codec_code_bytes(c->to, n), n_scales = codec_scale_bytes(c->to, n);
    char *planes = calloc(1, n_codes + n_scales + 64);
    shoal_status status = SHOAL_OK;

    if (planes == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint: cannot allocate %zu bytes", n_codes + n_scales);
    char *scales = planes + (n_codes + 63) / 64 * 64;
    c->to->encode[state->rule->state_unsigned[c->state]](x, n, planes, scales);
    for (int plane = 0; plane < 2 && status == SHOAL_OK; plane++) {
        const int kind = plane == 0 ? state->codes[c->state] : state->scales[c->state];
        if (kind < 0)
            continue;
        char *to = plan_ref(build->plan, build->kinds[tensor->unit * OPTIM_MAX_KINDS + kind]);
        status = ops->copy(c->trainer->device,
                           to + optim_kind_offset(build->setup, c->tensor, kind, owned),
                           plane == 0 ? planes : scales, plane == 0 ? n_codes : n_scales);
    }
    free(planes);
    return status;
}

static shoal_status convert(const struct conversion *c)
{
    const struct optim_rule *rule = c->trainer->build->setup->tensors[c->tensor].rule;
    const size_t n = (size_t)(c->part.end - c->part.begin);
    void *codes = NULL, *scales = NULL;
    float *x = calloc(n + 1, sizeof *x);
    shoal_status status = SHOAL_OK;

    if (x == NULL)
        status = fail(SHOAL_ERR_NOMEM, "checkpoint: cannot allocate %zu elements", n);
    if (status == SHOAL_OK)
        status = read_planes(c, rule->state_names[c->state], &codes, &scales);
    if (status == SHOAL_OK) {
        c->from->decode[rule->state_unsigned[c->state]](codes, scales, n, x);
        status = write_planes(c, x);
    }
    free(codes);
    free(scales);
    free(x);
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
            c.to = state->codecs[c.state];
            SHOAL_TRY(other_codec(ckpt, tensor, state->rule->state_names[c.state], c.to, &c.from));
            if (c.from == NULL)
                continue;
            take_out(pieces, t, build->setup->kinds[state->codes[c.state]]);
            if (state->scales[c.state] >= 0)
                take_out(pieces, t, build->setup->kinds[state->scales[c.state]]);
            if (c.part.begin < c.part.end)
                SHOAL_TRY(convert(&c));
            ++*n_out;
        }
    }
    return SHOAL_OK;
}

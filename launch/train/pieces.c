#include "launch/train/train_internal.h"

#include "optim/stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a rank saves and loads, as pieces of tensors. */

static shoal_status copy_by_device(void *arg, void *dst, const void *src, size_t n_bytes,
                                   bool to_memory)
{
    struct device *device = arg;

    (void)to_memory;
    return device->ops->copy(device, dst, src, n_bytes);
}

struct piece_builder {
    struct trainer *trainer;
    struct state_pieces *out;
    bool stored;
};

static struct ckpt_piece *add(struct piece_builder *b, int tensor, const char *kind, void *data)
{
    struct ckpt_piece *piece = &b->out->pieces[b->out->n++];
    struct device *device = b->trainer->device;

    *piece = (struct ckpt_piece){.tensor = tensor, .data = data};
    snprintf(piece->kind, sizeof piece->kind, "%s", kind);
    if (device->ops->separate) {
        piece->copy = copy_by_device;
        piece->copy_arg = device;
    }
    return piece;
}

/* The average, computed when it is saved; nothing is loaded into it. */
static void add_average(struct piece_builder *b, int t, struct shard part)
{
    struct weights_view *view = &b->out->views[2 * t + 1];
    struct ckpt_piece *piece = add(b, t, "master", NULL);

    piece->begin = part.begin;
    piece->end = part.end;
    *view = (struct weights_view){
        .trainer = b->trainer, .tensor = t, .begin = part.begin, .average = true};
    weights_view_piece(view, piece);
}

/* The weights that are trained: what "master" is, unless their average is. */
static void add_weights(struct piece_builder *b, int t, struct shard part)
{
    const struct build *build = b->trainer->build;
    const struct tensor *tensor = &build->layout->tensors[t];
    const int64_t at = tensor->offset + part.begin - build_owned(build, tensor->unit).begin;
    float *master = plan_ref(build->plan, build->master[tensor->unit]);
    const bool averaged = build->setup->tensors[t].rule->average != NULL;
    struct ckpt_piece *piece = add(b, t, averaged ? STATE_TRAINED : "master", NULL);

    if (averaged && b->stored)
        add_average(b, t, part);
    piece->begin = part.begin;
    piece->end = part.end;
    if (build->setup->master->bits == 32) {
        piece->data = master + at;
        return;
    }
    struct weights_view *view = &b->out->views[2 * t];
    *view = (struct weights_view){.trainer = b->trainer, .tensor = t, .begin = part.begin};
    weights_view_piece(view, piece);
}

static const enum ckpt_type type_of_bits[] = {
    [1] = CKPT_U8, [2] = CKPT_BF16, [4] = CKPT_F32}; /* by bytes */

void piece_codec_name(const struct optim_codec *codec, char out[CKPT_CODEC_BYTES])
{
    if (codec->block == 0)
        out[0] = '\0';
    else
        snprintf(out, CKPT_CODEC_BYTES, "%.11s/%d", codec->name, codec->block);
}

/* Codes of less than a byte are stored packed: an item is a byte then. */
void piece_codes(const struct optim_codec *codec, bool rank1, int64_t n_elements, struct shard part,
                 struct ckpt_piece *piece)
{
    const size_t bytes = codec->bits < 8 ? 1 : (size_t)codec->bits / 8;

    piece->type = type_of_bits[bytes];
    piece->n_items = (int64_t)(codec_code_bytes(codec, (size_t)n_elements) / bytes);
    piece->begin = (int64_t)(codec_code_bytes(codec, (size_t)part.begin) / bytes);
    piece->end = (int64_t)(codec_code_bytes(codec, (size_t)part.end) / bytes);
    piece_codec_name(codec, piece->codec);
    if (rank1)
        snprintf(piece->codec, sizeof piece->codec, "%s", codec->name); /* no blocks */
    if (codec->block == 0)
        piece->n_items = 0; /* the tensor's own shape */
}

void piece_scales(const struct optim_codec *codec, int64_t n_elements, struct shard part,
                  struct ckpt_piece *piece)
{
    const size_t bytes = (size_t)codec->scale_bytes;

    piece->type = type_of_bits[bytes];
    piece->n_items = (int64_t)(codec_scale_bytes(codec, (size_t)n_elements) / bytes);
    piece->begin = (int64_t)(codec_scale_bytes(codec, (size_t)part.begin) / bytes);
    piece->end = (int64_t)(codec_scale_bytes(codec, (size_t)part.end) / bytes);
    piece_codec_name(codec, piece->codec);
}

static void add_states(struct piece_builder *b, int t, struct shard part)
{
    const struct build *build = b->trainer->build;
    const struct tensor *tensor = &build->layout->tensors[t];
    const struct optim_tensor *state = &build->setup->tensors[t];
    const struct shard owned = build_owned(build, tensor->unit);
    const int64_t before = part.begin - layout_tensor_part(tensor, owned).begin;

    for (int k = 0; k < state->rule->n_states; k++) {
        for (int plane = 0; plane < 2; plane++) {
            const int kind = plane == 0 ? state->codes[k] : state->scales[k];
            if (kind < 0)
                continue;
            char *data = plan_ref(build->plan, build->kinds[tensor->unit * OPTIM_MAX_KINDS + kind]);
            data += optim_kind_offset(build->setup, t, kind, owned) +
                    optim_kind_tensor_bytes(build->setup, t, kind, before);
            struct ckpt_piece *piece = add(b, t, build->setup->kinds[kind], data);
            if (plane == 0)
                piece_codes(state->codecs[k], k == state->rank1, tensor->n_elements, part, piece);
            else
                piece_scales(state->codecs[k], tensor->n_elements, part, piece);
        }
    }
}

/* All ranks hold a tensor's vectors: the one that stores its first element saves them. */
static void add_vectors(struct piece_builder *b, int t, struct shard stored)
{
    const struct build *build = b->trainer->build;
    const struct optim_tensor *state = &build->setup->tensors[t];

    if (state->stats == NULL || (b->stored && (stored.begin > 0 || stored.begin == stored.end)))
        return;
    for (int v = 0; v < state->stats->how->n_vectors; v++) {
        const struct optim_vector *vector = &state->stats->how->vectors[v];
        const int64_t n = state->stats->vector_elements[v];
        if (n == 0 || !vector->saved)
            continue;
        char *data = plan_ref(build->plan, build->host_vectors[build->layout->tensors[t].unit]);
        struct ckpt_piece *piece =
            add(b, t, vector->name, data + optim_vector_offset(build->setup, t, v));
        piece->n_items = piece->end = n;
    }
}

shoal_status state_pieces(struct trainer *trainer, bool stored, struct state_pieces *out)
{
    const struct build *build = trainer->build;
    const size_t n_tensors = (size_t)build->layout->n_tensors;
    const size_t most = n_tensors * (2 + 2 * OPTIM_MAX_STATES + STATS_MAX_VECTORS);
    struct piece_builder b = {.trainer = trainer, .out = out, .stored = stored};

    *out = (struct state_pieces){.pieces = calloc(most, sizeof *out->pieces),
                                 .views = calloc(2 * n_tensors, sizeof *out->views)};
    if (out->pieces == NULL || out->views == NULL) {
        state_pieces_free(out);
        return fail(SHOAL_ERR_NOMEM, "checkpoint: cannot allocate %zu pieces", most);
    }
    for (int t = 0; t < build->layout->n_tensors; t++) {
        const struct tensor *tensor = &build->layout->tensors[t];
        const struct shard range =
            stored ? build_stored(build, tensor->unit) : build_owned(build, tensor->unit);
        const struct shard part = layout_tensor_part(tensor, range);

        add_vectors(&b, t, part);
        if (part.begin == part.end)
            continue;
        add_weights(&b, t, part);
        add_states(&b, t, part);
    }
    return SHOAL_OK;
}

void state_pieces_free(struct state_pieces *pieces)
{
    free(pieces->pieces);
    free(pieces->views);
    *pieces = (struct state_pieces){0};
}

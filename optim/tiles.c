#include "optim/tiles.h"

#include "optim/element_rules.h"

enum { TILE_ELEMENTS = 64 * 1024, LONG_TILE_ELEMENTS = 1 << 30 };

/* Where the states of a tensor's element `begin` lie in the buffers of the slice `origin`. */
static void place_states(const struct optim_setup *setup, struct shard origin, struct tile *tile)
{
    const int t = tile->tensor;
    const struct optim_tensor *tensor = &setup->tensors[t];
    const struct shard part = layout_tensor_part(&setup->layout->tensors[t], origin);
    const int64_t n = tile->begin - part.begin;

    for (int k = 0; k < tensor->rule->n_states; k++) {
        tile->codes[k] = optim_kind_offset(setup, t, tensor->codes[k], origin) +
                         optim_kind_tensor_bytes(setup, t, tensor->codes[k], n);
        if (tensor->scales[k] >= 0)
            tile->scales[k] = optim_kind_offset(setup, t, tensor->scales[k], origin) +
                              optim_kind_tensor_bytes(setup, t, tensor->scales[k], n);
    }
}

static size_t cut(const struct optim_setup *setup, int unit, struct shard grad_origin,
                  struct shard origin, struct shard range, int64_t length, struct tile *tiles)
{
    const struct unit *u = &setup->layout->units[unit];
    size_t count = 0;

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++) {
        const struct tensor *tensor = &setup->layout->tensors[t];
        const struct shard part = layout_tensor_part(tensor, range);

        for (int64_t begin = part.begin; begin < part.end; begin += length, count++) {
            const int64_t rest = part.end - begin;

            if (tiles == NULL)
                continue;
            tiles[count] = (struct tile){
                .tensor = t,
                .n = (int32_t)(rest < length ? rest : length),
                .begin = begin,
                .at = tensor->offset + begin - origin.begin,
                .grad_at = tensor->offset + begin - grad_origin.begin,
            };
            place_states(setup, origin, &tiles[count]);
        }
    }
    return count;
}

size_t tiles_cut(const struct optim_setup *setup, int unit, struct shard grad_origin,
                 struct shard origin, struct shard range, struct tile *tiles)
{
    return cut(setup, unit, grad_origin, origin, range, TILE_ELEMENTS, tiles);
}

size_t tiles_cut_long(const struct optim_setup *setup, int unit, struct shard grad_origin,
                      struct shard origin, struct shard range, struct tile *tiles)
{
    return cut(setup, unit, grad_origin, origin, range, LONG_TILE_ELEMENTS, tiles);
}

void tile_buffers_init(struct tile_buffers *buffers, const struct plan *plan,
                       const struct optim_setup *setup, const struct optim_refs *refs)
{
    *buffers = (struct tile_buffers){
        .setup = setup,
        .grad = plan_ref(plan, refs->grad),
        .master = plan_ref(plan, refs->master),
        .param = plan_ref(plan, refs->param),
        .vectors = plan_ref(plan, refs->vectors),
    };
    for (int kind = 0; kind < setup->n_kinds; kind++)
        buffers->kinds[kind] = plan_ref(plan, refs->kinds[kind]);
}

bool tile_in_place(const struct tile_buffers *buffers, const struct tile *tile)
{
    const struct optim_setup *setup = buffers->setup;
    const struct optim_tensor *tensor = &setup->tensors[tile->tensor];
    bool in_place =
        setup->master->bits == 32 && tensor->stats == NULL && buffers->grad_bf16 == NULL;

    for (int k = 0; k < tensor->rule->n_states; k++)
        in_place = in_place && tensor->codecs[k]->bits == 32;
    return in_place;
}

/* `at` is a multiple of the quantum. */
static void *codes_of(const struct tile_buffers *buffers, const struct tile *tile, int k, size_t at)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];

    return buffers->kinds[tensor->codes[k]] + tile->codes[k] +
           codec_code_bytes(tensor->codecs[k], at);
}

static void *scales_of(const struct tile_buffers *buffers, const struct tile *tile, int k,
                       size_t at)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];

    if (tensor->scales[k] < 0)
        return NULL;
    return buffers->kinds[tensor->scales[k]] + tile->scales[k] +
           codec_scale_bytes(tensor->codecs[k], at);
}

static char *low_of(const struct tile_buffers *buffers, const struct tile *tile, size_t at)
{
    if (buffers->master == NULL)
        return NULL;
    return buffers->master + ((size_t)tile->at + at) * (size_t)buffers->setup->master->bits / 8;
}

void tile_vectors(const struct tile_buffers *buffers, int tensor,
                  float *vectors_out[STATS_MAX_VECTORS])
{
    for (int v = 0; v < STATS_MAX_VECTORS; v++)
        vectors_out[v] = buffers->own_vectors != NULL
                             ? buffers->own_vectors[v]
                             : (float *)(void *)(buffers->vectors +
                                                 optim_vector_offset(buffers->setup, tensor, v));
}

/* One for each element. */
static void rank1_scales(const struct tile_buffers *buffers, const struct tile *tile, size_t at,
                         size_t n, enum tile_scales which, float *scales)
{
    const bool now = which == SCALES_NOW;
    float *vectors[STATS_MAX_VECTORS];

    tile_vectors(buffers, tile->tensor, vectors);
    codec_rank1_scales(vectors[now ? ELEMENTS_ROW : ELEMENTS_ROW_BEFORE],
                       vectors[now ? ELEMENTS_COL : ELEMENTS_COL_BEFORE],
                       buffers->setup->tensors[tile->tensor].stats->cols, tile->begin + (int64_t)at,
                       n, scales);
}

static void decode_state(const struct tile_buffers *buffers, const struct tile *tile, int k,
                         size_t at, size_t n, enum tile_scales which, float *x)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct optim_codec *codec = tensor->codecs[k];
    const void *codes = codes_of(buffers, tile, k, at);

    if (k == tensor->rank1) {
        float scales[OPTIM_PIECE];

        rank1_scales(buffers, tile, at, n, which, scales);
        codec->decode_scaled(codes, scales, n, x);
        return;
    }
    codec->decode[tensor->rule->state_unsigned[k]](codes, scales_of(buffers, tile, k, at), n, x);
}

static void encode_state(const struct tile_buffers *buffers, const struct tile *tile, int k,
                         size_t at, size_t n, const float *x)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct optim_codec *codec = tensor->codecs[k];
    void *codes = codes_of(buffers, tile, k, at);

    if (k == tensor->rank1) {
        float scales[OPTIM_PIECE];

        rank1_scales(buffers, tile, at, n, SCALES_NOW, scales);
        codec->encode_scaled(x, scales, n, codes);
        return;
    }
    codec->encode[tensor->rule->state_unsigned[k]](x, n, codes, scales_of(buffers, tile, k, at));
}

void tile_decode(const struct tile_buffers *buffers, const struct tile *tile, size_t at, size_t n,
                 enum tile_scales scales, struct tile_piece *piece, struct optim_extent *extent_out)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct optim_rule *rule = tensor->rule;
    const struct master_codec *master = buffers->setup->master;
    bf16_t *param = buffers->param == NULL ? NULL : buffers->param + (size_t)tile->at + at;

    *extent_out = (struct optim_extent){.n = n, .grad = piece->grad, .decay = tensor->decay};
    if (buffers->grad_bf16 == NULL) {
        extent_out->grad = buffers->grad + (size_t)tile->grad_at + at;
    } else {
        for (size_t i = 0; i < n; i++)
            piece->grad[i] = bf16_to_f32(buffers->grad_bf16[(size_t)tile->grad_at + at + i]);
    }
    for (int k = 0; k < rule->n_states; k++) {
        if (tensor->codecs[k]->bits == 32) {
            extent_out->states[k] = codes_of(buffers, tile, k, at);
            continue;
        }
        extent_out->states[k] = piece->states[k];
        decode_state(buffers, tile, k, at, n, scales, piece->states[k]);
    }
    if (master->bits == 32) {
        extent_out->master = (float *)(void *)low_of(buffers, tile, at);
        extent_out->param = param;
    } else {
        extent_out->master = piece->master;
        master->decode(param, low_of(buffers, tile, at), n, piece->master);
    }
}

void tile_encode(const struct tile_buffers *buffers, const struct tile *tile, size_t at, size_t n,
                 uint64_t key, const struct tile_piece *piece)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct master_codec *master = buffers->setup->master;

    for (int k = 0; k < tensor->rule->n_states; k++)
        if (tensor->codecs[k]->bits != 32)
            encode_state(buffers, tile, k, at, n, piece->states[k]);
    if (master->bits != 32)
        master->encode(piece->master, n, key, (uint64_t)tile->begin + at,
                       buffers->param + (size_t)tile->at + at, low_of(buffers, tile, at));
}

/* The slot of a buffer must exist and hold so many bytes from its offset on. */
shoal_status tile_check_ref(const struct plan *plan, struct slot_ref ref, const char *kind,
                            size_t n_bytes)
{
    if (ref.slot < 0)
        return fail(SHOAL_ERR_INTERNAL, "optimizer buffer %s: no slot was given", kind);
    if (ref.offset_bytes + n_bytes > plan_slot_bytes(plan, ref.slot))
        return fail(SHOAL_ERR_INTERNAL,
                    "optimizer buffer %s: needs %zu bytes from %zu on, slot %s holds %zu", kind,
                    n_bytes, ref.offset_bytes, plan_slot_name(plan, ref.slot),
                    plan_slot_bytes(plan, ref.slot));
    return SHOAL_OK;
}

#include "models/model_internal.h"

#include "runtime/base/rng.h"

#include <stdlib.h>
#include <string.h>

shoal_status model_create(const struct model_config *config, struct model **model_out)
{
    shoal_status status = SHOAL_OK;
    struct model *model = NULL;

    SHOAL_TRY(model_config_check(config));
    model = calloc(1, sizeof *model);
    if (model == NULL)
        return fail(SHOAL_ERR_NOMEM, "model: cannot reserve %zu bytes", sizeof *model);
    model->config = *config;
    SHOAL_TRY_GOTO(layout_create(&model->layout), err_free_model);
    SHOAL_TRY_GOTO(model_build_table(model), err_destroy_layout);
    *model_out = model;
    return SHOAL_OK;

err_destroy_layout:
    layout_destroy(model->layout);
err_free_model:
    free(model);
    return status;
}

void model_destroy(struct model *model)
{
    if (model == NULL)
        return;
    layout_destroy(model->layout);
    free(model);
}

const struct model_config *model_config(const struct model *model)
{
    return &model->config;
}

const struct layout *model_layout(const struct model *model)
{
    return model->layout;
}

int model_embed_unit(const struct model *model)
{
    (void)model;
    return 0;
}

int model_head_unit(const struct model *model)
{
    return model->config.layers + 1;
}

static bool is_block(const struct model *model, int unit)
{
    return unit > model_embed_unit(model) && unit < model_head_unit(model);
}

/* ---- FLOPs ---- */

/* Weights of a block's products. */
static int64_t block_products(const struct model_config *c)
{
    return (int64_t)c->hidden * (width_qkv(c) + width_attention(c) + width_up(c) + (int64_t)c->ffn);
}

double model_flops_per_token(const struct model *model, int64_t T)
{
    const struct model_config *c = &model->config;
    double products =
        (double)c->layers * (double)block_products(c) + (double)c->vocab * (double)c->hidden;
    double attention = (double)c->layers * (double)width_attention(c) * (double)T;

    return 6.0 * products + 6.0 * attention;
}

uint64_t model_unit_flops(const struct model *model, int unit, int64_t B, int64_t T)
{
    const struct model_config *c = &model->config;
    int64_t N = B * T;

    if (is_block(model, unit))
        return (uint64_t)(2 * N * (block_products(c) + width_attention(c) * T));
    if (unit == model_head_unit(model))
        return (uint64_t)(2 * N * c->vocab * c->hidden);
    return 0;
}

/* ---- initial values ---- */

/* Write the part of tensor `index` that lies in `range`. */
static void init_tensor(const struct model *model, uint64_t seed, int index, struct shard range,
                        float *out)
{
    const struct tensor *t = &model->layout->tensors[index];
    struct shard part = layout_tensor_part(t, range);
    size_t n = part.end > part.begin ? (size_t)(part.end - part.begin) : 0;

    if (n == 0)
        return;
    out += t->offset + part.begin - range.begin;
    switch (t->init) {
    case INIT_NORMAL:
        rng_fill_normal(seed, RNG_STREAM_INIT, (uint64_t)index, (uint64_t)part.begin, n,
                        t->init_std, out);
        break;
    case INIT_ONES:
        for (size_t i = 0; i < n; i++)
            out[i] = 1.0f;
        break;
    case INIT_ZEROS: /* zeroed with the padding */
        break;
    }
}

void model_init_range(const struct model *model, uint64_t seed, int unit, struct shard range,
                      float *out)
{
    const struct unit *u = &model->layout->units[unit];

    memset(out, 0, (size_t)(range.end - range.begin) * sizeof *out);
    for (int i = u->first_tensor; i < u->first_tensor + u->n_tensors; i++)
        init_tensor(model, seed, i, range, out);
}

/* ---- weights, gradients and the norm as units see them ---- */

const void *weight_at(const struct model *model, const void *params, enum dtype dtype,
                      enum weight weight)
{
    int64_t offset = model->offsets[weight];

    return offset < 0 ? NULL : (const char *)params + (size_t)offset * dtype_bytes(dtype);
}

float *grad_at(const struct model *model, float *grads, enum weight weight)
{
    int64_t offset = model->offsets[weight];

    return offset < 0 ? NULL : grads + offset;
}

shoal_status model_norm(const struct model *model, struct ops *ops, int64_t N, enum dtype dtype,
                        const float *x, const void *params, enum weight weight, void *y,
                        float *stats)
{
    const struct model_config *c = &model->config;
    const void *w = weight_at(model, params, dtype, weight);
    const void *b = weight_at(model, params, dtype, weight + 1);

    return op_norm(ops, c->norm, N, c->hidden, c->norm_eps, dtype, x, w, b, y, stats);
}

const char *recompute_name(enum recompute recompute)
{
    static const char *const names[] = {
        [RECOMPUTE_NONE] = "none", [RECOMPUTE_SELECTIVE] = "selective", [RECOMPUTE_FULL] = "full"};

    return names[recompute];
}

/* ---- the units' forward and backward ---- */

static shoal_status check_unit(const struct model *model, int unit)
{
    if (unit >= 0 && unit < model->layout->n_units)
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "model: unit %d does not exist, there are %d", unit,
                model->layout->n_units);
}

shoal_status model_forward(const struct model *model, struct ops *ops, int unit,
                           const struct model_call *call)
{
    SHOAL_TRY(check_unit(model, unit));
    if (unit == model_embed_unit(model))
        return embed_forward(model, ops, call);
    if (unit == model_head_unit(model))
        return head_forward(model, ops, call);
    return block_forward(model, ops, call);
}

/* Gradients between tensors: added up and reduced with the rest, so they must be zero. */
static shoal_status zero_gaps(const struct model *model, struct ops *ops, int unit, float *grads)
{
    const struct unit *u = &model->layout->units[unit];

    for (int i = 0; i < u->n_tensors; i++) {
        const struct tensor *t = &model->layout->tensors[u->first_tensor + i];
        int64_t end = t->offset + t->n_elements;
        int64_t next = i + 1 < u->n_tensors ? t[1].offset : u->n_elements;

        if (next > end)
            SHOAL_TRY(op_zero(ops, (size_t)(next - end) * sizeof *grads, grads + end));
    }
    return SHOAL_OK;
}

shoal_status model_backward(const struct model *model, struct ops *ops, int unit,
                            const struct model_call *call)
{
    SHOAL_TRY(check_unit(model, unit));
    if (unit == model_embed_unit(model))
        SHOAL_TRY(embed_backward(model, ops, call));
    else if (unit == model_head_unit(model))
        SHOAL_TRY(head_backward(model, ops, call));
    else
        SHOAL_TRY(block_backward(model, ops, call));
    return zero_gaps(model, ops, unit, call->grads);
}

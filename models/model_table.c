#include "models/model_internal.h"

#include <math.h>
#include <stdio.h>

/*
 * The parameter table: which tensors a model has, in which order, under which names.
 *
 * GPT-2's own names for GPT-2, Llama's for everything else.  Query, key and value lie in one
 * tensor, gate and up too: one product instead of three or two.  Such a tensor is named after
 * the common prefix of its parts, and `splits` tells where they begin.  Projections
 * are [out, in] (Hugging Face stores GPT-2's transposed).
 */

struct row {
    enum tensor_role role;
    const char *gpt2;
    const char *llama;
};

static const struct row rows[WEIGHT_COUNT] = {
    [W_TOKENS] = {ROLE_EMBEDDING, "wte.weight", "model.embed_tokens.weight"},
    [W_POSITIONS] = {ROLE_POSITION, "wpe.weight", "model.embed_positions.weight"},
    [W_NORM1] = {ROLE_NORM, "ln_1.weight", "input_layernorm.weight"},
    [W_NORM1_BIAS] = {ROLE_NORM, "ln_1.bias", "input_layernorm.bias"},
    [W_QKV] = {ROLE_QKV, "attn.c_attn.weight", "self_attn.qkv_proj.weight"},
    [W_QKV_BIAS] = {ROLE_BIAS, "attn.c_attn.bias", "self_attn.qkv_proj.bias"},
    [W_O] = {ROLE_O, "attn.c_proj.weight", "self_attn.o_proj.weight"},
    [W_O_BIAS] = {ROLE_BIAS, "attn.c_proj.bias", "self_attn.o_proj.bias"},
    [W_NORM2] = {ROLE_NORM, "ln_2.weight", "post_attention_layernorm.weight"},
    [W_NORM2_BIAS] = {ROLE_NORM, "ln_2.bias", "post_attention_layernorm.bias"},
    [W_UP] = {ROLE_UP, "mlp.c_fc.weight", "mlp.up_proj.weight"},
    [W_UP_BIAS] = {ROLE_BIAS, "mlp.c_fc.bias", "mlp.up_proj.bias"},
    [W_DOWN] = {ROLE_DOWN, "mlp.c_proj.weight", "mlp.down_proj.weight"},
    [W_DOWN_BIAS] = {ROLE_BIAS, "mlp.c_proj.bias", "mlp.down_proj.bias"},
    [W_FINAL_NORM] = {ROLE_NORM, "ln_f.weight", "model.norm.weight"},
    [W_FINAL_NORM_BIAS] = {ROLE_NORM, "ln_f.bias", "model.norm.bias"},
    [W_HEAD] = {ROLE_HEAD, "lm_head.weight", "lm_head.weight"},
};

static const struct row gate_up = {ROLE_GATE_UP, "", "mlp.gate_up_proj.weight"};
static const struct row gate_up_bias = {ROLE_BIAS, "", "mlp.gate_up_proj.bias"};

static bool has_weight(const struct model_config *c, enum weight weight)
{
    switch (weight) {
    case W_POSITIONS:
        return c->position == POSITION_LEARNED;
    case W_NORM1_BIAS:
    case W_NORM2_BIAS:
    case W_FINAL_NORM_BIAS:
        return c->norm == NORM_LAYER;
    case W_QKV_BIAS:
    case W_O_BIAS:
    case W_UP_BIAS:
    case W_DOWN_BIAS:
        return c->bias;
    case W_HEAD:
        return !c->tied;
    default:
        return true;
    }
}

/* The shape of a weight; columns 0 for vectors. */
static void weight_shape(const struct model_config *c, enum weight weight, int64_t *rows_out,
                         int64_t *columns_out)
{
    int64_t C = c->hidden;
    int64_t n_rows = C;
    int64_t n_columns = 0;

    switch (weight) {
    case W_TOKENS:
    case W_HEAD:
        n_rows = c->vocab;
        n_columns = C;
        break;
    case W_POSITIONS:
        n_rows = c->max_seq;
        n_columns = C;
        break;
    case W_QKV:
        n_columns = C;
        n_rows = width_qkv(c);
        break;
    case W_QKV_BIAS:
        n_rows = width_qkv(c);
        break;
    case W_O:
        n_columns = width_attention(c);
        break;
    case W_UP:
        n_columns = C;
        n_rows = width_up(c);
        break;
    case W_UP_BIAS:
        n_rows = width_up(c);
        break;
    case W_DOWN:
        n_columns = c->ffn;
        break;
    default: /* norms and the biases of O and DOWN: [C] */
        break;
    }
    *rows_out = n_rows;
    *columns_out = n_columns;
}

/* Parts and heads, for optimizers and converters that look inside a fused tensor. */
static void note_parts(const struct model_config *c, enum weight weight, struct tensor *t)
{
    bool qkv = weight == W_QKV || weight == W_QKV_BIAS;
    bool up = weight == W_UP || weight == W_UP_BIAS;

    if (qkv || weight == W_O) {
        t->head_size = c->head_size;
        t->heads = c->heads;
        t->kv_heads = c->kv_heads;
    }
    if (qkv) {
        t->n_splits = 3;
        t->splits[0] = width_attention(c);
        t->splits[1] = (int64_t)c->kv_heads * c->head_size;
        t->splits[2] = t->splits[1];
    } else if (up && c->mlp == MLP_SWIGLU) {
        t->n_splits = 2;
        t->splits[0] = c->ffn;
        t->splits[1] = c->ffn;
    }
}

/* GPT-2's rule (Radford et al. 2019, 2.3): N(0, 0.02), residual projections / sqrt(2L). */
static void note_init(const struct model_config *c, enum weight weight, struct tensor *t)
{
    bool scale = weight == W_NORM1 || weight == W_NORM2 || weight == W_FINAL_NORM;
    bool residual = weight == W_O || weight == W_DOWN;

    if (t->ndim == 1) {
        t->init = scale ? INIT_ONES : INIT_ZEROS;
        return;
    }
    t->init = INIT_NORMAL;
    t->init_std = residual ? (float)(0.02 / sqrt(2.0 * c->layers)) : 0.02f;
}

static void name_weight(const struct model_config *c, enum weight weight, int block,
                        const struct row *row, struct tensor *t)
{
    bool gpt2 = model_family(c) == FAMILY_GPT2;
    bool in_block = weight >= W_NORM1 && weight <= W_DOWN_BIAS;
    const char *name = gpt2 ? row->gpt2 : row->llama;

    if (in_block)
        snprintf(t->name, sizeof t->name, "%s.%d.%s", gpt2 ? "h" : "model.layers", block, name);
    else
        snprintf(t->name, sizeof t->name, "%s", name);
}

/* Append one weight to the unit that is being built; weights the model has not are skipped. */
static shoal_status add_weight(struct model *model, enum weight weight, int block)
{
    const struct model_config *c = &model->config;
    const struct row *row = &rows[weight];
    struct tensor t = {0};

    if (!has_weight(c, weight)) {
        model->offsets[weight] = -1;
        return SHOAL_OK;
    }
    if (c->mlp == MLP_SWIGLU && weight == W_UP)
        row = &gate_up;
    if (c->mlp == MLP_SWIGLU && weight == W_UP_BIAS)
        row = &gate_up_bias;

    name_weight(c, weight, block, row, &t);
    t.role = row->role;
    weight_shape(c, weight, &t.shape[0], &t.shape[1]);
    t.ndim = t.shape[1] > 0 ? 2 : 1;
    t.decay = t.ndim == 2;
    note_parts(c, weight, &t);
    note_init(c, weight, &t);
    SHOAL_TRY(layout_add_tensor(model->layout, &t));
    model->offsets[weight] = model->layout->tensors[model->layout->n_tensors - 1].offset;
    return SHOAL_OK;
}

static shoal_status add_unit(struct model *model, const char *name, enum weight first,
                             enum weight last, int block)
{
    SHOAL_TRY(layout_add_unit(model->layout, name));
    for (int w = (int)first; w <= (int)last; w++)
        SHOAL_TRY(add_weight(model, (enum weight)w, block));
    return SHOAL_OK;
}

shoal_status model_build_table(struct model *model)
{
    char name[UNIT_NAME_BYTES];

    SHOAL_TRY(add_unit(model, "embed", W_TOKENS, W_POSITIONS, 0));
    for (int block = 0; block < model->config.layers; block++) {
        snprintf(name, sizeof name, "block.%d", block);
        SHOAL_TRY(add_unit(model, name, W_NORM1, W_DOWN_BIAS, block));
    }
    return add_unit(model, "head", W_FINAL_NORM, W_HEAD, 0);
}

#include "models/model_internal.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The config as Hugging Face's config.json, and back.
 *
 * GPT-2 and Llama shapes are written so that transformers reads them.  Mixtures that no class
 * there knows are written in Llama's terms as model_type "shoal" with three keys more: norm,
 * position, mlp.  What we cannot compute (stretched RoPE, other activations) is refused by name.
 */

/* ---- writing ---- */

/* The double with the shortest decimal form that still rounds to `x`: 1e-05, not 9.99999974e-06. */
static double shortest(float x)
{
    char text[32];

    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if ((float)strtod(text, NULL) == x)
            break;
    }
    return strtod(text, NULL);
}

/* Digits with which JSON gives back exactly `x`. */
static size_t digits_of(double x)
{
    char text[32];

    snprintf(text, sizeof text, "%.15g", x);
    return strtod(text, NULL) == x ? 15 : 17;
}

static json_t *write_gpt2(const struct model_config *c)
{
    return json_pack("{s:s, s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:b}", "model_type",
                     "gpt2", "architectures", "GPT2LMHeadModel", "vocab_size", c->vocab,
                     "n_positions", c->max_seq, "n_embd", c->hidden, "n_layer", c->layers, "n_head",
                     c->heads, "n_inner", c->ffn, "activation_function", "gelu_new",
                     "layer_norm_epsilon", shortest(c->norm_eps), "tie_word_embeddings", c->tied);
}

static json_t *write_llama(const struct model_config *c)
{
    return json_pack(
        "{s:s, s:[s], s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:f, s:b, s:b, s:b}",
        "model_type", "llama", "architectures", "LlamaForCausalLM", "vocab_size", c->vocab,
        "max_position_embeddings", c->max_seq, "hidden_size", c->hidden, "num_hidden_layers",
        c->layers, "num_attention_heads", c->heads, "num_key_value_heads", c->kv_heads, "head_dim",
        c->head_size, "intermediate_size", c->ffn, "hidden_act", "silu", "rms_norm_eps",
        shortest(c->norm_eps), "rope_theta", c->rope_theta, "attention_bias", c->bias, "mlp_bias",
        c->bias, "tie_word_embeddings", c->tied);
}

/* Llama's keys, corrected where they would be wrong, and what a mixture is made of. */
static json_t *write_other(const struct model_config *c)
{
    json_t *root = write_llama(c);
    json_t *parts = json_pack("{s:s, s:s, s:s, s:s, s:s}", "model_type", "shoal", "hidden_act",
                              c->mlp == MLP_SWIGLU ? "silu" : "gelu_new", "norm",
                              c->norm == NORM_RMS ? "rms" : "layer", "position",
                              c->position == POSITION_ROPE ? "rope" : "learned", "mlp",
                              c->mlp == MLP_SWIGLU ? "swiglu" : "gelu");

    if (root != NULL && (parts == NULL || json_object_update(root, parts) != 0)) {
        json_decref(root);
        root = NULL;
    }
    if (root != NULL)
        json_object_del(root, "architectures");
    json_decref(parts);
    return root;
}

shoal_status model_config_to_json(const struct model_config *config, char **json_out)
{
    enum model_family family = model_family(config);
    json_t *root = NULL;
    char *text = NULL;

    if (family == FAMILY_GPT2)
        root = write_gpt2(config);
    else if (family == FAMILY_LLAMA)
        root = write_llama(config);
    else
        root = write_other(config);
    if (root != NULL)
        text =
            json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(digits_of(config->rope_theta)));
    json_decref(root);
    if (text == NULL)
        return fail(SHOAL_ERR_NOMEM, "model config: no memory for its JSON text");
    *json_out = text;
    return SHOAL_OK;
}

/* ---- reading ---- */

static shoal_status wrong(const char *key, const char *expected, const json_t *found)
{
    char *text = found == NULL ? NULL : json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT);

    fail(SHOAL_ERR_DATA, "model config: \"%s\": expected %s, found %.60s", key, expected,
         text == NULL ? "nothing" : text);
    free(text);
    return SHOAL_ERR_DATA;
}

/* Absent and null mean the same in Hugging Face's files. */
static const json_t *value_of(const json_t *root, const char *key)
{
    const json_t *value = json_object_get(root, key);

    return json_is_null(value) ? NULL : value;
}

static shoal_status read_int(const json_t *root, const char *key, int *out)
{
    const json_t *value = value_of(root, key);

    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > INT32_MAX)
        return wrong(key, "a whole number above 0", value);
    *out = (int)json_integer_value(value);
    return SHOAL_OK;
}

static shoal_status read_int_or(const json_t *root, const char *key, int fallback, int *out)
{
    *out = fallback;
    return value_of(root, key) == NULL ? SHOAL_OK : read_int(root, key, out);
}

static shoal_status read_real_or(const json_t *root, const char *key, double fallback, double *out)
{
    const json_t *value = value_of(root, key);

    if (value != NULL && !json_is_number(value))
        return wrong(key, "a number", value);
    *out = value == NULL ? fallback : json_number_value(value);
    return SHOAL_OK;
}

static shoal_status read_bool_or(const json_t *root, const char *key, bool fallback, bool *out)
{
    const json_t *value = value_of(root, key);

    if (value != NULL && !json_is_boolean(value))
        return wrong(key, "true or false", value);
    *out = value == NULL ? fallback : json_is_true(value);
    return SHOAL_OK;
}

/* One of two words; *second_out tells which. */
static shoal_status read_choice(const json_t *root, const char *key, const char *first,
                                const char *second, bool *second_out)
{
    const char *text = json_string_value(value_of(root, key));
    char expected[64];

    if (text != NULL && strcmp(text, first) == 0)
        *second_out = false;
    else if (text != NULL && strcmp(text, second) == 0)
        *second_out = true;
    else {
        snprintf(expected, sizeof expected, "\"%s\" or \"%s\"", first, second);
        return wrong(key, expected, value_of(root, key));
    }
    return SHOAL_OK;
}

/* A key whose only computable value is `text`; absent is fine. */
static shoal_status require_text(const json_t *root, const char *key, const char *text)
{
    const json_t *value = value_of(root, key);
    char expected[64];

    if (value == NULL || (json_is_string(value) && strcmp(json_string_value(value), text) == 0))
        return SHOAL_OK;
    snprintf(expected, sizeof expected, "\"%s\" (no other is built in)", text);
    return wrong(key, expected, value);
}

static shoal_status require_false(const json_t *root, const char *key)
{
    const json_t *value = value_of(root, key);

    return value == NULL || json_is_false(value)
               ? SHOAL_OK
               : wrong(key, "false (the variant is not built in)", value);
}

/* Plain RoPE only: "rope_scaling" (transformers 4) or "rope_parameters" (5) may not stretch it. */
static shoal_status require_plain_rope(const json_t *root, const char *key)
{
    const json_t *rope = value_of(root, key);
    const json_t *type = NULL;

    if (rope == NULL)
        return SHOAL_OK;
    type = value_of(rope, "rope_type");
    if (type == NULL)
        type = value_of(rope, "type");
    if (type == NULL || (json_is_string(type) && strcmp(json_string_value(type), "default") == 0))
        return SHOAL_OK;
    return wrong(key, "plain RoPE (stretched positions are not built in)", rope);
}

static shoal_status read_gpt2(const json_t *root, struct model_config *c)
{
    double eps = 0.0;

    SHOAL_TRY(require_text(root, "activation_function", "gelu_new"));
    SHOAL_TRY(require_false(root, "scale_attn_by_inverse_layer_idx"));
    SHOAL_TRY(read_int(root, "vocab_size", &c->vocab));
    SHOAL_TRY(read_int(root, "n_positions", &c->max_seq));
    SHOAL_TRY(read_int(root, "n_embd", &c->hidden));
    SHOAL_TRY(read_int(root, "n_layer", &c->layers));
    SHOAL_TRY(read_int(root, "n_head", &c->heads));
    if (c->hidden > INT32_MAX / 4)
        return wrong("n_embd", "a width that fits a model", value_of(root, "n_embd"));
    SHOAL_TRY(read_int_or(root, "n_inner", 4 * c->hidden, &c->ffn));
    SHOAL_TRY(read_real_or(root, "layer_norm_epsilon", 1e-5, &eps));
    SHOAL_TRY(read_bool_or(root, "tie_word_embeddings", true, &c->tied));
    c->kv_heads = c->heads;
    c->head_size = c->hidden / c->heads;
    c->norm_eps = (float)eps;
    c->norm = NORM_LAYER;
    c->position = POSITION_LEARNED;
    c->mlp = MLP_GELU;
    c->bias = true;
    return SHOAL_OK;
}

/* Both places of theta: the old key wins, as transformers 4 writes it. */
static shoal_status read_theta(const json_t *root, struct model_config *c)
{
    double theta = 10000.0;

    SHOAL_TRY(require_plain_rope(root, "rope_scaling"));
    SHOAL_TRY(require_plain_rope(root, "rope_parameters"));
    SHOAL_TRY(read_real_or(value_of(root, "rope_parameters"), "rope_theta", theta, &theta));
    return read_real_or(root, "rope_theta", theta, &c->rope_theta);
}

static shoal_status read_llama(const json_t *root, struct model_config *c)
{
    bool mlp_bias = false;
    double eps = 0.0;

    SHOAL_TRY(read_int(root, "vocab_size", &c->vocab));
    SHOAL_TRY(read_int(root, "max_position_embeddings", &c->max_seq));
    SHOAL_TRY(read_int(root, "hidden_size", &c->hidden));
    SHOAL_TRY(read_int(root, "num_hidden_layers", &c->layers));
    SHOAL_TRY(read_int(root, "num_attention_heads", &c->heads));
    SHOAL_TRY(read_int_or(root, "num_key_value_heads", c->heads, &c->kv_heads));
    SHOAL_TRY(read_int_or(root, "head_dim", c->hidden / c->heads, &c->head_size));
    SHOAL_TRY(read_int(root, "intermediate_size", &c->ffn));
    SHOAL_TRY(read_real_or(root, "rms_norm_eps", 1e-6, &eps));
    SHOAL_TRY(read_theta(root, c));
    SHOAL_TRY(read_bool_or(root, "tie_word_embeddings", false, &c->tied));
    SHOAL_TRY(read_bool_or(root, "attention_bias", false, &c->bias));
    SHOAL_TRY(read_bool_or(root, "mlp_bias", false, &mlp_bias));
    if (mlp_bias != c->bias)
        return wrong("mlp_bias", "the same as attention_bias", value_of(root, "mlp_bias"));
    c->norm_eps = (float)eps;
    c->norm = NORM_RMS;
    c->position = POSITION_ROPE;
    c->mlp = MLP_SWIGLU;
    return SHOAL_OK;
}

static shoal_status read_other(const json_t *root, struct model_config *c)
{
    bool rms = false;
    bool rope = false;
    bool swiglu = false;

    SHOAL_TRY(read_llama(root, c));
    SHOAL_TRY(read_choice(root, "norm", "layer", "rms", &rms));
    SHOAL_TRY(read_choice(root, "position", "learned", "rope", &rope));
    SHOAL_TRY(read_choice(root, "mlp", "gelu", "swiglu", &swiglu));
    c->norm = rms ? NORM_RMS : NORM_LAYER;
    c->position = rope ? POSITION_ROPE : POSITION_LEARNED;
    c->mlp = swiglu ? MLP_SWIGLU : MLP_GELU;
    return SHOAL_OK;
}

static shoal_status read_config(const json_t *root, struct model_config *c)
{
    const char *type = json_string_value(value_of(root, "model_type"));

    if (type != NULL && strcmp(type, "gpt2") == 0)
        return read_gpt2(root, c);
    if (type != NULL && strcmp(type, "llama") == 0) {
        SHOAL_TRY(require_text(root, "hidden_act", "silu"));
        return read_llama(root, c);
    }
    if (type != NULL && strcmp(type, "shoal") == 0)
        return read_other(root, c);
    return wrong("model_type", "\"gpt2\", \"llama\" or \"shoal\"", value_of(root, "model_type"));
}

shoal_status model_config_from_json(const char *json, struct model_config *config_out)
{
    struct model_config config = {0};
    shoal_status status = SHOAL_OK;
    json_error_t error;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &error);

    if (root == NULL)
        return fail(SHOAL_ERR_DATA, "model config: line %d, column %d: %s", error.line,
                    error.column, error.text);
    SHOAL_TRY_GOTO(read_config(root, &config), err_free_root);
    SHOAL_TRY_GOTO(model_config_check(&config), err_free_root);
    *config_out = config;
err_free_root:
    json_decref(root);
    return status;
}

#include "models/model.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(expr) cr_assert_eq((expr), SHOAL_OK, "%s", shoal_last_error())

static struct model_config preset(const char *name)
{
    struct model_config config;

    MUST(model_config_preset(name, &config));
    return config;
}

static void expect_error_with(const char *text)
{
    cr_expect_not_null(strstr(shoal_last_error(), text), "\"%s\" is not in \"%s\"", text,
                       shoal_last_error());
}

Test(model_config, every_listed_preset_exists_and_passes_the_check)
{
    char names[512];
    int n = 0;

    snprintf(names, sizeof names, "%s", model_presets());
    for (char *name = strtok(names, " "); name != NULL; name = strtok(NULL, " ")) {
        struct model_config config = preset(name);

        cr_expect_eq(model_config_check(&config), SHOAL_OK, "%s: %s", name, shoal_last_error());
        n++;
    }
    cr_expect_eq(n, 10);
}

Test(model_config, an_unknown_preset_is_refused_with_the_nearest_name)
{
    struct model_config config = {.layers = -1};

    cr_assert_eq(model_config_preset("lama-tiny", &config), SHOAL_ERR_CONFIG);
    expect_error_with("model.preset: there is no preset \"lama-tiny\"");
    expect_error_with("did you mean llama-tiny?");
    cr_assert_eq(config.layers, -1, "the output is untouched");
}

/* Each row breaks one thing of a good config; the message must name the key and what was found. */
Test(model_config, wrong_sizes_are_refused_by_key)
{
    struct model_config good = preset("llama-tiny");
    struct model_config c = good;

    c.layers = 0;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.layers: expected 1 to 16384, found 0");

    c = good;
    c.heads = 7;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.heads: 7 heads do not divide model.hidden 192");

    c = good;
    c.kv_heads = 4;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.kv_heads: 4 key/value heads do not divide model.heads 6");

    c = good;
    c.head_size = 33;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.head_size: expected an even size");

    /* Attention wants it even for learned positions, too, and not above what its buffers hold. */
    c.position = POSITION_LEARNED;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    c.head_size = 258;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.head_size: expected an even size up to 256, found 258");

    c = good;
    c.vocab = 1 << 30;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.vocab: expected 1 to 16777216, found 1073741824");

    c = good;
    c.ffn = -4;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.ffn");

    c = good;
    c.norm_eps = NAN;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.norm_eps");

    c = good;
    c.rope_theta = 0.0;
    cr_expect_eq(model_config_check(&c), SHOAL_ERR_CONFIG);
    expect_error_with("model.rope_theta");
}

Test(model_config, model_create_checks_the_config_too)
{
    struct model_config c = preset("gpt-tiny");
    struct model *model = NULL;

    c.max_seq = 0;
    cr_assert_eq(model_create(&c, &model), SHOAL_ERR_CONFIG);
    cr_assert_null(model);
}

/* ---- JSON ---- */

static void expect_same_config(const struct model_config *a, const struct model_config *b)
{
    cr_expect_eq(a->layers, b->layers);
    cr_expect_eq(a->hidden, b->hidden);
    cr_expect_eq(a->heads, b->heads);
    cr_expect_eq(a->kv_heads, b->kv_heads);
    cr_expect_eq(a->head_size, b->head_size);
    cr_expect_eq(a->ffn, b->ffn);
    cr_expect_eq(a->vocab, b->vocab);
    cr_expect_eq(a->max_seq, b->max_seq);
    cr_expect_eq(a->norm, b->norm);
    cr_expect_eq(a->position, b->position);
    cr_expect_eq(a->mlp, b->mlp);
    cr_expect_eq(a->bias, b->bias);
    cr_expect_eq(a->tied, b->tied);
    cr_expect_eq(a->norm_eps, b->norm_eps);
    cr_expect_eq(a->rope_theta, b->rope_theta);
}

static void expect_round_trip(const struct model_config *config)
{
    struct model_config back = {0};
    char *json = NULL;

    MUST(model_config_to_json(config, &json));
    cr_assert_eq(model_config_from_json(json, &back), SHOAL_OK, "%s\n%s", shoal_last_error(), json);
    expect_same_config(config, &back);
    free(json);
}

Test(model_config, json_gives_back_every_preset_and_every_mixture)
{
    char names[512];

    snprintf(names, sizeof names, "%s", model_presets());
    for (char *name = strtok(names, " "); name != NULL; name = strtok(NULL, " ")) {
        struct model_config config = preset(name);

        expect_round_trip(&config);
    }
    for (unsigned bits = 0; bits < 32; bits++) {
        struct model_config c = preset("llama-tiny");

        c.norm = bits & 1 ? NORM_RMS : NORM_LAYER;
        c.position = bits & 2 ? POSITION_ROPE : POSITION_LEARNED;
        c.mlp = bits & 4 ? MLP_SWIGLU : MLP_GELU;
        c.bias = (bits & 8) != 0;
        c.tied = (bits & 16) != 0;
        c.norm_eps = 1.1920929e-7f;
        c.rope_theta = 1e6 / 3.0;
        expect_round_trip(&c);
    }
}

Test(model_config, json_of_gpt2_reads_as_hugging_faces)
{
    struct model_config config = preset("gpt2");
    char *json = NULL;

    MUST(model_config_to_json(&config, &json));
    cr_expect_not_null(strstr(json, "\"architectures\": [\n    \"GPT2LMHeadModel\""), "%s", json);
    cr_expect_not_null(strstr(json, "\"n_embd\": 768"), "%s", json);
    cr_expect_not_null(strstr(json, "\"layer_norm_epsilon\": 1e-5"), "%s", json);
    free(json);
}

/* The published config.json of a Llama model, with keys that do not matter here. */
Test(model_config, a_hugging_face_llama_config_is_read)
{
    const char *json =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": false,"
        " \"bos_token_id\": 1, \"eos_token_id\": [2, 3], \"hidden_act\": \"silu\","
        " \"hidden_size\": 2048, \"intermediate_size\": 5632, \"model_type\": \"llama\","
        " \"max_position_embeddings\": 2048, \"num_attention_heads\": 32,"
        " \"num_hidden_layers\": 22, \"num_key_value_heads\": 4, \"rope_scaling\": null,"
        " \"rms_norm_eps\": 1e-05, \"tie_word_embeddings\": false,"
        " \"rope_parameters\": {\"rope_theta\": 20000, \"rope_type\": \"default\"},"
        " \"torch_dtype\": \"bfloat16\", \"vocab_size\": 32000}";
    struct model_config c;

    MUST(model_config_from_json(json, &c));
    cr_expect_eq(c.head_size, 64);
    cr_expect_eq(c.kv_heads, 4);
    cr_expect_eq(c.ffn, 5632);
    cr_expect_eq(c.rope_theta, 20000.0);
    cr_expect_eq(c.norm, NORM_RMS);
    cr_expect_not(c.tied);
}

static void expect_refused(const char *json, shoal_status code, const char *text)
{
    struct model_config config = {.layers = -1};

    cr_expect_eq(model_config_from_json(json, &config), code, "%s", json);
    expect_error_with(text);
    cr_expect_eq(config.layers, -1, "the output is untouched");
}

#define LLAMA_KEYS                                                                                 \
    "\"model_type\": \"llama\", \"vocab_size\": 100, \"max_position_embeddings\": 64,"             \
    " \"hidden_size\": 64, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"                  \
    " \"intermediate_size\": 128, \"hidden_act\": \"silu\""

Test(model_config, json_that_we_cannot_compute_is_refused_by_key)
{
    expect_refused("{", SHOAL_ERR_DATA, "line 1");
    expect_refused("[]", SHOAL_ERR_DATA, "\"model_type\": expected");
    expect_refused("{\"model_type\": \"mamba\"}", SHOAL_ERR_DATA, "found \"mamba\"");
    expect_refused("{\"model_type\": \"gpt2\", \"n_embd\": 64}", SHOAL_ERR_DATA,
                   "\"vocab_size\": expected a whole number above 0, found nothing");
    expect_refused("{" LLAMA_KEYS ", \"num_key_value_heads\": \"4\"}", SHOAL_ERR_DATA,
                   "\"num_key_value_heads\": expected a whole number above 0, found \"4\"");
    expect_refused("{" LLAMA_KEYS ", \"rope_scaling\": {\"rope_type\": \"llama3\"}}",
                   SHOAL_ERR_DATA, "\"rope_scaling\"");
    expect_refused("{" LLAMA_KEYS ", \"attention_bias\": true}", SHOAL_ERR_DATA, "\"mlp_bias\"");
    expect_refused("{" LLAMA_KEYS ", \"vocab_size\": 200}", SHOAL_ERR_DATA, "duplicate");
    expect_refused("{" LLAMA_KEYS ", \"num_key_value_heads\": 3}", SHOAL_ERR_CONFIG,
                   "model.kv_heads: 3 key/value heads do not divide model.heads 4");
}

Test(model_config, truncated_json_is_refused_at_every_length)
{
    char json[] = "{" LLAMA_KEYS "}";
    struct model_config config;

    MUST(model_config_from_json(json, &config));
    for (size_t n = sizeof json - 1; n-- > 0;) {
        json[n] = '\0';
        cr_assert_eq(model_config_from_json(json, &config), SHOAL_ERR_DATA, "%s", json);
    }
}

/* Damage may leave a valid config; it may never crash or return one that fails the check. */
Test(model_config, damaged_json_gives_an_error_or_a_config_that_passes_the_check)
{
    static const char good[] = "{" LLAMA_KEYS "}";

    for (size_t at = 0; at < sizeof good - 1; at++) {
        for (int bit = 0; bit < 8; bit++) {
            struct model_config config;
            char json[sizeof good];

            memcpy(json, good, sizeof good);
            json[at] = (char)(json[at] ^ (1 << bit));
            if (model_config_from_json(json, &config) == SHOAL_OK)
                cr_assert_eq(model_config_check(&config), SHOAL_OK, "%s", json);
        }
    }
}

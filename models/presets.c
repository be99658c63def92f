#include "models/model.h"

#include "runtime/config/config.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/*
 * Named shapes.  Sources: GPT-2, Radford et al. 2019, table 2 and openai-community/gpt2*'s
 * config.json; Llama, meta-llama/Llama-3.2-1B, -3.2-3B and -3.1-8B's config.json; SmolLM,
 * HuggingFaceTB/SmolLM-135M's config.json.
 *
 * Llama 3.1 and 3.2 stretch RoPE beyond 8192 positions after pre-training ("rope_scaling").
 * That stretch is not part of these shapes: they are the pre-training ones, 8192 positions.
 */

#define GPT2_STYLE                                                                                 \
    .norm = NORM_LAYER, .position = POSITION_LEARNED, .mlp = MLP_GELU, .bias = true, .tied = true, \
    .norm_eps = 1e-5f, .rope_theta = 0.0
#define LLAMA_STYLE                                                                                \
    .norm = NORM_RMS, .position = POSITION_ROPE, .mlp = MLP_SWIGLU, .bias = false, .norm_eps = 1e-5f

static const struct {
    const char *name;
    struct model_config config;
} presets[] = {
    {"gpt-tiny", /* bytes and an end token, 2.0 M parameters */
     {GPT2_STYLE, .layers = 4, .hidden = 192, .heads = 6, .kv_heads = 6, .head_size = 32,
      .ffn = 768, .vocab = 257, .max_seq = 1024}},
    {"llama-tiny", /* bytes and an end token, 1.8 M parameters */
     {LLAMA_STYLE, .layers = 4, .hidden = 192, .heads = 6, .kv_heads = 2, .head_size = 32,
      .ffn = 576, .vocab = 257, .max_seq = 1024, .tied = true, .rope_theta = 10000.0}},
    {"gpt2",
     {GPT2_STYLE, .layers = 12, .hidden = 768, .heads = 12, .kv_heads = 12, .head_size = 64,
      .ffn = 3072, .vocab = 50257, .max_seq = 1024}},
    {"gpt2-medium",
     {GPT2_STYLE, .layers = 24, .hidden = 1024, .heads = 16, .kv_heads = 16, .head_size = 64,
      .ffn = 4096, .vocab = 50257, .max_seq = 1024}},
    {"gpt2-large",
     {GPT2_STYLE, .layers = 36, .hidden = 1280, .heads = 20, .kv_heads = 20, .head_size = 64,
      .ffn = 5120, .vocab = 50257, .max_seq = 1024}},
    {"gpt2-xl",
     {GPT2_STYLE, .layers = 48, .hidden = 1600, .heads = 25, .kv_heads = 25, .head_size = 64,
      .ffn = 6400, .vocab = 50257, .max_seq = 1024}},
    {"smollm-135m",
     {LLAMA_STYLE, .layers = 30, .hidden = 576, .heads = 9, .kv_heads = 3, .head_size = 64,
      .ffn = 1536, .vocab = 49152, .max_seq = 2048, .tied = true, .rope_theta = 10000.0}},
    {"llama-1b",
     {LLAMA_STYLE, .layers = 16, .hidden = 2048, .heads = 32, .kv_heads = 8, .head_size = 64,
      .ffn = 8192, .vocab = 128256, .max_seq = 8192, .tied = true, .rope_theta = 500000.0}},
    {"llama-3b",
     {LLAMA_STYLE, .layers = 28, .hidden = 3072, .heads = 24, .kv_heads = 8, .head_size = 128,
      .ffn = 8192, .vocab = 128256, .max_seq = 8192, .tied = true, .rope_theta = 500000.0}},
    {"llama-8b",
     {LLAMA_STYLE, .layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 8, .head_size = 128,
      .ffn = 14336, .vocab = 128256, .max_seq = 8192, .tied = false, .rope_theta = 500000.0}},
};

enum { N_PRESETS = sizeof presets / sizeof presets[0] };

const char *model_presets(void)
{
    return "gpt-tiny llama-tiny gpt2 gpt2-medium gpt2-large gpt2-xl smollm-135m llama-1b llama-3b "
           "llama-8b";
}

shoal_status model_config_preset(const char *name, struct model_config *config_out)
{
    char nearest[64];

    for (int i = 0; i < N_PRESETS; i++) {
        if (strcmp(presets[i].name, name) == 0) {
            *config_out = presets[i].config;
            return SHOAL_OK;
        }
    }
    fail(SHOAL_ERR_CONFIG, "model.preset: there is no preset \"%s\"", name);
    fail_why(SHOAL_ERR_CONFIG, "presets are %s", model_presets());
    if (nearest_word(name, model_presets(), nearest, sizeof nearest) != NULL)
        return fail_hint(SHOAL_ERR_CONFIG, "did you mean %s?", nearest);
    return fail_hint(SHOAL_ERR_CONFIG, "name one of these, or give every size under model:");
}

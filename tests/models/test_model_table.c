#include "models/model.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The parameter table, costs and initial values: no ops involved. */

#define MUST(expr) cr_assert_eq((expr), SHOAL_OK, "%s", shoal_last_error())

static struct model *model_of(const char *preset)
{
    struct model_config config;
    struct model *model = NULL;

    MUST(model_config_preset(preset, &config));
    MUST(model_create(&config, &model));
    return model;
}

static const struct tensor *tensor_of(const struct model *model, const char *name)
{
    int index = layout_find(model_layout(model), name);

    cr_assert_geq(index, 0, "no tensor %s", name);
    return &model_layout(model)->tensors[index];
}

/* Counts of the published checkpoints. */
Test(model_table, presets_have_the_parameter_counts_of_the_published_models)
{
    static const struct {
        const char *preset;
        int64_t n_parameters;
    } known[] = {
        {"gpt2", 124439808},      {"gpt2-medium", 354823168}, {"gpt2-large", 774030080},
        {"gpt2-xl", 1557611200},  {"smollm-135m", 134515008}, {"llama-1b", 1235814400},
        {"llama-3b", 3212749824}, {"llama-8b", 8030261248},
    };

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        struct model *model = model_of(known[i].preset);

        cr_expect_eq(model_layout(model)->n_parameters, known[i].n_parameters, "%s: %lld",
                     known[i].preset, (long long)model_layout(model)->n_parameters);
        model_destroy(model);
    }
}

Test(model_table, gpt2_has_hugging_face_names_and_the_embedding_comes_first)
{
    struct model *model = model_of("gpt2");
    const struct layout *layout = model_layout(model);
    const struct tensor *qkv = tensor_of(model, "h.11.attn.c_attn.weight");

    cr_expect_eq(layout->n_units, 14);
    cr_expect_str_eq(layout->units[0].name, "embed");
    cr_expect_str_eq(layout->units[12].name, "block.11");
    cr_expect_str_eq(layout->units[13].name, "head");
    cr_expect_eq(tensor_of(model, "wte.weight")->offset, 0);
    cr_expect_eq(tensor_of(model, "wpe.weight")->shape[0], 1024);
    cr_expect_eq(layout_find(layout, "lm_head.weight"), -1, "a tied head has no projection");
    cr_expect_eq(qkv->unit, 12);
    cr_expect_eq(qkv->role, ROLE_QKV);
    cr_expect_eq(qkv->shape[0], 2304);
    cr_expect_eq(qkv->shape[1], 768);
    cr_expect_eq(qkv->n_splits, 3);
    cr_expect_eq(qkv->splits[2], 768);
    cr_expect_eq(qkv->head_size, 64);
    cr_expect(qkv->decay);
    cr_expect_not(tensor_of(model, "h.0.attn.c_attn.bias")->decay);
    cr_expect_not(tensor_of(model, "ln_f.weight")->decay);
    model_destroy(model);
}

Test(model_table, llama_fuses_projections_and_says_where_their_parts_begin)
{
    struct model *model = model_of("llama-8b");
    const struct tensor *qkv = tensor_of(model, "model.layers.31.self_attn.qkv_proj.weight");
    const struct tensor *up = tensor_of(model, "model.layers.0.mlp.gate_up_proj.weight");

    cr_expect_eq(qkv->shape[0], 6144);
    cr_expect_eq(qkv->splits[0], 4096);
    cr_expect_eq(qkv->splits[1], 1024);
    cr_expect_eq(qkv->splits[2], 1024);
    cr_expect_eq(qkv->heads, 32);
    cr_expect_eq(qkv->kv_heads, 8);
    cr_expect_eq(up->role, ROLE_GATE_UP);
    cr_expect_eq(up->shape[0], 28672);
    cr_expect_eq(up->n_splits, 2);
    cr_expect_eq(up->splits[1], 14336);
    cr_expect_eq(tensor_of(model, "lm_head.weight")->unit, model_head_unit(model));
    cr_expect_eq(layout_find(model_layout(model), "model.norm.bias"), -1);
    model_destroy(model);
}

Test(model_table, every_tensor_starts_at_a_quantum)
{
    struct model *model = model_of("smollm-135m");
    const struct layout *layout = model_layout(model);

    for (int i = 0; i < layout->n_tensors; i++)
        cr_assert_eq(layout->tensors[i].offset % QUANTUM, 0);
    model_destroy(model);
}

/* 12 blocks of 12 C^2 weights, the tied head, and the causal half of attention, by hand. */
Test(model_table, flops_of_units_add_up_to_the_flops_of_a_token)
{
    struct model *model = model_of("gpt2");
    double by_hand =
        6.0 * (12.0 * 12.0 * 768.0 * 768.0 + 50257.0 * 768.0) + 6.0 * 12.0 * 768.0 * 1024.0;
    double forward = 0.0;

    for (int u = 0; u < model_layout(model)->n_units; u++)
        forward += (double)model_unit_flops(model, u, 2, 1024);
    cr_expect_eq(model_flops_per_token(model, 1024), by_hand);
    cr_expect_eq(3.0 * forward, by_hand * 2048.0);
    model_destroy(model);
}

/* ---- initial values ---- */

/* The padded unit put together from the shards of n_ranks ranks. */
static float *init_in_shards(const struct model *model, int unit, int n_ranks)
{
    int64_t n = layout_shard_elements(model_layout(model), unit, n_ranks);
    float *values = malloc((size_t)(n * n_ranks) * sizeof *values);

    cr_assert_not_null(values);
    memset(values, 0xff, (size_t)(n * n_ranks) * sizeof *values);
    for (int rank = 0; rank < n_ranks; rank++) {
        struct shard shard = layout_shard(model_layout(model), unit, rank, n_ranks);

        model_init_range(model, 1, unit, shard, values + shard.begin);
    }
    return values;
}

Test(model_table, initial_values_do_not_depend_on_how_a_unit_is_cut)
{
    struct model *model = model_of("gpt-tiny");

    for (int unit = 0; unit < model_layout(model)->n_units; unit++) {
        int64_t n = model_layout(model)->units[unit].n_elements;
        float *whole = init_in_shards(model, unit, 1);

        for (int n_ranks = 2; n_ranks <= 8; n_ranks += 3) {
            float *cut = init_in_shards(model, unit, n_ranks);
            int64_t padded = n_ranks * layout_shard_elements(model_layout(model), unit, n_ranks);

            cr_expect_arr_eq(whole, cut, (size_t)n * sizeof *whole, "unit %d, %d ranks", unit,
                             n_ranks);
            for (int64_t i = n; i < padded; i++)
                cr_assert_eq(cut[i], 0.0f, "padding of unit %d", unit);
            free(cut);
        }
        free(whole);
    }
    model_destroy(model);
}

static double rms_of(const float *x, int64_t n)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)n);
}

Test(model_table, initial_values_follow_gpt2s_rule_and_differ_between_tensors_and_seeds)
{
    struct model *model = model_of("gpt-tiny"); /* 4 layers: residual projections / sqrt(8) */
    const struct tensor *qkv = tensor_of(model, "h.0.attn.c_attn.weight");
    const struct tensor *o = tensor_of(model, "h.0.attn.c_proj.weight");
    const struct tensor *scale = tensor_of(model, "h.0.ln_1.weight");
    const struct tensor *bias = tensor_of(model, "h.0.attn.c_attn.bias");
    int64_t n = model_layout(model)->units[1].n_elements;
    float *first = malloc((size_t)n * sizeof *first);
    float *second = malloc((size_t)n * sizeof *second);
    float *reseeded = malloc((size_t)n * sizeof *reseeded);
    struct shard whole = {0, n};

    model_init_range(model, 1, 1, whole, first);
    model_init_range(model, 1, 2, whole, second);
    model_init_range(model, 2, 1, whole, reseeded);
    /* the standard error of an rms over n values is 1/sqrt(2n): 5 of them for o's 36864 */
    cr_expect_float_eq(rms_of(first + qkv->offset, qkv->n_elements), 0.02, 0.02 * 0.019);
    cr_expect_float_eq(rms_of(first + o->offset, o->n_elements), 0.02 / sqrt(8.0), 0.0071 * 0.019);
    for (int64_t i = 0; i < scale->n_elements; i++)
        cr_assert_eq(first[scale->offset + i], 1.0f);
    for (int64_t i = 0; i < bias->n_elements; i++)
        cr_assert_eq(first[bias->offset + i], 0.0f);
    cr_expect_neq(first[qkv->offset], second[qkv->offset]);
    cr_expect_neq(first[qkv->offset], first[o->offset]);
    cr_expect_neq(first[qkv->offset], reseeded[qkv->offset]);
    free(first);
    free(second);
    free(reseeded);
    model_destroy(model);
}

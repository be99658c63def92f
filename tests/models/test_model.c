#include "tests/models/rig.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MUST(expr) cr_assert_eq((expr), SHOAL_OK, "%s", shoal_last_error())

enum { B = 2, T = 20, SEED = 7 };

/* Decoders that no Hugging Face class has: what the reference fixture does not reach. */
static struct model_config mixed_rotary(void)
{
    struct model_config c = rig_llama_like();

    c.norm = NORM_LAYER;
    c.bias = true;
    c.tied = true;
    return c;
}

static struct model_config mixed_learned(void)
{
    struct model_config c = rig_gpt2_like();

    c.norm = NORM_RMS;
    c.mlp = MLP_SWIGLU;
    c.bias = false;
    c.tied = false;
    return c;
}

static struct model_config config_of(size_t kind)
{
    switch (kind) {
    case 0:
        return rig_gpt2_like();
    case 1:
        return rig_llama_like();
    case 2:
        return mixed_rotary();
    default:
        return mixed_learned();
    }
}

/* A filled model that has run forward and backward. */
static struct rig *trained(size_t kind, enum dtype dtype, int n_threads, enum recompute recompute)
{
    struct model_config config = config_of(kind);
    struct rig *rig = rig_create(&config, B, T, dtype, recompute, n_threads);

    rig_fill(rig, SEED);
    rig_backward(rig);
    return rig;
}

static void expect_same_bits(const struct rig *a, const struct rig *b)
{
    size_t rows = (size_t)(a->B * a->T);

    cr_expect_arr_eq(a->row_loss, b->row_loss, rows * sizeof(double));
    for (int u = 0; u < a->layout->n_units; u++) {
        size_t n_bytes = (size_t)a->layout->units[u].n_elements * sizeof(float);

        cr_expect_arr_eq(a->grads[u], b->grads[u], n_bytes, "%s", a->layout->units[u].name);
    }
    if (model_config(a->model)->tied)
        cr_expect_arr_eq(a->tied_grads, b->tied_grads,
                         (size_t)a->layout->units[0].n_elements * sizeof(float));
}

Test(model, recomputed_activations_give_the_same_bits_as_kept_ones)
{
    for (size_t kind = 0; kind < 2; kind++) {
        for (int i = 0; i < 2; i++) {
            enum dtype dtype = i == 0 ? DTYPE_F32 : DTYPE_BF16;
            struct rig *kept = trained(kind, dtype, 1, RECOMPUTE_NONE);
            struct rig *selective = trained(kind, dtype, 1, RECOMPUTE_SELECTIVE);
            struct rig *full = trained(kind, dtype, 1, RECOMPUTE_FULL);

            expect_same_bits(kept, selective);
            expect_same_bits(kept, full);
            rig_destroy(kept);
            rig_destroy(selective);
            rig_destroy(full);
        }
    }
}

/* More rows than any tile has, so that threads have something to share. */
static struct rig *trained_preset(const char *preset, enum dtype dtype, int n_threads)
{
    struct model_config config;

    MUST(model_config_preset(preset, &config));
    struct rig *rig = rig_create(&config, 3, 256, dtype, RECOMPUTE_SELECTIVE, n_threads);

    rig_fill(rig, SEED);
    rig_backward(rig);
    return rig;
}

static void compare_threads(const char *preset, enum dtype dtype)
{
    struct rig *one = trained_preset(preset, dtype, 1);
    struct rig *two = trained_preset(preset, dtype, 2);

    expect_same_bits(one, two);
    rig_destroy(one);
    rig_destroy(two);
}

Test(model, one_and_two_threads_give_the_same_bits)
{
    compare_threads("gpt-tiny", DTYPE_F32);
    compare_threads("gpt-tiny", DTYPE_BF16);
    compare_threads("llama-tiny", DTYPE_F32);
    compare_threads("llama-tiny", DTYPE_BF16);
}

Test(model, backward_writes_every_gradient_and_zeroes_the_gaps_between_tensors)
{
    for (size_t kind = 0; kind < 4; kind++) {
        struct rig *rig = trained(kind, DTYPE_F32, 1, false);
        const struct layout *layout = rig->layout;
        int64_t n_gaps = 0;

        for (int u = 0; u < layout->n_units; u++) {
            int tensor = layout->units[u].first_tensor;
            int last = tensor + layout->units[u].n_tensors - 1;

            for (int64_t i = 0; i < layout->units[u].n_elements; i++) {
                if (tensor < last && i >= layout->tensors[tensor + 1].offset)
                    tensor++;
                const struct tensor *t = &layout->tensors[tensor];

                /* buffers were full of NaN before */
                cr_assert(isfinite(rig->grads[u][i]), "%s %lld", t->name, (long long)i);
                if (i >= t->offset + t->n_elements) {
                    n_gaps++;
                    cr_assert_eq(rig->grads[u][i], 0.0f, "gap after %s", t->name);
                }
            }
        }
        cr_assert_gt(n_gaps, 0);
        rig_destroy(rig);
    }
}

Test(model, a_tied_head_computes_what_an_untied_one_with_equal_weights_does)
{
    struct model_config config = rig_gpt2_like();
    struct rig *tied = trained(0, DTYPE_F32, 1, false);

    config.tied = false;
    struct rig *untied = rig_create(&config, B, T, DTYPE_F32, RECOMPUTE_SELECTIVE, 1);
    int head = model_head_unit(untied->model);
    const struct tensor *projection =
        &untied->layout->tensors[layout_find(untied->layout, "lm_head.weight")];
    size_t n_bytes = (size_t)projection->n_elements * sizeof(float);

    rig_fill(untied, SEED);
    memcpy(untied->master[head] + projection->offset, untied->master[0], n_bytes);
    rig_load(untied);
    rig_backward(untied);

    cr_expect_arr_eq(tied->row_loss, untied->row_loss, B * T * sizeof(double));
    cr_expect_arr_eq(tied->tied_grads, untied->grads[head] + projection->offset, n_bytes);
    cr_expect_arr_eq(tied->grads[0], untied->grads[0],
                     (size_t)tied->layout->units[0].n_elements * sizeof(float));
    /* positions and gaps of the tied gradient */
    for (int64_t i = projection->n_elements; i < tied->layout->units[0].n_elements; i++)
        cr_assert_eq(tied->tied_grads[i], 0.0f);
    rig_destroy(tied);
    rig_destroy(untied);
}

/* Loss after moving a tensor by `step` along the unit vector `direction`. */
static double loss_along(struct rig *rig, const struct tensor *t, const float *direction,
                         double step)
{
    float *w = rig->master[t->unit] + t->offset;
    size_t n_bytes = (size_t)t->n_elements * sizeof *w;
    float *before = malloc(n_bytes);

    cr_assert_not_null(before);
    memcpy(before, w, n_bytes);
    for (int64_t i = 0; i < t->n_elements; i++)
        w[i] += (float)(step * (double)direction[i]);
    rig_load(rig);
    double loss = rig_forward(rig);
    memcpy(w, before, n_bytes);
    free(before);
    return loss;
}

/* Along its own gradient g a tensor's loss rises with slope |g|. */
static void check_slope(struct rig *rig, const struct tensor *t)
{
    double h = 0.02;
    double norm = 0.0;
    float *g = malloc((size_t)t->n_elements * sizeof *g);

    cr_assert_not_null(g);
    for (int64_t i = 0; i < t->n_elements; i++) {
        g[i] = rig->grads[t->unit][t->offset + i];
        if (t->role == ROLE_EMBEDDING && model_config(rig->model)->tied)
            g[i] += rig->tied_grads[t->offset + i];
        norm += (double)g[i] * (double)g[i];
    }
    norm = sqrt(norm);
    for (int64_t i = 0; i < t->n_elements; i++)
        g[i] = (float)((double)g[i] / norm);

    double slope = (loss_along(rig, t, g, h) - loss_along(rig, t, g, -h)) / (2.0 * h);
    cr_expect_float_eq(slope, norm, TOL_MODEL_SLOPE * norm, "%s: slope %.6g, gradient %.6g",
                       t->name, slope, norm);
    free(g);
}

Test(model, gradients_of_mixed_decoders_match_central_differences_of_their_loss)
{
    for (size_t kind = 2; kind < 4; kind++) {
        struct rig *rig = trained(kind, DTYPE_F32, 1, false);

        for (int i = 0; i < rig->layout->n_tensors; i++)
            check_slope(rig, &rig->layout->tensors[i]);
        rig_destroy(rig);
    }
}

Test(model, bf16_loss_lies_within_its_band_of_the_fp32_loss)
{
    for (size_t kind = 0; kind < 4; kind++) {
        struct model_config config = config_of(kind);
        struct rig *fp32 = rig_create(&config, B, T, DTYPE_F32, RECOMPUTE_SELECTIVE, 1);
        struct rig *bf16 = rig_create(&config, B, T, DTYPE_BF16, RECOMPUTE_SELECTIVE, 1);

        rig_fill(fp32, SEED);
        rig_fill(bf16, SEED);
        double want = rig_forward(fp32);
        double got = rig_forward(bf16);

        cr_expect_float_eq(got, want, TOL_MODEL_BF16_LOSS * want, "bf16 %.6f, fp32 %.6f", got,
                           want);
        cr_expect_neq(got, want);
        rig_destroy(fp32);
        rig_destroy(bf16);
    }
}

/* ---- decode ---- */

static double loss_of_logits(const float *logits, int64_t V, int32_t target)
{
    double max = -INFINITY;
    double sum = 0.0;

    for (int64_t i = 0; i < V; i++)
        max = fmax(max, logits[i]);
    for (int64_t i = 0; i < V; i++)
        sum += exp(logits[i] - max);
    return max + log(sum) - logits[target];
}

/* Feed row 0 of the rig token by token; every position's loss must be forward's. */
static void check_decode(struct rig *rig, double tolerance)
{
    const struct model_config *c = model_config(rig->model);
    size_t cache_bytes = model_cache_bytes(rig->model, T, rig->dtype);
    char *cache = calloc((size_t)c->layers, cache_bytes);
    void *scratch = aligned_alloc(
        256, (model_decode_scratch_bytes(rig->model, rig->ops, T, rig->dtype) + 255) / 256 * 256);
    float *logits = malloc((size_t)c->vocab * sizeof *logits);
    float *x[2] = {malloc((size_t)c->hidden * sizeof(float)),
                   malloc((size_t)c->hidden * sizeof(float))};

    MUST(model_prepare_decode(rig->model, rig->ops, T, rig->dtype));
    rig_forward(rig);
    for (int64_t t = 0; t < T; t++) {
        for (int u = 0; u < rig->layout->n_units; u++) {
            struct model_decode d = {.call = {.B = 1,
                                              .T = 1,
                                              .dtype = rig->dtype,
                                              .params = rig->params[u],
                                              .tied_params = rig->params[0],
                                              .tokens = rig->tokens + t,
                                              .x_in = x[(u + 1) % 2],
                                              .x_out = x[u % 2],
                                              .scratch = scratch},
                                     .position = t,
                                     .T_max = T,
                                     .cache = cache + (size_t)(u > 0 ? u - 1 : 0) * cache_bytes,
                                     .logits = logits};

            MUST(model_decode(rig->model, rig->ops, u, &d));
        }
        double got = loss_of_logits(logits, c->vocab, rig->targets[t]);
        cr_expect_float_eq(got, rig->row_loss[t], tolerance * rig->row_loss[t],
                           "position %lld: %.8g, forward %.8g", (long long)t, got,
                           rig->row_loss[t]);
    }
    free(x[0]);
    free(x[1]);
    free(logits);
    free(scratch);
    free(cache);
}

Test(model, decoding_token_by_token_gives_the_losses_of_the_whole_forward)
{
    for (size_t kind = 0; kind < 4; kind++) {
        struct model_config config = config_of(kind);
        struct rig *fp32 = rig_create(&config, 1, T, DTYPE_F32, RECOMPUTE_SELECTIVE, 1);
        struct rig *bf16 = rig_create(&config, 1, T, DTYPE_BF16, RECOMPUTE_SELECTIVE, 1);

        rig_fill(fp32, SEED);
        rig_fill(bf16, SEED);
        check_decode(fp32, TOL_MODEL_LOSS);
        check_decode(bf16, TOL_MODEL_BF16_LOSS);
        rig_destroy(fp32);
        rig_destroy(bf16);
    }
}

Test(model, decoding_past_the_cache_is_refused)
{
    struct model_config config = rig_llama_like();
    struct rig *rig = rig_create(&config, 1, T, DTYPE_F32, RECOMPUTE_SELECTIVE, 1);
    struct model_decode d = {.call = {.B = 1, .T = 1}, .position = T, .T_max = T};

    cr_assert_eq(model_decode(rig->model, rig->ops, 0, &d), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(strstr(shoal_last_error(), "position 20 of 20"));
    rig_destroy(rig);
}

Test(model, a_window_longer_than_the_positions_is_refused_before_training)
{
    struct model_config config = rig_gpt2_like();
    struct rig *rig = rig_create(&config, 1, T, DTYPE_F32, RECOMPUTE_SELECTIVE, 1);

    cr_assert_eq(model_prepare(rig->model, rig->ops, 1, 33, DTYPE_F32, RECOMPUTE_NONE),
                 SHOAL_ERR_CONFIG);
    cr_assert_not_null(strstr(shoal_last_error(), "data.seq_len: 33"));
    rig_destroy(rig);
}

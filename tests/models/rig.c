#include "tests/models/rig.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MUST(expr) cr_assert_eq((expr), SHOAL_OK, "%s", shoal_last_error())

struct model_config rig_gpt2_like(void)
{
    return (struct model_config){.layers = 2,
                                 .hidden = 48,
                                 .heads = 3,
                                 .kv_heads = 3,
                                 .head_size = 16,
                                 .ffn = 192,
                                 .vocab = 131,
                                 .max_seq = 32,
                                 .norm = NORM_LAYER,
                                 .position = POSITION_LEARNED,
                                 .mlp = MLP_GELU,
                                 .bias = true,
                                 .tied = true,
                                 .norm_eps = 1e-5f};
}

struct model_config rig_llama_like(void)
{
    return (struct model_config){.layers = 2,
                                 .hidden = 48,
                                 .heads = 6,
                                 .kv_heads = 2,
                                 .head_size = 8,
                                 .ffn = 112,
                                 .vocab = 131,
                                 .max_seq = 32,
                                 .norm = NORM_RMS,
                                 .position = POSITION_ROPE,
                                 .mlp = MLP_SWIGLU,
                                 .norm_eps = 1e-5f,
                                 .rope_theta = 10000.0};
}

uint32_t rig_hash(uint64_t stream, uint64_t i)
{
    uint64_t x = (i * 2654435761u + stream * 40503u + 12345u) & 0xffffffffu;

    x = ((x ^ (x >> 15)) * 2246822519u) & 0xffffffffu;
    x = ((x ^ (x >> 13)) * 3266489917u) & 0xffffffffu;
    return (uint32_t)(x ^ (x >> 16));
}

/* 256-byte aligned, all NaN. */
static void *block(size_t n_bytes)
{
    void *p = aligned_alloc(256, (n_bytes + 255) / 256 * 256);

    cr_assert_not_null(p);
    memset(p, 0xff, n_bytes);
    return p;
}

static size_t unit_floats(const struct rig *rig, int unit)
{
    return (size_t)rig->layout->units[unit].n_elements;
}

struct rig *rig_create(const struct model_config *config, int64_t B, int64_t T, enum dtype dtype,
                       enum recompute recompute, int n_threads)
{
    struct rig *rig = calloc(1, sizeof *rig);

    cr_assert_not_null(rig);
    rig->B = B;
    rig->T = T;
    rig->dtype = dtype;
    rig->recompute = recompute;
    MUST(pool_create(n_threads, -1, &rig->pool));
    MUST(ops_create_cpu(rig->pool, &rig->ops));
    MUST(model_create(config, &rig->model));
    MUST(model_prepare(rig->model, rig->ops, B, T, dtype, recompute));
    rig->layout = model_layout(rig->model);
    cr_assert_leq(rig->layout->n_units, RIG_UNITS);

    for (int u = 0; u < rig->layout->n_units; u++) {
        rig->master[u] = block(unit_floats(rig, u) * sizeof(float));
        rig->params[u] = block(unit_floats(rig, u) * dtype_bytes(dtype));
        rig->grads[u] = block(unit_floats(rig, u) * sizeof(float));
        rig->x[u] = block(model_residual_bytes(rig->model, B, T));
        rig->saved[u] = block(model_saved_bytes(rig->model, B, T, dtype, recompute));
    }
    rig->tied_grads = block(unit_floats(rig, 0) * sizeof(float));
    rig->dx = block(model_gradient_bytes(rig->model, B, T, dtype));
    rig->row_loss = block((size_t)(B * T) * sizeof(double));
    rig->tokens = block((size_t)(B * T) * sizeof(int32_t));
    rig->targets = block((size_t)(B * T) * sizeof(int32_t));
    rig->scratch = block(model_scratch_bytes(rig->model, rig->ops, B, T, dtype));
    return rig;
}

void rig_destroy(struct rig *rig)
{
    for (int u = 0; u < rig->layout->n_units; u++) {
        free(rig->master[u]);
        free(rig->params[u]);
        free(rig->grads[u]);
        free(rig->x[u]);
        free(rig->saved[u]);
    }
    free(rig->tied_grads);
    free(rig->dx);
    free(rig->row_loss);
    free(rig->tokens);
    free(rig->targets);
    free(rig->scratch);
    model_destroy(rig->model);
    ops_destroy(rig->ops);
    pool_destroy(rig->pool);
    free(rig);
}

static void enlarge(struct rig *rig, const struct tensor *t)
{
    float *w = rig->master[t->unit] + t->offset;

    for (int64_t i = 0; i < t->n_elements && t->ndim == 2; i++)
        w[i] *= 8.0f;
}

void rig_fill(struct rig *rig, uint64_t seed)
{
    uint32_t vocab = (uint32_t)model_config(rig->model)->vocab;

    for (int u = 0; u < rig->layout->n_units; u++) {
        struct shard whole = {0, rig->layout->units[u].n_elements};

        model_init_range(rig->model, seed, u, whole, rig->master[u]);
    }
    for (int i = 0; i < rig->layout->n_tensors; i++)
        enlarge(rig, &rig->layout->tensors[i]);
    for (int64_t i = 0; i < rig->B * rig->T; i++) {
        rig->tokens[i] = (int32_t)(rig_hash(1, (uint64_t)i) % vocab);
        rig->targets[i] = (int32_t)(rig_hash(2, (uint64_t)i) % vocab);
    }
    rig_load(rig);
}

void rig_load(struct rig *rig)
{
    for (int u = 0; u < rig->layout->n_units; u++) {
        for (size_t i = 0; i < unit_floats(rig, u); i++) {
            if (rig->dtype == DTYPE_BF16)
                ((bf16_t *)rig->params[u])[i] = bf16_from_f32(rig->master[u][i]);
            else
                ((float *)rig->params[u])[i] = rig->master[u][i];
        }
    }
}

static struct model_call call_of(struct rig *rig, int unit)
{
    return (struct model_call){
        .B = rig->B,
        .T = rig->T,
        .dtype = rig->dtype,
        .params = rig->params[unit],
        .tied_params = rig->params[0],
        .tokens = rig->tokens,
        .targets = rig->targets,
        .x_in = unit > 0 ? rig->x[unit - 1] : NULL,
        .x_out = rig->x[unit],
        .saved = rig->saved[unit],
        .recompute = rig->recompute,
        .dx = rig->dx,
        .grads = rig->grads[unit],
        .tied_grads = rig->tied_grads,
        .row_loss = rig->row_loss,
        .loss_scale = (float)(1.0 / (double)(rig->B * rig->T)),
        .scratch = rig->scratch,
    };
}

static void spoil(void *p, size_t n_bytes)
{
    memset(p, 0xff, n_bytes);
}

static size_t saved_bytes(const struct rig *rig)
{
    return model_saved_bytes(rig->model, rig->B, rig->T, rig->dtype, rig->recompute);
}

static void forward_unit(struct rig *rig, int unit)
{
    struct model_call call = call_of(rig, unit);

    spoil(rig->x[unit], model_residual_bytes(rig->model, rig->B, rig->T));
    spoil(rig->saved[unit], saved_bytes(rig));
    spoil(rig->scratch, model_scratch_bytes(rig->model, rig->ops, rig->B, rig->T, rig->dtype));
    MUST(model_forward(rig->model, rig->ops, unit, &call));
}

static double mean_loss(const struct rig *rig)
{
    double sum = 0.0;

    for (int64_t i = 0; i < rig->B * rig->T; i++)
        sum += rig->row_loss[i];
    return sum / (double)(rig->B * rig->T);
}

double rig_forward(struct rig *rig)
{
    for (int u = 0; u < rig->layout->n_units; u++)
        forward_unit(rig, u);
    return mean_loss(rig);
}

static void backward_unit(struct rig *rig, int unit)
{
    struct model_call call = call_of(rig, unit);

    if (rig->recompute == RECOMPUTE_FULL)
        spoil(rig->saved[unit], saved_bytes(rig));
    spoil(rig->grads[unit], unit_floats(rig, unit) * sizeof(float));
    spoil(rig->scratch, model_scratch_bytes(rig->model, rig->ops, rig->B, rig->T, rig->dtype));
    MUST(model_backward(rig->model, rig->ops, unit, &call));
}

double rig_backward(struct rig *rig)
{
    int head = model_head_unit(rig->model);

    for (int u = 0; u < head; u++)
        forward_unit(rig, u);
    spoil(rig->dx, model_gradient_bytes(rig->model, rig->B, rig->T, rig->dtype));
    spoil(rig->tied_grads, unit_floats(rig, 0) * sizeof(float));
    for (int u = head; u >= 0; u--)
        backward_unit(rig, u);
    return mean_loss(rig);
}

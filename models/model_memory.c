#include "models/model_internal.h"

/*
 * Sizes of a unit's buffers and the shapes of its products: one place for the planner, for the
 * preparation of matmuls and for the units themselves.
 */

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static size_t larger_bytes(size_t a, size_t b)
{
    return a > b ? a : b;
}

struct shapes model_shapes(const struct model *model, int64_t B, int64_t T, enum dtype dtype)
{
    const struct model_config *c = &model->config;
    int64_t N = B * T;
    int64_t C = c->hidden;

    return (struct shapes){
        .N = N,
        .qkv = {.rows = N, .in = C, .out = width_qkv(c), .dtype = dtype},
        .o = {.rows = N, .in = width_attention(c), .out = C, .dtype = dtype},
        .up = {.rows = N, .in = C, .out = width_up(c), .dtype = dtype},
        .down = {.rows = N, .in = c->ffn, .out = C, .dtype = dtype},
        .attention =
            {.B = B, .T = T, .H = c->heads, .K = c->kv_heads, .D = c->head_size, .dtype = dtype},
        .head = {.N = N, .C = C, .V = c->vocab, .dtype = dtype},
    };
}

/* ---- carving ---- */

enum { CARVE_ALIGN = 256 }; /* what libraries on a GPU expect of their workspaces */

void *carve(struct carve *c, size_t n_bytes)
{
    char *p = c->base == NULL ? NULL : c->base + c->used;

    c->used += (n_bytes + CARVE_ALIGN - 1) / CARVE_ALIGN * CARVE_ALIGN;
    return p;
}

/* [n_rows, width] of dtype. */
static void *carve_rows(struct carve *c, int64_t n_rows, int64_t width, enum dtype dtype)
{
    return carve(c, (size_t)n_rows * (size_t)width * dtype_bytes(dtype));
}

static struct normed carve_normed(struct carve *c, int64_t N, int64_t C, enum dtype dtype)
{
    void *y = carve_rows(c, N, C, dtype);

    return (struct normed){.y = y, .stats = carve_rows(c, N, 2, DTYPE_F32)};
}

size_t carve_saved(const struct model *model, int64_t B, int64_t T, enum dtype dtype,
                   enum recompute recompute, void *base, struct saved *saved_out)
{
    const struct model_config *c = &model->config;
    struct carve memory = {.base = base};
    int64_t N = B * T;

    saved_out->qkv = carve_rows(&memory, N, width_qkv(c), dtype);
    saved_out->y = carve_rows(&memory, N, width_attention(c), dtype);
    saved_out->lse = carve_rows(&memory, N, c->heads, DTYPE_F32);
    saved_out->mid = carve_rows(&memory, N, c->hidden, DTYPE_F32);
    saved_out->up = carve_rows(&memory, N, width_up(c), dtype);
    saved_out->norm1 = saved_out->norm2 = (struct normed){NULL, NULL};
    saved_out->act = NULL;
    if (recompute != RECOMPUTE_NONE)
        return memory.used;
    saved_out->norm1 = carve_normed(&memory, N, c->hidden, dtype);
    saved_out->norm2 = carve_normed(&memory, N, c->hidden, dtype);
    saved_out->act = carve_rows(&memory, N, c->ffn, dtype);
    return memory.used;
}

size_t carve_gradient(const struct model *model, int64_t B, int64_t T, enum dtype dtype, void *base,
                      struct gradient *gradient_out)
{
    const struct model_config *c = &model->config;
    struct carve memory = {.base = base};

    gradient_out->wide = carve_rows(&memory, B * T, c->hidden, DTYPE_F32);
    gradient_out->rounded =
        dtype == DTYPE_F32 ? NULL : carve_rows(&memory, B * T, c->hidden, dtype);
    gradient_out->narrow = dtype == DTYPE_F32 ? gradient_out->wide : gradient_out->rounded;
    return memory.used;
}

/* Scratch of the largest op of any unit; ops run one after the other. */
static size_t op_scratch_bytes(const struct model *model, const struct ops *ops, int64_t B,
                               int64_t T, enum dtype dtype)
{
    struct shapes s = model_shapes(model, B, T, dtype);
    size_t n_bytes = op_linear_scratch_bytes(ops, s.qkv);

    n_bytes = larger_bytes(n_bytes, op_linear_scratch_bytes(ops, s.o));
    n_bytes = larger_bytes(n_bytes, op_linear_scratch_bytes(ops, s.up));
    n_bytes = larger_bytes(n_bytes, op_linear_scratch_bytes(ops, s.down));
    n_bytes = larger_bytes(n_bytes, op_attention_scratch_bytes(ops, s.attention));
    n_bytes = larger_bytes(n_bytes, op_norm_backward_scratch_bytes(ops, s.N, s.head.C));
    return larger_bytes(n_bytes, op_head_scratch_bytes(ops, s.head));
}

size_t carve_scratch(const struct model *model, const struct ops *ops, int64_t B, int64_t T,
                     enum dtype dtype, void *base, struct scratch *scratch_out)
{
    const struct model_config *c = &model->config;
    struct carve memory = {.base = base};
    int64_t C = c->hidden;
    int64_t N = B * T;
    int64_t width_a = larger(width_up(c), width_qkv(c));
    int64_t width_b = larger(larger(c->ffn, width_attention(c)), C);

    scratch_out->narrow = carve_rows(&memory, N, C, dtype);
    scratch_out->wide_a = carve_rows(&memory, N, width_a, dtype);
    scratch_out->wide_b = carve_rows(&memory, N, width_b, dtype);
    scratch_out->stats = carve_rows(&memory, N, 2, DTYPE_F32);
    scratch_out->op = carve(&memory, op_scratch_bytes(model, ops, B, T, dtype));
    return memory.used;
}

/* ---- sizes for the planner ---- */

size_t model_residual_bytes(const struct model *model, int64_t B, int64_t T)
{
    return (size_t)(B * T * model->config.hidden) * sizeof(float);
}

size_t model_saved_bytes(const struct model *model, int64_t B, int64_t T, enum dtype dtype,
                         enum recompute recompute)
{
    struct saved unused;

    return carve_saved(model, B, T, dtype, recompute, NULL, &unused);
}

size_t model_gradient_bytes(const struct model *model, int64_t B, int64_t T, enum dtype dtype)
{
    struct gradient unused;

    return carve_gradient(model, B, T, dtype, NULL, &unused);
}

size_t model_scratch_bytes(const struct model *model, const struct ops *ops, int64_t B, int64_t T,
                           enum dtype dtype)
{
    struct scratch unused;

    return carve_scratch(model, ops, B, T, dtype, NULL, &unused);
}

size_t model_cache_bytes(const struct model *model, int64_t T_max, enum dtype dtype)
{
    const struct model_config *c = &model->config;

    return 2 * (size_t)T_max * (size_t)c->kv_heads * (size_t)c->head_size * dtype_bytes(dtype);
}

/* ---- preparation ---- */

static shoal_status prepare_block(const struct model *model, struct ops *ops,
                                  const struct shapes *s, int64_t T_max)
{
    const struct model_config *c = &model->config;

    SHOAL_TRY(op_linear_prepare(ops, s->qkv));
    SHOAL_TRY(op_linear_prepare(ops, s->o));
    SHOAL_TRY(op_linear_prepare(ops, s->up));
    SHOAL_TRY(op_linear_prepare(ops, s->down));
    if (c->position == POSITION_ROPE)
        SHOAL_TRY(op_rope_prepare(ops, T_max, c->head_size, c->rope_theta));
    return SHOAL_OK;
}

shoal_status model_prepare(const struct model *model, struct ops *ops, int64_t B, int64_t T,
                           enum dtype dtype, enum recompute recompute)
{
    struct shapes s = model_shapes(model, B, T, dtype);

    if (T > model->config.max_seq) {
        fail(SHOAL_ERR_CONFIG, "data.seq_len: %lld tokens are more than the model's %d positions",
             (long long)T, model->config.max_seq);
        return fail_hint(SHOAL_ERR_CONFIG, "lower data.seq_len or choose another model");
    }
    SHOAL_TRY(prepare_block(model, ops, &s, T));
    if (recompute == RECOMPUTE_NONE && model->config.mlp == MLP_GELU)
        SHOAL_TRY(op_linear_gelu_prepare(ops, s.up, model->config.bias, s.down));
    SHOAL_TRY(op_attention_prepare(ops, s.attention));
    return op_head_prepare(ops, s.head);
}

shoal_status model_prepare_decode(const struct model *model, struct ops *ops, int64_t T_max,
                                  enum dtype dtype)
{
    struct shapes s = model_shapes(model, 1, 1, dtype);

    SHOAL_TRY(prepare_block(model, ops, &s, T_max));
    return op_linear_prepare(ops, model_logits_shape(model, dtype));
}

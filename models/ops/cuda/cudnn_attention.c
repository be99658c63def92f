#include "models/ops/cuda/cudnn_attention.h"

#include <math.h>
#include <stdlib.h>

/* What a graph's real tensors stand for. */
enum role {
    ROLE_Q,
    ROLE_K,
    ROLE_V,
    ROLE_Y,
    ROLE_LSE,
    ROLE_DY,
    ROLE_DQ,
    ROLE_DK,
    ROLE_DV,
    ROLE_ROW_SUM, /* sum over a row of dy * y */
    ROLE_DQ_SUM,  /* dq before rounding */
    ROLE_SCALE,
    ROLE_MASKED,
    ROLE_ONE,
    ROLE_COUNT
};

struct cudnn_attention {
    struct cudnn_attention_shape s;
    enum cudnn_attention_pass pass;
    struct cudnn_graph graph;
    struct cudnn_plan plan;
    int ids[ROLE_COUNT]; /* 0: not in the graph */
    float scale, masked, one;
};

static const cudnnDataType_t fp32 = CUDNN_DATA_FLOAT;
static const cudnnDataType_t bf16 = CUDNN_DATA_BFLOAT16;

/* ---- the graphs' tensors ---- */

/* [B, heads, T, D] in rows of `row` elements. */
static int real_heads(struct cudnn_attention *a, enum role role, int heads, int64_t row)
{
    const struct cudnn_attention_shape *s = &a->s;

    a->ids[role] =
        cudnn_graph_tensor(&a->graph, (struct cudnn_tensor){.place = CUDNN_REAL,
                                                            .type = bf16,
                                                            .dims = {s->B, heads, s->T, s->D},
                                                            .strides = {s->T * row, s->D, row, 1}});
    return a->ids[role];
}

/* The same memory as [B, heads, D, T]. */
static int real_heads_transposed(struct cudnn_attention *a, enum role role, int heads, int64_t row)
{
    const struct cudnn_attention_shape *s = &a->s;

    a->ids[role] =
        cudnn_graph_tensor(&a->graph, (struct cudnn_tensor){.place = CUDNN_REAL,
                                                            .type = bf16,
                                                            .dims = {s->B, heads, s->D, s->T},
                                                            .strides = {s->T * row, s->D, 1, row}});
    return a->ids[role];
}

/* One number per query: [B, H, T, 1] fp32. */
static int rows(struct cudnn_attention *a, enum cudnn_place place)
{
    const struct cudnn_attention_shape *s = &a->s;

    return cudnn_graph_tensor(&a->graph,
                              (struct cudnn_tensor){.place = place,
                                                    .type = fp32,
                                                    .dims = {s->B, s->H, s->T, 1},
                                                    .strides = {s->H * s->T, s->T, 1, 1}});
}

/* One number per query and key: [B, H, T, T]. */
static int scores(struct cudnn_attention *a, cudnnDataType_t type)
{
    const struct cudnn_attention_shape *s = &a->s;

    return cudnn_graph_tensor(
        &a->graph, (struct cudnn_tensor){.place = CUDNN_VIRTUAL,
                                         .type = type,
                                         .dims = {s->B, s->H, s->T, s->T},
                                         .strides = {s->H * s->T * s->T, s->T * s->T, s->T, 1}});
}

/* Scores seen as [B, H, keys, queries]. */
static int scores_transposed(struct cudnn_attention *a)
{
    const struct cudnn_attention_shape *s = &a->s;

    return cudnn_graph_tensor(
        &a->graph, (struct cudnn_tensor){.place = CUDNN_VIRTUAL,
                                         .type = bf16,
                                         .dims = {s->B, s->H, s->T, s->T},
                                         .strides = {s->H * s->T * s->T, s->T * s->T, 1, s->T}});
}

/* [B, H, T, D], a head after the other. */
static int packed_heads(struct cudnn_attention *a, enum cudnn_place place, cudnnDataType_t type)
{
    const struct cudnn_attention_shape *s = &a->s;

    return cudnn_graph_tensor(
        &a->graph, (struct cudnn_tensor){.place = place,
                                         .type = type,
                                         .dims = {s->B, s->H, s->T, s->D},
                                         .strides = {s->H * s->T * s->D, s->T * s->D, s->D, 1}});
}

static int scalar(struct cudnn_attention *a, enum role role)
{
    a->ids[role] = cudnn_graph_tensor(&a->graph, (struct cudnn_tensor){.place = CUDNN_SCALAR,
                                                                       .type = fp32,
                                                                       .dims = {1, 1, 1, 1},
                                                                       .strides = {1, 1, 1, 1}});
    return a->ids[role];
}

/* ---- the graphs ---- */

static int binary(struct cudnn_attention *a, cudnnPointwiseMode_t mode, int x, int b)
{
    return cudnn_graph_binary(&a->graph, mode, x, b, scores(a, fp32));
}

/* x where key <= query, else `masked`. */
static int causal(struct cudnn_attention *a, int x, int masked)
{
    struct cudnn_graph *g = &a->graph;
    const int query = cudnn_graph_index(g, 2, x, scores(a, CUDNN_DATA_INT32));
    const int key = cudnn_graph_index(g, 3, x, scores(a, CUDNN_DATA_INT32));
    const int keep = cudnn_graph_not_less(g, query, key, scores(a, CUDNN_DATA_BOOLEAN));

    return cudnn_graph_select(g, keep, x, masked, scores(a, fp32));
}

static shoal_status build_forward(struct cudnn_attention *a)
{
    const struct cudnn_attention_shape *s = &a->s;
    struct cudnn_graph *g = &a->graph;
    const int q = real_heads(a, ROLE_Q, s->H, s->qkv_row);
    const int kt = real_heads_transposed(a, ROLE_K, s->K, s->qkv_row);
    const int v = real_heads(a, ROLE_V, s->K, s->qkv_row);
    const int y = real_heads(a, ROLE_Y, s->H, s->y_row);
    const int scale = scalar(a, ROLE_SCALE);
    const int masked = scalar(a, ROLE_MASKED);
    const int lse = a->ids[ROLE_LSE] = rows(a, CUDNN_REAL);

    /* x = causal(scale q kᵀ) */
    int x = cudnn_graph_matmul(g, q, kt, scores(a, fp32));
    x = causal(a, binary(a, CUDNN_POINTWISE_MUL, x, scale), masked);
    /* e = exp(x - max), p = e / sum(e), lse = max + log(sum) */
    const int max = cudnn_graph_reduce(g, CUDNN_REDUCE_TENSOR_MAX, x, rows(a, CUDNN_VIRTUAL));
    const int e = cudnn_graph_unary(g, CUDNN_POINTWISE_EXP, binary(a, CUDNN_POINTWISE_SUB, x, max),
                                    scores(a, fp32));
    const int sum = cudnn_graph_reduce(g, CUDNN_REDUCE_TENSOR_ADD, e, rows(a, CUDNN_VIRTUAL));
    const int log_sum = cudnn_graph_unary(g, CUDNN_POINTWISE_LOG, sum, rows(a, CUDNN_VIRTUAL));
    cudnn_graph_binary(g, CUDNN_POINTWISE_ADD, max, log_sum, lse);
    const int p = cudnn_graph_binary(g, CUDNN_POINTWISE_DIV, e, sum, scores(a, bf16));
    /* y = p v */
    cudnn_graph_matmul(g, p, v, y);
    return cudnn_graph_build(g);
}

/* out [B, K, T, D] = left right, summed over the query heads that share a key/value head. */
static void grouped_matmul(struct cudnn_attention *a, int left, int right, int out)
{
    struct cudnn_graph *g = &a->graph;

    if (a->s.H == a->s.K) {
        cudnn_graph_matmul(g, left, right, out);
        return;
    }
    const int heads = cudnn_graph_matmul(g, left, right, packed_heads(a, CUDNN_VIRTUAL, bf16));
    cudnn_graph_reduce(g, CUDNN_REDUCE_TENSOR_ADD, heads, out);
}

/* dq = ds k, at once or through sums that many blocks add to. */
static void build_dq(struct cudnn_attention *a, int ds, int kt, int dq)
{
    const struct cudnn_attention_shape *s = &a->s;
    struct cudnn_graph *g = &a->graph;
    const int k_view = cudnn_graph_tensor(
        g, (struct cudnn_tensor){.place = CUDNN_VIRTUAL,
                                 .type = fp32,
                                 .dims = {s->B, s->K, s->T, s->D},
                                 .strides = {s->T * s->qkv_row, s->D, s->qkv_row, 1}});
    const int k = cudnn_graph_reshape(g, kt, k_view);

    if (s->deterministic) {
        cudnn_graph_matmul(g, ds, k, dq);
        return;
    }
    a->ids[ROLE_DQ_SUM] = packed_heads(a, CUDNN_REAL, fp32);
    cudnn_graph_matmul(g, ds, k, a->ids[ROLE_DQ_SUM]);
    cudnn_graph_unary(g, CUDNN_POINTWISE_IDENTITY, a->ids[ROLE_DQ_SUM], dq);
}

/* The sum over a row of dy * y; the product with one keeps the library's pattern. */
static int build_row_sum(struct cudnn_attention *a, int dy, int y)
{
    struct cudnn_graph *g = &a->graph;
    const int product = packed_heads(a, CUDNN_VIRTUAL, fp32);

    cudnn_graph_binary(g, CUDNN_POINTWISE_MUL, dy, y, product);
    const int sum = cudnn_graph_reduce(g, CUDNN_REDUCE_TENSOR_ADD, product, rows(a, CUDNN_VIRTUAL));
    a->ids[ROLE_ROW_SUM] = rows(a, CUDNN_REAL);
    return cudnn_graph_binary(g, CUDNN_POINTWISE_MUL, sum, scalar(a, ROLE_ONE),
                              a->ids[ROLE_ROW_SUM]);
}

static shoal_status build_backward(struct cudnn_attention *a)
{
    const struct cudnn_attention_shape *s = &a->s;
    struct cudnn_graph *g = &a->graph;
    const int q = real_heads(a, ROLE_Q, s->H, s->qkv_row);
    const int kt = real_heads_transposed(a, ROLE_K, s->K, s->qkv_row);
    const int vt = real_heads_transposed(a, ROLE_V, s->K, s->qkv_row);
    const int y = real_heads(a, ROLE_Y, s->H, s->y_row);
    const int dy = real_heads(a, ROLE_DY, s->H, s->y_row);
    const int dq = real_heads(a, ROLE_DQ, s->H, s->qkv_row);
    const int dk = real_heads(a, ROLE_DK, s->K, s->qkv_row);
    const int dv = real_heads(a, ROLE_DV, s->K, s->qkv_row);
    const int scale = scalar(a, ROLE_SCALE);
    const int masked = scalar(a, ROLE_MASKED);
    const int lse = a->ids[ROLE_LSE] = rows(a, CUDNN_REAL);
    const int row_sum = build_row_sum(a, dy, y);

    /* p = exp(causal(scale q kᵀ - lse)) */
    int x = cudnn_graph_matmul(g, q, kt, scores(a, fp32));
    x = binary(a, CUDNN_POINTWISE_SUB, binary(a, CUDNN_POINTWISE_MUL, x, scale), lse);
    const int p = cudnn_graph_unary(g, CUDNN_POINTWISE_EXP, causal(a, x, masked), scores(a, fp32));
    /* dv = pᵀ dy */
    grouped_matmul(a, cudnn_graph_reshape(g, p, scores_transposed(a)), dy, dv);
    /* ds = scale p (dy vᵀ - row_sum) */
    int ds = cudnn_graph_matmul(g, dy, vt, scores(a, fp32));
    ds = binary(a, CUDNN_POINTWISE_MUL, binary(a, CUDNN_POINTWISE_SUB, ds, row_sum), p);
    ds = binary(a, CUDNN_POINTWISE_MUL, ds, scale);
    /* dk = dsᵀ q */
    grouped_matmul(a, cudnn_graph_reshape(g, ds, scores_transposed(a)), q, dk);
    build_dq(a, ds, kt, dq);
    return cudnn_graph_build(g);
}

/* ---- a pass ---- */

shoal_status cudnn_attention_create(const struct cudnn_attention_shape *shape,
                                    enum cudnn_attention_pass pass,
                                    cudnnBackendDescriptor_t properties, size_t limit_bytes,
                                    bool compile, struct cudnn_attention **attention_out)
{
    struct cudnn_attention *a = calloc(1, sizeof *a);
    shoal_status status = SHOAL_OK;

    if (a == NULL)
        return fail(SHOAL_ERR_NOMEM, "attention: cannot reserve %zu bytes", sizeof *a);
    a->s = *shape;
    a->pass = pass;
    a->scale = (float)(1.0 / sqrt((double)shape->D));
    a->masked = -INFINITY;
    a->one = 1.0f;
    SHOAL_TRY_GOTO(pass == CUDNN_ATTENTION_FORWARD ? build_forward(a) : build_backward(a), err);
    SHOAL_TRY_GOTO(cudnn_plan_init(&a->graph, properties, limit_bytes, compile, &a->plan), err);
    *attention_out = a;
    return SHOAL_OK;

err:
    cudnn_attention_destroy(a);
    return status;
}

void cudnn_attention_destroy(struct cudnn_attention *attention)
{
    if (attention == NULL)
        return;
    cudnn_plan_fini(&attention->plan);
    cudnn_graph_fini(&attention->graph);
    free(attention);
}

const struct cudnn_plan *cudnn_attention_plan(const struct cudnn_attention *attention)
{
    return &attention->plan;
}

/* That of device memory: the library asks for less or says nothing, and is used with no other. */
enum { SCRATCH_ALIGNMENT = 256 };

static size_t aligned(size_t n_bytes)
{
    return (n_bytes + SCRATCH_ALIGNMENT - 1) & ~(size_t)(SCRATCH_ALIGNMENT - 1);
}

/* Behind the plan's workspace: row sums, then dq's sums. */
static size_t row_sum_bytes(const struct cudnn_attention *a)
{
    return a->ids[ROLE_ROW_SUM] == 0 ? 0
                                     : aligned((size_t)(a->s.B * a->s.H * a->s.T) * sizeof(float));
}

static size_t dq_sum_bytes(const struct cudnn_attention *a)
{
    return a->ids[ROLE_DQ_SUM] == 0
               ? 0
               : aligned((size_t)(a->s.B * a->s.H * a->s.T * a->s.D) * sizeof(float));
}

size_t cudnn_attention_scratch_bytes(const struct cudnn_attention *attention)
{
    return aligned(attention->plan.workspace_bytes) + row_sum_bytes(attention) +
           dq_sum_bytes(attention);
}

size_t cudnn_attention_estimate_bytes(const struct cudnn_attention_shape *shape)
{
    const int64_t heads = shape->B * shape->H;
    const int64_t by_64 = (shape->T + 63) / 64 * 64;
    const int64_t by_128 = (shape->T + 127) / 128 * 128;
    const int64_t grouped = shape->H == shape->K ? 0 : 4 * heads * shape->T * shape->D;

    return aligned((size_t)(256 + 2 * heads * by_64 * by_128 + grouped)) +
           aligned((size_t)(4 * heads * shape->T));
}

shoal_status cudnn_attention_run(cudnnHandle_t handle, struct cudnn_attention *attention,
                                 const struct cudnn_attention_data *data, void *scratch)
{
    struct cudnn_attention *a = attention;
    char *row_sum = (char *)scratch + aligned(a->plan.workspace_bytes);
    /* The library takes inputs through pointers that are not const. */
    void *const places[ROLE_COUNT] = {[ROLE_Q] = (void *)(uintptr_t)data->q,
                                      [ROLE_K] = (void *)(uintptr_t)data->k,
                                      [ROLE_V] = (void *)(uintptr_t)data->v,
                                      [ROLE_Y] = data->y,
                                      [ROLE_LSE] = data->lse,
                                      [ROLE_DY] = (void *)(uintptr_t)data->dy,
                                      [ROLE_DQ] = data->dq,
                                      [ROLE_DK] = data->dk,
                                      [ROLE_DV] = data->dv,
                                      [ROLE_ROW_SUM] = row_sum,
                                      [ROLE_DQ_SUM] = row_sum + row_sum_bytes(a),
                                      [ROLE_SCALE] = &a->scale,
                                      [ROLE_MASKED] = &a->masked,
                                      [ROLE_ONE] = &a->one};
    int64_t ids[ROLE_COUNT];
    void *pointers[ROLE_COUNT];
    int n = 0;

    if (a->plan.plan == NULL)
        return fail(SHOAL_ERR_INTERNAL, "attention: the plan was not compiled");
    if ((uintptr_t)scratch % SCRATCH_ALIGNMENT != 0)
        return fail(SHOAL_ERR_INTERNAL, "attention: expected scratch aligned to %d bytes, found %p",
                    (int)SCRATCH_ALIGNMENT, scratch);
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (a->ids[role] == 0)
            continue;
        if (places[role] == NULL || (uintptr_t)places[role] % (role >= ROLE_SCALE ? 4 : 16) != 0)
            return fail(SHOAL_ERR_INTERNAL,
                        "attention: expected memory of operand %d aligned to 16 bytes, found %p",
                        role, places[role]);
        ids[n] = a->ids[role];
        pointers[n++] = places[role];
    }
    return cudnn_plan_run(handle, &a->plan, n, ids, pointers, scratch);
}

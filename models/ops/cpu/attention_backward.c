/*
 * Causal attention, backward: the probabilities are made again from the scores and the saved
 * log-sum-exp.  With P = exp(S - lse), delta_i = dY_i · Y_i (Dao et al. 2022):
 *   dV = Pᵀ dY,  dP = dY Vᵀ,  dS = P (dP - delta),  dQ = scale dS K,  dK = scale dSᵀ Q.
 * A tile of work is one (sequence, key/value head): its dK and dV are summed over query heads and
 * blocks in order, in one thread.
 */
#include "models/ops/cpu/attention_internal.h"

#include <string.h>

/* scores and dP [block, T]; k, v, dk, dv [T, D]; q, dy, dq [block, D] */
int64_t attention_backward_floats(const struct attention_shape *s)
{
    const int64_t block = attention_block(s);

    return 2 * block * round_up(s->T, 16) + 4 * s->T * round_up(s->D, 16) +
           3 * block * round_up(s->D, 16);
}

struct backward_task {
    const struct cpu_ops *cpu;
    struct attention_shape s;
    struct attention_backward data;
    char *scratch;
    int64_t thread_bytes;
    _Atomic int status;
};

struct backward_scratch {
    float *scores, *dp;
    float *k, *v, *dk, *dv;
    float *q, *dy, *dq;
};

static struct backward_scratch cut_scratch(const struct attention_shape *s, float *p)
{
    const int64_t scores = attention_block(s) * round_up(s->T, 16);
    const int64_t keys = s->T * round_up(s->D, 16);
    const int64_t queries = attention_block(s) * round_up(s->D, 16);
    float *k = p + 2 * scores;
    float *q = k + 4 * keys;

    return (struct backward_scratch){.scores = p,
                                     .dp = p + scores,
                                     .k = k,
                                     .v = k + keys,
                                     .dk = k + 2 * keys,
                                     .dv = k + 3 * keys,
                                     .q = q,
                                     .dy = q + queries,
                                     .dq = q + 2 * queries};
}

/* Queries [q0, q0 + n) of query head h in sequence b. */
static shoal_status backward_block(const struct backward_task *t, const struct backward_scratch *w,
                                   struct matrix k, struct matrix v, int64_t b, int h, int64_t q0,
                                   int64_t n)
{
    const struct attention_shape *s = &t->s;
    const struct op_kernels *kernels = t->cpu->kernels;
    const int64_t D = s->D;
    const int64_t keys = q0 + n;
    const int64_t ld = round_up(s->T, 16);
    const float scale = attention_scale(s);
    const int64_t q_ld = attention_row_width(s);
    const int64_t y_ld = s->H * D;
    const int64_t q_first = (b * s->T + q0) * q_ld + h * D;
    const int64_t y_first = (b * s->T + q0) * y_ld + h * D;
    const float *lse = t->data.lse + (b * s->H + h) * s->T + q0;
    const struct matrix q = attention_view(
        kernels, s->dtype, element(s->dtype, t->data.qkv, q_first), q_ld, n, D, w->q);
    const struct matrix dy = attention_view(
        kernels, s->dtype, element(s->dtype, t->data.dy, y_first), y_ld, n, D, w->dy);

    SHOAL_TRY(matmul_f32(MATMUL_NT, n, keys, D, scale, q.p, q.ld, k.p, k.ld, 0.0f, w->scores, ld));
    SHOAL_TRY(matmul_f32(MATMUL_NT, n, keys, D, 1.0f, dy.p, dy.ld, v.p, v.ld, 0.0f, w->dp, ld));
    for (int64_t i = 0; i < n; i++) {
        const float delta = kernels->dot(D, DTYPE_F32, dy.p + i * dy.ld, s->dtype,
                                         element(s->dtype, t->data.y, y_first + i * y_ld));
        kernels->softmax_backward_row(q0 + i + 1, keys, lse[i], delta, w->scores + i * ld,
                                      w->dp + i * ld);
    }
    SHOAL_TRY(matmul_f32(MATMUL_TN, keys, D, n, 1.0f, w->scores, ld, dy.p, dy.ld, 1.0f, w->dv, D));
    SHOAL_TRY(matmul_f32(MATMUL_TN, keys, D, n, scale, w->dp, ld, q.p, q.ld, 1.0f, w->dk, D));
    SHOAL_TRY(matmul_f32(MATMUL_NN, n, D, keys, scale, w->dp, ld, k.p, k.ld, 0.0f, w->dq, D));
    for (int64_t i = 0; i < n; i++)
        kernels->convert(D, 1.0f, DTYPE_F32, w->dq + i * D, s->dtype,
                         element_mut(s->dtype, t->data.dqkv, q_first + i * q_ld));
    return SHOAL_OK;
}

static shoal_status backward_head(const struct backward_task *t, int64_t b, int kv_head,
                                  float *scratch)
{
    const struct attention_shape *s = &t->s;
    const struct op_kernels *kernels = t->cpu->kernels;
    const struct backward_scratch w = cut_scratch(s, scratch);
    const int group = s->H / s->K;
    const int64_t D = s->D;
    const int64_t width = attention_row_width(s);
    const int64_t k_first = b * s->T * width + attention_key_offset(s, kv_head);
    const int64_t v_first = b * s->T * width + attention_value_offset(s, kv_head);
    const struct matrix k = attention_view(
        kernels, s->dtype, element(s->dtype, t->data.qkv, k_first), width, s->T, D, w.k);
    const struct matrix v = attention_view(
        kernels, s->dtype, element(s->dtype, t->data.qkv, v_first), width, s->T, D, w.v);

    memset(w.dk, 0, (size_t)(s->T * D) * sizeof(float));
    memset(w.dv, 0, (size_t)(s->T * D) * sizeof(float));
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
        for (int64_t q0 = 0; q0 < s->T; q0 += attention_block(s))
            SHOAL_TRY(
                backward_block(t, &w, k, v, b, h, q0, min_i64(attention_block(s), s->T - q0)));
    for (int64_t i = 0; i < s->T; i++) {
        kernels->convert(D, 1.0f, DTYPE_F32, w.dk + i * D, s->dtype,
                         element_mut(s->dtype, t->data.dqkv, k_first + i * width));
        kernels->convert(D, 1.0f, DTYPE_F32, w.dv + i * D, s->dtype,
                         element_mut(s->dtype, t->data.dqkv, v_first + i * width));
    }
    return SHOAL_OK;
}

static void backward_tile(void *arg, size_t tile, int thread)
{
    struct backward_task *t = arg;
    void *scratch = t->scratch + thread * t->thread_bytes;
    const int64_t b = (int64_t)tile / t->s.K;
    const int kv_head = (int)((int64_t)tile % t->s.K);

    if (attention_uses_tiles(t->cpu, &t->s)) {
        attention_amx_backward(&t->s, &t->data, b, kv_head, scratch);
        return;
    }
    shoal_status status = backward_head(t, b, kv_head, scratch);
    if (status != SHOAL_OK)
        atomic_store(&t->status, (int)status);
}

shoal_status cpu_attention_backward(struct ops *ops, struct attention_shape s, const void *dy,
                                    const void *qkv, const void *y, const float *lse, void *dqkv,
                                    void *scratch)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct backward_task task = {.cpu = cpu,
                                 .s = s,
                                 .data = {dy, qkv, y, lse, dqkv},
                                 .scratch = scratch,
                                 .thread_bytes = attention_thread_bytes(cpu, &s)};

    pool_run(cpu->pool, (size_t)(s.B * s.K), backward_tile, &task);
    shoal_status status = (shoal_status)atomic_load(&task.status);
    return status == SHOAL_OK ? SHOAL_OK
                              : fail(status, "attention backward: oneDNN refused a product");
}

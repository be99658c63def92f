/* Attention: each pass by the plan of its shape, which attention_plan.c made. */
#include "models/ops/cuda/attention_plan.h"

static shoal_status plan_of(const struct cuda_ops *cuda, const struct attention_shape *s,
                            struct attention_plan **plan_out)
{
    struct attention_plan *plan = attention_plan_find(cuda->attention, s);

    if (plan == NULL)
        return fail(SHOAL_ERR_INTERNAL,
                    "attention B %lld T %lld H %d K %d D %d: its scratch was never asked for",
                    (long long)s->B, (long long)s->T, s->H, s->K, s->D);
    if (plan->refused != SHOAL_OK)
        return fail(plan->refused, "attention by cuDNN was asked for: %s", plan->why);
    *plan_out = plan;
    return SHOAL_OK;
}

shoal_status ops_cuda_attention(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                                float *lse, void *scratch)
{
    struct cuda_ops *cuda = cuda_of(ops);
    struct attention_plan *plan = NULL;

    SHOAL_TRY(plan_of(cuda, &s, &plan));
    if (plan->forward == NULL)
        return cuda_attention_plain(cuda->stream, s, qkv, y, lse);
    const struct cudnn_attention_data data = {
        .q = qkv,
        .k = cuda_element(s.dtype, qkv, (int64_t)s.H * s.D),
        .v = cuda_element(s.dtype, qkv, (int64_t)(s.H + s.K) * s.D),
        .y = y,
        .lse = lse};
    return cudnn_attention_run(cuda->attention->handle, plan->forward, &data, scratch);
}

/* What a backward reads and writes, whole. */
struct backward {
    const void *dy, *qkv, *y;
    const float *lse;
    void *dqkv;
};

/* The part of it that begins at a batch and a key/value head. */
static struct cudnn_attention_data backward_part(const struct attention_shape *s,
                                                 const struct backward *all, int64_t batch,
                                                 int kv_head)
{
    const int64_t group = s->H / s->K;
    const int64_t qkv_row = (int64_t)(s->H + 2 * s->K) * s->D;
    const int64_t q = batch * s->T * qkv_row + kv_head * group * s->D;
    const int64_t k = batch * s->T * qkv_row + (s->H + kv_head) * (int64_t)s->D;
    const int64_t v = k + (int64_t)s->K * s->D;
    const int64_t y = (batch * s->T * s->H + kv_head * group) * s->D;
    const int64_t lse = (batch * s->H + kv_head * group) * s->T;

    return (struct cudnn_attention_data){.q = cuda_element(s->dtype, all->qkv, q),
                                         .k = cuda_element(s->dtype, all->qkv, k),
                                         .v = cuda_element(s->dtype, all->qkv, v),
                                         .y = (void *)(uintptr_t)cuda_element(s->dtype, all->y, y),
                                         .lse = (float *)(uintptr_t)(all->lse + lse),
                                         .dy = cuda_element(s->dtype, all->dy, y),
                                         .dq = cuda_element_mut(s->dtype, all->dqkv, q),
                                         .dk = cuda_element_mut(s->dtype, all->dqkv, k),
                                         .dv = cuda_element_mut(s->dtype, all->dqkv, v)};
}

shoal_status ops_cuda_attention_backward(struct ops *ops, struct attention_shape s, const void *dy,
                                         const void *qkv, const void *y, const float *lse,
                                         void *dqkv, void *scratch)
{
    struct cuda_ops *cuda = cuda_of(ops);
    const struct backward all = {dy, qkv, y, lse, dqkv};
    struct attention_plan *plan = NULL;

    SHOAL_TRY(plan_of(cuda, &s, &plan));
    if (plan->backward == NULL)
        return cuda_attention_plain_backward(cuda->stream, s, dy, qkv, y, lse, dqkv, scratch);
    for (int64_t batch = 0; batch < s.B; batch += plan->batches) {
        for (int head = 0; head < s.K; head += plan->kv_heads) {
            const struct cudnn_attention_data part = backward_part(&s, &all, batch, head);
            SHOAL_TRY(cudnn_attention_run(cuda->attention->handle, plan->backward, &part, scratch));
        }
    }
    return SHOAL_OK;
}

shoal_status ops_cuda_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                       int64_t position, int64_t T_max, void *cache, void *y,
                                       void *scratch)
{
    (void)scratch;
    return cuda_attention_decode(cuda_of(ops)->stream, s, qkv, position, T_max, cache, y);
}

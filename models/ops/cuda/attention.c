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
    SHOAL_TRY(attention_plan_check(cuda->attention, plan));
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

/* All operands in one place: qkv is the largest of them. */
static size_t operand_bytes(const struct attention_shape *s)
{
    return cuda_aligned((size_t)(s->B * s->T * (s->H + 2 * s->K) * s->D) * dtype_bytes(s->dtype));
}

size_t cuda_attention_run_bytes(const struct cuda_ops *cuda)
{
    const struct cuda_attention *a = cuda->attention;
    size_t most = 0;

    for (int i = 0; i < a->n_plans; i++) {
        const struct attention_shape *s = &a->plans[i].s;
        const size_t n = operand_bytes(s) + ops_cuda_attention_scratch_bytes(&cuda->base, *s);
        most = n > most ? n : most;
    }
    return most;
}

shoal_status cuda_attention_run_all(struct cuda_ops *cuda, void *memory)
{
    const struct cuda_attention *a = cuda->attention;

    for (int i = 0; i < a->n_plans; i++) {
        const struct attention_shape s = a->plans[i].s;
        void *scratch = (char *)memory + operand_bytes(&s);

        SHOAL_TRY(ops_cuda_attention(&cuda->base, s, memory, memory, memory, scratch));
        SHOAL_TRY(ops_cuda_attention_backward(&cuda->base, s, memory, memory, memory, memory,
                                              memory, scratch));
    }
    return cuda_check(cudaStreamSynchronize(cuda->stream), "warm up attention");
}

shoal_status ops_cuda_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                       int64_t position, int64_t T_max, void *cache, void *y,
                                       void *scratch)
{
    (void)scratch;
    return cuda_attention_decode(cuda_of(ops)->stream, s, qkv, position, T_max, cache, y);
}

/* Causal attention, forward: training and one token of generation. */
#include "models/ops/cpu/attention_internal.h"

#include <math.h>
#include <string.h>

struct matrix attention_view(const struct op_kernels *kernels, enum dtype dtype, const void *src,
                             int64_t ld, int64_t rows, int64_t D, float *scratch)
{
    if (dtype == DTYPE_F32)
        return (struct matrix){src, ld};
    for (int64_t i = 0; i < rows; i++)
        kernels->convert(D, 1.0f, dtype, element(dtype, src, i * ld), DTYPE_F32, scratch + i * D);
    return (struct matrix){scratch, D};
}

/* scores [block, T], keys and values [T, D], queries and outputs [block, D] */
int64_t attention_forward_floats(const struct attention_shape *s)
{
    const int64_t block = attention_block(s);

    return block * round_up(s->T, 16) + 2 * s->T * round_up(s->D, 16) +
           2 * block * round_up(s->D, 16);
}

int64_t attention_thread_bytes(const struct cpu_ops *cpu, const struct attention_shape *s)
{
    const bool tiles = attention_uses_tiles(cpu, s);
    const int64_t width = (int64_t)sizeof(float);
    const int64_t forward =
        tiles ? attention_amx_forward_bytes(s) : attention_forward_floats(s) * width;
    const int64_t backward =
        tiles ? attention_amx_backward_bytes(s) : attention_backward_floats(s) * width;

    return forward > backward ? forward : backward;
}

size_t cpu_attention_scratch_bytes(const struct ops *ops, struct attention_shape s)
{
    const struct cpu_ops *cpu = cpu_of_const(ops);

    return (size_t)attention_thread_bytes(cpu, &s) * (size_t)pool_size(cpu->pool);
}

struct attention_task {
    const struct cpu_ops *cpu;
    struct attention_shape s;
    struct attention_forward data;
    char *scratch;
    int64_t thread_bytes;
    _Atomic int status;
};

/*
 * Queries [q0, q0 + n) of one head: S = scale Q Kᵀ, each row's exponentials over the keys it may
 * see, O = P V, and the division by the row's sum at the end, on D numbers instead of T.
 */
static shoal_status attend_block(const struct attention_task *t, struct matrix q, struct matrix k,
                                 struct matrix v, int64_t q0, int64_t n, float *scores, float *out,
                                 void *y, float *lse)
{
    const struct op_kernels *kernels = t->cpu->kernels;
    const int64_t D = t->s.D;
    const int64_t keys = q0 + n;
    const int64_t ld = round_up(t->s.T, 16);
    float sums[ATTENTION_BLOCK_MAX];

    SHOAL_TRY(matmul_f32(MATMUL_NT, n, keys, D, attention_scale(&t->s), q.p, q.ld, k.p, k.ld, 0.0f,
                         scores, ld));
    for (int64_t i = 0; i < n; i++) {
        float max = 0.0f;
        sums[i] = kernels->softmax_row(q0 + i + 1, keys, scores + i * ld, &max);
        lse[q0 + i] = (float)((double)max + kernels->log(sums[i]));
    }
    SHOAL_TRY(matmul_f32(MATMUL_NN, n, D, keys, 1.0f, scores, ld, v.p, v.ld, 0.0f, out, D));
    for (int64_t i = 0; i < n; i++)
        kernels->convert(D, 1.0f / sums[i], DTYPE_F32, out + i * D, t->s.dtype,
                         element_mut(t->s.dtype, y, (q0 + i) * t->s.H * D));
    return SHOAL_OK;
}

static shoal_status attend_head(const struct attention_task *t, int64_t b, int h, float *scratch)
{
    const struct attention_shape *s = &t->s;
    const struct op_kernels *kernels = t->cpu->kernels;
    const int kv_head = h / (s->H / s->K);
    const int64_t D = s->D;
    const int64_t width = attention_row_width(s);
    const int64_t block = attention_block(s);
    const void *rows = element(s->dtype, t->data.qkv, b * s->T * width);
    float *scores = scratch;
    float *keys = scores + block * round_up(s->T, 16);
    float *values = keys + s->T * round_up(D, 16);
    float *queries = values + s->T * round_up(D, 16);
    float *out = queries + block * round_up(D, 16);
    const struct matrix k =
        attention_view(kernels, s->dtype, element(s->dtype, rows, attention_key_offset(s, kv_head)),
                       width, s->T, D, keys);
    const struct matrix v = attention_view(
        kernels, s->dtype, element(s->dtype, rows, attention_value_offset(s, kv_head)), width, s->T,
        D, values);

    for (int64_t q0 = 0; q0 < s->T; q0 += block) {
        const int64_t n = min_i64(block, s->T - q0);
        const struct matrix q = attention_view(
            kernels, s->dtype, element(s->dtype, rows, q0 * width + h * D), width, n, D, queries);
        SHOAL_TRY(attend_block(t, q, k, v, q0, n, scores, out,
                               element_mut(s->dtype, t->data.y, (b * s->T * s->H + h) * D),
                               t->data.lse + (b * s->H + h) * s->T));
    }
    return SHOAL_OK;
}

static void attention_tile(void *arg, size_t tile, int thread)
{
    struct attention_task *t = arg;
    void *scratch = t->scratch + thread * t->thread_bytes;
    const int64_t b = (int64_t)tile / t->s.H;
    const int h = (int)((int64_t)tile % t->s.H);

    if (attention_uses_tiles(t->cpu, &t->s)) {
        attention_amx_forward(&t->s, &t->data, b, h, scratch);
        return;
    }
    shoal_status status = attend_head(t, b, h, scratch);
    if (status != SHOAL_OK)
        atomic_store(&t->status, (int)status);
}

shoal_status cpu_attention(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                           float *lse, void *scratch)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct attention_task task = {.cpu = cpu,
                                  .s = s,
                                  .data = {.qkv = qkv, .y = y, .lse = lse},
                                  .scratch = scratch,
                                  .thread_bytes = attention_thread_bytes(cpu, &s)};

    pool_run(cpu->pool, (size_t)(s.B * s.H), attention_tile, &task);
    shoal_status status = (shoal_status)atomic_load(&task.status);
    return status == SHOAL_OK ? SHOAL_OK : fail(status, "attention: oneDNN refused a product");
}

/* ---- one token ---- */

struct decode_task {
    const struct cpu_ops *cpu;
    struct attention_shape s;
    const void *qkv;
    const void *keys;   /* [T_max, K * D] */
    const void *values; /* [T_max, K * D] */
    int64_t position;
    void *y;
};

/*
 * One query head against the cache in blocks of keys, the maximum, the sum and the output carried
 * from block to block (online softmax: Milakov & Gimelshein 2018), so that no scratch is needed.
 */
static void decode_head(void *arg, size_t tile, int thread)
{
    enum { BLOCK = 64 };
    const struct decode_task *t = arg;
    const struct op_kernels *kernels = t->cpu->kernels;
    const enum dtype dtype = t->s.dtype;
    const int64_t D = t->s.D;
    const int64_t ld = t->s.K * D;
    const int h = (int)tile;
    const int64_t kv = (int64_t)(h / (t->s.H / t->s.K)) * D;
    const void *q = element(dtype, t->qkv, h * D);
    float scores[BLOCK];
    float out[ATTENTION_HEAD_MAX] = {0};
    float max = -INFINITY;
    float sum = 0.0f;

    (void)thread;
    for (int64_t first = 0; first <= t->position; first += BLOCK) {
        const int64_t n = min_i64(BLOCK, t->position + 1 - first);
        float block_max = 0.0f;
        for (int64_t j = 0; j < n; j++)
            scores[j] =
                attention_scale(&t->s) *
                kernels->dot(D, dtype, q, dtype, element(dtype, t->keys, (first + j) * ld + kv));
        const float block_sum = kernels->softmax_row(n, n, scores, &block_max);
        const float new_max = block_max > max ? block_max : max;
        const float keep = kernels->exp(max - new_max);
        const float weight = kernels->exp(block_max - new_max);
        kernels->convert(D, keep, DTYPE_F32, out, DTYPE_F32, out);
        for (int64_t j = 0; j < n; j++)
            kernels->axpy(D, weight * scores[j], dtype,
                          element(dtype, t->values, (first + j) * ld + kv), out);
        sum = sum * keep + block_sum * weight;
        max = new_max;
    }
    kernels->convert(D, 1.0f / sum, DTYPE_F32, out, dtype, element_mut(dtype, t->y, h * D));
}

shoal_status cpu_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                  int64_t position, int64_t T_max, void *cache, void *y,
                                  void *scratch)
{
    struct cpu_ops *cpu = cpu_of(ops);
    const int64_t width = (int64_t)s.K * s.D;
    const size_t row_bytes = (size_t)width * dtype_bytes(s.dtype);
    void *keys = cache;
    void *values = element_mut(s.dtype, cache, T_max * width);
    struct decode_task task = {cpu, s, qkv, keys, values, position, y};

    (void)scratch;
    memcpy(element_mut(s.dtype, keys, position * width),
           element(s.dtype, qkv, attention_key_offset(&s, 0)), row_bytes);
    memcpy(element_mut(s.dtype, values, position * width),
           element(s.dtype, qkv, attention_value_offset(&s, 0)), row_bytes);
    pool_run(cpu->pool, (size_t)s.H, decode_head, &task);
    return SHOAL_OK;
}

/*
 * Causal attention on AMX tiles, forward.  Scores are made transposed, [keys, queries]: a vector
 * then holds 16 queries, maxima and sums over keys run down the rows, and
 *   Sᵀ = K Qᵀ,  P = exp(scale (S - max)),  Oᵀ = Vᵀ Pᵀ,  Y = O / sum.
 */
#include "models/ops/cpu/attention_tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "models/ops/cpu/vector.h"

/* Operands by units, see attention_tiles.h; scores [keys, UNIT] and weights of one block. */
struct forward_scratch {
    char *keys;   /* [T, D] */
    char *values; /* [D, T] */
    char *queries;
    char *weights; /* Pᵀ, split */
    float *scores;
    float *out; /* [D, UNIT] by units */
};

static struct forward_scratch cut_scratch(const struct attention_shape *s, char *p)
{
    const int64_t rows = units_of(s->T);
    const int64_t columns = units_of(s->D);
    char *values = p + rows * columns * UNIT_BYTES;
    char *queries = values + rows * columns * UNIT_BYTES;
    char *weights = queries + columns * UNIT_BYTES;
    char *scores = weights + rows * SPLIT_BYTES;

    return (struct forward_scratch){.keys = p,
                                    .values = values,
                                    .queries = queries,
                                    .weights = weights,
                                    .scores = (float *)(void *)scores,
                                    .out = (float *)(void *)scores + rows * UNIT_FLOATS};
}

int64_t attention_amx_forward_bytes(const struct attention_shape *s)
{
    const int64_t rows = units_of(s->T);
    const int64_t columns = units_of(s->D);

    return (2 * rows + 1) * columns * UNIT_BYTES + rows * SPLIT_BYTES +
           (rows + columns) * UNIT_FLOATS * (int64_t)sizeof(float);
}

/* Per query of a block; vector `half` holds queries 16 * half to 16 * half + 15. */
struct statistics {
    __m512 max[2]; /* scaled */
    __m512 sum[2];
};

/* Over the keys of all blocks up to `block`, which is the queries' own. */
static struct statistics largest(const float *scores, int64_t block, float scale)
{
    __m512 max[FOUR];
    __m512 x[FOUR];

    for (int i = 0; i < FOUR; i++)
        max[i] = _mm512_set1_ps(-INFINITY);
    for (int64_t key = 0; key < block * UNIT; key += 2) {
        load_two_rows(scores, key, x);
        for (int i = 0; i < FOUR; i++)
            max[i] = _mm512_max_ps(x[i], max[i]); /* of NaN and a number: the number */
    }
    scores += block * UNIT_FLOATS;
    for (int64_t key = 0; key < UNIT; key += 2) {
        load_two_rows(scores, key, x);
        for (int i = 0; i < FOUR; i++)
            max[i] = _mm512_mask_max_ps(max[i], queries_seeing(key, i), x[i], max[i]);
    }
    return (struct statistics){
        .max = {_mm512_mul_ps(_mm512_set1_ps(scale), _mm512_max_ps(max[0], max[2])),
                _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_max_ps(max[1], max[3]))},
        .sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}};
}

/* Weights of one unit of scores. */
OP_INLINE void weigh(const float *scores, bool is_diagonal, float scale, struct statistics *st,
                     char *weights)
{
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

    for (int64_t key = 0; key < UNIT; key += 2) {
        __m512 x[FOUR];
        load_two_rows(scores, key, x);
        for (int i = 0; i < FOUR; i++)
            x[i] = _mm512_fmsub_ps(x[i], _mm512_set1_ps(scale), st->max[i % 2]);
        exp_four(x);
        if (is_diagonal)
            hide_later_keys(key, x);
        for (int half = 0; half < 2; half++)
            sum[half] = _mm512_add_ps(sum[half], _mm512_add_ps(x[half], x[half + 2]));
        const struct parts p = split_four(x);
        store_right_rows(&p, key, weights);
    }
    for (int half = 0; half < 2; half++)
        st->sum[half] = _mm512_add_ps(st->sum[half], sum[half]);
}

/* Scores become weights; per query, the log-sum-exp and the inverse of the sum. */
static void weigh_block(const struct forward_scratch *w, int64_t block, float scale,
                        float lse[UNIT], float inverse[UNIT])
{
    struct statistics st = largest(w->scores, block, scale);

    for (int64_t k = 0; k < block; k++)
        weigh(w->scores + k * UNIT_FLOATS, false, scale, &st, w->weights + k * SPLIT_BYTES);
    weigh(w->scores + block * UNIT_FLOATS, true, scale, &st, w->weights + block * SPLIT_BYTES);
    for (int half = 0; half < 2; half++) {
        const __m512 log = (__m512)log16((f32x16)st.sum[half]);
        _mm512_storeu_ps(lse + half * TILE, _mm512_add_ps(st.max[half], log));
        _mm512_storeu_ps(inverse + half * TILE, _mm512_div_ps(_mm512_set1_ps(1.0f), st.sum[half]));
    }
}

static void multiply_scores(const struct forward_scratch *w, int64_t block, int64_t columns)
{
    for (int64_t k = 0; k <= block; k++) {
        sum_from_zero();
        for (int64_t d = 0; d < columns; d++)
            sum_product(w->keys + (k * columns + d) * UNIT_BYTES, w->queries + d * UNIT_BYTES);
        sum_to(w->scores + k * UNIT_FLOATS);
    }
}

static void multiply_values(const struct forward_scratch *w, int64_t block, int64_t columns)
{
    for (int64_t d = 0; d < columns; d++) {
        sum_from_zero();
        for (int64_t k = 0; k <= block; k++) {
            const char *values = w->values + (k * columns + d) * UNIT_BYTES;
            sum_product(values, w->weights + k * SPLIT_BYTES);
            sum_product(values, w->weights + k * SPLIT_BYTES + UNIT_BYTES);
        }
        sum_to(w->out + d * UNIT_FLOATS);
    }
}

void attention_amx_forward(const struct attention_shape *s, const struct attention_forward *data,
                           int64_t b, int h, void *scratch)
{
    const struct forward_scratch w = cut_scratch(s, scratch);
    const int64_t D = s->D;
    const int64_t width = attention_row_width(s);
    const int64_t columns = units_of(D);
    const int kv_head = h / (s->H / s->K);
    const bf16_t *rows = (const bf16_t *)data->qkv + b * s->T * width;
    bf16_t *y = (bf16_t *)data->y + (b * s->T * s->H + h) * D;
    float *lse = data->lse + (b * s->H + h) * s->T;

    attention_pack(PACK_LEFT, rows + attention_key_offset(s, kv_head), width, s->T, D, w.keys);
    attention_pack(PACK_LEFT_TURNED, rows + attention_value_offset(s, kv_head), width, s->T, D,
                   w.values);
    tiles_begin();
    for (int64_t q0 = 0; q0 < s->T; q0 += UNIT) {
        const int64_t n = min_i64(UNIT, s->T - q0);
        float block_lse[UNIT];
        float inverse[UNIT];
        attention_pack(PACK_RIGHT_TURNED, rows + q0 * width + h * D, width, n, D, w.queries);
        multiply_scores(&w, q0 / UNIT, columns);
        weigh_block(&w, q0 / UNIT, attention_scale(s), block_lse, inverse);
        memcpy(lse + q0, block_lse, (size_t)n * sizeof *lse);
        multiply_values(&w, q0 / UNIT, columns);
        for (int64_t d = 0; d < columns; d++)
            attention_write_turned(w.out + d * UNIT_FLOATS, inverse, n, D - d * UNIT,
                                   y + q0 * s->H * D + d * UNIT, s->H * D);
    }
    tiles_end();
}

#else

int64_t attention_amx_forward_bytes(const struct attention_shape *s)
{
    (void)s;
    return 0;
}

/* Unreachable: without AMX attention_uses_tiles is false. */
void attention_amx_forward(const struct attention_shape *s, const struct attention_forward *data,
                           int64_t b, int h, void *scratch)
{
    (void)s;
    (void)data;
    (void)b;
    (void)h;
    (void)scratch;
}

#endif

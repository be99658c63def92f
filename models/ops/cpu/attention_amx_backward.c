/*
 * Causal attention on AMX tiles, backward; formulas as in attention_backward.c, with scores
 * transposed, [keys, queries].  Per head, a block of keys meets all later queries: P and dS of the
 * block are kept for them, and dK and dV are summed in tiles; dQᵀ is summed in memory.
 */
#include "models/ops/cpu/attention_tiles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)

#include "models/ops/cpu/vector.h"

/* Operands and sums by units, see attention_tiles.h. */
struct backward_scratch {
    char *keys, *keys_turned, *values;               /* of one block */
    char *queries, *queries_turned, *dy, *dy_turned; /* [T, D] as right operands */
    char *weights, *dweights; /* Pᵀ and dSᵀ of one block of keys, split */
    char *pairs;              /* dSᵀ of two units as right operand, split */
    float *dq, *dk, *dv;      /* [T, D]; dq's units transposed */
    float *lse, *delta;       /* [T] of one head, zero behind */
    float *scores, *dp;       /* of two units, by turns */
};

static char *cut(char **p, int64_t n_bytes)
{
    char *piece = *p;

    *p += n_bytes;
    return piece;
}

static float *cut_floats(char **p, int64_t n)
{
    return (float *)(void *)cut(p, n * (int64_t)sizeof(float));
}

static struct backward_scratch cut_scratch(const struct attention_shape *s, char *p)
{
    const int64_t rows = units_of(s->T);
    const int64_t columns = units_of(s->D);
    const int64_t units = rows * columns;

    return (struct backward_scratch){
        .keys = cut(&p, columns * UNIT_BYTES),
        .keys_turned = cut(&p, columns * UNIT_BYTES),
        .values = cut(&p, columns * UNIT_BYTES),
        .queries = cut(&p, units * UNIT_BYTES),
        .queries_turned = cut(&p, units * UNIT_BYTES),
        .dy = cut(&p, units * UNIT_BYTES),
        .dy_turned = cut(&p, units * UNIT_BYTES),
        .weights = cut(&p, rows * SPLIT_BYTES),
        .dweights = cut(&p, rows * SPLIT_BYTES),
        .pairs = cut(&p, 2 * SPLIT_BYTES),
        .dq = cut_floats(&p, units * UNIT_FLOATS),
        .dk = cut_floats(&p, units * UNIT_FLOATS),
        .dv = cut_floats(&p, units * UNIT_FLOATS),
        .scores = cut_floats(&p, 2 * UNIT_FLOATS),
        .dp = cut_floats(&p, 2 * UNIT_FLOATS),
        .lse = cut_floats(&p, rows * UNIT),
        .delta = cut_floats(&p, rows * UNIT),
    };
}

int64_t attention_amx_backward_bytes(const struct attention_shape *s)
{
    const int64_t rows = units_of(s->T);
    const int64_t columns = units_of(s->D);
    const int64_t floats = (3 * rows * columns + 4) * UNIT_FLOATS + 2 * rows * UNIT;

    return (3 + 4 * rows) * columns * UNIT_BYTES + (2 * rows + 2) * SPLIT_BYTES +
           floats * (int64_t)sizeof(float);
}

/* Where one query head, and the key/value head it reads, lie in the arrays. */
struct head {
    const bf16_t *q, *k, *v, *y, *dy;
    bf16_t *dq, *dk, *dv;
    const float *lse;
    int64_t qkv_ld, y_ld;
};

static struct head head_of(const struct attention_shape *s, const struct attention_backward *data,
                           int64_t b, int h)
{
    const int kv_head = h / (s->H / s->K);
    const int64_t width = attention_row_width(s);
    const int64_t q = b * s->T * width + h * s->D;
    const int64_t k = b * s->T * width + attention_key_offset(s, kv_head);
    const int64_t v = b * s->T * width + attention_value_offset(s, kv_head);
    const int64_t y = (b * s->T * s->H + h) * s->D;
    const bf16_t *qkv = data->qkv;
    bf16_t *dqkv = data->dqkv;

    return (struct head){.q = qkv + q,
                         .k = qkv + k,
                         .v = qkv + v,
                         .y = (const bf16_t *)data->y + y,
                         .dy = (const bf16_t *)data->dy + y,
                         .dq = dqkv + q,
                         .dk = dqkv + k,
                         .dv = dqkv + v,
                         .lse = data->lse + (b * s->H + h) * s->T,
                         .qkv_ld = width,
                         .y_ld = s->H * s->D};
}

static void pack_queries(const struct attention_shape *s, const struct backward_scratch *w,
                         const struct head *head)
{
    const int64_t T = s->T;
    const int64_t D = s->D;

    attention_pack(PACK_RIGHT, head->q, head->qkv_ld, T, D, w->queries);
    attention_pack(PACK_RIGHT_TURNED, head->q, head->qkv_ld, T, D, w->queries_turned);
    attention_pack(PACK_RIGHT, head->dy, head->y_ld, T, D, w->dy);
    attention_pack(PACK_RIGHT_TURNED, head->dy, head->y_ld, T, D, w->dy_turned);
    memset(w->lse, 0, (size_t)(units_of(T) * UNIT) * sizeof(float));
    memcpy(w->lse, head->lse, (size_t)T * sizeof(float));
    for (int64_t t = 0; t < T; t += UNIT)
        attention_row_dots(head->dy + t * head->y_ld, head->y + t * head->y_ld, head->y_ld, T - t,
                           D, w->delta + t);
}

/* S and dP of a block of keys and a block of queries. */
static void multiply_scores(const struct backward_scratch *w, int64_t block, int64_t columns)
{
    const int64_t first = block * columns * UNIT_BYTES;

    sum_from_zero();
    for (int64_t d = 0; d < columns; d++)
        sum_product(w->keys + d * UNIT_BYTES, w->queries_turned + first + d * UNIT_BYTES);
    sum_to(w->scores + block % 2 * UNIT_FLOATS);
    sum_from_zero();
    for (int64_t d = 0; d < columns; d++)
        sum_product(w->values + d * UNIT_BYTES, w->dy_turned + first + d * UNIT_BYTES);
    sum_to(w->dp + block % 2 * UNIT_FLOATS);
}

/* P and dS as left operands, dS also as a right one. */
OP_INLINE void differentiate(const struct backward_scratch *w, int64_t block, float scale,
                             bool is_diagonal)
{
    const float *scores = w->scores + block % 2 * UNIT_FLOATS;
    const float *dps = w->dp + block % 2 * UNIT_FLOATS;
    __m512 lse[2];
    __m512 delta[2];

    for (int half = 0; half < 2; half++) {
        lse[half] = _mm512_loadu_ps(w->lse + block * UNIT + half * TILE);
        delta[half] = _mm512_loadu_ps(w->delta + block * UNIT + half * TILE);
    }
    for (int64_t key = 0; key < UNIT; key += 2) {
        __m512 p[FOUR];
        __m512 ds[FOUR];
        load_two_rows(scores, key, p);
        load_two_rows(dps, key, ds);
        for (int i = 0; i < FOUR; i++)
            p[i] = _mm512_fmsub_ps(p[i], _mm512_set1_ps(scale), lse[i % 2]);
        exp_four(p);
        for (int i = 0; i < FOUR; i++)
            ds[i] = _mm512_mul_ps(p[i], _mm512_sub_ps(ds[i], delta[i % 2]));
        if (is_diagonal) {
            hide_later_keys(key, p);
            hide_later_keys(key, ds);
        }
        const struct parts p_parts = split_four(p);
        store_left_rows(&p_parts, key, w->weights + block * SPLIT_BYTES);
        const struct parts ds_parts = split_four(ds);
        store_left_rows(&ds_parts, key, w->dweights + block * SPLIT_BYTES);
        store_right_rows(&ds_parts, key, w->pairs + block % 2 * SPLIT_BYTES);
    }
}

/* dQᵀ of a block of queries += Kᵀ dSᵀ. */
static void add_dq(const struct backward_scratch *w, int64_t block, int64_t columns)
{
    const char *pairs = w->pairs + block % 2 * SPLIT_BYTES;

    for (int64_t d = 0; d < columns; d++) {
        float *dq = w->dq + (block * columns + d) * UNIT_FLOATS;
        sum_from(dq);
        sum_product(w->keys_turned + d * UNIT_BYTES, pairs);
        sum_product(w->keys_turned + d * UNIT_BYTES, pairs + UNIT_BYTES);
        sum_to(dq);
    }
}

/*
 * A block of keys against the blocks of queries from its own on.  What vectors have stored, tiles
 * load much later, and the reverse: neither waits for the other's stores.
 */
static void meet_queries(const struct backward_scratch *w, int64_t first, int64_t blocks,
                         int64_t columns, float scale)
{
    multiply_scores(w, first, columns);
    for (int64_t block = first; block < blocks; block++) {
        if (block + 1 < blocks)
            multiply_scores(w, block + 1, columns);
        if (block > first)
            add_dq(w, block - 1, columns);
        if (block == first)
            differentiate(w, block, scale, true);
        else
            differentiate(w, block, scale, false);
    }
    add_dq(w, blocks - 1, columns);
}

/* sums [keys, D] of a block += left [keys, queries] right [queries, D] over the blocks of queries. */
static void sum_over_queries(const char *left, const char *right, int64_t from, int64_t to,
                             int64_t columns, float *sums)
{
    for (int64_t d = 0; d < columns; d++) {
        sum_from(sums + d * UNIT_FLOATS);
        for (int64_t block = from; block < to; block++) {
            const char *operand = right + (block * columns + d) * UNIT_BYTES;
            sum_product(left + block * SPLIT_BYTES, operand);
            sum_product(left + block * SPLIT_BYTES + UNIT_BYTES, operand);
        }
        sum_to(sums + d * UNIT_FLOATS);
    }
}

static void backward_keys(const struct attention_shape *s, const struct backward_scratch *w,
                          const struct head *head, int64_t block)
{
    const int64_t blocks = units_of(s->T);
    const int64_t columns = units_of(s->D);
    const int64_t first = block * UNIT;
    const int64_t n = min_i64(UNIT, s->T - first);
    const bf16_t *k = head->k + first * head->qkv_ld;
    const bf16_t *v = head->v + first * head->qkv_ld;

    attention_pack(PACK_LEFT, k, head->qkv_ld, n, s->D, w->keys);
    attention_pack(PACK_LEFT_TURNED, k, head->qkv_ld, n, s->D, w->keys_turned);
    attention_pack(PACK_LEFT, v, head->qkv_ld, n, s->D, w->values);
    meet_queries(w, block, blocks, columns, attention_scale(s));
    sum_over_queries(w->weights, w->dy, block, blocks, columns,
                     w->dv + block * columns * UNIT_FLOATS);
    sum_over_queries(w->dweights, w->queries, block, blocks, columns,
                     w->dk + block * columns * UNIT_FLOATS);
}

static void backward_query_head(const struct attention_shape *s, const struct backward_scratch *w,
                                const struct head *head)
{
    const int64_t blocks = units_of(s->T);
    const int64_t columns = units_of(s->D);
    float scales[UNIT];

    for (int64_t i = 0; i < UNIT; i++)
        scales[i] = attention_scale(s);
    pack_queries(s, w, head);
    memset(w->dq, 0, (size_t)(blocks * columns * UNIT_FLOATS) * sizeof(float));
    for (int64_t block = 0; block < blocks; block++)
        backward_keys(s, w, head, block);
    for (int64_t i = 0; i < blocks; i++)
        for (int64_t d = 0; d < columns; d++)
            attention_write_turned(w->dq + (i * columns + d) * UNIT_FLOATS, scales, s->T - i * UNIT,
                                   s->D - d * UNIT, head->dq + i * UNIT * head->qkv_ld + d * UNIT,
                                   head->qkv_ld);
}

static void write_units(const struct attention_shape *s, const float *units, float factor,
                        bf16_t *dst, int64_t ld)
{
    for (int64_t t = 0; t < s->T; t += UNIT)
        for (int64_t d = 0; d < s->D; d += UNIT, units += UNIT_FLOATS)
            attention_write(units, factor, s->T - t, s->D - d, dst + t * ld + d, ld);
}

void attention_amx_backward(const struct attention_shape *s, const struct attention_backward *data,
                            int64_t b, int kv_head, void *scratch)
{
    const struct backward_scratch w = cut_scratch(s, scratch);
    const int group = s->H / s->K;
    const size_t n_bytes = (size_t)(units_of(s->T) * units_of(s->D) * UNIT_FLOATS) * sizeof(float);
    struct head head = {0};

    memset(w.dk, 0, n_bytes);
    memset(w.dv, 0, n_bytes);
    tiles_begin();
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        head = head_of(s, data, b, h);
        backward_query_head(s, &w, &head);
    }
    tiles_end();
    write_units(s, w.dk, attention_scale(s), head.dk, head.qkv_ld);
    write_units(s, w.dv, 1.0f, head.dv, head.qkv_ld);
}

#else

int64_t attention_amx_backward_bytes(const struct attention_shape *s)
{
    (void)s;
    return 0;
}

/* Unreachable: without AMX attention_uses_tiles is false. */
void attention_amx_backward(const struct attention_shape *s, const struct attention_backward *data,
                            int64_t b, int kv_head, void *scratch)
{
    (void)s;
    (void)data;
    (void)b;
    (void)kv_head;
    (void)scratch;
}

#endif

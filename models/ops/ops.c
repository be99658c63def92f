/*
 * The public functions: check what the caller said about shapes, then forward to the back end.  A
 * wrong shape here is a mistake of the code above, not of the user: SHOAL_ERR_INTERNAL.
 */
#include "models/ops/ops_internal.h"

#include "runtime/base/clock.h"

#include <string.h>

/* Run one call of the table and book its time, FLOPs and least bytes under a class. */
#define BOOKED(class_, flops_, bytes_, call_)                                                      \
    do {                                                                                           \
        double begin_ = clock_seconds();                                                           \
        shoal_status status_ = (call_);                                                            \
        struct op_profile *profile_ = &ops->profile[class_];                                       \
        profile_->seconds += clock_seconds() - begin_;                                             \
        profile_->calls++;                                                                         \
        profile_->flops += (uint64_t)(flops_);                                                     \
        profile_->bytes += (uint64_t)(bytes_);                                                     \
        return status_;                                                                            \
    } while (0)

static int64_t width(enum dtype dtype)
{
    return (int64_t)dtype_bytes(dtype);
}

static shoal_status check_dtype(const char *op, enum dtype dtype)
{
    if (dtype == DTYPE_F32 || dtype == DTYPE_BF16)
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "%s: expected f32 or bf16, found %s", op, dtype_name(dtype));
}

static shoal_status check_positive(const char *op, const char *what, int64_t n)
{
    if (n > 0)
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "%s: expected a positive %s, found %lld", op, what,
                (long long)n);
}

void ops_destroy(struct ops *ops)
{
    if (ops != NULL)
        ops->table->destroy(ops);
}

int ops_threads(const struct ops *ops)
{
    return ops->table->threads(ops);
}

const char *ops_describe(const struct ops *ops)
{
    return ops->table->describe(ops);
}

shoal_status ops_warm_up(struct ops *ops, size_t *own_bytes_out)
{
    return ops->table->warm_up(ops, own_bytes_out);
}

void ops_describe_choices(const struct ops *ops, ops_choice_fn *choice, void *arg)
{
    if (ops->table->describe_choices != NULL)
        ops->table->describe_choices(ops, choice, arg);
}

/* ---- profile ---- */

const struct op_profile *ops_profile(const struct ops *ops, enum op_class op_class)
{
    return &ops->profile[op_class];
}

void ops_profile_reset(struct ops *ops)
{
    memset(ops->profile, 0, sizeof ops->profile);
}

const char *op_class_name(enum op_class op_class)
{
    static const char *const names[OP_CLASS_COUNT] = {[OP_CLASS_LINEAR] = "linear",
                                                      [OP_CLASS_HEAD] = "head and loss",
                                                      [OP_CLASS_ATTENTION] = "attention",
                                                      [OP_CLASS_NORM] = "norm",
                                                      [OP_CLASS_ACTIVATION] = "activation",
                                                      [OP_CLASS_EMBEDDING] = "embedding",
                                                      [OP_CLASS_ELEMENTWISE] = "cast, accumulate"};

    return names[op_class];
}

shoal_status ops_library_linear_seconds(struct ops *ops, struct linear_shape s,
                                        double seconds_out[3])
{
    return ops->table->library_linear_seconds(ops, s, seconds_out);
}

/* ---- linear ---- */

static shoal_status check_linear(const char *op, const struct linear_shape *s)
{
    SHOAL_TRY(check_dtype(op, s->dtype));
    SHOAL_TRY(check_positive(op, "number of rows", s->rows));
    SHOAL_TRY(check_positive(op, "number of inputs", s->in));
    return check_positive(op, "number of outputs", s->out);
}

shoal_status op_linear_prepare(struct ops *ops, struct linear_shape s)
{
    SHOAL_TRY(check_linear("linear", &s));
    return ops->table->linear_prepare(ops, s);
}

size_t op_linear_scratch_bytes(const struct ops *ops, struct linear_shape s)
{
    return ops->table->linear_scratch_bytes(ops, s);
}

shoal_status op_linear(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                       const void *bias, void *y, void *scratch)
{
    SHOAL_TRY(check_linear("linear", &s));
    BOOKED(OP_CLASS_LINEAR, 2 * s.rows * s.in * s.out,
           width(s.dtype) * (s.rows * s.in + s.in * s.out + s.rows * s.out),
           ops->table->linear(ops, s, x, w, bias, y, scratch));
}

shoal_status op_linear_add(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                           const void *bias, const float *residual, float *y, void *scratch)
{
    SHOAL_TRY(check_linear("linear add", &s));
    BOOKED(OP_CLASS_LINEAR, 2 * s.rows * s.in * s.out,
           width(s.dtype) * (s.rows * s.in + s.in * s.out + s.rows * s.out),
           ops->table->linear_add(ops, s, x, w, bias, residual, y, scratch));
}

shoal_status op_linear_backward_input(struct ops *ops, struct linear_shape s, const void *dy,
                                      const void *w, void *dx, void *scratch)
{
    SHOAL_TRY(check_linear("linear backward", &s));
    BOOKED(OP_CLASS_LINEAR, 2 * s.rows * s.in * s.out,
           width(s.dtype) * (s.rows * s.in + s.in * s.out + s.rows * s.out),
           ops->table->linear_backward_input(ops, s, dy, w, dx, scratch));
}

static bool has_linear_gelu(const struct ops *ops, enum dtype dtype)
{
    return ops->table->has_linear_gelu != NULL && ops->table->has_linear_gelu(ops, dtype);
}

shoal_status op_linear_gelu_prepare(struct ops *ops, struct linear_shape up, bool bias,
                                    struct linear_shape down)
{
    SHOAL_TRY(check_linear("linear gelu", &up));
    SHOAL_TRY(check_linear("linear gelu", &down));
    return has_linear_gelu(ops, up.dtype) ? ops->table->linear_gelu_prepare(ops, up, bias, down)
                                          : SHOAL_OK;
}

shoal_status op_linear_gelu(struct ops *ops, struct linear_shape s, const void *x, const void *w,
                            const void *bias, void *up, void *act, void *scratch)
{
    if (!has_linear_gelu(ops, s.dtype)) {
        SHOAL_TRY(op_linear(ops, s, x, w, bias, up, scratch));
        return op_gelu(ops, s.rows * s.out, s.dtype, up, act);
    }
    SHOAL_TRY(check_linear("linear gelu", &s));
    BOOKED(OP_CLASS_LINEAR, 2 * s.rows * s.in * s.out,
           width(s.dtype) * (s.rows * s.in + s.in * s.out + 2 * s.rows * s.out),
           ops->table->linear_gelu(ops, s, x, w, bias, up, act, scratch));
}

shoal_status op_linear_backward_input_gelu(struct ops *ops, struct linear_shape s, const void *dy,
                                           const void *w, const void *up, void *dup, void *scratch)
{
    if (!has_linear_gelu(ops, s.dtype)) {
        SHOAL_TRY(op_linear_backward_input(ops, s, dy, w, dup, scratch));
        return op_gelu_backward(ops, s.rows * s.in, s.dtype, up, dup, dup);
    }
    SHOAL_TRY(check_linear("linear gelu backward", &s));
    BOOKED(OP_CLASS_LINEAR, 2 * s.rows * s.in * s.out,
           width(s.dtype) * (2 * s.rows * s.in + s.in * s.out + s.rows * s.out),
           ops->table->linear_backward_input_gelu(ops, s, dy, w, up, dup, scratch));
}

shoal_status op_linear_backward_weight(struct ops *ops, struct linear_shape s, const void *dy,
                                       const void *x, float *dw, float *dbias, void *scratch)
{
    SHOAL_TRY(check_linear("linear backward", &s));
    BOOKED(OP_CLASS_LINEAR, 2 * s.rows * s.in * s.out,
           width(s.dtype) * (s.rows * s.in + s.in * s.out + s.rows * s.out),
           ops->table->linear_backward_weight(ops, s, dy, x, dw, dbias, scratch));
}

/* ---- norms ---- */

static shoal_status check_norm(const char *op, int64_t N, int64_t C, enum dtype dtype)
{
    SHOAL_TRY(check_dtype(op, dtype));
    SHOAL_TRY(check_positive(op, "number of rows", N));
    return check_positive(op, "number of channels", C);
}

shoal_status op_norm(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C, float eps,
                     enum dtype dtype, const float *x, const void *w, const void *b, void *y,
                     float *stats)
{
    SHOAL_TRY(check_norm("norm", N, C, dtype));
    BOOKED(OP_CLASS_NORM, 0, N * C * (4 + width(dtype)),
           ops->table->norm(ops, kind, N, C, eps, dtype, x, w, b, y, stats));
}

size_t op_norm_backward_scratch_bytes(const struct ops *ops, int64_t N, int64_t C)
{
    return ops->table->norm_backward_scratch_bytes(ops, N, C);
}

shoal_status op_norm_backward(struct ops *ops, enum norm_kind kind, int64_t N, int64_t C,
                              enum dtype dtype, const void *dy, const float *x, const void *w,
                              const float *stats, float *dx, void *dx_rounded, float *dw, float *db,
                              void *scratch)
{
    SHOAL_TRY(check_norm("norm backward", N, C, dtype));
    if (dx_rounded != NULL && dtype == DTYPE_F32)
        return fail(SHOAL_ERR_INTERNAL,
                    "norm backward: dx is fp32, there is nothing to round it to");
    BOOKED(OP_CLASS_NORM, 0, N * C * (12 + (dx_rounded == NULL ? 1 : 2) * width(dtype)),
           ops->table->norm_backward(ops, kind, N, C, dtype, dy, x, w, stats, dx, dx_rounded, dw,
                                     db, scratch));
}

/* ---- attention ---- */

static shoal_status check_head_size(const char *op, int D)
{
    if (D > 0 && D <= ATTENTION_HEAD_MAX && D % 2 == 0)
        return SHOAL_OK;
    return fail(SHOAL_ERR_INTERNAL, "%s: expected an even head size up to %d, found %d", op,
                ATTENTION_HEAD_MAX, D);
}

static shoal_status check_attention(const char *op, const struct attention_shape *s)
{
    SHOAL_TRY(check_dtype(op, s->dtype));
    SHOAL_TRY(check_positive(op, "batch", s->B));
    SHOAL_TRY(check_positive(op, "length", s->T));
    SHOAL_TRY(check_positive(op, "number of key/value heads", s->K));
    if (s->H <= 0 || s->H % s->K != 0)
        return fail(SHOAL_ERR_INTERNAL, "%s: expected a multiple of %d heads, found %d", op, s->K,
                    s->H);
    return check_head_size(op, s->D);
}

shoal_status op_rope_prepare(struct ops *ops, int64_t T_max, int D, double theta)
{
    SHOAL_TRY(check_positive("rope", "number of positions", T_max));
    SHOAL_TRY(check_head_size("rope", D));
    return ops->table->rope_prepare(ops, T_max, D, theta);
}

shoal_status op_rope(struct ops *ops, struct attention_shape s, double theta,
                     int64_t first_position, bool inverse, void *qkv)
{
    SHOAL_TRY(check_attention("rope", &s));
    if (first_position < 0)
        return fail(SHOAL_ERR_INTERNAL, "rope: expected a position of at least 0, found %lld",
                    (long long)first_position);
    BOOKED(OP_CLASS_ATTENTION, 0, 2 * s.B * s.T * (s.H + s.K) * s.D * width(s.dtype),
           ops->table->rope(ops, s, theta, first_position, inverse, qkv));
}

shoal_status op_attention_prepare(struct ops *ops, struct attention_shape s)
{
    SHOAL_TRY(check_attention("attention", &s));
    return ops->table->attention_prepare == NULL ? SHOAL_OK : ops->table->attention_prepare(ops, s);
}

size_t op_attention_scratch_bytes(const struct ops *ops, struct attention_shape s)
{
    return ops->table->attention_scratch_bytes(ops, s);
}

shoal_status op_attention(struct ops *ops, struct attention_shape s, const void *qkv, void *y,
                          float *lse, void *scratch)
{
    SHOAL_TRY(check_attention("attention", &s));
    BOOKED(OP_CLASS_ATTENTION, 2 * s.B * s.H * s.T * (s.T + 1) * s.D,
           s.B * s.T * 2 * (s.H + s.K) * s.D * width(s.dtype),
           ops->table->attention(ops, s, qkv, y, lse, scratch));
}

shoal_status op_attention_backward(struct ops *ops, struct attention_shape s, const void *dy,
                                   const void *qkv, const void *y, const float *lse, void *dqkv,
                                   void *scratch)
{
    SHOAL_TRY(check_attention("attention backward", &s));
    BOOKED(OP_CLASS_ATTENTION, 5 * s.B * s.H * s.T * (s.T + 1) * s.D,
           s.B * s.T * 4 * (s.H + s.K) * s.D * width(s.dtype),
           ops->table->attention_backward(ops, s, dy, qkv, y, lse, dqkv, scratch));
}

shoal_status op_attention_decode(struct ops *ops, struct attention_shape s, const void *qkv,
                                 int64_t position, int64_t T_max, void *cache, void *y,
                                 void *scratch)
{
    SHOAL_TRY(check_attention("attention decode", &s));
    if (position < 0 || position >= T_max)
        return fail(SHOAL_ERR_INTERNAL,
                    "attention decode: expected a position in 0 .. %lld, found %lld",
                    (long long)T_max - 1, (long long)position);
    return ops->table->attention_decode(ops, s, qkv, position, T_max, cache, y, scratch);
}

/* ---- activations ---- */

shoal_status op_gelu(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y)
{
    SHOAL_TRY(check_dtype("gelu", dtype));
    BOOKED(OP_CLASS_ACTIVATION, 0, 2 * n * width(dtype), ops->table->gelu(ops, n, dtype, x, y));
}

shoal_status op_gelu_backward(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                              const void *dy, void *dx)
{
    SHOAL_TRY(check_dtype("gelu backward", dtype));
    BOOKED(OP_CLASS_ACTIVATION, 0, 3 * n * width(dtype),
           ops->table->gelu_backward(ops, n, dtype, x, dy, dx));
}

shoal_status op_gelu_again(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                           const void *dy, void *y, void *dx)
{
    if (ops->table->gelu_again == NULL) {
        SHOAL_TRY(op_gelu(ops, n, dtype, x, y));
        return op_gelu_backward(ops, n, dtype, x, dy, dx);
    }
    SHOAL_TRY(check_dtype("gelu again", dtype));
    BOOKED(OP_CLASS_ACTIVATION, 0, 4 * n * width(dtype),
           ops->table->gelu_again(ops, n, dtype, x, dy, y, dx));
}

shoal_status op_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype, const void *gate_up,
                       void *y)
{
    SHOAL_TRY(check_dtype("swiglu", dtype));
    SHOAL_TRY(check_positive("swiglu", "width", F));
    BOOKED(OP_CLASS_ACTIVATION, 0, 3 * N * F * width(dtype),
           ops->table->swiglu(ops, N, F, dtype, gate_up, y));
}

shoal_status op_swiglu_backward(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                const void *gate_up, const void *dy, void *dgate_up)
{
    SHOAL_TRY(check_dtype("swiglu backward", dtype));
    SHOAL_TRY(check_positive("swiglu backward", "width", F));
    BOOKED(OP_CLASS_ACTIVATION, 0, 5 * N * F * width(dtype),
           ops->table->swiglu_backward(ops, N, F, dtype, gate_up, dy, dgate_up));
}

/* ---- embedding ---- */

/* Indexes come from data: one outside the table would read or write other memory. */
static shoal_status check_indexes(const struct ops *ops, const char *op, const char *what,
                                  const int32_t *indexes, int64_t n, int64_t V)
{
    if (ops->table->device_memory)
        return SHOAL_OK;
    for (int64_t i = 0; i < n; i++)
        if (indexes[i] >= V)
            return fail(SHOAL_ERR_DATA, "%s: %s %lld is %d, expected less than %lld", op, what,
                        (long long)i, (int)indexes[i], (long long)V);
    return SHOAL_OK;
}

shoal_status op_embedding(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                          const int32_t *tokens, const void *wte, const void *wpe,
                          int64_t first_position, float *x)
{
    SHOAL_TRY(check_dtype("embedding", dtype));
    SHOAL_TRY(check_positive("embedding", "length", T));
    BOOKED(OP_CLASS_EMBEDDING, 0, B * T * C * (4 + width(dtype)),
           ops->table->embedding(ops, B, T, C, dtype, tokens, wte, wpe, first_position, x));
}

shoal_status op_embedding_backward(struct ops *ops, int64_t B, int64_t T, int64_t C, int64_t V,
                                   int64_t T_max, const int32_t *tokens, const float *dx,
                                   float *dwte, float *dwpe)
{
    SHOAL_TRY(check_positive("embedding backward", "vocabulary", V));
    SHOAL_TRY(check_indexes(ops, "embedding backward", "token", tokens, B * T, V));
    if (dwpe != NULL && T > T_max)
        return fail(SHOAL_ERR_INTERNAL,
                    "embedding backward: expected at most %lld positions, found %lld",
                    (long long)T_max, (long long)T);
    BOOKED(OP_CLASS_EMBEDDING, 0, 4 * C * (B * T + V),
           ops->table->embedding_backward(ops, B, T, C, V, T_max, tokens, dx, dwte, dwpe));
}

/* ---- head ---- */

static shoal_status check_head(const char *op, const struct head_shape *s)
{
    SHOAL_TRY(check_dtype(op, s->dtype));
    SHOAL_TRY(check_positive(op, "number of rows", s->N));
    SHOAL_TRY(check_positive(op, "number of channels", s->C));
    return check_positive(op, "vocabulary", s->V);
}

shoal_status op_head_prepare(struct ops *ops, struct head_shape s)
{
    SHOAL_TRY(check_head("head", &s));
    return ops->table->head_prepare(ops, s);
}

size_t op_head_scratch_bytes(const struct ops *ops, struct head_shape s)
{
    return ops->table->head_scratch_bytes(ops, s);
}

shoal_status op_head_loss(struct ops *ops, struct head_shape s, const void *x, const void *w,
                          const int32_t *targets, double *row_loss, void *scratch)
{
    SHOAL_TRY(check_head("head", &s));
    SHOAL_TRY(check_indexes(ops, "head", "target", targets, s.N, s.V));
    BOOKED(OP_CLASS_HEAD, 2 * s.N * s.C * s.V, width(s.dtype) * (s.N * s.C + s.V * s.C),
           ops->table->head_loss(ops, s, x, w, targets, row_loss, scratch));
}

shoal_status op_head_loss_backward(struct ops *ops, struct head_shape s, const void *x,
                                   const void *w, const int32_t *targets, float scale,
                                   double *row_loss, void *dx, float *dw, void *scratch)
{
    SHOAL_TRY(check_head("head backward", &s));
    SHOAL_TRY(check_indexes(ops, "head backward", "target", targets, s.N, s.V));
    BOOKED(OP_CLASS_HEAD, 6 * s.N * s.C * s.V,
           width(s.dtype) * (2 * s.N * s.C + s.V * s.C) + 4 * s.V * s.C,
           ops->table->head_loss_backward(ops, s, x, w, targets, scale, row_loss, dx, dw, scratch));
}

/* ---- elementwise ---- */

shoal_status op_cast(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y)
{
    SHOAL_TRY(check_dtype("cast", dtype));
    BOOKED(OP_CLASS_ELEMENTWISE, 0, n * (4 + width(dtype)), ops->table->cast(ops, n, dtype, x, y));
}

shoal_status op_accumulate(struct ops *ops, int64_t n, const float *src, float *dst)
{
    BOOKED(OP_CLASS_ELEMENTWISE, 0, 12 * n, ops->table->accumulate(ops, n, src, dst));
}

shoal_status op_zero(struct ops *ops, size_t n_bytes, void *dst)
{
    BOOKED(OP_CLASS_ELEMENTWISE, 0, n_bytes, ops->table->zero(ops, n_bytes, dst));
}

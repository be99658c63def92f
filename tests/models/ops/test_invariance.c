#include "tests/models/ops/array.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/*
 * All ops in one go, to compare bits between thread counts and between instruction sets.  Shapes
 * span several tiles and blocks and end in odd pieces.
 */
enum { OUTPUTS = 36 };

struct outputs {
    int n;
    const char *names[OUTPUTS];
    struct array arrays[OUTPUTS];
};

static struct array keep(struct outputs *out, const char *name, struct array a)
{
    cr_assert_lt(out->n, OUTPUTS);
    out->names[out->n] = name;
    out->arrays[out->n++] = a;
    return a;
}

static void run_linear(struct ops *ops, enum dtype dtype, struct outputs *out)
{
    const struct linear_shape s = {.rows = 401, .in = 391, .out = 770, .dtype = dtype};
    struct array x = array_random(dtype, s.rows * s.in, 1, 1.0);
    struct array w = array_random(dtype, s.out * s.in, 2, 1.0);
    struct array b = array_random(dtype, s.out, 3, 1.0);
    struct array residual = array_random(DTYPE_F32, s.rows * s.out, 4, 1.0);
    struct array y = keep(out, "linear", array_create(dtype, s.rows * s.out));
    struct array sum = keep(out, "linear add", array_create(DTYPE_F32, s.rows * s.out));
    struct array dx = keep(out, "linear dx", array_create(dtype, s.rows * s.in));
    struct array dw = keep(out, "linear dw", array_create(DTYPE_F32, s.out * s.in));
    struct array db = keep(out, "linear db", array_create(DTYPE_F32, s.out));
    void *scratch = scratch_create(op_linear_scratch_bytes(ops, s));

    EXPECT_OK(op_linear_prepare(ops, s));
    EXPECT_OK(op_linear(ops, s, x.p, w.p, b.p, y.p, scratch));
    EXPECT_OK(op_linear_add(ops, s, x.p, w.p, b.p, residual.p, sum.p, scratch));
    EXPECT_OK(op_linear_backward_input(ops, s, y.p, w.p, dx.p, scratch));
    EXPECT_OK(op_linear_backward_weight(ops, s, y.p, x.p, dw.p, db.p, scratch));
    array_free(&x);
    array_free(&w);
    array_free(&b);
    array_free(&residual);
    free(scratch);
}

static void run_norm(struct ops *ops, enum norm_kind kind, enum dtype dtype, struct outputs *out)
{
    const int64_t N = 101;
    const int64_t C = 203;
    struct array x = array_random(DTYPE_F32, N * C, 1, 1.0);
    struct array w = array_random(dtype, C, 2, 1.0);
    struct array b = array_random(dtype, C, 3, 1.0);
    struct array y = keep(out, "norm", array_create(dtype, N * C));
    struct array stats = keep(out, "norm stats", array_create(DTYPE_F32, 2 * N));
    struct array dx = keep(out, "norm dx", array_random(DTYPE_F32, N * C, 4, 1.0));
    struct array rounded = keep(out, "norm dx rounded", array_create(DTYPE_BF16, N * C));
    struct array dw = keep(out, "norm dw", array_create(DTYPE_F32, C));
    struct array db = keep(out, "norm db", array_create(DTYPE_F32, C));
    void *scratch = scratch_create(op_norm_backward_scratch_bytes(ops, N, C));
    const bool layer = kind == NORM_LAYER;

    EXPECT_OK(op_norm(ops, kind, N, C, 1e-5f, dtype, x.p, w.p, layer ? b.p : NULL, y.p, stats.p));
    EXPECT_OK(op_norm_backward(ops, kind, N, C, dtype, y.p, x.p, w.p, stats.p, dx.p,
                               dtype == DTYPE_F32 ? NULL : rounded.p, dw.p, layer ? db.p : NULL,
                               scratch));
    array_free(&x);
    array_free(&w);
    array_free(&b);
    free(scratch);
}

static void run_attention(struct ops *ops, enum dtype dtype, struct outputs *out)
{
    const struct attention_shape s = {.B = 2, .T = 150, .H = 6, .K = 3, .D = 34, .dtype = dtype};
    const int64_t rows = s.B * s.T;
    const int64_t width = (int64_t)(s.H + 2 * s.K) * s.D;
    struct array qkv = keep(out, "rope", array_random(dtype, rows * width, 1, 1.0));
    struct array dy = array_random(dtype, rows * s.H * s.D, 2, 1.0);
    struct array y = keep(out, "attention", array_create(dtype, rows * s.H * s.D));
    struct array lse = keep(out, "lse", array_create(DTYPE_F32, rows * s.H));
    struct array dqkv = keep(out, "dqkv", array_create(dtype, rows * width));
    struct array cache = array_random(dtype, 2 * 200 * s.K * s.D, 3, 1.0);
    struct array token = keep(out, "decode", array_create(dtype, (int64_t)s.H * s.D));
    void *scratch = scratch_create(op_attention_scratch_bytes(ops, s));

    EXPECT_OK(op_rope_prepare(ops, 200, s.D, 10000.0));
    EXPECT_OK(op_rope(ops, s, 10000.0, 3, false, qkv.p));
    EXPECT_OK(op_attention(ops, s, qkv.p, y.p, lse.p, scratch));
    EXPECT_OK(op_attention_backward(ops, s, dy.p, qkv.p, y.p, lse.p, dqkv.p, scratch));
    EXPECT_OK(op_attention_decode(ops, s, qkv.p, 150, 200, cache.p, token.p, scratch));
    array_free(&dy);
    array_free(&cache);
    free(scratch);
}

static void run_activations(struct ops *ops, enum dtype dtype, struct outputs *out)
{
    const int64_t n = 50001;
    struct array x = array_random(dtype, 2 * n, 1, 8.0);
    struct array dy = array_random(dtype, n, 2, 1.0);
    struct array y = keep(out, "gelu", array_create(dtype, n));
    struct array dx = keep(out, "gelu dx", array_create(dtype, n));
    struct array z = keep(out, "swiglu", array_create(dtype, n));
    struct array dz = keep(out, "swiglu dx", array_create(dtype, 2 * n));

    EXPECT_OK(op_gelu(ops, n, dtype, x.p, y.p));
    EXPECT_OK(op_gelu_backward(ops, n, dtype, x.p, dy.p, dx.p));
    EXPECT_OK(op_swiglu(ops, 7 * 3, n / 21, dtype, x.p, z.p));
    EXPECT_OK(op_swiglu_backward(ops, 7 * 3, n / 21, dtype, x.p, dy.p, dz.p));
    array_free(&x);
    array_free(&dy);
}

static void run_ends(struct ops *ops, enum dtype dtype, struct outputs *out)
{
    enum { B = 3, T = 50, N = B * T, C = 130, V = 1001 };
    int32_t tokens[N];
    const struct head_shape s = {.N = N, .C = C, .V = V, .dtype = dtype};
    struct array w = array_random(dtype, V * C, 1, 1.0);
    struct array p = array_random(dtype, T * C, 2, 1.0);
    struct array x = keep(out, "embedding", array_create(DTYPE_F32, N * C));
    struct array x_cast = keep(out, "cast", array_create(dtype, N * C));
    struct array loss = keep(out, "row loss", array_create(DTYPE_F32, 2 * N)); /* doubles */
    struct array dx = keep(out, "head dx", array_create(dtype, N * C));
    struct array dw = keep(out, "head dw", array_create(DTYPE_F32, V * C));
    struct array dwte = keep(out, "dwte", array_create(DTYPE_F32, V * C));
    struct array dwpe = keep(out, "dwpe", array_create(DTYPE_F32, T * C));
    void *scratch = scratch_create(op_head_scratch_bytes(ops, s));

    for (int i = 0; i < N; i++)
        tokens[i] = i * i % V;
    EXPECT_OK(op_head_prepare(ops, s));
    EXPECT_OK(op_embedding(ops, B, T, C, dtype, tokens, w.p, p.p, 0, x.p));
    EXPECT_OK(op_cast(ops, N * C, dtype, x.p, x_cast.p));
    EXPECT_OK(
        op_head_loss_backward(ops, s, x_cast.p, w.p, tokens, 0.125f, loss.p, dx.p, dw.p, scratch));
    EXPECT_OK(op_embedding_backward(ops, B, T, C, V, T, tokens, x.p, dwte.p, dwpe.p));
    array_free(&w);
    array_free(&p);
    free(scratch);
}

static struct outputs run_all(int n_threads, enum dtype dtype)
{
    struct ops_rig rig = ops_rig_create(n_threads);
    struct outputs out = {0};

    run_linear(rig.ops, dtype, &out);
    run_norm(rig.ops, NORM_LAYER, dtype, &out);
    run_norm(rig.ops, NORM_RMS, dtype, &out);
    run_attention(rig.ops, dtype, &out);
    run_activations(rig.ops, dtype, &out);
    run_ends(rig.ops, dtype, &out);
    ops_rig_destroy(&rig);
    return out;
}

static void expect_same(const struct outputs *a, const struct outputs *b)
{
    cr_assert_eq(a->n, b->n);
    for (int i = 0; i < a->n; i++)
        array_expect_same_bits(a->arrays[i], b->arrays[i], a->names[i]);
}

static void outputs_free(struct outputs *out)
{
    for (int i = 0; i < out->n; i++)
        array_free(&out->arrays[i]);
}

static void compare_threads(enum dtype dtype)
{
    struct outputs one = run_all(1, dtype);

    for (int n_threads = 2; n_threads <= 3; n_threads++) {
        struct outputs more = run_all(n_threads, dtype);
        expect_same(&one, &more);
        outputs_free(&more);
    }
    outputs_free(&one);
}

Test(ops_invariance, fp32_bits_do_not_depend_on_the_number_of_threads)
{
    compare_threads(DTYPE_F32);
}

Test(ops_invariance, bf16_bits_do_not_depend_on_the_number_of_threads)
{
    compare_threads(DTYPE_BF16);
}

static void compare_instruction_sets(enum dtype dtype)
{
    static const char *const names[] = {"scalar", "avx2", "avx512"};

    setenv("SHOAL_ISA", names[0], 1);
    struct outputs scalar = run_all(2, dtype);
    for (int i = 1; i < 3; i++) {
        setenv("SHOAL_ISA", names[i], 1);
        struct outputs other = run_all(2, dtype);
        expect_same(&scalar, &other);
        outputs_free(&other);
    }
    outputs_free(&scalar);
}

Test(ops_invariance, fp32_bits_do_not_depend_on_the_instruction_set)
{
    compare_instruction_sets(DTYPE_F32);
}

Test(ops_invariance, bf16_bits_do_not_depend_on_the_instruction_set)
{
    compare_instruction_sets(DTYPE_BF16);
}

/* A copy of the elements `shift` elements behind the start of a block. */
struct shifted {
    void *block;
    void *p;
};

static struct shifted shifted_create(struct array a, int64_t shift)
{
    const size_t width = dtype_bytes(a.dtype);
    struct shifted copy = {.block = scratch_create((size_t)(a.n + shift) * width)};

    copy.p = (char *)copy.block + (size_t)shift * width;
    memcpy(copy.p, a.p, (size_t)a.n * width);
    return copy;
}

static void compare_addresses(struct linear_shape s)
{
    struct ops_rig rig = ops_rig_create(2);
    const enum dtype dtype = s.dtype;
    struct array x = array_random(dtype, s.rows * s.in, 1, 1.0);
    struct array w = array_random(dtype, s.out * s.in, 2, 1.0);
    struct array y = array_create(dtype, s.rows * s.out);
    struct array dw = array_create(DTYPE_F32, s.out * s.in);

    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear(rig.ops, s, x.p, w.p, NULL, y.p, NULL));
    EXPECT_OK(op_linear_backward_weight(rig.ops, s, y.p, x.p, dw.p, NULL, NULL));
    for (int64_t shift = 1; shift < 20; shift += 6) {
        struct shifted x2 = shifted_create(x, shift);
        struct shifted w2 = shifted_create(w, shift + 2);
        struct shifted y2 = shifted_create(y, shift + 1);
        struct shifted dw2 = shifted_create(dw, shift);
        EXPECT_OK(op_linear(rig.ops, s, x2.p, w2.p, NULL, y2.p, NULL));
        EXPECT_OK(op_linear_backward_weight(rig.ops, s, y2.p, x2.p, dw2.p, NULL, NULL));
        cr_assert_eq(memcmp(y2.p, y.p, (size_t)y.n * dtype_bytes(dtype)), 0);
        cr_assert_eq(memcmp(dw2.p, dw.p, (size_t)dw.n * 4), 0);
        free(x2.block);
        free(w2.block);
        free(y2.block);
        free(dw2.block);
    }
    array_free(&x);
    array_free(&w);
    array_free(&y);
    array_free(&dw);
    ops_rig_destroy(&rig);
}

/* Buffers lie elsewhere with another stage or tier: products may not care. */
Test(ops_invariance, bits_do_not_depend_on_addresses)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};

    for (int i = 0; i < 2; i++) {
        compare_addresses(
            (struct linear_shape){.rows = 130, .in = 256, .out = 400, .dtype = dtypes[i]});
        compare_addresses(
            (struct linear_shape){.rows = 100, .in = 1120, .out = 70, .dtype = dtypes[i]});
    }
}

Test(ops_invariance, description_names_the_kernels_in_use)
{
    setenv("SHOAL_ISA", "scalar", 1);
    struct ops_rig rig = ops_rig_create(3);

    cr_assert_not_null(strstr(ops_describe(rig.ops), "kernels scalar"), "%s",
                       ops_describe(rig.ops));
    cr_assert_eq(ops_threads(rig.ops), 3);
    ops_rig_destroy(&rig);
}

#include "tests/models/ops/array.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

struct embedding_shape {
    int64_t B, T, C, V, T_max;
};

static const struct embedding_shape shapes[] = {
    {1, 1, 5, 3, 4}, {3, 7, 33, 11, 9}, {2, 33, 16, 300, 33}};

/* Repeats some tokens, misses some. */
static int32_t *tokens_create(const struct embedding_shape *s)
{
    int32_t *tokens = malloc((size_t)(s->B * s->T) * sizeof *tokens);

    for (int64_t i = 0; i < s->B * s->T; i++)
        tokens[i] = (int32_t)(i * i % s->V);
    return tokens;
}

static void check_forward(struct ops *ops, const struct embedding_shape *s, enum dtype dtype,
                          bool positions)
{
    int32_t *tokens = tokens_create(s);
    const int64_t first = s->T_max - s->T;
    struct array wte = array_random(dtype, s->V * s->C, 1, 1.0);
    struct array wpe = array_random(dtype, s->T_max * s->C, 2, 1.0);
    struct array x = array_create(DTYPE_F32, s->B * s->T * s->C);

    EXPECT_OK(op_embedding(ops, s->B, s->T, s->C, dtype, tokens, wte.p, positions ? wpe.p : NULL,
                           first, x.p));
    for (int64_t row = 0; row < s->B * s->T; row++)
        for (int64_t c = 0; c < s->C; c++) {
            const float token = (float)array_get(wte, tokens[row] * s->C + c);
            const float position = (float)array_get(wpe, (first + row % s->T) * s->C + c);
            cr_assert_eq((float)array_get(x, row * s->C + c), positions ? token + position : token);
        }
    array_expect_guard(x, "x");
    array_free(&wte);
    array_free(&wpe);
    array_free(&x);
    free(tokens);
}

Test(op_embedding, is_the_sum_of_the_two_rows)
{
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int positions = 0; positions < 2; positions++) {
            check_forward(rig.ops, &shapes[i], DTYPE_F32, positions != 0);
            check_forward(rig.ops, &shapes[i], DTYPE_BF16, positions != 0);
        }
    ops_rig_destroy(&rig);
}

/* The op is linear: its gradient is the sum over the rows that used a token or position. */
static void check_backward(struct ops *ops, const struct embedding_shape *s)
{
    int32_t *tokens = tokens_create(s);
    struct array dx = array_random(DTYPE_F32, s->B * s->T * s->C, 1, 1.0);
    struct array dwte = array_create(DTYPE_F32, s->V * s->C);
    struct array dwpe = array_create(DTYPE_F32, s->T_max * s->C);
    double *want_wte = calloc((size_t)dwte.n, sizeof *want_wte);
    double *want_wpe = calloc((size_t)dwpe.n, sizeof *want_wpe);

    for (int64_t row = 0; row < s->B * s->T; row++)
        for (int64_t c = 0; c < s->C; c++) {
            want_wte[tokens[row] * s->C + c] += array_get(dx, row * s->C + c);
            want_wpe[row % s->T * s->C + c] += array_get(dx, row * s->C + c);
        }
    EXPECT_OK(
        op_embedding_backward(ops, s->B, s->T, s->C, s->V, s->T_max, tokens, dx.p, dwte.p, dwpe.p));
    array_expect(dwte, want_wte, TOL_OPS_F32, "dwte");
    array_expect(dwpe, want_wpe, TOL_OPS_F32, "dwpe");
    for (int64_t i = 0; i < dwte.n; i++)
        if (want_wte[i] == 0.0)
            cr_assert_eq(array_get(dwte, i), 0.0, "a token that does not occur");

    struct array alone = array_create(DTYPE_F32, dwte.n);
    EXPECT_OK(op_embedding_backward(ops, s->B, s->T, s->C, s->V, 0, tokens, dx.p, alone.p, NULL));
    array_expect_same_bits(alone, dwte, "dwte without dwpe");
    array_free(&alone);
    array_free(&dx);
    array_free(&dwte);
    array_free(&dwpe);
    free(want_wte);
    free(want_wpe);
    free(tokens);
}

Test(op_embedding, gradient_sums_the_rows_and_clears_the_rest)
{
    struct ops_rig rig = ops_rig_create(2);

    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_backward(rig.ops, &shapes[i]);
    ops_rig_destroy(&rig);
}

Test(op_embedding, backward_refuses_a_token_outside_the_vocabulary)
{
    struct ops_rig rig = ops_rig_create(1);
    const int32_t tokens[2] = {1, 3};
    float dx[2] = {0};
    float dwte[3] = {7.0f, 7.0f, 7.0f};

    cr_assert_eq(op_embedding_backward(rig.ops, 1, 2, 1, 3, 0, tokens, dx, dwte, NULL),
                 SHOAL_ERR_DATA);
    cr_assert_not_null(strstr(shoal_last_error(), "token 1 is 3"), "%s", shoal_last_error());
    cr_assert_eq(dwte[0], 7.0f);
    ops_rig_destroy(&rig);
}

/* What the back end does when cuBLASLt offers no algorithm, or refuses what it offered: only where the
 * library is imitated. */
#include "tests/gpu/cuda_rig.h"
#include "tests/gpu/emulate/emulate.h"
#include "tests/gpu/imitate/imitate.h"

#include <criterion/criterion.h>
#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

static const struct ops_cuda_options full = {.epilogue = OPS_CUDA_EPILOGUE_FULL};

static void keep_line(void *arg, enum op_class op_class, const char *line)
{
    (void)op_class;
    strncat(arg, line, 1000);
}

Test(cuda_refusals, cublas_has_no_algorithm)
{
    const struct linear_shape s = {.rows = 8, .in = 16, .out = 24, .dtype = DTYPE_BF16};

    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    imitate.refuse_product = true;
    cr_assert_eq(op_linear_prepare(rig.ops, s), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(),
                              "matmul NT m 8 n 24 k 16, rows of 16 16 24, bf16 -> bf16: cuBLASLt "),
                       "%s", shoal_last_error());
    imitate.refuse_product = false;
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    cuda_rig_destroy(&rig);
    cr_assert_eq(imitate.live_descriptors, 0);
}

/* The bias is then added by a kernel: the same numbers within a rounding. */
Test(cuda_refusals, cublas_has_no_algorithm_with_a_bias)
{
    const struct linear_shape s = {.rows = 3, .in = 4, .out = 5, .dtype = DTYPE_F32};
    struct array x = array_random(s.dtype, 12, 1, 1.0), w = array_random(s.dtype, 20, 2, 1.0);
    struct array bias = array_random(s.dtype, 5, 3, 1.0);
    struct gpu gpu = {0};

    imitate.refuse_epilogues = CUBLASLT_EPILOGUE_BIAS;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    const void *gx = gpu_put(&gpu, x), *gw = gpu_put(&gpu, w), *gb = gpu_put(&gpu, bias);
    float *y = gpu_new(&gpu, s.dtype, 15);
    EXPECT_OK(op_linear(rig.ops, s, gx, gw, gb, y, NULL));
    double want[15];
    for (int i = 0; i < 15; i++) {
        want[i] = array_get(bias, i % 5);
        for (int k = 0; k < 4; k++)
            want[i] += array_get(x, i / 5 * 4 + k) * array_get(w, i % 5 * 4 + k);
    }
    struct array got = gpu_take(&gpu, y);
    array_expect(got, want, 1e-6, "y");
    array_free(&got);
    array_free(&x);
    array_free(&w);
    array_free(&bias);
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

/* What an MLP's products and what they have inside leave, with some of that refused. */
struct epilogues {
    struct array up, act, dup, dw, dbias;
    char plans[8192];
};

static struct epilogues run_epilogues(int refused, const struct ops_cuda_options *options)
{
    const struct linear_shape s = {.rows = 9, .in = 24, .out = 16, .dtype = DTYPE_BF16};
    struct array x = array_random(s.dtype, 9 * 24, 1, 2.0), w = array_random(s.dtype, 384, 2, 1.0);
    struct array bias = array_random(s.dtype, 16, 3, 1.0), dy = array_random(s.dtype, 144, 4, 1.0);
    struct epilogues e = {.plans = ""};
    struct gpu gpu = {0};
    size_t own = 0;

    imitate.refuse_epilogues = refused;
    struct cuda_rig rig = cuda_rig_create(options);
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear_gelu_prepare(rig.ops, s, true, s));
    EXPECT_OK(ops_warm_up(rig.ops, &own));
    ops_describe_choices(rig.ops, keep_line, e.plans);
    /* Only our own kernels take scratch. */
    const bool inside =
        refused == 0 && imitate.refuse_runs == 0 && options->epilogue == OPS_CUDA_EPILOGUE_FULL;
    void *scratch = inside ? NULL : gpu_scratch(&gpu, op_linear_scratch_bytes(rig.ops, s));
    const void *gx = gpu_put(&gpu, x), *gw = gpu_put(&gpu, w), *gdy = gpu_put(&gpu, dy);
    void *up = gpu_new(&gpu, s.dtype, 144), *act = gpu_new(&gpu, s.dtype, 144);
    void *dup = gpu_new(&gpu, s.dtype, 216);
    float *dw = gpu_new(&gpu, DTYPE_F32, 384), *dbias = gpu_new(&gpu, DTYPE_F32, 16);
    EXPECT_OK(op_linear_gelu(rig.ops, s, gx, gw, gpu_put(&gpu, bias), up, act, scratch));
    EXPECT_OK(op_linear_backward_input_gelu(rig.ops, s, gdy, gw, gx, dup, scratch));
    EXPECT_OK(op_linear_backward_weight(rig.ops, s, gdy, gx, dw, dbias, scratch));
    e.up = gpu_take(&gpu, up);
    e.act = gpu_take(&gpu, act);
    e.dup = gpu_take(&gpu, dup);
    e.dw = gpu_take(&gpu, dw);
    e.dbias = gpu_take(&gpu, dbias);
    array_free(&x);
    array_free(&w);
    array_free(&bias);
    array_free(&dy);
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
    cr_assert_eq(imitate.live_descriptors, 0);
    return e;
}

static void epilogues_free(struct epilogues *e)
{
    struct array *const arrays[] = {&e->up, &e->act, &e->dup, &e->dw, &e->dbias};

    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        array_free(arrays[i]);
}

static bool same(struct array a, struct array b)
{
    return memcmp(a.p, b.p, (size_t)a.n * dtype_bytes(a.dtype)) == 0;
}

/* Our own kernels do then what separate ops do, one epilogue as independent of another. */
Test(cuda_refusals, cublas_has_no_algorithm_with_an_epilogue)
{
    static const struct {
        int refused;
        const char *said[3];
    } cases[] = {
        {0, {" bias gelu: ", " gelu gradient: ", " bias gradient: "}},
        {CUBLASLT_EPILOGUE_GELU, {" bias gelu after: ", " gelu gradient: ", " bias gradient: "}},
        {64, {" bias gelu: ", " gelu gradient after: ", " bias gradient: "}}, /* of DGELU alone */
        {CUBLASLT_EPILOGUE_BGRADB, {" bias gelu: ", " gelu gradient: ", " bias gradient after: "}},
        {CUBLASLT_EPILOGUE_BIAS, {" bias after gelu after: ", " gelu gradient: ", " gradient: "}},
        {1023 - CUBLASLT_EPILOGUE_DEFAULT,
         {" bias after gelu after: ", " gelu gradient after: ", " bias gradient after: "}},
    };
    struct epilogues apart = run_epilogues(0, &(struct ops_cuda_options){0});

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct epilogues e = run_epilogues(cases[i].refused, &full);
        const bool gelu =
            (cases[i].refused & (CUBLASLT_EPILOGUE_GELU | CUBLASLT_EPILOGUE_BIAS)) == 0;

        for (int k = 0; k < 3; k++)
            cr_assert_not_null(strstr(e.plans, cases[i].said[k]), "%s: %s", cases[i].said[k],
                               e.plans);
        if ((cases[i].refused & CUBLASLT_EPILOGUE_BIAS) == 0)
            array_expect_same_bits(e.up, apart.up, "up");
        if ((cases[i].refused & CUBLASLT_EPILOGUE_BIAS) == 0 && !gelu)
            array_expect_same_bits(e.act, apart.act, "act");
        /* Sums that were not rounded give other numbers: GELU was inside. */
        cr_assert(!gelu || !same(e.act, apart.act));
        cr_assert_eq((cases[i].refused & 64) != 0, same(e.dup, apart.dup));
        array_expect_same_bits(e.dw, apart.dw, "dw");
        double *want = array_doubles(apart.dbias);
        array_expect(e.dbias, want, 1e-6, "dbias");
        free(want);
        epilogues_free(&e);
    }
    epilogues_free(&apart);
}

/* ---- offered, and refused when it runs ---- */

enum { FIRST = 1, BOTH = 3 }; /* of the algorithms that are offered */

static void expect_said(const char *plans, const char *said)
{
    cr_assert_not_null(strstr(plans, said), "no \"%s\" in %s", said, plans);
}

/* Each way in which the library says no. */
Test(cuda_refusals, the_next_algorithm_is_taken)
{
    static const struct {
        cublasStatus_t status;
        const char *said;
    } cases[] = {
        {CUBLAS_STATUS_NOT_SUPPORTED, ", after 1 refused (CUBLAS_STATUS_NOT_SUPPORTED)"},
        {CUBLAS_STATUS_INVALID_VALUE, ", after 1 refused (CUBLAS_STATUS_INVALID_VALUE)"},
        {CUBLAS_STATUS_ARCH_MISMATCH, ", after 1 refused (CUBLAS_STATUS_ARCH_MISMATCH)"},
        {CUBLAS_STATUS_INTERNAL_ERROR, ", after 1 refused (CUBLAS_STATUS_INTERNAL_ERROR)"}};
    struct epilogues first = run_epilogues(0, &full);

    cr_assert_null(strstr(first.plans, "refused"), "%s", first.plans);
    expect_said(first.plans, " bias gelu: algorithm 42 ");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        imitate.refuse_runs = FIRST;
        imitate.refusal = (int)cases[i].status;
        imitate.refused = 0;
        struct epilogues e = run_epilogues(0, &full);

        cr_assert_eq(imitate.refused, 9, "%d: once for each product, before the first step",
                     imitate.refused);
        expect_said(e.plans, cases[i].said);
        expect_said(e.plans, " bias gelu: algorithm 43 ");
        expect_said(e.plans, " gelu gradient: algorithm 43 ");
        expect_said(e.plans, " bias gradient: algorithm 43 ");
        cr_assert_null(strstr(e.plans, "after:"), "%s", e.plans);
        array_expect_same_bits(e.act, first.act, "act");
        epilogues_free(&e);
    }
    epilogues_free(&first);
}

Test(cuda_refusals, an_epilogue_that_never_runs_is_given_up)
{
    static const struct {
        cublasLtEpilogue_t with;
        const char *said[2]; /* what is behind its product, and another that is not */
    } cases[] = {
        {CUBLASLT_EPILOGUE_GELU_AUX, {" bias gelu after: algorithm 42 ", " gelu gradient: "}},
        {CUBLASLT_EPILOGUE_DGELU, {" gelu gradient after: algorithm 42 ", " bias gelu: "}},
        {CUBLASLT_EPILOGUE_BGRADB, {" bias gradient after: algorithm 42 ", " bias gelu: "}},
    };
    struct epilogues apart = run_epilogues(0, &(struct ops_cuda_options){0});

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        imitate.refuse_runs = BOTH;
        imitate.refuse_runs_with = (int)cases[i].with;
        struct epilogues e = run_epilogues(0, &full);

        expect_said(e.plans, cases[i].said[0]);
        expect_said(e.plans, cases[i].said[1]);
        expect_said(e.plans, ", after 2 refused (CUBLAS_STATUS_NOT_SUPPORTED)");
        array_expect_same_bits(e.up, apart.up, "up");
        cr_assert_eq(i == 0, same(e.act, apart.act));
        cr_assert_eq(i == 1, same(e.dup, apart.dup));
        array_expect_same_bits(e.dw, apart.dw, "dw");
        cr_assert(i != 2 || same(e.dbias, apart.dbias));
        epilogues_free(&e);
    }
    epilogues_free(&apart);
}

/* GELU first, then the bias; both by our own kernels in the end. */
Test(cuda_refusals, a_bias_that_never_runs_is_given_up)
{
    imitate.refuse_runs = BOTH;
    imitate.refuse_runs_with = CUBLASLT_EPILOGUE_BIAS;
    struct epilogues e = run_epilogues(0, &full);

    expect_said(e.plans, " bias after gelu after: algorithm 42 ");
    expect_said(e.plans, ", after 4 refused (CUBLAS_STATUS_NOT_SUPPORTED)");
    epilogues_free(&e);
}

static const struct linear_shape plain = {.rows = 8, .in = 16, .out = 24, .dtype = DTYPE_BF16};

static shoal_status warm_up(struct cuda_rig *rig)
{
    size_t own = 0;

    EXPECT_OK(op_linear_prepare(rig->ops, plain));
    return ops_warm_up(rig->ops, &own);
}

Test(cuda_refusals, a_product_that_never_runs_is_named)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const size_t before = emulate_allocated;

    imitate.refuse_runs = BOTH;
    cr_assert_eq(warm_up(&rig), SHOAL_ERR_UNAVAILABLE);
    expect_said(shoal_last_error(), "matmul NT m 8 n 24 k 16, rows of 16 16 24, bf16 -> bf16: "
                                    "cuBLASLt ");
    expect_said(shoal_last_error(), ": refuses to run each of the 2 algorithms that it offers, the "
                                    "last one with CUBLAS_STATUS_NOT_SUPPORTED");
    cr_assert_eq(emulate_allocated, before);
    cuda_rig_destroy(&rig);
    cr_assert_eq(imitate.live_descriptors, 0);
}

/* What is wrong with the device is wrong with every algorithm. */
Test(cuda_refusals, failures_of_the_device_are_none)
{
    static const struct {
        cublasStatus_t status;
        bool breaks;
        shoal_status want;
        const char *said;
    } cases[] = {
        {CUBLAS_STATUS_ALLOC_FAILED, false, SHOAL_ERR_NOMEM, "CUBLAS_STATUS_ALLOC_FAILED"},
        {CUBLAS_STATUS_EXECUTION_FAILED, false, SHOAL_ERR_INTERNAL, "CUBLAS_STATUS_EXECUTION"},
        {CUBLAS_STATUS_INTERNAL_ERROR, true, SHOAL_ERR_UNAVAILABLE, "cuda: try a product: "},
        {CUBLAS_STATUS_NOT_SUPPORTED, true, SHOAL_ERR_UNAVAILABLE, "cuda: try a product: "}};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});

        imitate.refuse_runs = FIRST;
        imitate.refusal = (int)cases[i].status;
        imitate.refused = 0;
        EXPECT_OK(op_linear_prepare(rig.ops, plain));
        imitate.refusal_breaks = cases[i].breaks;
        cr_assert_eq(warm_up(&rig), cases[i].want, "%zu: %s", i, shoal_last_error());
        expect_said(shoal_last_error(), cases[i].said);
        expect_said(shoal_last_error(), "matmul NT m 8 n 24 k 16");
        cr_assert_eq(imitate.refused, 1, "another algorithm was tried");
        imitate.broken = false;
        cuda_rig_destroy(&rig);
    }
}

/* Ranks, steps and runs have one choice: it is made before the first step. */
Test(cuda_refusals, nothing_is_chosen_in_a_step)
{
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 1024);

    EXPECT_OK(warm_up(&rig));
    imitate.refuse_runs = FIRST;
    cr_assert_eq(op_linear(rig.ops, plain, p, p, NULL, p, NULL), SHOAL_ERR_UNAVAILABLE);
    expect_said(shoal_last_error(), "matmul NT m 8 n 24 k 16, rows of 16 16 24, bf16 -> bf16: "
                                    "cuBLASLt ");
    expect_said(shoal_last_error(), ": multiply: CUBLAS_STATUS_NOT_SUPPORTED");
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

Test(cuda_refusals, the_yardstick_leaves_out_what_is_refused)
{
    for (int refused = FIRST; refused <= BOTH; refused++) {
        struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
        double seconds[3] = {0};

        imitate.refuse_runs = refused;
        const shoal_status status = ops_library_linear_seconds(rig.ops, plain, seconds);
        cr_assert_eq(status, refused == BOTH ? SHOAL_ERR_UNAVAILABLE : SHOAL_OK, "%s",
                     shoal_last_error());
        for (int i = 0; i < 3 && refused != BOTH; i++)
            cr_assert(seconds[i] > 0.0 && seconds[i] < 1.0);
        cuda_rig_destroy(&rig);
    }
}

/* The least that calls promise, although the library saw other pointers when it was asked. */
Test(cuda_refusals, operands_are_aligned_to_16_bytes_only)
{
    const struct linear_shape s = {.rows = 8, .in = 16, .out = 16, .dtype = DTYPE_BF16};
    struct cuda_rig rig = cuda_rig_create(&full);
    struct gpu gpu = {0};
    bf16_t *p = gpu_new(&gpu, DTYPE_BF16, 2048);
    bf16_t *at[7];
    float *dbias = gpu_new(&gpu, DTYPE_F32, 64);

    for (int i = 0; i < 7; i++)
        at[i] = p + 256 * i + 8;
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_linear_gelu_prepare(rig.ops, s, true, s));
    EXPECT_OK(op_linear(rig.ops, s, at[0], at[1], at[2], at[3], NULL));
    EXPECT_OK(op_linear_gelu(rig.ops, s, at[0], at[1], at[2], at[3], at[4], NULL));
    EXPECT_OK(op_linear_backward_input_gelu(rig.ops, s, at[0], at[1], at[2], at[3], NULL));
    EXPECT_OK(op_linear_backward_weight(rig.ops, s, at[0], at[1], (float *)(void *)at[5], dbias + 4,
                                        NULL));
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

#include "models/ops/cuda/cublas_internal.h"

#include "models/ops/cuda/kernels.h"
#include "runtime/device/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

shoal_status cublas_check(cublasStatus_t result, const char *what)
{
    char library[48];

    if (result == CUBLAS_STATUS_SUCCESS)
        return SHOAL_OK;
    cublas_describe(library, sizeof library);
    return fail(result == CUBLAS_STATUS_NOT_SUPPORTED  ? SHOAL_ERR_UNAVAILABLE
                : result == CUBLAS_STATUS_ALLOC_FAILED ? SHOAL_ERR_NOMEM
                                                       : SHOAL_ERR_INTERNAL,
                "%s: %s: %s", library, what, cublasLtGetStatusString(result));
}

shoal_status cublas_create(struct device *device, bool tf32, struct cublas **cublas_out)
{
    struct cublas *cublas = calloc(1, sizeof *cublas);
    shoal_status status = SHOAL_OK;

    if (cublas == NULL)
        return fail(SHOAL_ERR_NOMEM, "cuBLASLt: cannot reserve %zu bytes", sizeof *cublas);
    cublas->device = device;
    cublas->stream = device_cuda_stream(device, QUEUE_COMPUTE);
    cublas->fp32_compute = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    SHOAL_TRY_GOTO(device_cuda_use(device), err_free);
    SHOAL_TRY_GOTO(cublas_check(cublasLtCreate(&cublas->handle), "create a handle"), err_free);
    SHOAL_TRY_GOTO(
        device->ops->alloc(device, "matmul workspace", CUBLAS_WORKSPACE_BYTES, &cublas->workspace),
        err_destroy_handle);
    *cublas_out = cublas;
    return SHOAL_OK;

err_destroy_handle:
    cublasLtDestroy(cublas->handle);
err_free:
    free(cublas);
    return status;
}

void cublas_destroy(struct cublas *cublas)
{
    if (cublas == NULL)
        return;
    for (int i = 0; i < cublas->n_plans; i++)
        cublas_plan_fini(&cublas->plans[i]);
    free(cublas->plans);
    cublas->device->ops->free(cublas->device, cublas->workspace, CUBLAS_WORKSPACE_BYTES);
    cublasLtDestroy(cublas->handle);
    free(cublas);
}

void *cublas_workspace(const struct cublas *cublas)
{
    return cublas->workspace;
}

static bool same_shape(const struct cublas_shape *a, const struct cublas_shape *b)
{
    return a->kind == b->kind && a->in == b->in && a->out == b->out &&
           a->accumulate == b->accumulate && a->bias == b->bias && a->epilogue == b->epilogue &&
           a->m == b->m && a->n == b->n && a->k == b->k && a->lda == b->lda && a->ldb == b->ldb &&
           a->ldc == b->ldc;
}

static struct cublas_plan *find(const struct cublas *cublas, const struct cublas_shape *shape)
{
    for (int i = 0; i < cublas->n_plans; i++)
        if (same_shape(&cublas->plans[i].shape, shape))
            return &cublas->plans[i];
    return NULL;
}

static shoal_status reserve(struct cublas *cublas)
{
    if (cublas->n_plans < cublas->capacity)
        return SHOAL_OK;
    const int capacity = cublas->capacity == 0 ? 32 : 2 * cublas->capacity;
    struct cublas_plan *plans = realloc(cublas->plans, (size_t)capacity * sizeof *plans);
    if (plans == NULL)
        return fail(SHOAL_ERR_NOMEM, "cuBLASLt: cannot reserve %d plans", capacity);
    cublas->plans = plans;
    cublas->capacity = capacity;
    return SHOAL_OK;
}

/* `after`: what is made behind the product. */
static void describe(const struct cublas_shape *s, bool bias_after, bool after,
                     char text[CUBLAS_SHAPE_BYTES])
{
    static const char *const kinds[] = {[CUBLAS_NT] = "NT", [CUBLAS_NN] = "NN", [CUBLAS_TN] = "TN"};
    static const char *const epilogues[] = {[CUBLAS_EPILOGUE_NONE] = "",
                                            [CUBLAS_EPILOGUE_GELU] = " gelu",
                                            [CUBLAS_EPILOGUE_GELU_GRADIENT] = " gelu gradient",
                                            [CUBLAS_EPILOGUE_BIAS_GRADIENT] = " bias gradient"};

    snprintf(text, CUBLAS_SHAPE_BYTES,
             "%s m %lld n %lld k %lld, rows of %lld %lld %lld, %s -> %s%s%s%s%s%s", kinds[s->kind],
             (long long)s->m, (long long)s->n, (long long)s->k, (long long)s->lda,
             (long long)s->ldb, (long long)s->ldc, dtype_name(s->in), dtype_name(s->out),
             s->accumulate ? " added" : "", s->bias ? " bias" : "", bias_after ? " after" : "",
             epilogues[s->epilogue], after ? " after" : "");
}

/* A failure of a product, with what was asked of the library. */
static shoal_status name_shape(shoal_status status, const struct cublas_shape *shape)
{
    char text[CUBLAS_SHAPE_BYTES];

    if (status == SHOAL_OK)
        return SHOAL_OK;
    describe(shape, false, false, text);
    return fail_context(status, "matmul %s", text);
}

shoal_status cublas_prepare(struct cublas *cublas, const struct cublas_shape *shape)
{
    struct cublas_plan plan = {0};

    if (find(cublas, shape) != NULL)
        return SHOAL_OK;
    SHOAL_TRY(reserve(cublas));
    shoal_status status = cublas_plan_init(cublas, shape, &plan);
    if (status != SHOAL_OK) {
        cublas_plan_fini(&plan);
        return name_shape(status, shape);
    }
    cublas->plans[cublas->n_plans++] = plan;
    return SHOAL_OK;
}

/* ---- running ---- */

/* The operands that the shape has; d stands for the others. */
static shoal_status check_operands(const struct cublas_shape *s, const struct cublas_data *data)
{
    const bool gelu = s->epilogue == CUBLAS_EPILOGUE_GELU;
    const bool gelu_gradient = s->epilogue == CUBLAS_EPILOGUE_GELU_GRADIENT;
    const bool bias_gradient = s->epilogue == CUBLAS_EPILOGUE_BIAS_GRADIENT;
    const void *const operands[] = {data->a,
                                    data->b,
                                    data->d,
                                    s->accumulate ? data->c : data->d,
                                    s->bias ? data->bias : data->d,
                                    gelu ? data->pre_out : data->d,
                                    gelu_gradient ? data->pre : data->d,
                                    bias_gradient ? data->dbias : data->d};

    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++)
        if (operands[i] == NULL || (uintptr_t)operands[i] % CUBLAS_ALIGNMENT_BYTES != 0)
            return fail(SHOAL_ERR_INTERNAL,
                        "matmul: expected operand %zu aligned to %d bytes, found %p", i,
                        CUBLAS_ALIGNMENT_BYTES, operands[i]);
    return SHOAL_OK;
}

static shoal_status set_pointer(const struct cublas_plan *plan,
                                cublasLtMatmulDescAttributes_t attribute, const void *p)
{
    return cublas_check(cublasLtMatmulDescSetAttribute(plan->product, attribute, &p, sizeof p),
                        "set a pointer");
}

/* What the product reads or writes beside its operands. */
static shoal_status set_pointers(const struct cublas_plan *plan, const struct cublas_data *data)
{
    if (plan->inside == CUBLAS_EPILOGUE_GELU)
        SHOAL_TRY(set_pointer(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, data->pre_out));
    if (plan->inside == CUBLAS_EPILOGUE_GELU_GRADIENT)
        return set_pointer(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, data->pre);
    if (plan->inside == CUBLAS_EPILOGUE_BIAS_GRADIENT)
        return set_pointer(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, data->dbias);
    if (plan->shape.bias && !plan->bias_after)
        return set_pointer(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, data->bias);
    return SHOAL_OK;
}

static shoal_status add_bias(const struct cublas *cublas, const struct cublas_shape *s,
                             const void *bias, void *to)
{
    if (s->ldc != s->n)
        return fail(SHOAL_ERR_INTERNAL, "matmul: a bias needs rows of %lld elements, found %lld",
                    (long long)s->n, (long long)s->ldc);
    return cuda_add_bias(cublas->stream, s->m, s->n, s->out, bias, to);
}

/* What the library has no algorithm for, by our own kernels. */
static shoal_status finish(const struct cublas *cublas, const struct cublas_plan *plan,
                           const struct cublas_data *data, void *product)
{
    const struct cublas_shape *s = &plan->shape;
    const int64_t n = s->m * s->n;

    if (plan->bias_after)
        SHOAL_TRY(add_bias(cublas, s, data->bias, product));
    if (plan->inside == s->epilogue)
        return SHOAL_OK;
    if (s->epilogue == CUBLAS_EPILOGUE_GELU)
        return cuda_gelu(cublas->stream, n, s->out, product, data->d);
    if (s->epilogue == CUBLAS_EPILOGUE_GELU_GRADIENT)
        return cuda_gelu_backward(cublas->stream, n, s->out, data->pre, product, data->d);
    return cuda_bias_gradient(cublas->stream, s->k, s->m, s->in, data->a, data->dbias,
                              data->scratch);
}

shoal_status cublas_run(struct cublas *cublas, struct cublas_plan *plan,
                        const cublasLtMatmulAlgo_t *algorithm, const struct cublas_data *data,
                        cublasStatus_t *refusal_out)
{
    const struct cublas_shape *s = &plan->shape;
    const float alpha = 1.0f;
    const float beta = s->accumulate ? 1.0f : 0.0f;
    const bool gelu_after = s->epilogue == CUBLAS_EPILOGUE_GELU && plan->inside != s->epilogue;
    /* The product itself is what GELU takes then. */
    void *d = gelu_after ? data->pre_out : data->d;
    const void *c = s->accumulate ? data->c : d;

    SHOAL_TRY(set_pointers(plan, data));
    const cublasStatus_t result =
        cublasLtMatmul(cublas->handle, plan->product, &alpha, data->b, plan->first, data->a,
                       plan->second, &beta, c, plan->result, d, plan->result, algorithm,
                       cublas->workspace, CUBLAS_WORKSPACE_BYTES, cublas->stream);
    if (refusal_out != NULL)
        *refusal_out = cublas_is_refusal(result) ? result : CUBLAS_STATUS_SUCCESS;
    if (refusal_out != NULL && *refusal_out != CUBLAS_STATUS_SUCCESS)
        return SHOAL_OK;
    SHOAL_TRY(cublas_check(result, "multiply"));
    return finish(cublas, plan, data, d);
}

shoal_status cublas_multiply(struct cublas *cublas, const struct cublas_shape *shape,
                             const struct cublas_data *data)
{
    struct cublas_plan *plan = find(cublas, shape);

    if (plan == NULL)
        return name_shape(fail(SHOAL_ERR_INTERNAL, "the shape was not prepared"), shape);
    SHOAL_TRY(check_operands(shape, data));
    return name_shape(cublas_run(cublas, plan, &plan->found[plan->chosen].algo, data, NULL), shape);
}

/*
 * What the heuristic offers may still be refused by the product itself.  A device in trouble answers
 * with the same words: then it is no refusal, and the failure is the device's.
 */
static shoal_status try_plan(struct cublas *cublas, struct cublas_plan *plan,
                             const struct cublas_data *data)
{
    while (!plan->was_run) {
        cublasStatus_t refusal = CUBLAS_STATUS_SUCCESS;

        SHOAL_TRY(cublas_run(cublas, plan, &plan->found[plan->chosen].algo, data, &refusal));
        SHOAL_TRY(cuda_check(cudaStreamSynchronize(cublas->stream), "try a product"));
        plan->was_run = refusal == CUBLAS_STATUS_SUCCESS;
        if (plan->was_run)
            return SHOAL_OK;
        /* Of a launch that was refused: the next check must not find it. */
        (void)cudaGetLastError();
        SHOAL_TRY(cublas_plan_next(cublas, plan, refusal));
    }
    return SHOAL_OK;
}

shoal_status cublas_try(struct cublas *cublas, const struct cublas_shape *shape,
                        const struct cublas_data *data, struct cublas_plan **plan_out)
{
    struct cublas_plan *plan = NULL;

    SHOAL_TRY(cublas_prepare(cublas, shape));
    plan = find(cublas, shape);
    SHOAL_TRY(check_operands(shape, data));
    SHOAL_TRY(name_shape(try_plan(cublas, plan, data), shape));
    *plan_out = plan;
    return SHOAL_OK;
}

/* ---- reports ---- */

int cublas_plan_count(const struct cublas *cublas)
{
    return cublas->n_plans;
}

static int config(const cublasLtMatmulAlgo_t *algorithm,
                  cublasLtMatmulAlgoConfigAttributes_t attribute)
{
    char bytes[8] = {0}; /* attributes are 2 or 4 bytes wide, on little-endian machines */
    int value = -1;
    size_t written = 0;

    if (cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, bytes, sizeof(int), &written) !=
            CUBLAS_STATUS_SUCCESS &&
        cublasLtMatmulAlgoConfigGetAttribute(algorithm, attribute, bytes, sizeof(int16_t),
                                             &written) != CUBLAS_STATUS_SUCCESS)
        return -1;
    memcpy(&value, bytes, sizeof value);
    return value;
}

void cublas_plan_describe(const struct cublas *cublas, int index, char *text, size_t n_bytes)
{
    const struct cublas_plan *plan = &cublas->plans[index];
    const cublasLtMatmulHeuristicResult_t *chosen = &plan->found[plan->chosen];
    const cublasLtMatmulAlgo_t *algorithm = &chosen->algo;
    char shape[CUBLAS_SHAPE_BYTES];

    describe(&plan->shape, plan->bias_after, plan->inside != plan->shape.epilogue, shape);
    int n =
        snprintf(text, n_bytes,
                 "%s: algorithm %d tile %d stages %d split-k %d reduction %d swizzle %d custom "
                 "%d inner %d cluster %d, workspace %zu bytes",
                 shape, config(algorithm, CUBLASLT_ALGO_CONFIG_ID),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID),
                 config(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID), chosen->workspaceSize);
    if (plan->n_refused > 0 && n > 0 && (size_t)n < n_bytes)
        snprintf(text + n, n_bytes - (size_t)n, ", after %d refused (%s)", plan->n_refused,
                 cublasLtGetStatusString(plan->refusal));
}

void cublas_describe(char *text, size_t n_bytes)
{
    const size_t version = cublasLtGetVersion();
    const size_t major = version / 10000, minor = version / 100 % 100, patch = version % 100;

    snprintf(text, n_bytes, "cuBLASLt %zu.%zu.%zu", major, minor, patch);
}

static size_t operand_bytes(int64_t rows, int64_t ld, enum dtype dtype)
{
    return (size_t)(rows * ld) * dtype_bytes(dtype);
}

static size_t max_bytes(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t cublas_largest_operand(const struct cublas *cublas)
{
    size_t n_bytes = 0;

    for (int i = 0; i < cublas->n_plans; i++) {
        const struct cublas_shape *s = &cublas->plans[i].shape;
        const int64_t a_rows = s->kind == CUBLAS_TN ? s->k : s->m;
        const int64_t b_rows = s->kind == CUBLAS_NT ? s->n : s->k;
        n_bytes = max_bytes(n_bytes, operand_bytes(a_rows, s->lda, s->in));
        n_bytes = max_bytes(n_bytes, operand_bytes(b_rows, s->ldb, s->in));
        n_bytes = max_bytes(n_bytes, operand_bytes(s->m, s->ldc, s->out));
    }
    return n_bytes;
}

/* Scratch of a bias gradient, a sum of every 64 rows or more, is smaller than its operands. */
shoal_status cublas_run_all(struct cublas *cublas, void *zeros)
{
    const struct cublas_data data = {.a = zeros,
                                     .b = zeros,
                                     .c = zeros,
                                     .bias = zeros,
                                     .d = zeros,
                                     .pre_out = zeros,
                                     .pre = zeros,
                                     .dbias = zeros,
                                     .scratch = zeros};

    for (int i = 0; i < cublas->n_plans; i++)
        SHOAL_TRY(name_shape(try_plan(cublas, &cublas->plans[i], &data), &cublas->plans[i].shape));
    return SHOAL_OK;
}

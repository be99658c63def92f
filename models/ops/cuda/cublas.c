#include "models/ops/cuda/cublas_internal.h"

#include "models/ops/cuda/kernels.h"
#include "runtime/device/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

shoal_status cublas_check(cublasStatus_t result, const char *what)
{
    if (result == CUBLAS_STATUS_SUCCESS)
        return SHOAL_OK;
    return fail(result == CUBLAS_STATUS_NOT_SUPPORTED  ? SHOAL_ERR_UNAVAILABLE
                : result == CUBLAS_STATUS_ALLOC_FAILED ? SHOAL_ERR_NOMEM
                                                       : SHOAL_ERR_INTERNAL,
                "cuBLASLt: %s: %s", what, cublasLtGetStatusString(result));
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

shoal_status cublas_prepare(struct cublas *cublas, const struct cublas_shape *shape)
{
    struct cublas_plan plan = {0};

    if (find(cublas, shape) != NULL)
        return SHOAL_OK;
    SHOAL_TRY(reserve(cublas));
    shoal_status status = cublas_plan_init(cublas, shape, &plan);
    if (status != SHOAL_OK) {
        cublas_plan_fini(&plan);
        return fail_context(status, "matmul [%lld, %lld] over %lld", (long long)shape->m,
                            (long long)shape->n, (long long)shape->k);
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

static shoal_status run(struct cublas *cublas, struct cublas_plan *plan,
                        const cublasLtMatmulAlgo_t *algorithm, const struct cublas_data *data)
{
    const struct cublas_shape *s = &plan->shape;
    const float alpha = 1.0f;
    const float beta = s->accumulate ? 1.0f : 0.0f;
    const bool gelu_after = s->epilogue == CUBLAS_EPILOGUE_GELU && plan->inside != s->epilogue;
    /* The product itself is what GELU takes then. */
    void *d = gelu_after ? data->pre_out : data->d;
    const void *c = s->accumulate ? data->c : d;

    SHOAL_TRY(set_pointers(plan, data));
    SHOAL_TRY(cublas_check(
        cublasLtMatmul(cublas->handle, plan->product, &alpha, data->b, plan->first, data->a,
                       plan->second, &beta, c, plan->result, d, plan->result, algorithm,
                       cublas->workspace, CUBLAS_WORKSPACE_BYTES, cublas->stream),
        "multiply"));
    return finish(cublas, plan, data, d);
}

shoal_status cublas_multiply(struct cublas *cublas, const struct cublas_shape *shape,
                             const struct cublas_data *data)
{
    struct cublas_plan *plan = find(cublas, shape);

    if (plan == NULL)
        return fail(SHOAL_ERR_INTERNAL, "matmul [%lld, %lld] over %lld: the shape was not prepared",
                    (long long)shape->m, (long long)shape->n, (long long)shape->k);
    SHOAL_TRY(check_operands(shape, data));
    return run(cublas, plan, &plan->chosen.algo, data);
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
    static const char *const kinds[] = {[CUBLAS_NT] = "NT", [CUBLAS_NN] = "NN", [CUBLAS_TN] = "TN"};
    static const char *const epilogues[] = {[CUBLAS_EPILOGUE_NONE] = "",
                                            [CUBLAS_EPILOGUE_GELU] = " gelu",
                                            [CUBLAS_EPILOGUE_GELU_GRADIENT] = " gelu gradient",
                                            [CUBLAS_EPILOGUE_BIAS_GRADIENT] = " bias gradient"};
    const struct cublas_plan *plan = &cublas->plans[index];
    const struct cublas_shape *s = &plan->shape;
    const cublasLtMatmulAlgo_t *algorithm = &plan->chosen.algo;

    snprintf(
        text, n_bytes,
        "%s m %lld n %lld k %lld %s -> %s%s%s%s%s%s: algorithm %d tile %d stages %d split-k %d "
        "reduction %d swizzle %d custom %d inner %d cluster %d, workspace %zu bytes",
        kinds[s->kind], (long long)s->m, (long long)s->n, (long long)s->k, dtype_name(s->in),
        dtype_name(s->out), s->accumulate ? " added" : "", s->bias ? " bias" : "",
        plan->bias_after ? " after" : "", epilogues[s->epilogue],
        plan->inside != s->epilogue ? " after" : "", config(algorithm, CUBLASLT_ALGO_CONFIG_ID),
        config(algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID),
        config(algorithm, CUBLASLT_ALGO_CONFIG_STAGES_ID),
        config(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
        config(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME),
        config(algorithm, CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
        config(algorithm, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
        config(algorithm, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID),
        config(algorithm, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID), plan->chosen.workspaceSize);
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
        SHOAL_TRY(run(cublas, &cublas->plans[i], &cublas->plans[i].chosen.algo, &data));
    return cuda_check(cudaStreamSynchronize(cublas->stream), "warm up products");
}

/* ---- the yardstick ---- */

enum { TIMED_RUNS = 5 };

static shoal_status time_once(struct cublas *cublas, struct cublas_plan *plan,
                              const cublasLtMatmulAlgo_t *algorithm, const struct cublas_data *data,
                              const cudaEvent_t events[2], double *seconds_out)
{
    float ms = 0.0f;

    SHOAL_TRY(cuda_check(cudaEventRecord(events[0], cublas->stream), "record an event"));
    SHOAL_TRY(run(cublas, plan, algorithm, data));
    SHOAL_TRY(cuda_check(cudaEventRecord(events[1], cublas->stream), "record an event"));
    SHOAL_TRY(cuda_check(cudaEventSynchronize(events[1]), "time a product"));
    SHOAL_TRY(cuda_check(cudaEventElapsedTime(&ms, events[0], events[1]), "read a time"));
    *seconds_out = ms * 1e-3;
    return SHOAL_OK;
}

/* The first run loads the kernel and does not count. */
static shoal_status time_algorithm(struct cublas *cublas, struct cublas_plan *plan,
                                   const cublasLtMatmulAlgo_t *algorithm,
                                   const struct cublas_data *data, const struct cublas_sweep *sweep,
                                   const cudaEvent_t events[2], double *best_out)
{
    double best = 1e30;

    for (int i = 0; i <= TIMED_RUNS; i++) {
        double seconds = 0.0;
        SHOAL_TRY(cuda_check(cudaMemsetAsync(sweep->p, i, sweep->n_bytes, cublas->stream),
                             "empty the caches"));
        SHOAL_TRY(time_once(cublas, plan, algorithm, data, events, &seconds));
        if (i > 0 && seconds < best)
            best = seconds;
    }
    *best_out = best;
    return SHOAL_OK;
}

static shoal_status time_candidates(struct cublas *cublas, struct cublas_plan *plan,
                                    const struct cublas_data *data,
                                    const struct cublas_sweep *sweep, const cudaEvent_t events[2],
                                    struct cublas_timing *timing_out)
{
    cublasLtMatmulHeuristicResult_t found[CUBLAS_CANDIDATES];
    struct cublas_timing timing = {.best_seconds = 1e30};

    SHOAL_TRY(cublas_plan_candidates(cublas, plan, found, &timing.n_algorithms));
    SHOAL_TRY(time_algorithm(cublas, plan, &plan->chosen.algo, data, sweep, events,
                             &timing.chosen_seconds));
    for (int i = 0; i < timing.n_algorithms; i++) {
        double seconds = 0.0;
        SHOAL_TRY(time_algorithm(cublas, plan, &found[i].algo, data, sweep, events, &seconds));
        if (seconds < timing.best_seconds)
            timing.best_seconds = seconds;
    }
    *timing_out = timing;
    return SHOAL_OK;
}

shoal_status cublas_time(struct cublas *cublas, const struct cublas_shape *shape,
                         const struct cublas_data *data, const struct cublas_sweep *sweep,
                         struct cublas_timing *timing_out)
{
    cudaEvent_t events[2] = {NULL, NULL};
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(cublas_prepare(cublas, shape));
    SHOAL_TRY(check_operands(shape, data));
    SHOAL_TRY(cuda_check(cudaEventCreate(&events[0]), "create an event"));
    SHOAL_TRY_GOTO(cuda_check(cudaEventCreate(&events[1]), "create an event"), err_first);
    status = time_candidates(cublas, find(cublas, shape), data, sweep, events, timing_out);
    cudaEventDestroy(events[1]);
err_first:
    cudaEventDestroy(events[0]);
    return status;
}

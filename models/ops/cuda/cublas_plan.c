/*
 * cuBLASLt is column-major: a row-major matrix is its transpose there, so the library is asked for
 * Dᵀ = Bᵀ Aᵀ, with our B as its first operand.
 */
#include "models/ops/cuda/cublas_internal.h"

static cudaDataType_t type_of(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* A row-major [rows, cols] matrix is a column-major [cols, rows] one. */
static shoal_status layout_create(enum dtype dtype, int64_t rows, int64_t cols, int64_t ld,
                                  cublasLtMatrixLayout_t *layout_out)
{
    return cublas_check(
        cublasLtMatrixLayoutCreate(layout_out, type_of(dtype), (uint64_t)cols, (uint64_t)rows, ld),
        "describe a matrix");
}

static shoal_status layouts_create(struct cublas_plan *plan)
{
    const struct cublas_shape *s = &plan->shape;
    const bool b_transposed = s->kind == CUBLAS_NT;
    const bool a_transposed = s->kind == CUBLAS_TN;

    SHOAL_TRY(layout_create(s->in, b_transposed ? s->n : s->k, b_transposed ? s->k : s->n, s->ldb,
                            &plan->first));
    SHOAL_TRY(layout_create(s->in, a_transposed ? s->k : s->m, a_transposed ? s->m : s->k, s->lda,
                            &plan->second));
    return layout_create(s->out, s->m, s->n, s->ldc, &plan->result);
}

static shoal_status set_product(cublasLtMatmulDesc_t product,
                                cublasLtMatmulDescAttributes_t attribute, const void *value,
                                size_t n_bytes, const char *what)
{
    return cublas_check(cublasLtMatmulDescSetAttribute(product, attribute, value, n_bytes), what);
}

static bool is_gelu(enum cublas_epilogue epilogue)
{
    return epilogue == CUBLAS_EPILOGUE_GELU || epilogue == CUBLAS_EPILOGUE_GELU_GRADIENT;
}

/* The plan's bias and what it has inside, in the library's words. */
static cublasLtEpilogue_t epilogue_of(const struct cublas_plan *plan)
{
    static const cublasLtEpilogue_t alone[] = {
        [CUBLAS_EPILOGUE_NONE] = CUBLASLT_EPILOGUE_DEFAULT,
        [CUBLAS_EPILOGUE_GELU] = CUBLASLT_EPILOGUE_GELU_AUX,
        [CUBLAS_EPILOGUE_GELU_GRADIENT] = CUBLASLT_EPILOGUE_DGELU,
        [CUBLAS_EPILOGUE_BIAS_GRADIENT] = CUBLASLT_EPILOGUE_BGRADB};

    if (!plan->shape.bias || plan->bias_after)
        return alone[plan->inside];
    return plan->inside == CUBLAS_EPILOGUE_GELU ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS
                                                : CUBLASLT_EPILOGUE_BIAS;
}

/* The heuristic reads the alignment of pointers, and may choose what needs as much: the least that calls
 * promise.  The pointers themselves come with each call. */
static const void *any_pointer(const struct cublas *cublas)
{
    return (const char *)cublas->workspace + CUBLAS_ALIGNMENT_BYTES;
}

static shoal_status bias_describe(const struct cublas *cublas, struct cublas_plan *plan)
{
    const int32_t type = (int32_t)type_of(plan->shape.out);
    const void *pointer = any_pointer(cublas);

    SHOAL_TRY(set_product(plan->product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type,
                          "set BIAS_DATA_TYPE"));
    return set_product(plan->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &pointer, sizeof pointer,
                       "set BIAS_POINTER");
}

/* What GELU takes has the result's layout and, by default, its type: to say so is for fp8 alone, and may
 * be refused by the product itself (cublasLt.h). */
static shoal_status aux_describe(const struct cublas *cublas, struct cublas_plan *plan)
{
    const int64_t ld = plan->shape.ldc;
    const void *pointer = any_pointer(cublas);

    SHOAL_TRY(set_product(plan->product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof ld,
                          "set EPILOGUE_AUX_LD"));
    return set_product(plan->product, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &pointer,
                       sizeof pointer, "set EPILOGUE_AUX_POINTER");
}

static shoal_status product_create(const struct cublas *cublas, struct cublas_plan *plan)
{
    const struct cublas_shape *s = &plan->shape;
    const cublasComputeType_t compute =
        s->in == DTYPE_F32 ? cublas->fp32_compute : CUBLAS_COMPUTE_32F;
    const cublasOperation_t first = s->kind == CUBLAS_NT ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t second = s->kind == CUBLAS_TN ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = epilogue_of(plan);
    const bool bias = plan->shape.bias && !plan->bias_after;

    SHOAL_TRY(cublas_check(cublasLtMatmulDescCreate(&plan->product, compute, CUDA_R_32F),
                           "describe a product"));
    SHOAL_TRY(set_product(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first,
                          "set TRANSA"));
    SHOAL_TRY(set_product(plan->product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second,
                          "set TRANSB"));
    SHOAL_TRY(set_product(plan->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue,
                          "set EPILOGUE"));
    if (bias || plan->inside == CUBLAS_EPILOGUE_BIAS_GRADIENT)
        SHOAL_TRY(bias_describe(cublas, plan));
    return is_gelu(plan->inside) ? aux_describe(cublas, plan) : SHOAL_OK;
}

static shoal_status set_preference(cublasLtMatmulPreference_t preference,
                                   cublasLtMatmulPreferenceAttributes_t attribute,
                                   const void *value, size_t n_bytes)
{
    return cublas_check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, n_bytes),
                        "set a preference");
}

static shoal_status preference_fill(cublasLtMatmulPreference_t preference)
{
    static const cublasLtMatmulPreferenceAttributes_t operands[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint64_t workspace = CUBLAS_WORKSPACE_BYTES;
    const uint32_t alignment = CUBLAS_ALIGNMENT_BYTES;
    const uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

    SHOAL_TRY(set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                             sizeof workspace));
    SHOAL_TRY(set_preference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                             sizeof schemes));
    for (size_t i = 0; i < sizeof operands / sizeof *operands; i++)
        SHOAL_TRY(set_preference(preference, operands[i], &alignment, sizeof alignment));
    return SHOAL_OK;
}

/* INTERNAL_ERROR and INVALID_VALUE, too, are what single algorithms answer to what they do not do. */
bool cublas_is_refusal(cublasStatus_t result)
{
    return result == CUBLAS_STATUS_NOT_SUPPORTED || result == CUBLAS_STATUS_INVALID_VALUE ||
           result == CUBLAS_STATUS_ARCH_MISMATCH || result == CUBLAS_STATUS_INTERNAL_ERROR;
}

static shoal_status ask_heuristic(const struct cublas *cublas, struct cublas_plan *plan,
                                  cublasLtMatmulPreference_t preference)
{
    int n = 0;
    cublasStatus_t result = cublasLtMatmulAlgoGetHeuristic(
        cublas->handle, plan->product, plan->first, plan->second, plan->result, plan->result,
        preference, CUBLAS_CANDIDATES, plan->found, &n);

    plan->n_found = plan->chosen = 0;
    if (!cublas_is_refusal(result))
        SHOAL_TRY(cublas_check(result, "choose an algorithm"));
    for (int i = 0; result == CUBLAS_STATUS_SUCCESS && i < n; i++)
        if (plan->found[i].state == CUBLAS_STATUS_SUCCESS &&
            plan->found[i].workspaceSize <= CUBLAS_WORKSPACE_BYTES)
            plan->found[plan->n_found++] = plan->found[i];
    if (plan->n_found > 0)
        return SHOAL_OK;
    return cublas_check(CUBLAS_STATUS_NOT_SUPPORTED, "choose an algorithm");
}

/* SHOAL_ERR_UNAVAILABLE: the library offers nothing for what is to be inside. */
static shoal_status candidates_find(const struct cublas *cublas, struct cublas_plan *plan)
{
    cublasLtMatmulPreference_t preference = NULL;

    if (plan->product != NULL)
        cublasLtMatmulDescDestroy(plan->product);
    plan->product = NULL;
    SHOAL_TRY(product_create(cublas, plan));
    SHOAL_TRY(cublas_check(cublasLtMatmulPreferenceCreate(&preference), "create preferences"));
    shoal_status status = preference_fill(preference);
    if (status == SHOAL_OK)
        status = ask_heuristic(cublas, plan, preference);
    cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

/* Our own kernels take over the next part; false: nothing but the product is left inside. */
static bool move_out(struct cublas_plan *plan)
{
    if (plan->inside != CUBLAS_EPILOGUE_NONE)
        plan->inside = CUBLAS_EPILOGUE_NONE;
    else if (plan->shape.bias && !plan->bias_after)
        plan->bias_after = true;
    else
        return false;
    return true;
}

/* Less and less of the shape inside the product, until the library has an algorithm. */
static shoal_status choose(const struct cublas *cublas, struct cublas_plan *plan)
{
    shoal_status status = candidates_find(cublas, plan);

    while (status == SHOAL_ERR_UNAVAILABLE && move_out(plan))
        status = candidates_find(cublas, plan);
    return status;
}

shoal_status cublas_plan_next(const struct cublas *cublas, struct cublas_plan *plan,
                              cublasStatus_t refusal)
{
    char library[48];

    plan->n_refused++;
    plan->refusal = refusal;
    plan->chosen++;
    if (plan->chosen < plan->n_found)
        return SHOAL_OK;
    if (move_out(plan))
        return choose(cublas, plan);
    cublas_describe(library, sizeof library);
    return fail(SHOAL_ERR_UNAVAILABLE,
                "%s: refuses to run each of the %d algorithms that it offers, the last one with %s",
                library, plan->n_refused, cublasLtGetStatusString(refusal));
}

/* Our own kernels, which may have to do the rest, know no padding. */
static shoal_status check_epilogue(const struct cublas_shape *s)
{
    const bool bias_gradient = s->epilogue == CUBLAS_EPILOGUE_BIAS_GRADIENT;

    if (s->epilogue == CUBLAS_EPILOGUE_NONE)
        return SHOAL_OK;
    if (s->ldc != s->n || (bias_gradient && s->lda != s->m))
        return fail(SHOAL_ERR_INTERNAL, "an epilogue needs rows without padding");
    if (s->bias && s->epilogue != CUBLAS_EPILOGUE_GELU)
        return fail(SHOAL_ERR_INTERNAL, "no epilogue but GELU goes with a bias");
    if (bias_gradient && (s->kind != CUBLAS_TN || s->out != DTYPE_F32))
        return fail(SHOAL_ERR_INTERNAL, "a bias gradient goes with TN products in fp32");
    return SHOAL_OK;
}

shoal_status cublas_plan_init(const struct cublas *cublas, const struct cublas_shape *shape,
                              struct cublas_plan *plan)
{
    const bool rows_fit = !is_gelu(shape->epilogue) || shape->ldc % CUBLAS_AUX_LD_MULTIPLE == 0;

    plan->shape = *shape;
    plan->inside = rows_fit ? shape->epilogue : CUBLAS_EPILOGUE_NONE;
    SHOAL_TRY(check_epilogue(shape));
    SHOAL_TRY(layouts_create(plan));
    return choose(cublas, plan);
}

void cublas_plan_fini(struct cublas_plan *plan)
{
    if (plan->result != NULL)
        cublasLtMatrixLayoutDestroy(plan->result);
    if (plan->second != NULL)
        cublasLtMatrixLayoutDestroy(plan->second);
    if (plan->first != NULL)
        cublasLtMatrixLayoutDestroy(plan->first);
    if (plan->product != NULL)
        cublasLtMatmulDescDestroy(plan->product);
}

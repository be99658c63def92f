/*
 * cuBLASLt's matmul, all column-major: D = alpha op(A) op(B) + beta C (+ bias), and the epilogues that
 * make GELU of that (what GELU took beside it), multiply by GELU's gradient, or sum B over k.
 */
#include "tests/gpu/emulate/emulate.h"
#include "tests/gpu/imitate/imitate.h"

#include "runtime/base/dtype.h"

#include <cublasLt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the library's opaque structs hold here. */
struct layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};

struct product {
    cublasComputeType_t compute;
    cudaDataType_t scale, bias_type;
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    void *bias; /* or its gradient, which is written */
    int64_t aux_ld;
    void *aux;
};

struct preference {
    uint64_t workspace;
    uint32_t schemes, alignment[4];
};

static const struct layout *layout_of(cublasLtMatrixLayout_t layout)
{
    return (const struct layout *)(const void *)layout;
}

static struct product *product_of(cublasLtMatmulDesc_t product)
{
    return (struct product *)(void *)product;
}

static struct preference *preference_of(cublasLtMatmulPreference_t preference)
{
    return (struct preference *)(void *)preference;
}

static void *create(size_t n_bytes)
{
    imitate.live_descriptors++;
    return calloc(1, n_bytes);
}

static cublasStatus_t destroy(void *p)
{
    imitate.live_descriptors--;
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = create(1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return destroy(handle);
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    default:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    struct layout *l = create(sizeof *l);

    *l = (struct layout){type, rows, cols, ld};
    *layout = (cublasLtMatrixLayout_t)(void *)l;
    return ld >= (int64_t)rows ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t layout)
{
    return destroy(layout);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *product, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    struct product *p = create(sizeof *p);

    *p = (struct product){.compute = compute,
                          .scale = scale,
                          .bias_type = (cudaDataType_t)-1,
                          .epilogue = CUBLASLT_EPILOGUE_DEFAULT};
    *product = (cublasLtMatmulDesc_t)(void *)p;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t product)
{
    return destroy(product);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t n_bytes)
{
    struct product *p = product_of(product);
    void *place = NULL;
    size_t size = 4;

    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        place = &p->a;
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        place = &p->b;
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        place = &p->epilogue;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        place = &p->bias_type;
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        place = &p->bias;
        size = sizeof p->bias;
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        place = &p->aux_ld;
        size = sizeof p->aux_ld;
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        place = &p->aux;
        size = sizeof p->aux;
        break;
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (n_bytes != size)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(place, value, size);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    struct preference *p = create(sizeof *p);

    *p = (struct preference){.schemes = CUBLASLT_REDUCTION_SCHEME_MASK,
                             .alignment = {256, 256, 256, 256}};
    *preference = (cublasLtMatmulPreference_t)(void *)p;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t preference)
{
    return destroy(preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t n_bytes)
{
    struct preference *p = preference_of(preference);

    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && n_bytes == 8)
        memcpy(&p->workspace, value, n_bytes);
    else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && n_bytes == 4)
        memcpy(&p->schemes, value, n_bytes);
    else if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
             attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES && n_bytes == 4)
        memcpy(&p->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value,
               n_bytes);
    else
        return CUBLAS_STATUS_INVALID_VALUE;
    return CUBLAS_STATUS_SUCCESS;
}

/* op(A) is [rows, cols] of the product. */
static bool fits(const struct layout *l, cublasOperation_t op, uint64_t rows, uint64_t cols)
{
    return op == CUBLAS_OP_N ? l->rows == rows && l->cols == cols
                             : l->rows == cols && l->cols == rows;
}

static bool has(const struct product *p, cublasLtEpilogue_t bits)
{
    return (p->epilogue & bits) == bits;
}

/* What the header says of each epilogue's attributes. */
static cublasStatus_t check_epilogue(const struct product *p, const struct layout *d)
{
    switch (p->epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
        return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
    case CUBLASLT_EPILOGUE_BGRADB:
        break;
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (has(p, CUBLASLT_EPILOGUE_GELU_AUX) || has(p, CUBLASLT_EPILOGUE_DGELU))
        if (p->aux == NULL || p->aux_ld % 8 != 0 || p->aux_ld < (int64_t)d->rows)
            return CUBLAS_STATUS_INVALID_VALUE;
    /* A bias and its gradient have the result's type. */
    if (has(p, CUBLASLT_EPILOGUE_BIAS) || has(p, CUBLASLT_EPILOGUE_BGRADB))
        if (p->bias == NULL || p->bias_type != d->type)
            return CUBLAS_STATUS_NOT_SUPPORTED;
    return ((int)p->epilogue & imitate.refuse_epilogues) != 0 ? CUBLAS_STATUS_NOT_SUPPORTED
                                                              : CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t check(const struct product *p, const struct layout *a, const struct layout *b,
                            const struct layout *c, const struct layout *d)
{
    const uint64_t k = p->a == CUBLAS_OP_N ? a->cols : a->rows;
    const cublasStatus_t epilogue = check_epilogue(p, d);

    if (!fits(a, p->a, d->rows, k) || !fits(b, p->b, k, d->cols) || c->rows != d->rows ||
        c->cols != d->cols)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a->type != b->type || c->type != d->type || p->scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a->type == CUDA_R_32F && d->type != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (epilogue != CUBLAS_STATUS_SUCCESS)
        return epilogue;
    return imitate.refuse_product ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

static bool aligned(const void *p, size_t by)
{
    return p != NULL && (uintptr_t)p % by == 0;
}

/* What an algorithm may rely on, having seen the pointer. */
static uint64_t alignment_of(const void *p)
{
    uint64_t by = 256;

    while (p != NULL && !aligned(p, by))
        by /= 2;
    return by;
}

/* Of those that are offered the first has failed and the second wants too much workspace. */
enum { OFFERED = 4, FIRST_ID = 40, FIRST_GOOD = 2 };

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    const struct preference *p = preference_of(preference);
    const cublasStatus_t status =
        check(product_of(product), layout_of(a), layout_of(b), layout_of(c), layout_of(d));

    (void)handle;
    *found = 0;
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (requested < OFFERED || p->schemes != CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (int i = 0; i < 4; i++)
        if (p->alignment[i] != 16)
            return CUBLAS_STATUS_INVALID_VALUE;
    memset(results, 0, OFFERED * sizeof *results);
    for (int i = 0; i < OFFERED; i++) {
        results[i].algo.data[0] = (uint64_t)(FIRST_ID + i);
        results[i].algo.data[1] = alignment_of(product_of(product)->bias);
        results[i].algo.data[2] = alignment_of(product_of(product)->aux);
        results[i].workspaceSize = i < FIRST_GOOD ? p->workspace + 1 : p->workspace;
    }
    results[0].state = CUBLAS_STATUS_NOT_SUPPORTED;
    results[0].workspaceSize = 0;
    *found = OFFERED;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void *value, size_t n_bytes, size_t *written)
{
    const int id = (int)algorithm->data[0];

    if (attribute != CUBLASLT_ALGO_CONFIG_ID || n_bytes != sizeof id)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &id, sizeof id);
    *written = sizeof id;
    return CUBLAS_STATUS_SUCCESS;
}

static double load(cudaDataType_t type, const void *p, int64_t i)
{
    return type == CUDA_R_32F ? (double)((const float *)p)[i]
                              : (double)bf16_to_f32(((const bf16_t *)p)[i]);
}

static void store(cudaDataType_t type, void *p, int64_t i, double value)
{
    if (type == CUDA_R_32F)
        ((float *)p)[i] = (float)value;
    else
        ((bf16_t *)p)[i] = bf16_from_f32((float)value);
}

/* Element (row, col) of op(matrix). */
static double element(const struct layout *l, cublasOperation_t op, const void *p, int64_t row,
                      int64_t col)
{
    return load(l->type, p, op == CUBLAS_OP_N ? col * l->ld + row : row * l->ld + col);
}

/* What a call takes of its descriptors, which the next call may change. */
struct multiplication {
    struct product p;
    struct layout a, b, c, d;
    const void *A, *B, *C;
    void *D;
    float alpha, beta;
};

/* GELU in its tanh form, and its derivative. */
static double gelu(double x, double *slope_out)
{
    const double root = sqrt(2.0 / M_PI);
    const double t = tanh(root * (x + 0.044715 * x * x * x));

    *slope_out = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x);
    return 0.5 * x * (1.0 + t);
}

/* Element (row, col) of D, from the sum; what GELU takes has its type. */
static double finish(const struct product *p, cudaDataType_t type, int64_t row, int64_t col,
                     double sum)
{
    const int64_t i = col * p->aux_ld + row;
    double slope = 0.0;

    if (has(p, CUBLASLT_EPILOGUE_BIAS))
        sum += load(p->bias_type, p->bias, row);
    if (has(p, CUBLASLT_EPILOGUE_GELU_AUX)) {
        store(type, p->aux, i, sum);
        return gelu(sum, &slope);
    }
    if (has(p, CUBLASLT_EPILOGUE_DGELU)) {
        gelu(load(type, p->aux, i), &slope);
        return sum * slope;
    }
    return sum;
}

/* Sums of op(B)'s columns over k. */
static void sum_columns(const struct multiplication *m, int64_t k)
{
    for (int64_t col = 0; col < (int64_t)m->d.cols; col++) {
        double sum = 0.0;
        for (int64_t i = 0; i < k; i++)
            sum += element(&m->b, m->p.b, m->B, i, col);
        store(m->p.bias_type, m->p.bias, col, sum);
    }
}

static void run_multiplication(const void *issued)
{
    const struct multiplication *m = issued;
    const struct product *p = &m->p;
    const int64_t k = (int64_t)(p->a == CUBLAS_OP_N ? m->a.cols : m->a.rows);

    if (has(p, CUBLASLT_EPILOGUE_BGRADB))
        sum_columns(m, k);
    for (int64_t col = 0; col < (int64_t)m->d.cols; col++) {
        for (int64_t row = 0; row < (int64_t)m->d.rows; row++) {
            double sum = 0.0;
            for (int64_t i = 0; i < k; i++)
                sum += element(&m->a, p->a, m->A, row, i) * element(&m->b, p->b, m->B, i, col);
            sum *= (double)m->alpha;
            if (m->beta != 0.0f)
                sum += (double)m->beta * load(m->c.type, m->C, col * m->c.ld + row);
            store(m->d.type, m->D, col * m->d.ld + row, finish(p, m->d.type, row, col, sum));
        }
    }
    imitate.products++;
}

/* SHOAL_IMITATE_REFUSING_RANK: the one whose library refuses to run what it offers first. */
static int refused_here(void)
{
    const char *who = getenv("SHOAL_IMITATE_REFUSING_RANK"), *rank = getenv("PMI_RANK");

    return who != NULL && rank != NULL && strcmp(who, rank) == 0 ? 1 : imitate.refuse_runs;
}

/* Good descriptors, and yet. */
static bool is_refused(const struct product *p, const cublasLtMatmulAlgo_t *algorithm)
{
    const int bit = 1 << ((int)algorithm->data[0] - FIRST_ID - FIRST_GOOD);

    return (refused_here() & bit) != 0 && has(p, (cublasLtEpilogue_t)imitate.refuse_runs_with);
}

static cublasStatus_t refuse(void)
{
    imitate.refused++;
    imitate.broken = imitate.refusal_breaks;
    imitate_leave_error(cudaErrorInvalidValue);
    return imitate.refusal == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : (cublasStatus_t)imitate.refusal;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                              const void *alpha, const void *A, cublasLtMatrixLayout_t a_desc,
                              const void *B, cublasLtMatrixLayout_t b_desc, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c_desc, void *D,
                              cublasLtMatrixLayout_t d_desc, const cublasLtMatmulAlgo_t *algorithm,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    const struct product *p = product_of(product);
    const struct layout *a = layout_of(a_desc), *b = layout_of(b_desc);
    const struct layout *c = layout_of(c_desc), *d = layout_of(d_desc);
    const cublasStatus_t status = check(p, a, b, c, d);

    (void)handle;
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (imitate_stream_check(stream) != cudaSuccess)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    if (algorithm->data[0] < FIRST_ID + FIRST_GOOD || algorithm->data[0] >= FIRST_ID + OFFERED ||
        workspace_bytes < ((size_t)32 << 20) || !aligned(workspace, 256) || !aligned(A, 16) ||
        !aligned(B, 16) || !aligned(C, 16) || !aligned(D, 16) ||
        (p->bias != NULL && !aligned(p->bias, algorithm->data[1])) ||
        (p->aux != NULL && !aligned(p->aux, algorithm->data[2])))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (is_refused(p, algorithm))
        return refuse();
    /* In place: the same layout. */
    if (C == D && (c->ld != d->ld || c->type != d->type))
        return CUBLAS_STATUS_INVALID_VALUE;
    const struct multiplication m = {.p = *p,
                                     .a = *a,
                                     .b = *b,
                                     .c = *c,
                                     .d = *d,
                                     .A = A,
                                     .B = B,
                                     .C = C,
                                     .D = D,
                                     .alpha = *(const float *)alpha,
                                     .beta = *(const float *)beta};
    emulate_issue(run_multiplication, &m, sizeof m);
    return CUBLAS_STATUS_SUCCESS;
}

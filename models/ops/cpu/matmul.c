#include "models/ops/cpu/matmul.h"

#include "models/ops/cpu/amx.h"
#include "runtime/base/pages.h"

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MATMUL_ARGS = 5 }; /* A, B, bias, C, scratchpad */

/*
 * A built primitive.  Memory objects carry a data handle that is set before each execution, so
 * every thread has its own.
 */
struct matmul_primitive {
    struct matmul_shape shape;
    dnnl_primitive_t primitive; /* NULL: runs on AMX tiles */
    dnnl_memory_t *memories;    /* [n_threads][MATMUL_ARGS]; NULL entries are unused */
};

struct matmul_thread {
    dnnl_stream_t stream;
    void *scratchpad; /* as large as the largest primitive wants */
};

struct matmul_library {
    int n_threads;
    dnnl_engine_t engine;
    struct matmul_thread *threads;
    size_t scratchpad_bytes;
    struct matmul_primitive *primitives;
    int count, capacity;
    bool has_tiles;
};

static const int argument_ids[MATMUL_ARGS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS,
                                              DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};

static shoal_status dnnl_check(dnnl_status_t result, const char *what)
{
    if (result == dnnl_success)
        return SHOAL_OK;
    if (result == dnnl_out_of_memory)
        return fail(SHOAL_ERR_NOMEM, "oneDNN: %s: out of memory", what);
    if (result == dnnl_unimplemented)
        return fail(SHOAL_ERR_CONFIG, "oneDNN: %s: not implemented for this CPU", what);
    return fail(SHOAL_ERR_INTERNAL, "oneDNN: %s: status %d", what, (int)result);
}

/*
 * oneDNN takes its thread count from OpenMP, per calling thread.  Its own threading would split
 * sums by the number of threads, so each of ours tells the OpenMP that oneDNN brought along to use
 * one.  The symbol is looked up instead of linked: it must be that very runtime, whatever the
 * compiler's own is.
 */
static void keep_serial(void)
{
    static _Thread_local bool is_serial;

    if (is_serial)
        return;
    void (*set_threads)(int) = NULL;
    void *symbol = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    memcpy(&set_threads, &symbol, sizeof symbol); /* ISO C has no cast from object to function */
    if (set_threads != NULL)
        set_threads(1);
    is_serial = true;
}

shoal_status matmul_library_create(int n_threads, struct matmul_library **library_out)
{
    shoal_status status = SHOAL_OK;
    unsigned runtime = dnnl_version()->cpu_runtime;

    if (runtime != DNNL_RUNTIME_OMP && runtime != DNNL_RUNTIME_SEQ) {
        fail(SHOAL_ERR_CONFIG, "oneDNN: expected an OpenMP or sequential build, found runtime %u",
             runtime);
        return fail_why(SHOAL_ERR_CONFIG, "other builds cannot be kept to one thread per call");
    }
    struct matmul_library *library = calloc(1, sizeof *library);
    if (library == NULL)
        return fail(SHOAL_ERR_NOMEM, "matmul: cannot reserve %zu bytes", sizeof *library);
    library->n_threads = n_threads;
    library->threads = calloc((size_t)n_threads, sizeof *library->threads);
    if (library->threads == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "matmul: cannot reserve %d thread records", n_threads);
        goto err_destroy;
    }
    SHOAL_TRY_GOTO(dnnl_check(dnnl_engine_create(&library->engine, dnnl_cpu, 0), "create engine"),
                   err_destroy);
    for (int t = 0; t < n_threads; t++)
        SHOAL_TRY_GOTO(dnnl_check(dnnl_stream_create(&library->threads[t].stream, library->engine,
                                                     dnnl_stream_default_flags),
                                  "create stream"),
                       err_destroy);
    library->has_tiles = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_amx) ==
                             dnnl_cpu_isa_avx512_core_amx &&
                         amx_is_usable();
    *library_out = library;
    return SHOAL_OK;

err_destroy:
    matmul_library_destroy(library);
    return status;
}

static void primitive_fini(const struct matmul_library *library, struct matmul_primitive *p)
{
    for (int i = 0; p->memories != NULL && i < library->n_threads * MATMUL_ARGS; i++)
        if (p->memories[i] != NULL)
            dnnl_memory_destroy(p->memories[i]);
    free(p->memories);
    if (p->primitive != NULL)
        dnnl_primitive_destroy(p->primitive);
}

void matmul_library_destroy(struct matmul_library *library)
{
    if (library == NULL)
        return;
    for (int i = 0; i < library->count; i++)
        primitive_fini(library, &library->primitives[i]);
    free(library->primitives);
    for (int t = 0; library->threads != NULL && t < library->n_threads; t++) {
        if (library->threads[t].stream != NULL)
            dnnl_stream_destroy(library->threads[t].stream);
        pages_free(library->threads[t].scratchpad, library->scratchpad_bytes);
    }
    free(library->threads);
    if (library->engine != NULL)
        dnnl_engine_destroy(library->engine);
    free(library);
}

static const char *effective_isa(void)
{
    switch (dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41:
        return "sse41";
    case dnnl_cpu_isa_avx:
        return "avx";
    case dnnl_cpu_isa_avx2:
        return "avx2";
    case dnnl_cpu_isa_avx2_vnni:
        return "avx2_vnni";
    case dnnl_cpu_isa_avx512_core:
        return "avx512_core";
    case dnnl_cpu_isa_avx512_core_vnni:
        return "avx512_core_vnni";
    case dnnl_cpu_isa_avx512_core_bf16:
        return "avx512_core_bf16";
    case dnnl_cpu_isa_avx512_core_amx:
        return "avx512_core_amx";
    default:
        return "isa unknown";
    }
}

void matmul_library_describe(char *out, size_t n_bytes)
{
    const dnnl_version_t *version = dnnl_version();

    snprintf(out, n_bytes, "oneDNN %d.%d.%d %s", version->major, version->minor, version->patch,
             effective_isa());
}

/* ---- bf16: primitives ---- */

/* The sizes first: they tell most shapes apart. */
static bool is_same_shape(const struct matmul_shape *a, const struct matmul_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->kind == b->kind && a->in == b->in &&
           a->out == b->out && a->accumulate == b->accumulate && a->bias == b->bias &&
           a->lda == b->lda && a->ldb == b->ldb && a->ldc == b->ldc;
}

/* A model has a hundred or so tile shapes; a scan is cheaper than the product by far. */
static const struct matmul_primitive *find(const struct matmul_library *library,
                                           const struct matmul_shape *shape)
{
    for (int i = 0; i < library->count; i++)
        if (is_same_shape(&library->primitives[i].shape, shape))
            return &library->primitives[i];
    return NULL;
}

/* A [rows, cols] view: plain with leading dimension ld, or the transpose of such a matrix. */
static shoal_status matrix_desc(int64_t rows, int64_t cols, int64_t ld, bool transposed,
                                dnnl_data_type_t type, dnnl_memory_desc_t *desc_out)
{
    const dnnl_dims_t dims = {rows, cols};
    const dnnl_dims_t strides = {transposed ? 1 : ld, transposed ? ld : 1};

    return dnnl_check(dnnl_memory_desc_init_by_strides(desc_out, 2, dims, type, strides),
                      "describe matrix");
}

static shoal_status describe_product(const struct matmul_shape *s, dnnl_matmul_desc_t *desc_out)
{
    dnnl_memory_desc_t a;
    dnnl_memory_desc_t b;
    dnnl_memory_desc_t bias;
    dnnl_memory_desc_t c;

    SHOAL_TRY(matrix_desc(s->m, s->k, s->lda, s->kind == MATMUL_TN, dnnl_bf16, &a));
    SHOAL_TRY(matrix_desc(s->k, s->n, s->ldb, s->kind == MATMUL_NT, dnnl_bf16, &b));
    SHOAL_TRY(matrix_desc(1, s->n, s->n, false, dnnl_bf16, &bias));
    SHOAL_TRY(
        matrix_desc(s->m, s->n, s->ldc, false, s->out == DTYPE_F32 ? dnnl_f32 : dnnl_bf16, &c));
    return dnnl_check(dnnl_matmul_desc_init(desc_out, &a, &b, s->bias ? &bias : NULL, &c),
                      "describe matmul");
}

/* The scratchpad is ours, so that executing allocates none; "sum" adds to C. */
static shoal_status create_attr(bool accumulate, dnnl_primitive_attr_t *attr_out)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t sum = NULL;
    shoal_status status = dnnl_check(dnnl_primitive_attr_create(&attr), "create attributes");

    if (status != SHOAL_OK)
        return status;
    SHOAL_TRY_GOTO(
        dnnl_check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user),
                   "set scratchpad mode"),
        err_attr);
    if (accumulate) {
        SHOAL_TRY_GOTO(dnnl_check(dnnl_post_ops_create(&sum), "create post-ops"), err_attr);
        status = dnnl_check(dnnl_post_ops_append_sum(sum, 1.0f), "append sum");
        if (status == SHOAL_OK)
            status = dnnl_check(dnnl_primitive_attr_set_post_ops(attr, sum), "set post-ops");
        dnnl_post_ops_destroy(sum);
        if (status != SHOAL_OK)
            goto err_attr;
    }
    *attr_out = attr;
    return SHOAL_OK;

err_attr:
    dnnl_primitive_attr_destroy(attr);
    return status;
}

static shoal_status create_memories(struct matmul_library *library, struct matmul_primitive *p,
                                    const_dnnl_primitive_desc_t pd)
{
    const dnnl_memory_desc_t *descs[MATMUL_ARGS] = {
        dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0),
        dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0),
        p->shape.bias ? dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1) : NULL,
        dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0),
        dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0)};

    p->memories = calloc((size_t)library->n_threads * MATMUL_ARGS, sizeof *p->memories);
    if (p->memories == NULL)
        return fail(SHOAL_ERR_NOMEM, "matmul: cannot reserve memory objects of %d threads",
                    library->n_threads);
    for (int i = 0; i < library->n_threads * MATMUL_ARGS; i++) {
        const dnnl_memory_desc_t *desc = descs[i % MATMUL_ARGS];
        if (desc != NULL)
            SHOAL_TRY(dnnl_check(
                dnnl_memory_create(&p->memories[i], desc, library->engine, DNNL_MEMORY_NONE),
                "create memory"));
    }
    return SHOAL_OK;
}

static shoal_status grow_scratchpads(struct matmul_library *library, size_t n_bytes)
{
    if (n_bytes <= library->scratchpad_bytes)
        return SHOAL_OK;
    for (int t = 0; t < library->n_threads; t++) {
        pages_free(library->threads[t].scratchpad, library->scratchpad_bytes);
        library->threads[t].scratchpad = NULL;
    }
    library->scratchpad_bytes = n_bytes;
    for (int t = 0; t < library->n_threads; t++)
        SHOAL_TRY(pages_alloc("matmul scratchpad", n_bytes, &library->threads[t].scratchpad));
    return SHOAL_OK;
}

static shoal_status build(struct matmul_library *library, struct matmul_primitive *p)
{
    if (library->has_tiles)
        return grow_scratchpads(library, amx_scratch_bytes());

    dnnl_matmul_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    shoal_status status = describe_product(&p->shape, &desc);

    if (status != SHOAL_OK)
        return status;
    SHOAL_TRY(create_attr(p->shape.accumulate, &attr));
    status = dnnl_check(dnnl_primitive_desc_create(&pd, &desc, attr, library->engine, NULL),
                        "bf16 matmul");
    dnnl_primitive_attr_destroy(attr);
    if (status == SHOAL_ERR_CONFIG)
        fail_hint(status, "train in fp32, or on a CPU with AVX-512");
    if (status != SHOAL_OK)
        return status;

    SHOAL_TRY_GOTO(dnnl_check(dnnl_primitive_create(&p->primitive, pd), "build bf16 matmul"),
                   out_desc);
    SHOAL_TRY_GOTO(create_memories(library, p, pd), out_desc);
    status = grow_scratchpads(library, dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(
                                           pd, dnnl_query_scratchpad_md, 0)));

out_desc:
    dnnl_primitive_desc_destroy(pd);
    return status;
}

shoal_status matmul_prepare(struct matmul_library *library, const struct matmul_shape *shape)
{
    keep_serial(); /* oneDNN plans a primitive for the thread count of the moment */
    if (matmul_is_prepared(library, shape))
        return SHOAL_OK;
    if (library->count == library->capacity) {
        int capacity = library->capacity == 0 ? 32 : 2 * library->capacity;
        struct matmul_primitive *grown =
            realloc(library->primitives, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return fail(SHOAL_ERR_NOMEM, "matmul: cannot reserve %d primitives", capacity);
        library->primitives = grown;
        library->capacity = capacity;
    }
    struct matmul_primitive *p = &library->primitives[library->count];
    *p = (struct matmul_primitive){.shape = *shape};
    shoal_status status = build(library, p);
    if (status != SHOAL_OK) {
        primitive_fini(library, p);
        return status;
    }
    library->count++;
    return SHOAL_OK;
}

bool matmul_is_prepared(const struct matmul_library *library, const struct matmul_shape *shape)
{
    return shape->in == DTYPE_F32 || find(library, shape) != NULL;
}

bool matmul_uses_tiles(const struct matmul_library *library, const struct matmul_shape *shape)
{
    return library->has_tiles && shape->in == DTYPE_BF16;
}

static shoal_status execute(struct matmul_library *library, const struct matmul_primitive *p,
                            int thread, const struct matmul_data *data)
{
    dnnl_memory_t *memories = p->memories + (size_t)thread * MATMUL_ARGS;
    void *handles[MATMUL_ARGS] = {(void *)(uintptr_t)data->a, (void *)(uintptr_t)data->b,
                                  (void *)(uintptr_t)data->bias, data->c,
                                  library->threads[thread].scratchpad};
    dnnl_exec_arg_t args[MATMUL_ARGS];
    int n = 0;

    for (int i = 0; i < MATMUL_ARGS; i++) {
        if (memories[i] == NULL)
            continue;
        SHOAL_TRY(dnnl_check(dnnl_memory_set_data_handle(memories[i], handles[i]), "set handle"));
        args[n++] = (dnnl_exec_arg_t){.arg = argument_ids[i], .memory = memories[i]};
    }
    return dnnl_check(
        dnnl_primitive_execute(p->primitive, library->threads[thread].stream, n, args),
        "bf16 matmul");
}

shoal_status matmul_run(struct matmul_library *library, const struct matmul_shape *s, int thread,
                        const struct matmul_data *data)
{
    keep_serial();
    if (s->in == DTYPE_F32)
        return matmul_f32(s->kind, s->m, s->n, s->k, 1.0f, data->a, s->lda, data->b, s->ldb,
                          s->accumulate ? 1.0f : 0.0f, data->c, s->ldc);

    const struct matmul_primitive *p = find(library, s);
    if (p == NULL)
        return fail(SHOAL_ERR_INTERNAL,
                    "bf16 matmul %lld x %lld x %lld: no primitive was prepared for this shape",
                    (long long)s->m, (long long)s->n, (long long)s->k);
    if (p->primitive != NULL)
        return execute(library, p, thread, data);
    amx_product(s, data, library->threads[thread].scratchpad);
    return SHOAL_OK;
}

shoal_status matmul_f32(enum matmul_kind kind, int64_t m, int64_t n, int64_t k, float alpha,
                        const float *a, int64_t lda, const float *b, int64_t ldb, float beta,
                        float *c, int64_t ldc)
{
    keep_serial();
    return dnnl_check(dnnl_sgemm(kind == MATMUL_TN ? 'T' : 'N', kind == MATMUL_NT ? 'T' : 'N', m, n,
                                 k, alpha, a, lda, b, ldb, beta, c, ldc),
                      "sgemm");
}

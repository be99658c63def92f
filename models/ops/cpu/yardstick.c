#include "models/ops/cpu/cpu.h"
#include "runtime/base/clock.h"
#include "runtime/base/pages.h"

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#include <sched.h>
#include <string.h>

/*
 * oneDNN as anyone would call it: whole products, its own threads.  What `shoal bench` measures
 * ours against; nothing else calls this.  (Beside matmul.c the only file that knows oneDNN.)
 *
 * The conditions are those of a step: numbers that are not zero, activations that were just touched, and
 * weights and weight gradients of another layer each time, which the caches do not hold.
 */

enum { WARM_RUNS = 1, TIMED_RUNS = 5, RUNS = WARM_RUNS + TIMED_RUNS, SWEEP_BYTES = 512 << 20 };

static void set_library_threads(int n)
{
    void (*set_threads)(int) = NULL;
    void *symbol = dlsym(RTLD_DEFAULT, "omp_set_num_threads");

    memcpy(&set_threads, &symbol, sizeof symbol);
    if (set_threads != NULL)
        set_threads(n);
}

/* Our threads are bound to a core each, which threads of the library's own would inherit. */
static void allow_all_cpus(cpu_set_t *before)
{
    cpu_set_t all;

    sched_getaffinity(0, sizeof *before, before);
    memset(&all, 0xff, sizeof all);
    sched_setaffinity(0, sizeof all, &all);
}

static shoal_status check(dnnl_status_t result, const char *what)
{
    return result == dnnl_success
               ? SHOAL_OK
               : fail(SHOAL_ERR_INTERNAL, "oneDNN: %s: status %d", what, (int)result);
}

/*
 * One of the three products as C[m, n] = A B, with A or B a transposed view.  A step in bytes leads to
 * the next layer's copy of an operand; 0: the same every time.
 */
struct product {
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    dnnl_data_type_t out; /* for bf16 inputs */
    char *a, *b, *c;
    size_t b_step, c_step;
};

static shoal_status time_sgemm(const struct product *p, double *best)
{
    for (size_t i = 0; i < RUNS; i++) {
        const float *a = (const float *)(const void *)p->a;
        const float *b = (const float *)(const void *)(p->b + i * p->b_step);
        float *c = (float *)(void *)(p->c + i * p->c_step);
        double start = clock_seconds();
        SHOAL_TRY(check(dnnl_sgemm(p->transpose_a ? 'T' : 'N', p->transpose_b ? 'T' : 'N', p->m,
                                   p->n, p->k, 1.0f, a, p->transpose_a ? p->m : p->k, b,
                                   p->transpose_b ? p->k : p->n, 0.0f, c, p->n),
                        "sgemm"));
        double seconds = clock_seconds() - start;
        if (i >= WARM_RUNS && seconds < *best)
            *best = seconds;
    }
    return SHOAL_OK;
}

static shoal_status describe(int64_t rows, int64_t cols, bool transposed, dnnl_data_type_t type,
                             dnnl_memory_desc_t *desc)
{
    const dnnl_dims_t dims = {rows, cols};
    const dnnl_dims_t strides = {transposed ? 1 : cols, transposed ? rows : 1};

    return check(dnnl_memory_desc_init_by_strides(desc, 2, dims, type, strides), "describe");
}

static shoal_status run_primitive(dnnl_engine_t engine, dnnl_primitive_t primitive,
                                  const dnnl_memory_desc_t descs[3], const struct product *p,
                                  double *best)
{
    void *data[3] = {p->a, p->b, p->c};
    static const int ids[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[3] = {{0}};
    dnnl_stream_t stream = NULL;
    shoal_status status =
        check(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "create stream");

    for (int i = 0; status == SHOAL_OK && i < 3; i++) {
        args[i].arg = ids[i];
        status = check(dnnl_memory_create(&args[i].memory, &descs[i], engine, data[i]), "memory");
    }
    for (size_t i = 0; status == SHOAL_OK && i < RUNS; i++) {
        dnnl_memory_set_data_handle(args[1].memory, p->b + i * p->b_step);
        dnnl_memory_set_data_handle(args[2].memory, p->c + i * p->c_step);
        double start = clock_seconds();
        status = check(dnnl_primitive_execute(primitive, stream, 3, args), "matmul");
        dnnl_stream_wait(stream);
        double seconds = clock_seconds() - start;
        if (i >= WARM_RUNS && seconds < *best)
            *best = seconds;
    }
    for (int i = 0; i < 3; i++)
        if (args[i].memory != NULL)
            dnnl_memory_destroy(args[i].memory);
    if (stream != NULL)
        dnnl_stream_destroy(stream);
    return status;
}

static shoal_status time_bf16(const struct product *p, double *best)
{
    dnnl_memory_desc_t descs[3];
    dnnl_matmul_desc_t desc;
    dnnl_engine_t engine = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(describe(p->m, p->k, p->transpose_a, dnnl_bf16, &descs[0]));
    SHOAL_TRY(describe(p->k, p->n, p->transpose_b, dnnl_bf16, &descs[1]));
    SHOAL_TRY(describe(p->m, p->n, false, p->out, &descs[2]));
    SHOAL_TRY(check(dnnl_matmul_desc_init(&desc, &descs[0], &descs[1], NULL, &descs[2]), "matmul"));
    SHOAL_TRY(check(dnnl_engine_create(&engine, dnnl_cpu, 0), "create engine"));
    status = check(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL), "bf16 matmul");
    if (status == SHOAL_OK)
        status = check(dnnl_primitive_create(&primitive, pd), "build bf16 matmul");
    if (status == SHOAL_OK)
        status = run_primitive(engine, primitive, descs, p, best);
    if (primitive != NULL)
        dnnl_primitive_destroy(primitive);
    if (pd != NULL)
        dnnl_primitive_desc_destroy(pd);
    dnnl_engine_destroy(engine);
    return status;
}

/* Numbers in [-1, 1) of either type. */
static void fill(void *data, size_t n, enum dtype dtype)
{
    uint32_t state = 1;

    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        float x = (float)(int32_t)state * 0x1p-31f;
        if (dtype == DTYPE_BF16)
            ((bf16_t *)data)[i] = bf16_from_f32(x);
        else
            ((float *)data)[i] = x;
    }
}

/* x and y once, w and dw once per run, and what sweeps them out of the caches. */
struct operands {
    char *memory, *x, *y, *w, *dw, *sweep;
    size_t n_bytes, w_bytes, dw_bytes;
};

static shoal_status operands_init(struct linear_shape s, struct operands *o)
{
    size_t x = (size_t)(s.rows * s.in), w = (size_t)(s.in * s.out), y = (size_t)(s.rows * s.out);
    size_t width = dtype_bytes(s.dtype);
    void *memory = NULL;

    o->w_bytes = w * width;
    o->dw_bytes = w * sizeof(float);
    o->n_bytes = (x + y) * width + RUNS * (o->w_bytes + o->dw_bytes) + SWEEP_BYTES;
    SHOAL_TRY(pages_alloc("yardstick", o->n_bytes, &memory));
    o->memory = memory;
    o->dw = o->memory;
    o->w = o->dw + RUNS * o->dw_bytes;
    o->x = o->w + RUNS * o->w_bytes;
    o->y = o->x + x * width;
    o->sweep = o->y + y * width;
    fill(o->x, x, s.dtype);
    fill(o->y, y, s.dtype);
    for (size_t i = 0; i < RUNS; i++) {
        fill(o->w + i * o->w_bytes, w, s.dtype);
        memset(o->dw + i * o->dw_bytes, 0, o->dw_bytes);
    }
    return SHOAL_OK;
}

shoal_status cpu_library_linear_seconds(struct ops *ops, struct linear_shape s,
                                        double seconds_out[3])
{
    struct operands o;
    cpu_set_t before;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(operands_init(s, &o));
    const struct product products[3] = {
        {false, true, s.rows, s.out, s.in, dnnl_bf16, o.x, o.w, o.y, o.w_bytes, 0},
        {false, false, s.rows, s.in, s.out, dnnl_bf16, o.y, o.w, o.x, o.w_bytes, 0},
        {true, false, s.out, s.in, s.rows, dnnl_f32, o.y, o.x, o.dw, 0, o.dw_bytes},
    };
    allow_all_cpus(&before);
    set_library_threads(pool_size(cpu_of(ops)->pool));
    for (int i = 0; i < 3 && status == SHOAL_OK; i++) {
        double best = 1e30;
        memset(o.sweep, i, SWEEP_BYTES);
        status = s.dtype == DTYPE_BF16 ? time_bf16(&products[i], &best)
                                       : time_sgemm(&products[i], &best);
        if (status == SHOAL_OK)
            seconds_out[i] = best;
    }
    set_library_threads(1);
    sched_setaffinity(0, sizeof before, &before);
    pages_free(o.memory, o.n_bytes);
    return status;
}

/* ---- warm-up ---- */

/* As wide as the tiles of product.c, and a long inner dimension: so packing buffers are full size. */
enum { WARM_M = 512, WARM_N = 1536, WARM_K = 2048 };

struct warm_up {
    float *a, *b, *c; /* a and b for all, c per thread */
    _Atomic int left;
};

/* Tiles wait for each other, so that every thread takes exactly one. */
static void warm_tile(void *arg, size_t tile, int thread)
{
    struct warm_up *warm = arg;
    float *c = warm->c + tile * WARM_M * WARM_N;

    (void)thread;
    for (int beta = 0; beta <= 1; beta++) {
        (void)matmul_f32(MATMUL_NT, WARM_M, WARM_N, WARM_K, 1.0f, warm->a, WARM_K, warm->b, WARM_K,
                         (float)beta, c, WARM_N);
        (void)matmul_f32(MATMUL_NN, WARM_M, WARM_N, WARM_K, 1.0f, warm->a, WARM_K, warm->b, WARM_N,
                         (float)beta, c, WARM_N);
        (void)matmul_f32(MATMUL_TN, WARM_M, WARM_N, WARM_K, 1.0f, warm->a, WARM_M, warm->b, WARM_N,
                         (float)beta, c, WARM_N);
    }
    warm->left--;
    while (warm->left > 0)
        sched_yield();
}

shoal_status cpu_warm_up(struct ops *ops, size_t *own_bytes_out)
{
    struct cpu_ops *cpu = cpu_of(ops);
    size_t threads = (size_t)pool_size(cpu->pool);
    size_t a = WARM_M * WARM_K, b = WARM_N * WARM_K, c = WARM_M * WARM_N;
    size_t n_bytes = (a + b + threads * c) * sizeof(float);
    void *memory = NULL;

    SHOAL_TRY(pages_alloc("warm-up", n_bytes, &memory));
    memset(memory, 0, n_bytes);
    struct warm_up warm = {.a = memory, .left = (int)threads};
    warm.b = warm.a + a;
    warm.c = warm.b + b;
    pool_run(cpu->pool, threads, warm_tile, &warm);
    pages_free(memory, n_bytes);
    *own_bytes_out = n_bytes;
    return SHOAL_OK;
}

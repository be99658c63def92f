/* shoal bench gemm: the matrix products of a model, ours against oneDNN alone, in the same run. */
#include "launch/cli/cli_internal.h"
#include "models/model.h"
#include "models/ops/ops.h"
#include "runtime/base/clock.h"
#include "runtime/base/host.h"
#include "runtime/base/pages.h"

#include <string.h>

enum { WARM_RUNS = 1, TIMED_RUNS = 5 };

struct buffers {
    void *memory;
    size_t n_bytes;
    char *x, *w, *y;
    float *dw;
};

static shoal_status buffers_init(struct linear_shape s, struct buffers *b)
{
    size_t x = (size_t)(s.rows * s.in), w = (size_t)(s.in * s.out), y = (size_t)(s.rows * s.out);

    b->n_bytes = (x + 2 * w + y) * sizeof(float);
    SHOAL_TRY(pages_alloc("bench gemm", b->n_bytes, &b->memory));
    memset(b->memory, 0, b->n_bytes);
    b->x = b->memory;
    b->w = b->x + x * sizeof(float);
    b->y = b->w + w * sizeof(float);
    b->dw = (float *)(void *)(b->y + y * sizeof(float));
    return SHOAL_OK;
}

/* One product of a linear layer: 0 forward, 1 input gradient, 2 weight gradient. */
static shoal_status product(struct ops *ops, struct linear_shape s, const struct buffers *b,
                            int pass)
{
    if (pass == 0)
        return op_linear(ops, s, b->x, b->w, NULL, b->y, NULL);
    if (pass == 1)
        return op_linear_backward_input(ops, s, b->y, b->w, b->x, NULL);
    return op_linear_backward_weight(ops, s, b->y, b->x, b->dw, NULL, NULL);
}

static shoal_status our_seconds(struct ops *ops, struct linear_shape s, double seconds_out[3])
{
    struct buffers b;

    SHOAL_TRY(op_linear_prepare(ops, s));
    SHOAL_TRY(buffers_init(s, &b));
    shoal_status status = SHOAL_OK;
    for (int pass = 0; pass < 3 && status == SHOAL_OK; pass++) {
        double best = 1e30;
        for (int i = 0; i < WARM_RUNS + TIMED_RUNS && status == SHOAL_OK; i++) {
            double start = clock_seconds();
            status = product(ops, s, &b, pass);
            double seconds = clock_seconds() - start;
            best = i >= WARM_RUNS && seconds < best ? seconds : best;
        }
        seconds_out[pass] = best;
    }
    pages_free(b.memory, b.n_bytes);
    return status;
}

static shoal_status measure(struct ops *ops, const char *name, struct linear_shape s,
                            double sums[2])
{
    static const char *const passes[] = {"forward", "dx", "dw"};
    double ours[3], theirs[3];
    double flops = 2.0 * (double)s.rows * (double)s.in * (double)s.out;

    SHOAL_TRY(our_seconds(ops, s, ours));
    SHOAL_TRY(ops_library_linear_seconds(ops, s, theirs));
    for (int pass = 0; pass < 3; pass++) {
        printf("%-8s %5lld x %5lld -> %6lld  %-8s %8.2f ms %7.0f GFLOP/s   oneDNN %8.2f ms %7.0f "
               "GFLOP/s   %4.0f %%\n",
               name, (long long)s.rows, (long long)s.in, (long long)s.out, passes[pass],
               1e3 * ours[pass], 1e-9 * flops / ours[pass], 1e3 * theirs[pass],
               1e-9 * flops / theirs[pass], 100 * theirs[pass] / ours[pass]);
        sums[0] += ours[pass];
        sums[1] += theirs[pass];
    }
    return SHOAL_OK;
}

static shoal_status measure_model(struct ops *ops, const char *preset, int64_t rows,
                                  enum dtype dtype)
{
    struct model_config c;
    double sums[2] = {0};

    SHOAL_TRY(model_config_preset(preset, &c));
    const struct {
        const char *name;
        int64_t in, out;
    } products[] = {
        {"qkv", c.hidden, (int64_t)(c.heads + 2 * c.kv_heads) * c.head_size},
        {"o", (int64_t)c.heads * c.head_size, c.hidden},
        {"up", c.hidden, (c.mlp == MLP_SWIGLU ? 2 : 1) * (int64_t)c.ffn},
        {"down", c.ffn, c.hidden},
        {"head", c.hidden, c.vocab},
    };

    printf("%s  %s  %d thread(s)  %s\n", preset, ops_describe(ops), ops_threads(ops),
           dtype_name(dtype));
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        struct linear_shape s = {
            .rows = rows, .in = products[i].in, .out = products[i].out, .dtype = dtype};
        SHOAL_TRY(measure(ops, products[i].name, s, sums));
    }
    printf("one of each: ours %.1f ms, oneDNN alone %.1f ms, %.0f %%\n", 1e3 * sums[0],
           1e3 * sums[1], 100 * sums[1] / sums[0]);
    return SHOAL_OK;
}

static shoal_status run_bench_gemm(const struct command_line *line)
{
    int64_t rows = 1024, threads = host_cpus();
    const char *preset = option_text(line, "preset");
    struct pool *pool = NULL;
    struct ops *ops = NULL;

    SHOAL_TRY(option_int(line, "rows", 1, 1 << 20, &rows));
    SHOAL_TRY(option_int(line, "threads", 1, 1024, &threads));
    SHOAL_TRY(pool_create((int)threads, 0, &pool));
    shoal_status status = ops_create_cpu(pool, &ops);
    if (status == SHOAL_OK)
        status = measure_model(ops, preset == NULL ? "gpt2" : preset, rows,
                               option_is_set(line, "bf16") ? DTYPE_BF16 : DTYPE_F32);
    ops_destroy(ops);
    pool_destroy(pool);
    return status;
}

static const struct option options[] = {
    {"preset", 0, "NAME", "model whose shapes are taken (gpt2)"},
    {"rows", 0, "N", "tokens per microbatch (1024)"},
    {"threads", 0, "N", "threads (all cores)"},
    {"bf16", 0, NULL, "bf16 instead of fp32"},
    {.name = NULL},
};

const struct command command_bench_gemm = {
    .path = "bench gemm",
    .purpose = "The matrix products of a model against oneDNN alone.",
    .examples = {"shoal bench gemm", "shoal bench gemm --preset llama-1b --rows 512 --bf16"},
    .options = options,
    .max_args = 0,
    .run = run_bench_gemm,
};

/*
 * Time of each op of the cuda back end on the shapes of two models, against its floor: the FLOPs at the
 * rate of a square product of the same run, or the bytes that must move at the rate of copies on the
 * device.  The best of 10 runs each.  What products can make beside themselves is timed both ways.
 *
 *     probe_ops
 */
#include "models/ops/cuda/ops_cuda.h"
#include "tests/gpu/probe.h"

#include <stdio.h>
#include <string.h>

enum { RUNS = 10, SQUARE = 8192, COPY_BYTES = 1 << 30, ARRAYS = 4 };

struct shapes {
    const char *name;
    int64_t B, T, C, F, V;
    int H, K, D;
    bool llama;
};

static const struct shapes models[] = {
    {"GPT-2 124M, 16 x 1024 tokens", 16, 1024, 768, 3072, 50257, 12, 12, 64, false},
    {"Llama 8B, 2 x 4096 tokens", 2, 4096, 4096, 14336, 128256, 32, 8, 128, true},
};

/* Device arrays, large enough for every op of the shapes. */
struct bench {
    struct device *device;
    struct ops *ops;          /* timed now: one of these */
    struct ops *apart, *full; /* with epilogues: bias alone, all */
    struct shapes m;
    char *a, *b, *c, *d;
    int32_t *ids; /* zeros: every token the same one, the worst case of the embedding's backward */
    void *scratch;
    double flop_rate, byte_rate;
};

static int64_t rows_of(const struct bench *x)
{
    return x->m.B * x->m.T;
}

static struct attention_shape attention_of(const struct bench *x)
{
    return (struct attention_shape){x->m.B, x->m.T, x->m.H, x->m.K, x->m.D, DTYPE_BF16};
}

static int64_t qkv_of(const struct bench *x)
{
    return (int64_t)(x->m.H + 2 * x->m.K) * x->m.D;
}

static struct linear_shape up_of(const struct bench *x)
{
    return (struct linear_shape){rows_of(x), x->m.C, x->m.llama ? 2 * x->m.F : x->m.F, DTYPE_BF16};
}

static struct linear_shape down_of(const struct bench *x)
{
    return (struct linear_shape){rows_of(x), x->m.F, x->m.C, DTYPE_BF16};
}

static struct head_shape head_of(const struct bench *x)
{
    return (struct head_shape){rows_of(x), x->m.C, x->m.V, DTYPE_BF16};
}

/* ---- the ops, all with one signature ---- */

static shoal_status run_up(void *arg)
{
    struct bench *x = arg;
    return op_linear(x->ops, up_of(x), x->a, x->b, NULL, x->c, x->scratch);
}

static shoal_status run_up_input(void *arg)
{
    struct bench *x = arg;
    return op_linear_backward_input(x->ops, up_of(x), x->c, x->b, x->a, x->scratch);
}

static shoal_status run_up_weight(void *arg)
{
    struct bench *x = arg;
    return op_linear_backward_weight(x->ops, up_of(x), x->c, x->a, (float *)x->d, NULL, x->scratch);
}

/* The second half of c, whose first half what GELU takes fills. */
static char *behind_up(const struct bench *x)
{
    return x->c + (size_t)(rows_of(x) * x->m.F) * dtype_bytes(DTYPE_BF16);
}

static shoal_status run_up_gelu(void *arg)
{
    struct bench *x = arg;
    return op_linear_gelu(x->ops, up_of(x), x->a, x->b, x->d, x->c, behind_up(x), x->scratch);
}

static shoal_status run_down_gelu(void *arg)
{
    struct bench *x = arg;
    return op_linear_backward_input_gelu(x->ops, down_of(x), x->a, x->b, x->c, behind_up(x),
                                         x->scratch);
}

static shoal_status run_up_gradients(void *arg)
{
    struct bench *x = arg;
    return op_linear_backward_weight(x->ops, up_of(x), x->c, x->a, (float *)x->d, (float *)x->b,
                                     x->scratch);
}

static shoal_status run_down_gradients(void *arg)
{
    struct bench *x = arg;
    return op_linear_backward_weight(x->ops, down_of(x), x->a, x->c, (float *)x->d, (float *)x->b,
                                     x->scratch);
}

static shoal_status run_head(void *arg)
{
    struct bench *x = arg;
    return op_head_loss_backward(x->ops, head_of(x), x->a, x->b, x->ids, 1e-4f, (double *)x->c,
                                 x->c + (1 << 20), (float *)x->d, x->scratch);
}

static shoal_status run_attention(void *arg)
{
    struct bench *x = arg;
    return op_attention(x->ops, attention_of(x), x->a, x->b, (float *)x->c, x->scratch);
}

static shoal_status run_attention_backward(void *arg)
{
    struct bench *x = arg;
    return op_attention_backward(x->ops, attention_of(x), x->b, x->a, x->b, (float *)x->c, x->d,
                                 x->scratch);
}

static enum norm_kind norm_of(const struct bench *x)
{
    return x->m.llama ? NORM_RMS : NORM_LAYER;
}

static shoal_status run_norm(void *arg)
{
    struct bench *x = arg;
    return op_norm(x->ops, norm_of(x), rows_of(x), x->m.C, 1e-5f, DTYPE_BF16, (float *)x->a, x->b,
                   x->m.llama ? NULL : x->b, x->c, (float *)x->d);
}

static shoal_status run_norm_backward(void *arg)
{
    struct bench *x = arg;
    float *db = x->m.llama ? NULL : (float *)x->b + (1 << 16);
    return op_norm_backward(x->ops, norm_of(x), rows_of(x), x->m.C, DTYPE_BF16, x->b + (1 << 20),
                            (float *)x->a, x->b, (float *)x->d, (float *)x->c, NULL,
                            (float *)x->b + (1 << 17), db, x->scratch);
}

static shoal_status run_activation(void *arg)
{
    struct bench *x = arg;
    if (x->m.llama)
        return op_swiglu(x->ops, rows_of(x), x->m.F, DTYPE_BF16, x->c, x->a);
    return op_gelu(x->ops, rows_of(x) * x->m.F, DTYPE_BF16, x->c, x->a);
}

static shoal_status run_activation_backward(void *arg)
{
    struct bench *x = arg;
    if (x->m.llama)
        return op_swiglu_backward(x->ops, rows_of(x), x->m.F, DTYPE_BF16, x->c, x->a, x->d);
    return op_gelu_backward(x->ops, rows_of(x) * x->m.F, DTYPE_BF16, x->c, x->a, x->d);
}

static shoal_status run_rope(void *arg)
{
    struct bench *x = arg;
    return op_rope(x->ops, attention_of(x), 500000.0, 0, false, x->a);
}

static shoal_status run_embedding(void *arg)
{
    struct bench *x = arg;
    return op_embedding(x->ops, x->m.B, x->m.T, x->m.C, DTYPE_BF16, x->ids, x->b,
                        x->m.llama ? NULL : x->b, 0, (float *)x->c);
}

static shoal_status run_embedding_backward(void *arg)
{
    struct bench *x = arg;
    return op_embedding_backward(x->ops, x->m.B, x->m.T, x->m.C, x->m.V, x->m.T, x->ids,
                                 (float *)x->c, (float *)x->d, x->m.llama ? NULL : (float *)x->b);
}

static shoal_status run_cast(void *arg)
{
    struct bench *x = arg;
    return op_cast(x->ops, rows_of(x) * x->m.C, DTYPE_BF16, (float *)x->a, x->b);
}

static shoal_status run_accumulate(void *arg)
{
    struct bench *x = arg;
    return op_accumulate(x->ops, rows_of(x) * x->m.C, (float *)x->a, (float *)x->c);
}

/* ---- sizes, floors, table ---- */

static int64_t largest(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static shoal_status prepare(struct bench *x)
{
    const int64_t rows = rows_of(x), wide = largest(up_of(x).out, largest(qkv_of(x), 2 * x->m.C));
    const int64_t weights = largest(x->m.V * x->m.C, up_of(x).out * x->m.C);
    const size_t bytes = (size_t)largest(rows * wide, weights) * sizeof(float);
    size_t scratch = 64;
    void *p[ARRAYS] = {NULL}, *ids = NULL;

    SHOAL_TRY(op_linear_prepare(x->ops, up_of(x)));
    SHOAL_TRY(op_head_prepare(x->ops, head_of(x)));
    SHOAL_TRY(op_rope_prepare(x->ops, x->m.T, x->m.D, 500000.0));
    const size_t needs[] = {op_linear_scratch_bytes(x->ops, up_of(x)),
                            op_head_scratch_bytes(x->ops, head_of(x)),
                            op_attention_scratch_bytes(x->ops, attention_of(x)),
                            op_norm_backward_scratch_bytes(x->ops, rows, x->m.C)};
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++)
        scratch = needs[i] > scratch ? needs[i] : scratch;
    for (int i = 0; i < ARRAYS; i++)
        SHOAL_TRY(probe_random(x->device, DTYPE_BF16, (int64_t)bytes / 2, &p[i]));
    SHOAL_TRY(x->device->ops->alloc(x->device, "ids", (size_t)rows * sizeof *x->ids, &ids));
    SHOAL_TRY(x->device->ops->zero(x->device, ids, (size_t)rows * sizeof *x->ids));
    SHOAL_TRY(x->device->ops->alloc(x->device, "scratch", scratch, &x->scratch));
    x->a = p[0];
    x->b = p[1];
    x->c = p[2];
    x->d = p[3];
    x->ids = ids;
    return SHOAL_OK;
}

static void time_one(struct bench *x, const char *name, shoal_status (*run)(void *arg))
{
    double flops = 0.0, bytes = 0.0, seconds = 0.0;

    ops_profile_reset(x->ops);
    shoal_status status = run(x);
    for (int class = 0; class < OP_CLASS_COUNT; class ++) {
        const struct op_profile *p = ops_profile(x->ops, (enum op_class) class);
        flops += (double)p->flops;
        bytes += (double)p->bytes;
    }
    if (status == SHOAL_OK)
        status = probe_time(x->device, RUNS, run, x, &seconds);
    if (status != SHOAL_OK) {
        printf("  %-26s %s\n", name, shoal_last_error());
        return;
    }
    const double by_flops = flops / x->flop_rate, by_bytes = bytes / x->byte_rate;
    printf("  %-26s %9.3f ms   floor %9.3f ms (%s) %4.0f %%   %7.1f TFLOP/s %8.1f GB/s\n", name,
           1e3 * seconds, 1e3 * (by_flops > by_bytes ? by_flops : by_bytes),
           by_flops > by_bytes ? "flops" : "bytes",
           100.0 * (by_flops > by_bytes ? by_flops : by_bytes) / seconds, 1e-12 * flops / seconds,
           1e-9 * bytes / seconds);
    fflush(stdout);
}

static void print_joined(void *arg, enum op_class op_class, const char *line)
{
    (void)arg;
    (void)op_class;
    if (strstr(line, " gelu") != NULL || strstr(line, " gradient") != NULL)
        printf("  %s\n", line);
}

static shoal_status prepare_epilogues(const struct bench *x)
{
    SHOAL_TRY(op_linear_prepare(x->apart, down_of(x)));
    SHOAL_TRY(op_linear_prepare(x->full, up_of(x)));
    SHOAL_TRY(op_linear_prepare(x->full, down_of(x)));
    return op_linear_gelu_prepare(x->full, up_of(x), true, down_of(x));
}

/* Each as ops one after the other, and with all that cuBLASLt can have inside the product. */
static void time_epilogues(struct bench *x)
{
    static const struct {
        const char *name;
        shoal_status (*run)(void *arg);
    } rows[] = {{"up, gelu", run_up_gelu},
                {"down dx, gelu'", run_down_gelu},
                {"up dw, dbias", run_up_gradients},
                {"down dw, dbias", run_down_gradients}};
    char name[64];

    if (prepare_epilogues(x) != SHOAL_OK) {
        printf("  epilogues: %s\n", shoal_last_error());
        return;
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        snprintf(name, sizeof name, "%s: apart", rows[i].name);
        time_one(x, name, rows[i].run);
        x->ops = x->full;
        snprintf(name, sizeof name, "%s: joined", rows[i].name);
        time_one(x, name, rows[i].run);
        x->ops = x->apart;
    }
    ops_describe_choices(x->full, print_joined, NULL);
}

static void free_arrays(struct bench *x)
{
    void *all[] = {x->a, x->b, x->c, x->d, x->ids, x->scratch};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        x->device->ops->free(x->device, all[i], 0);
}

static shoal_status time_model(struct bench *x)
{
    printf("%s, bf16\n", x->m.name);
    SHOAL_TRY(prepare(x));
    if (!x->m.llama)
        time_epilogues(x);
    time_one(x, "linear up", run_up);
    time_one(x, "linear up, dx", run_up_input);
    time_one(x, "linear up, dw", run_up_weight);
    time_one(x, "head and loss, all passes", run_head);
    time_one(x, "attention", run_attention);
    time_one(x, "attention backward", run_attention_backward);
    time_one(x, "norm", run_norm);
    time_one(x, "norm backward", run_norm_backward);
    time_one(x, x->m.llama ? "swiglu" : "gelu", run_activation);
    time_one(x, x->m.llama ? "swiglu backward" : "gelu backward", run_activation_backward);
    if (x->m.llama)
        time_one(x, "rope", run_rope);
    time_one(x, "embedding", run_embedding);
    time_one(x, "embedding backward, 1 id", run_embedding_backward);
    time_one(x, "cast fp32 to bf16", run_cast);
    time_one(x, "accumulate", run_accumulate);
    free_arrays(x);
    return SHOAL_OK;
}

struct copy {
    struct device *device;
    void *dst, *src;
};

static shoal_status copy(void *arg)
{
    const struct copy *c = arg;
    return c->device->ops->copy_async(c->device, QUEUE_COMPUTE, c->dst, c->src, COPY_BYTES);
}

static shoal_status measure_rates(struct bench *x)
{
    const struct linear_shape square = {SQUARE, SQUARE, SQUARE, DTYPE_BF16};
    struct copy c = {.device = x->device};
    double products[3], seconds = 0.0;

    SHOAL_TRY(op_linear_prepare(x->ops, square));
    SHOAL_TRY(ops_library_linear_seconds(x->ops, square, products));
    x->flop_rate = 2.0 * SQUARE * (double)SQUARE * SQUARE / products[0];
    SHOAL_TRY(x->device->ops->alloc(x->device, "probe", COPY_BYTES, &c.dst));
    SHOAL_TRY(x->device->ops->alloc(x->device, "probe", COPY_BYTES, &c.src));
    SHOAL_TRY(probe_time(x->device, RUNS, copy, &c, &seconds));
    x->byte_rate = 2.0 * COPY_BYTES / seconds;
    x->device->ops->free(x->device, c.dst, 0);
    x->device->ops->free(x->device, c.src, 0);
    printf("%s\nbf16 products %.1f TFLOP/s, copies %.1f GB/s\n", ops_describe(x->ops),
           1e-12 * x->flop_rate, 1e-9 * x->byte_rate);
    return SHOAL_OK;
}

int main(void)
{
    struct bench x = {.device = probe_open()};
    const struct ops_cuda_options full = {.epilogue = OPS_CUDA_EPILOGUE_FULL};
    shoal_status status = ops_create_cuda(x.device, &x.apart);

    x.ops = x.apart;
    if (status == SHOAL_OK)
        status = ops_create_cuda_with(x.device, &full, &x.full);
    if (status == SHOAL_OK)
        status = measure_rates(&x);
    for (size_t i = 0; status == SHOAL_OK && i < sizeof models / sizeof *models; i++) {
        x.m = models[i];
        status = time_model(&x);
    }
    ops_destroy(x.full);
    ops_destroy(x.apart);
    device_close(x.device);
    return probe_end(status);
}

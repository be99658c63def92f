/* What `shoal bench` measures products against, and what is run before the first step. */
#include "models/ops/cuda/cuda_internal.h"

#include "runtime/base/log.h"

#include <stdlib.h>

enum { SWEEP_BYTES = 256 << 20 };

enum { SEED_BYTES = 1 << 20 };

/* SEED_BYTES of numbers in [-1, 1): the power that a tensor core draws depends on its data. */
static void seed_fill(void *data, enum dtype dtype)
{
    uint32_t state = 1;

    for (size_t i = 0; i < SEED_BYTES / dtype_bytes(dtype); i++) {
        state = state * 1664525u + 1013904223u;
        const float x = (float)(int32_t)state * 0x1p-31f;
        if (dtype == DTYPE_BF16)
            ((bf16_t *)data)[i] = bf16_from_f32(x);
        else
            ((float *)data)[i] = x;
    }
}

/* The seed over and over, each copy as long as all before it. */
static shoal_status fill(struct cuda_ops *cuda, void *p, size_t n_bytes, const void *seed)
{
    size_t done = n_bytes < SEED_BYTES ? n_bytes : SEED_BYTES;

    SHOAL_TRY(cuda->device->ops->copy(cuda->device, p, seed, done));
    while (done < n_bytes) {
        const size_t more = n_bytes - done < done ? n_bytes - done : done;
        SHOAL_TRY(cuda->device->ops->copy(cuda->device, (char *)p + done, p, more));
        done += more;
    }
    return SHOAL_OK;
}

struct operands {
    char *memory;
    size_t n_bytes;
    char *x, *w, *y, *dw, *sweep;
};

static shoal_status operands_init(struct cuda_ops *cuda, struct linear_shape s, struct operands *o)
{
    const size_t width = dtype_bytes(s.dtype);
    const size_t x = cuda_aligned((size_t)(s.rows * s.in) * width);
    const size_t w = cuda_aligned((size_t)(s.out * s.in) * width);
    const size_t y = cuda_aligned((size_t)(s.rows * s.out) * width);
    const size_t dw = cuda_aligned((size_t)(s.out * s.in) * sizeof(float));
    void *memory = NULL;
    void *seed = malloc(SEED_BYTES);

    if (seed == NULL)
        return fail(SHOAL_ERR_NOMEM, "yardstick: cannot reserve %d bytes", (int)SEED_BYTES);
    seed_fill(seed, s.dtype);
    o->n_bytes = x + w + y + dw + SWEEP_BYTES;
    shoal_status status = cuda->device->ops->alloc(cuda->device, "yardstick", o->n_bytes, &memory);
    if (status == SHOAL_OK) {
        o->x = o->memory = memory;
        o->w = o->x + x;
        o->y = o->w + w;
        o->dw = o->y + y;
        o->sweep = o->dw + dw;
        status = fill(cuda, o->memory, x + w + y, seed);
        if (status != SHOAL_OK)
            cuda->device->ops->free(cuda->device, memory, o->n_bytes);
    }
    free(seed);
    return status;
}

shoal_status ops_cuda_library_linear_seconds(struct ops *ops, struct linear_shape s,
                                             double seconds_out[3])
{
    struct cuda_ops *cuda = cuda_of(ops);
    struct operands o = {0};
    double seconds[3];
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(operands_init(cuda, s, &o));
    const struct cublas_shape shapes[3] = {ops_cuda_forward_shape(s, false),
                                           ops_cuda_input_shape(s), ops_cuda_weight_shape(s)};
    const struct cublas_data data[3] = {{.a = o.x, .b = o.w, .d = o.y},
                                        {.a = o.y, .b = o.w, .d = o.x},
                                        {.a = o.y, .b = o.x, .d = o.dw}};
    const struct cublas_sweep sweep = {o.sweep, SWEEP_BYTES};
    for (int i = 0; i < 3 && status == SHOAL_OK; i++) {
        struct cublas_timing timing;
        status = cublas_time(cuda->cublas, &shapes[i], &data[i], &sweep, &timing);
        if (status == SHOAL_OK)
            seconds[i] = timing.best_seconds;
    }
    cudaStreamSynchronize(cuda->stream);
    cuda->device->ops->free(cuda->device, o.memory, o.n_bytes);
    for (int i = 0; i < 3 && status == SHOAL_OK; i++)
        seconds_out[i] = seconds[i];
    return status;
}

static shoal_status run_all(struct cuda_ops *cuda, void *zeros, size_t n_bytes)
{
    SHOAL_TRY(cuda->device->ops->zero(cuda->device, zeros, n_bytes));
    SHOAL_TRY(cublas_run_all(cuda->cublas, zeros));
    return cuda_attention_run_all(cuda, zeros);
}

/*
 * Run every product and attention once on zeros, all operands in one place, so that their kernels are
 * loaded, and what the library refuses is replaced, before the first step.  Device memory that is too
 * full for that is no error: the first step loads them, and a refusal ends it.
 */
static shoal_status run_once(struct cuda_ops *cuda)
{
    const size_t products = cublas_largest_operand(cuda->cublas);
    const size_t attention = cuda_attention_run_bytes(cuda);
    const size_t n_bytes = products > attention ? products : attention;
    size_t left = 0, total = 0;
    void *zeros = NULL;

    if (n_bytes == 0)
        return SHOAL_OK;
    SHOAL_TRY(cuda->device->ops->memory(cuda->device, &left, &total));
    /* Other ranks on this device may ask for the same memory now. */
    if (n_bytes >= left / 2 ||
        cuda->device->ops->alloc(cuda->device, "warm-up", n_bytes, &zeros) != SHOAL_OK) {
        log_rank_line(
            "warn",
            "the device has no %.1f MiB to run products and attention before the first step, "
            "which then loads their kernels: ranks that wait for each other may stand still",
            (double)n_bytes / (1 << 20));
        return SHOAL_OK;
    }
    shoal_status status = run_all(cuda, zeros, n_bytes);
    cuda->device->ops->free(cuda->device, zeros, n_bytes);
    return status;
}

shoal_status ops_cuda_warm_up(struct ops *ops, size_t *own_bytes_out)
{
    SHOAL_TRY(run_once(cuda_of(ops)));
    *own_bytes_out = 0; /* of host memory */
    return SHOAL_OK;
}

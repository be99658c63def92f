#include "models/ops/cuda/cuda_internal.h"

#include "runtime/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ops_cuda_destroy(struct ops *ops)
{
    struct cuda_ops *cuda = cuda_of(ops);

    cudaStreamSynchronize(cuda->stream);
    cuda_rope_table_fini(cuda);
    cuda_attention_destroy(cuda->attention);
    cublas_destroy(cuda->cublas);
    free(cuda);
}

/* Host threads that compute. */
static int ops_cuda_threads(const struct ops *ops)
{
    (void)ops;
    return 1;
}

static const char *ops_cuda_describe(const struct ops *ops)
{
    return cuda_of_const(ops)->description;
}

static void describe_choices(const struct ops *ops, ops_choice_fn *choice, void *arg)
{
    const struct cuda_ops *cuda = cuda_of_const(ops);
    char text[512];

    for (int i = 0; i < cublas_plan_count(cuda->cublas); i++) {
        cublas_plan_describe(cuda->cublas, i, text, sizeof text);
        choice(arg, OP_CLASS_LINEAR, text);
    }
    for (int i = 0; i < cuda_attention_plan_count(cuda->attention); i++) {
        cuda_attention_plan_describe(cuda->attention, i, text, sizeof text);
        choice(arg, OP_CLASS_ATTENTION, text);
    }
}

static const struct ops_vtable cuda_table = {
    .device_memory = true,
    .destroy = ops_cuda_destroy,
    .threads = ops_cuda_threads,
    .describe = ops_cuda_describe,
    .describe_choices = describe_choices,
    .warm_up = ops_cuda_warm_up,
    .library_linear_seconds = ops_cuda_library_linear_seconds,
    .linear_prepare = ops_cuda_linear_prepare,
    .linear_scratch_bytes = ops_cuda_linear_scratch_bytes,
    .linear = ops_cuda_linear,
    .linear_add = ops_cuda_linear_add,
    .linear_backward_input = ops_cuda_linear_backward_input,
    .has_linear_gelu = ops_cuda_has_epilogues,
    .linear_gelu_prepare = ops_cuda_linear_gelu_prepare,
    .linear_gelu = ops_cuda_linear_gelu,
    .linear_backward_input_gelu = ops_cuda_linear_backward_input_gelu,
    .linear_backward_weight = ops_cuda_linear_backward_weight,
    .norm = ops_cuda_norm,
    .norm_backward_scratch_bytes = ops_cuda_norm_backward_scratch_bytes,
    .norm_backward = ops_cuda_norm_backward,
    .rope_prepare = ops_cuda_rope_prepare,
    .rope = ops_cuda_rope,
    .attention_prepare = ops_cuda_attention_prepare,
    .attention_scratch_bytes = ops_cuda_attention_scratch_bytes,
    .attention = ops_cuda_attention,
    .attention_backward = ops_cuda_attention_backward,
    .attention_decode = ops_cuda_attention_decode,
    .gelu = ops_cuda_gelu,
    .gelu_backward = ops_cuda_gelu_backward,
    .gelu_again = ops_cuda_gelu_again,
    .swiglu = ops_cuda_swiglu,
    .swiglu_backward = ops_cuda_swiglu_backward,
    .embedding = ops_cuda_embedding,
    .embedding_backward = ops_cuda_embedding_backward,
    .head_prepare = ops_cuda_head_prepare,
    .head_scratch_bytes = ops_cuda_head_scratch_bytes,
    .head_loss = ops_cuda_head_loss,
    .head_loss_backward = ops_cuda_head_loss_backward,
    .cast = ops_cuda_cast,
    .accumulate = ops_cuda_accumulate,
    .zero = ops_cuda_zero,
};

static void describe(struct cuda_ops *cuda)
{
    char products[48], attention[320];

    cublas_describe(products, sizeof products);
    cuda_attention_describe(cuda->attention, attention, sizeof attention);
    snprintf(cuda->description, sizeof cuda->description, "%s%s%s, %s", products,
             cuda->options.tf32 ? " (tf32)" : "",
             cuda->options.epilogue == OPS_CUDA_EPILOGUE_FULL ? " (full epilogues)" : "",
             attention);
}

/* A driver that cannot is no error: its kernels load when they are first used. */
static shoal_status load_kernels(const struct device *device)
{
    const shoal_status status = device_cuda_load_modules(device);

    if (status == SHOAL_OK || status == SHOAL_ERR_NOMEM)
        return status;
    log_rank_line(
        "warn",
        "kernels are not loaded before the first step, where ranks that wait for each other "
        "may stand still (%s): CUDA_MODULE_LOADING=EAGER loads them",
        shoal_last_error());
    return SHOAL_OK;
}

shoal_status ops_create_cuda_with(struct device *device, const struct ops_cuda_options *options,
                                  struct ops **ops_out)
{
    struct cuda_ops *cuda = NULL;
    shoal_status status = SHOAL_OK;

    if (strcmp(device->ops->name, "cuda") != 0)
        return fail(SHOAL_ERR_INTERNAL, "ops: expected a cuda device, found %s", device->ops->name);
    SHOAL_TRY(device_cuda_use(device));
    SHOAL_TRY(load_kernels(device));
    cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL)
        return fail(SHOAL_ERR_NOMEM, "ops: cannot reserve %zu bytes", sizeof *cuda);
    cuda->base.table = &cuda_table;
    cuda->device = device;
    cuda->stream = device_cuda_stream(device, QUEUE_COMPUTE);
    cuda->options = *options;
    if (cuda->options.attention_limit_bytes == 0)
        cuda->options.attention_limit_bytes = (size_t)3 << 29;
    if (cuda->options.head_chunk_bytes == 0)
        cuda->options.head_chunk_bytes = (size_t)1 << 29;
    SHOAL_TRY_GOTO(cublas_create(device, options->tf32, &cuda->cublas), err_free);
    SHOAL_TRY_GOTO(cuda_attention_create(cuda, &cuda->attention), err_destroy_cublas);
    describe(cuda);
    *ops_out = &cuda->base;
    return SHOAL_OK;

err_destroy_cublas:
    cublas_destroy(cuda->cublas);
err_free:
    free(cuda);
    return status;
}

shoal_status ops_create_cuda(struct device *device, struct ops **ops_out)
{
    return ops_create_cuda_with(device, &(struct ops_cuda_options){0}, ops_out);
}

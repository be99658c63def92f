/* What the back end does when a library fails: only where the libraries are imitated. */
#include "tests/gpu/cuda_rig.h"
#include "tests/gpu/emulate/emulate.h"
#include "tests/gpu/imitate/imitate.h"

#include "models/ops/cuda/cublas.h"
#include "models/ops/cuda/cudnn_attention.h"
#include "models/ops/cuda/kernels.h"
#include "runtime/device/cuda.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const struct attention_shape shape = {
    .B = 1, .T = 8, .H = 2, .K = 1, .D = 64, .dtype = DTYPE_BF16};

static void keep_line(void *arg, enum op_class op_class, const char *line)
{
    (void)op_class;
    strncat(arg, line, 1000);
}

Test(cuda_faults, cudnn_is_missing)
{
    struct device *device = NULL;
    struct ops *ops = NULL;
    char plans[2048] = "";

    imitate.no_cudnn = true;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    cr_assert_not_null(strstr(ops_describe(rig.ops), "attention by own kernels (cuDNN: create a"),
                       "%s", ops_describe(rig.ops));
    (void)op_attention_scratch_bytes(rig.ops, shape);
    ops_describe_choices(rig.ops, keep_line, plans);
    cr_assert_not_null(strstr(plans, "forward own kernels; backward own kernels"), "%s", plans);
    cuda_rig_destroy(&rig);

    EXPECT_OK(device_open("cuda", 0, &device));
    const struct ops_cuda_options demanded = {.attention = OPS_CUDA_ATTENTION_CUDNN};
    cr_assert_eq(ops_create_cuda_with(device, &demanded, &ops), SHOAL_ERR_UNAVAILABLE);
    cr_assert_null(ops);
    device_close(device);
    cr_assert_eq(imitate.live_descriptors, 0);
}

Test(cuda_faults, cudnn_refuses_a_graph)
{
    char plans[2048] = "";

    imitate.refuse_graphs = true;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    (void)op_attention_scratch_bytes(rig.ops, shape);
    ops_describe_choices(rig.ops, keep_line, plans);
    cr_assert_not_null(strstr(plans, "own kernels; backward own kernels"), "%s", plans);
    cr_assert_not_null(strstr(plans, "no engine takes the graph"), "%s", plans);
    cuda_rig_destroy(&rig);
    cr_assert_eq(imitate.live_descriptors, 0);
}

/* NaN in the backward of older versions where the last tile is not full: ours is used instead. */
Test(cuda_faults, an_older_cudnn_gets_backwards_over_whole_tiles_only)
{
    struct attention_shape whole = shape;
    char plans[2048] = "";

    whole.T = 128;
    imitate.cudnn_version = 91500;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    (void)op_attention_scratch_bytes(rig.ops, shape);
    ops_describe_choices(rig.ops, keep_line, plans);
    cr_assert_not_null(strstr(plans, "backward own kernels in 1 calls; cuDNN up to 91500 takes"),
                       "%s", plans);
    cr_assert_not_null(strstr(plans, "forward cuDNN engine"), "%s", plans);
    (void)op_attention_scratch_bytes(rig.ops, whole);
    ops_describe_choices(rig.ops, keep_line, plans);
    cr_assert_not_null(strstr(plans, "backward cuDNN engine"), "%s", plans);
    cuda_rig_destroy(&rig);

    imitate.cudnn_version = 91501;
    plans[0] = '\0';
    rig = cuda_rig_create(&(struct ops_cuda_options){0});
    (void)op_attention_scratch_bytes(rig.ops, shape);
    ops_describe_choices(rig.ops, keep_line, plans);
    cr_assert_not_null(strstr(plans, "backward cuDNN engine"), "%s", plans);
    cuda_rig_destroy(&rig);
}

/* Every attribute of both graphs in turn: nothing is left over, and the message names it. */
Test(cuda_faults, any_attribute_of_a_graph_fails, .timeout = 120)
{
    const struct cudnn_attention_shape s = {
        .B = 1, .T = 8, .H = 2, .K = 1, .D = 64, .qkv_row = 256, .y_row = 128};
    cudnnBackendDescriptor_t properties = NULL;
    int failures = 0;

    EXPECT_OK(cudnn_properties_of_text("{}", &properties));
    const int before = imitate.live_descriptors;
    for (int pass = CUDNN_ATTENTION_FORWARD; pass <= CUDNN_ATTENTION_BACKWARD; pass++) {
        for (int n = 1;; n++) {
            struct cudnn_attention *attention = NULL;
            imitate.fail_attribute = n;
            const shoal_status status = cudnn_attention_create(
                &s, (enum cudnn_attention_pass)pass, properties, 1 << 20, true, &attention);
            cudnn_attention_destroy(attention);
            cr_assert_eq(imitate.live_descriptors, before);
            if (status == SHOAL_OK)
                break;
            cr_assert_eq(status, SHOAL_ERR_INTERNAL);
            cr_assert_not_null(strstr(shoal_last_error(), ": set "), "%s", shoal_last_error());
            failures++;
        }
        imitate.fail_attribute = 0;
    }
    cr_assert_gt(failures, 400);
    imitate.fail_attribute = 1;
    cudnnBackendDescriptor_t other = NULL;
    cr_assert_eq(cudnn_properties_of_text("{}", &other), SHOAL_ERR_INTERNAL);
    cr_assert_not_null(
        strstr(shoal_last_error(),
               "cuDNN: device properties: set DEVICEPROP_JSON_REPRESENTATION: CUDNN_STATUS_BAD"),
        "%s", shoal_last_error());
    cudnn_descriptor_destroy(properties);
}

Test(cuda_faults, the_limit_is_kept_by_plans)
{
    const struct cudnn_attention_shape s = {.B = 1,
                                            .T = 128,
                                            .H = 2,
                                            .K = 2,
                                            .D = 64,
                                            .qkv_row = 384,
                                            .y_row = 128,
                                            .deterministic = true};
    struct cudnn_attention *attention = NULL;
    cudnnBackendDescriptor_t properties = NULL;

    EXPECT_OK(cudnn_properties_of_text("{}", &properties));
    cr_assert_eq(
        cudnn_attention_create(&s, CUDNN_ATTENTION_BACKWARD, properties, 65536, true, &attention),
        SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "wants 65792 bytes of workspace, at most 65536"),
                       "%s", shoal_last_error());
    EXPECT_OK(
        cudnn_attention_create(&s, CUDNN_ATTENTION_BACKWARD, properties, 65792, false, &attention));
    cr_assert_eq(cudnn_attention_scratch_bytes(attention), cudnn_attention_estimate_bytes(&s));
    const struct cudnn_attention_data data = {0};
    cr_assert_eq(cudnn_attention_run(NULL, attention, &data, NULL), SHOAL_ERR_INTERNAL);
    cudnn_attention_destroy(attention);
    cudnn_descriptor_destroy(properties);
    cr_assert_eq(imitate.live_descriptors, 0);
}

Test(cuda_faults, epilogues_go_with_some_products_only)
{
    const struct cublas_shape good = {.kind = CUBLAS_TN,
                                      .in = DTYPE_BF16,
                                      .out = DTYPE_F32,
                                      .epilogue = CUBLAS_EPILOGUE_BIAS_GRADIENT,
                                      .m = 16,
                                      .n = 8,
                                      .k = 24,
                                      .lda = 16,
                                      .ldb = 8,
                                      .ldc = 8};
    struct cublas_shape bad[] = {good, good, good, good, good};
    static const char *const said[] = {"rows without padding", "rows without padding",
                                       "no epilogue but GELU goes with a bias",
                                       "with TN products in fp32", "with TN products in fp32"};
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    struct cublas *cublas = NULL;

    bad[0].ldc = 16;
    bad[1].lda = 24;
    bad[2].bias = true;
    bad[3].kind = CUBLAS_NN;
    bad[3].lda = bad[3].m;
    bad[4].out = DTYPE_BF16;
    EXPECT_OK(cublas_create(rig.device, false, &cublas));
    EXPECT_OK(cublas_prepare(cublas, &good));
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(cublas_prepare(cublas, &bad[i]), SHOAL_ERR_INTERNAL);
        cr_assert_not_null(strstr(shoal_last_error(), said[i]), "%s", shoal_last_error());
    }
    cublas_destroy(cublas);
    cuda_rig_destroy(&rig);
    cr_assert_eq(imitate.live_descriptors, 0);
}

/* As where another rank on the device was faster: the memory that was free is not there. */
Test(cuda_faults, warming_up_goes_without_memory)
{
    const struct linear_shape s = {
        .rows = (int64_t)1 << 44, .in = 8, .out = 8, .dtype = DTYPE_BF16};
    size_t own = 1;

    imitate.total_bytes = SIZE_MAX;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(ops_warm_up(rig.ops, &own));
    cr_assert_eq(own, 0);
    cr_assert_eq(imitate.products, 0);
    cuda_rig_destroy(&rig);
}

static struct attention_shape heads_of(int D, enum dtype dtype)
{
    return (struct attention_shape){.B = 1, .T = 40, .H = 2, .K = 1, .D = D, .dtype = dtype};
}

/* Compute capability 8.6, 8.9 and 12.0 give 99 KiB to a block (CUDA C++ Programming Guide, technical
 * specifications). */
Test(cuda_faults, heads_too_large_for_shared_memory_are_refused_when_they_are_planned)
{
    char plans[2048] = "";

    imitate.shared_bytes = 99 << 10;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    EXPECT_OK(op_attention_prepare(rig.ops, heads_of(180, DTYPE_F32)));
    EXPECT_OK(op_attention_prepare(rig.ops, heads_of(192, DTYPE_BF16))); /* by cuDNN */
    cr_assert_eq(op_attention_prepare(rig.ops, heads_of(182, DTYPE_F32)), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(strstr(shoal_last_error(), "head size 182 need 102400 bytes of shared "
                                                  "memory, a block on this GPU has 101376"),
                       "%s", shoal_last_error());
    cr_assert_not_null(strstr(shoal_last_error(), "cuDNN takes bf16, not fp32"));
    cr_assert_eq(op_attention(rig.ops, heads_of(182, DTYPE_F32), NULL, NULL, NULL, NULL),
                 SHOAL_ERR_UNAVAILABLE);
    ops_describe_choices(rig.ops, keep_line, plans);
    cr_assert_not_null(strstr(plans, "not fp32; too large for this GPU's shared memory"), "%s",
                       plans);
    cuda_rig_destroy(&rig);

    imitate.refuse_graphs = true;
    rig = cuda_rig_create(&(struct ops_cuda_options){0});
    cr_assert_eq(op_attention_prepare(rig.ops, heads_of(192, DTYPE_BF16)), SHOAL_ERR_UNAVAILABLE);
    cuda_rig_destroy(&rig);
}

/* What is told of shared memory is what launches take, and a little for the kernels' own arrays. */
Test(cuda_faults, own_attention_takes_the_shared_memory_that_is_told, .timeout = 120)
{
    enum { OWN_ARRAYS = 16 << 10 };
    static const int sizes[] = {2, 64, 128, 180, 256};
    struct cuda_rig rig =
        cuda_rig_create(&(struct ops_cuda_options){.attention = OPS_CUDA_ATTENTION_PLAIN});
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 40 * 4 * 256);

    for (int i = 0; i < 10; i++) {
        const struct attention_shape s = heads_of(sizes[i / 2], i % 2 ? DTYPE_BF16 : DTYPE_F32);
        const size_t told = cuda_attention_plain_shared_bytes(s);

        EXPECT_OK(op_attention_prepare(rig.ops, s));
        emulate_shared_most = 0;
        EXPECT_OK(op_attention(rig.ops, s, p, p, p, p));
        EXPECT_OK(op_attention_backward(rig.ops, s, p, p, p, p, p, p));
        cr_assert(emulate_shared_most > 0 && emulate_shared_most < told &&
                      told < emulate_shared_most + OWN_ARRAYS,
                  "D %d: told %zu, taken %zu", s.D, told, emulate_shared_most);
    }
    gpu_free_all(&gpu);
    cuda_rig_destroy(&rig);
}

/* Products and attention, so that nothing is loaded in the first step. */
Test(cuda_faults, warming_up_runs_what_was_prepared)
{
    const struct linear_shape s = {.rows = 8, .in = 8, .out = 8, .dtype = DTYPE_BF16};
    size_t own = 1;

    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    EXPECT_OK(op_linear_prepare(rig.ops, s));
    EXPECT_OK(op_attention_prepare(rig.ops, shape));
    EXPECT_OK(op_attention_prepare(rig.ops, heads_of(32, DTYPE_F32)));
    emulate_shared_most = 0;
    const size_t before = emulate_allocated;
    EXPECT_OK(ops_warm_up(rig.ops, &own));
    cr_assert_gt(imitate.products, 0);
    cr_assert_eq(imitate.graphs, 2, "%d passes of cuDNN", imitate.graphs);
    cr_assert_gt(emulate_shared_most, 0);
    cr_assert_eq(emulate_allocated, before);
    cuda_rig_destroy(&rig);
}

Test(cuda_faults, graphs_keep_their_first_failure)
{
    struct cudnn_graph g = {0};
    const struct cudnn_tensor tensor = {
        .type = CUDNN_DATA_FLOAT, .dims = {1, 2, 4, 8}, .strides = {64, 32, 8, 1}};

    const int a = cudnn_graph_tensor(&g, tensor), b = cudnn_graph_tensor(&g, tensor);
    const int c = cudnn_graph_tensor(&g, tensor);
    cr_assert_eq(cudnn_graph_matmul(&g, a, b, c), 0);
    cr_assert_not_null(strstr(shoal_last_error(), "matmul operation: finalize"));
    cr_assert_eq(cudnn_graph_reshape(&g, a, b), 0);
    cr_assert_eq(cudnn_graph_tensor(&g, tensor), 0);
    cr_assert_eq(cudnn_graph_build(&g), SHOAL_ERR_INTERNAL);
    cudnn_graph_fini(&g);

    for (int i = 0; i < CUDNN_GRAPH_TENSORS; i++)
        cr_assert_eq(cudnn_graph_tensor(&g, tensor), i + 1);
    cr_assert_eq(cudnn_graph_tensor(&g, tensor), 0);
    cr_assert_eq(g.status, SHOAL_ERR_INTERNAL);
    cudnn_graph_fini(&g);
    cr_assert_eq(imitate.live_descriptors, 0);
}

/* ---- the device ---- */

Test(cuda_faults, streams_and_events_are_given_back)
{
    struct device_event *from = NULL, *to = NULL;
    struct device *device = NULL;
    double seconds = 0.0;

    EXPECT_OK(device_open("cuda", 0, &device));
    EXPECT_OK(device->ops->event_create(device, &from));
    EXPECT_OK(device->ops->event_create(device, &to));
    EXPECT_OK(device->ops->event_record(device, from, QUEUE_COMM));
    cr_assert_eq(device->ops->event_seconds(device, from, to, &seconds), SHOAL_ERR_UNAVAILABLE);
    EXPECT_OK(device->ops->event_record(device, to, QUEUE_COMPUTE));
    EXPECT_OK(device->ops->event_seconds(device, from, to, &seconds));
    cr_assert(seconds > 0.0);
    device->ops->event_destroy(device, from);
    device->ops->event_destroy(device, to);
    device_close(device);
    cr_assert_eq(imitate.live_handles, 0);
}

/* ---- loading ---- */

static shoal_status launch_one(struct device *device)
{
    struct gpu gpu = {0};
    float *p = gpu_new(&gpu, DTYPE_F32, 64);
    const shoal_status status =
        cuda_gelu(device_cuda_stream(device, QUEUE_COMPUTE), 64, DTYPE_F32, p, p);

    gpu_free_all(&gpu);
    return status;
}

Test(cuda_faults, kernels_are_loaded_with_the_back_end)
{
    const size_t before = emulate_allocated;

    emulate_lazy = true;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    const size_t after = emulate_allocated;
    EXPECT_OK(launch_one(rig.device));
    cr_assert_gt(after, before + CUBLAS_WORKSPACE_BYTES, "loaded kernels take memory");
    EXPECT_OK(device_cuda_load_modules(rig.device));
    cr_assert_eq(emulate_allocated, after);
    cuda_rig_destroy(&rig);
}

/* That the imitation sees it. */
Test(cuda_faults, a_kernel_that_is_not_loaded_ends_the_process, .signal = SIGABRT)
{
    struct device *device = NULL;

    emulate_lazy = true;
    EXPECT_OK(device_open("cuda", 0, &device));
    (void)launch_one(device);
}

Test(cuda_faults, loading_fails_at_any_call)
{
    struct device *device = NULL;
    shoal_status status = SHOAL_ERR_INTERNAL;
    int failures = 0;

    EXPECT_OK(device_open("cuda", 0, &device));
    for (; status != SHOAL_OK; failures++) {
        imitate.fail_driver = failures + 1;
        status = device_cuda_load_modules(device);
        cr_assert(status == SHOAL_OK || strstr(shoal_last_error(), "cuda: ") != NULL, "%s",
                  shoal_last_error());
    }
    cr_assert_gt(failures, 60);
    device_close(device);
}

/* It is said, and the run goes on. */
Test(cuda_faults, an_older_driver_loads_kernels_later)
{
    imitate.old_driver = true;
    struct cuda_rig rig = cuda_rig_create(&(struct ops_cuda_options){0});
    EXPECT_OK(launch_one(rig.device));
    cr_assert_eq(device_cuda_load_modules(rig.device), SHOAL_ERR_UNAVAILABLE);
    cr_assert_not_null(
        strstr(shoal_last_error(), "the driver is older than 12.4: it has no cuFuncGetModule"),
        "%s", shoal_last_error());
    cuda_rig_destroy(&rig);
}

Test(cuda_faults, no_memory_for_kernels_is_an_error)
{
    enum { CALLS_BEFORE = 8 }; /* ways to four calls, a module's own four */
    struct device *device = NULL;
    struct ops *ops = NULL;

    EXPECT_OK(device_open("cuda", 0, &device));
    imitate.fail_driver = CALLS_BEFORE + 1;
    imitate.driver_error = 2; /* CUDA_ERROR_OUT_OF_MEMORY */
    cr_assert_eq(ops_create_cuda(device, &ops), SHOAL_ERR_NOMEM, "%s", shoal_last_error());
    cr_assert_null(ops);
    device_close(device);
    cr_assert_eq(imitate.live_descriptors, 0);
}

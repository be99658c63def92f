#include "launch/train/train_internal.h"

#ifdef SHOAL_WITH_CUDA
#include "models/ops/cuda/ops_cuda.h"
#endif

#include <string.h>

/* The device of a run. */

bool train_device_is_cuda(const struct config *config)
{
    const bool automatic = strcmp(config->run.device, "auto") == 0;

    return strcmp(automatic ? device_auto_name() : config->run.device, "cuda") == 0;
}

shoal_status train_device_open(struct trainer *trainer)
{
    const struct config *config = trainer->config;

    SHOAL_TRY(device_open(config->run.device, comm_node_rank(trainer->comm), &trainer->device));
    setup_device_policy(config, device_is_separate(trainer->device),
                        device_has_queues(trainer->device), &trainer->policy);
    return SHOAL_OK;
}

shoal_status train_device_connect(struct trainer *trainer)
{
    SHOAL_TRY(comm_use_device(trainer->comm, trainer->device));
    trainer->policy.transport = comm_transport(trainer->comm);
    return train_taken_note(trainer, TAKEN_BY_TRANSPORT);
}

#ifdef SHOAL_WITH_CUDA
static shoal_status cuda_ops(const struct config *config, struct device *device,
                             struct ops **ops_out)
{
    static const char *const names[] = {[OPS_CUDA_ATTENTION_AUTO] = "auto",
                                        [OPS_CUDA_ATTENTION_CUDNN] = "cudnn",
                                        [OPS_CUDA_ATTENTION_PLAIN] = "own"};
    struct ops_cuda_options options = {.tf32 = config->precision.tf32};

    while (strcmp(names[options.attention], config->run.attention) != 0)
        options.attention++;
    if (strcmp(config->run.epilogue, "full") == 0)
        options.epilogue = OPS_CUDA_EPILOGUE_FULL;
    return ops_create_cuda_with(device, &options, ops_out);
}
#endif

shoal_status train_device_ops(const struct config *config, struct device *device, struct pool *pool,
                              struct ops **ops_out)
{
#ifdef SHOAL_WITH_CUDA
    if (device != NULL && strcmp(device->ops->name, "cuda") == 0)
        return cuda_ops(config, device, ops_out);
#endif
    (void)device;
    if (strcmp(config->run.attention, "cudnn") == 0) {
        fail(SHOAL_ERR_UNAVAILABLE, "run.attention: cudnn, but this run computes on the CPU");
        return fail_hint(SHOAL_ERR_UNAVAILABLE, "set run.attention to auto");
    }
    return ops_create_cpu(pool, ops_out);
}

void train_device_begin(struct trainer *trainer)
{
    if (trainer->device->ops->expose != NULL)
        trainer->device->ops->expose(trainer->device, QUEUE_COMPUTE, true);
}

shoal_status train_device_end(struct trainer *trainer, shoal_status status)
{
    struct device *device = trainer->device;

    if (device->ops->expose != NULL)
        device->ops->expose(device, QUEUE_COMPUTE, false);
    SHOAL_TRY(status);
    return train_device_sync(trainer);
}

shoal_status train_device_sync(struct trainer *trainer)
{
    struct device *device = trainer->device;

    if (!device_has_queues(device))
        return SHOAL_OK;
    SHOAL_TRY(device->ops->queue_sync(device, QUEUE_COMPUTE));
    return device->ops->queue_sync(device, QUEUE_COMM);
}

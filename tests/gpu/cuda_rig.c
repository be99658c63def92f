#include "tests/gpu/cuda_rig.h"

#include <criterion/criterion.h>

struct cuda_rig cuda_rig_create(const struct ops_cuda_options *options)
{
    struct cuda_rig rig = {0};

    gpu_require();
    EXPECT_OK(device_open("cuda", 0, &rig.device));
    EXPECT_OK(ops_create_cuda_with(rig.device, options, &rig.ops));
    return rig;
}

void cuda_rig_destroy(struct cuda_rig *rig)
{
    ops_destroy(rig->ops);
    device_close(rig->device);
    *rig = (struct cuda_rig){0};
}

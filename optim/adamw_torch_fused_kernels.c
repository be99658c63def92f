#include "optim/kernel.h"

OPTIM_KERNEL(adamw_torch_fused, 2, 0.0f)

#include "optim/kernel.h"

OPTIM_KERNEL(adamw_deepspeed, 2, 0.0f)

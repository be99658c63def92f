#include "optim/kernel.h"

OPTIM_KERNEL(adamw_apex, 2, 0.0f)

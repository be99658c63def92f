#include "optim/kernel.h"

OPTIM_KERNEL(adamw, 2, 1.0f)

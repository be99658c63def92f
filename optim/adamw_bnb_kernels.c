#include "optim/kernel.h"

OPTIM_KERNEL(adamw_bnb, 2, 1.0f)

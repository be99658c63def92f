#include "optim/kernel.h"

OPTIM_KERNEL(adam_atan2, 2, 1.0f)

#include "optim/kernel.h"

OPTIM_KERNEL(adopt, 2, 1.0f)

#include "optim/kernel.h"

OPTIM_KERNEL(adam, 2, 0.0f)

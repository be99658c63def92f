#include "optim/kernel.h"

OPTIM_KERNEL(sgd, 1, 0.0f)

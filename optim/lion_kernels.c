#include "optim/kernel.h"

OPTIM_KERNEL(lion, 1, 1.0f)

#include "optim/kernel.h"

OPTIM_KERNEL(mars, 3, 1.0f)

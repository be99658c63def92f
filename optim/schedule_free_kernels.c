#include "optim/kernel.h"

OPTIM_KERNEL(schedule_free, 2, 0.0f)

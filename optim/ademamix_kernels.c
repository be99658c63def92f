#include "optim/kernel.h"

OPTIM_KERNEL(ademamix, 3, 1.0f)

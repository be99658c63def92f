#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/status.h"

/* What the parts of the program sanitize_kernels share; whatever fails ends it. */

void expect(shoal_status status, const char *what);

/* n numbers of about 1, or scratch, on the device until done(); 0x3f3f is such a number in bf16 and fp32. */
void *array(enum dtype dtype, int64_t n);
void *scratch(size_t n_bytes);

/* Wait for what was launched, then free all arrays. */
void done(const char *what);

/* Every launcher of optim/cuda/. */
void sanitize_optim(void);

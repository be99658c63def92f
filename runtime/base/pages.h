#pragma once

#include "runtime/base/status.h"

#include <stddef.h>

/*
 * Memory of a run: zeroed anonymous pages with a request for huge pages, taken as whole blocks
 * before the first step.  `name` appears in errors.  On failure *ptr_out is untouched.  Free with
 * pages_free and the same size; NULL is allowed.  Local; any thread.
 */
shoal_status pages_alloc(const char *name, size_t n_bytes, void **ptr_out);
void pages_free(void *ptr, size_t n_bytes);

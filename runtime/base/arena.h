#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>

/*
 * Arena: one block of host memory, carved from the front, freed as a whole.
 *
 * A run has one arena per lifetime.  Sizes are known before the first step, so
 * nothing allocates while training.  Memory is an anonymous mapping that asks
 * for huge pages.  An arena is not thread-safe.
 */
struct arena;

/* Create an arena of `capacity` bytes; `name` appears in reports and errors. */
shoal_status arena_create(const char *name, size_t capacity, struct arena **arena_out);

/* Free the arena and everything carved from it.  NULL is allowed. */
void arena_destroy(struct arena *arena);

/*
 * Carve `size` bytes aligned to `align` (a power of two, at most 2 MiB).  The
 * memory belongs to the arena and is zeroed.  On failure *ptr_out is untouched
 * and shoal_last_error() says how many bytes were missing.
 */
shoal_status arena_alloc(struct arena *arena, size_t size, size_t align, void **ptr_out);

size_t arena_used(const struct arena *arena);
size_t arena_capacity(const struct arena *arena);

/*
 * Zeroed anonymous pages with a request for huge pages; free with pages_free and
 * the same size.  Local.
 */
shoal_status pages_alloc(const char *name, size_t n_bytes, void **ptr_out);
void pages_free(void *ptr, size_t n_bytes);

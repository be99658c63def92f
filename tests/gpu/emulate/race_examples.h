#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* Small kernels that race, and like ones that do not. */
#ifdef __cplusplus
extern "C" {
#endif

struct race_example {
    const char *name;
    bool races;
    unsigned blocks;
    void (*kernel)(
        uint32_t *x); /* 128 threads a block; x has one number for each thread of the grid */
};

extern const struct race_example race_examples[];
extern const int n_race_examples;

shoal_status race_example_run(const struct race_example *example, uint32_t *x);

#ifdef __cplusplus
}
#endif

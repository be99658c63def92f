#pragma once

#include <stdbool.h>
#include <stdint.h>

/*
 * Exact, order-independent sum of doubles: a fixed-point number wide enough for
 * every finite double, held as 64-bit limbs of 32 bits each with room for carries.
 * Integer addition is associative, so the sum has the same bits for every order
 * and every cut over threads and ranks; an all-reduce adds the limbs as int64.
 * (Kulisch accumulator; Kulisch, "Computer Arithmetic and Validity", 2008, ch. 8.)
 *
 * At most 2^30 terms may be added in all, over all ranks.
 */
enum {
    EXACT_SUM_LIMBS = 68,
    EXACT_LIMBS =
        EXACT_SUM_LIMBS + 1 /* integers of a struct exact_sum, which may be added up one by one */
};

struct exact_sum {
    int64_t limbs[EXACT_SUM_LIMBS]; /* limb i counts 2^(32*i - 1074) */
    int64_t nonfinite;              /* how many NaN or infinite terms were met (not added) */
};

void exact_sum_clear(struct exact_sum *sum);
void exact_sum_add(struct exact_sum *sum, double x);
void exact_sum_merge(struct exact_sum *sum, const struct exact_sum *other);

/* The sum rounded once to nearest even; NaN if a non-finite term was added. */
double exact_sum_value(const struct exact_sum *sum);

#include "tests/gpu/emulate/race_examples.h"
#include "tests/gpu/emulate/races.h"

#include <criterion/criterion.h>
#include <stdlib.h>

enum { MOST_THREADS = 3 * 128 };

/* In each order that launches run threads in. */
Test(emulated_races, are_found_and_nothing_else_is)
{
    uint32_t *x = calloc(MOST_THREADS + 1, sizeof *x);

    for (int round = 0; round < 7; round++) {
        for (int i = 0; i < n_race_examples; i++) {
            const struct race_example *example = &race_examples[i];
            cr_assert_eq(race_example_run(example, x), SHOAL_OK);
            const unsigned found = emulate_races();
            cr_expect_eq(found > 0, example->races, "%s: %u races, round %d", example->name, found,
                         round);
        }
    }
    free(x);
}

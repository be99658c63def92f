#pragma once

#include "tests/checkpoint/support.h"

#include <criterion/criterion.h>

/* What most suites begin with: a root of their own and the small model that is saved into it. */

static char root[256];
static struct layout *layout;

static inline void fixture_empty(void)
{
    make_root(root);
    layout = test_layout(false);
}

/* Steps 1 and 2 in it, by n ranks. */
static inline void fixture_saved(int n_ranks)
{
    struct job job;

    fixture_empty();
    job = (struct job){.root = root, .layout = layout, .step = 2, .first_save = 1};
    cr_assert_eq(save_with(n_ranks, &job), SHOAL_OK, "%s", shoal_last_error());
}

static inline void fixture_teardown(void)
{
    layout_destroy(layout);
    remove_tree(root);
}

#include "runtime/base/pages.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

Test(pages, refuses_a_size_that_no_machine_has)
{
    void *p = NULL;

    cr_assert_eq(pages_alloc("huge", SIZE_MAX / 2, &p), SHOAL_ERR_NOMEM);
    cr_assert_not_null(strstr(shoal_last_error(), "huge"));
    cr_assert_null(p);
}

Test(pages, large_mappings_are_zeroed_and_begin_at_a_huge_page)
{
    void *p = NULL;
    size_t n = (5u << 20) + 12345, n_dirty = 0;

    cr_assert_eq(pages_alloc("large", n, &p), SHOAL_OK);
    cr_assert_eq((uintptr_t)p % (2u << 20), 0);
    for (size_t i = 0; i < n; i++)
        n_dirty += ((const char *)p)[i] != 0;
    cr_assert_eq(n_dirty, 0);
    memset(p, 1, n);
    pages_free(p, n);
}

#include "runtime/base/arena.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

static struct arena *arena;

static void setup(void)
{
    cr_assert_eq(arena_create("test", 1 << 20, &arena), SHOAL_OK);
}

static void teardown(void)
{
    arena_destroy(arena);
}

TestSuite(arena, .init = setup, .fini = teardown);

Test(arena, reports_exhaustion_and_leaves_output_untouched)
{
    void *p = &arena;

    cr_assert_eq(arena_alloc(arena, SIZE_MAX, 64, &p), SHOAL_ERR_NOMEM);
    cr_assert_eq(p, (void *)&arena);
    cr_assert_not_null(strstr(shoal_last_error(), "arena test"));
    cr_assert_eq(arena_used(arena), 0);
}

Test(arena, carves_aligned_zeroed_disjoint_memory_up_to_its_capacity)
{
    char *a = NULL, *b = NULL;
    void *p = NULL;

    cr_assert_eq(arena_alloc(arena, 100, 64, &p), SHOAL_OK);
    a = p;
    cr_assert_eq(arena_alloc(arena, 100, 4096, &p), SHOAL_OK);
    b = p;
    cr_assert_eq((uintptr_t)a % 64, 0);
    cr_assert_eq((uintptr_t)b % 4096, 0);
    cr_assert_geq(b - a, 100);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(a[i] | b[i], 0);
    cr_assert_eq(arena_alloc(arena, arena_capacity(arena) - arena_used(arena), 1, &p), SHOAL_OK);
    cr_assert_eq(arena_alloc(arena, 1, 1, &p), SHOAL_ERR_NOMEM);
}

Test(arena, refuses_a_size_that_no_machine_has)
{
    void *p = NULL;

    cr_assert_eq(pages_alloc("huge", SIZE_MAX / 2, &p), SHOAL_ERR_NOMEM);
    cr_assert_not_null(strstr(shoal_last_error(), "huge"));
    cr_assert_null(p);
}

Test(arena, large_mappings_begin_at_a_huge_page)
{
    void *p = NULL;
    size_t n = (5u << 20) + 12345;

    cr_assert_eq(pages_alloc("large", n, &p), SHOAL_OK);
    cr_assert_eq((uintptr_t)p % (2u << 20), 0);
    memset(p, 1, n);
    pages_free(p, n);
}

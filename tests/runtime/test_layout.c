#include "runtime/layout/layout.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct layout *layout;

static void add(const char *name, int64_t rows, int64_t columns)
{
    struct tensor tensor = {.ndim = 2, .shape = {rows, columns}, .role = ROLE_UP};

    snprintf(tensor.name, sizeof tensor.name, "%s", name);
    cr_assert_eq(layout_add_tensor(layout, &tensor), SHOAL_OK);
}

static void setup(void)
{
    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    cr_assert_eq(layout_add_unit(layout, "embed"), SHOAL_OK);
    add("a", 3, 100);
    add("b", 1, 256);
    cr_assert_eq(layout_add_unit(layout, "block.0"), SHOAL_OK);
    add("c", 17, 31);
    add("d", 1, 1);
}

static void teardown(void)
{
    layout_destroy(layout);
}

TestSuite(layout, .init = setup, .fini = teardown);

Test(layout, starts_every_tensor_at_a_quantum)
{
    cr_assert_eq(layout->tensors[0].offset, 0);
    cr_assert_eq(layout->tensors[1].offset, 512);
    cr_assert_eq(layout->units[0].n_elements, 768);
    cr_assert_eq(layout->tensors[2].offset, 0);
    cr_assert_eq(layout->tensors[3].offset, 768);
    cr_assert_eq(layout->units[1].n_elements, 1024);
    cr_assert_eq(layout->n_parameters, 300 + 256 + 527 + 1);
}

Test(layout, shards_of_any_world_size_cover_every_element_once)
{
    for (int R = 1; R <= 9; R++)
        for (int t = 0; t < layout->n_tensors; t++) {
            const struct tensor *tensor = &layout->tensors[t];
            int64_t next = 0;

            for (int r = 0; r < R; r++) {
                struct shard shard = layout_shard(layout, tensor->unit, r, R);
                cr_assert_eq(shard.begin % QUANTUM, 0);
                struct shard part = layout_tensor_part(tensor, shard);
                if (part.begin == part.end)
                    continue;
                cr_assert_eq(part.begin, next, "tensor %d, %d ranks", t, R);
                next = part.end;
            }
            cr_assert_eq(next, tensor->n_elements);
        }
}

Test(layout, the_padded_unit_holds_the_unit)
{
    for (int R = 1; R <= 9; R++)
        for (int unit = 0; unit < 2; unit++) {
            int64_t n = layout_shard_elements(layout, unit, R);
            cr_assert_geq(n * R, layout->units[unit].n_elements);
            cr_assert_lt(n * R - layout->units[unit].n_elements, R * QUANTUM);
        }
}

Test(layout, refuses_a_name_twice_and_an_empty_dimension)
{
    struct tensor tensor = {.name = "a", .ndim = 1, .shape = {4}};

    cr_assert_eq(layout_add_tensor(layout, &tensor), SHOAL_ERR_INTERNAL);
    tensor.name[0] = 'z';
    tensor.shape[0] = 0;
    cr_assert_eq(layout_add_tensor(layout, &tensor), SHOAL_ERR_INTERNAL);
}

Test(layout, finds_tensors_by_name)
{
    cr_assert_eq(layout_find(layout, "d"), 3);
    cr_assert_eq(layout_find(layout, "e"), -1);
}

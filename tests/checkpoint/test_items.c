#include "checkpoint/checkpoint_internal.h"
#include "runtime/shoal.h"
#include "tests/checkpoint/items.h"
#include "tests/checkpoint/support.h"
#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* States whose items are codes, scales, bf16 and whatever else is not an fp32 per element. */

static char root[256];

static void setup(void)
{
    make_root(root);
}

static void teardown(void)
{
    remove_tree(root);
}

TestSuite(ckpt_items, .init = setup, .fini = teardown);

struct cut {
    int writers;
    size_t staging_bytes;
    int64_t chunk;
    bool device;
};

ParameterizedTestParameters(ckpt_items, any_world_size_reads_what_any_other_wrote)
{
    /* Odd cuts, the smallest staging buffer, whole pages, and memory that only copies reach. */
    static struct cut cuts[] = {{1, 0, 0, false},          {2, 8192, 1237, false},
                                {3, 0, 4096, false},       {4, 8192, 0, false},
                                {1, 8192, 9999, true},     {3, 0, 0, true},
                                {4, 1 << 16, 65537, true}, {2, 8191, 1 << 20, true}};

    return cr_make_param_array(struct cut, cuts, sizeof cuts / sizeof cuts[0]);
}

ParameterizedTest(struct cut *cut, ckpt_items, any_world_size_reads_what_any_other_wrote)
{
    struct layout *layout = items_layout(true);
    struct items_job job = {.root = root,
                            .layout = layout,
                            .step = 7,
                            .staging_bytes = cut->staging_bytes,
                            .chunk = cut->chunk,
                            .device = cut->device};

    cr_assert_eq(world_run(cut->writers, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
    for (int readers = 1; readers <= 4; readers++) {
        int64_t step = -1;
        int64_t wrong = -1;

        cr_assert_eq(items_read_back(root, layout, readers, readers % 2 == 0, &step, &wrong),
                     SHOAL_OK, "%s", shoal_last_error());
        cr_expect_eq(step, 7);
        cr_expect_eq(wrong, 0, "%d -> %d ranks: %ld bytes differ", cut->writers, readers,
                     (long)wrong);
    }
    layout_destroy(layout);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The definition, written down a second time: kinds sorted, tensors by name, bytes in order. */
static void expected_hash(const struct layout *layout, int64_t step, const char *only_kind,
                          char hex[33])
{
    XXH3_state_t *state = XXH3_createState();
    const char *kinds[ITEM_KINDS];
    const char *names[16];

    XXH3_128bits_reset(state);
    for (int k = 0; k < ITEM_KINDS; k++)
        kinds[k] = item_kinds[k].name;
    for (int t = 0; t < layout->n_tensors; t++)
        names[t] = layout->tensors[t].name;
    qsort(kinds, ITEM_KINDS, sizeof kinds[0], by_text);
    qsort(names, (size_t)layout->n_tensors, sizeof names[0], by_text);
    for (int i = 0; i < ITEM_KINDS; i++)
        for (int j = 0; j < layout->n_tensors; j++) {
            int k = 0;
            int t = layout_find(layout, names[j]);

            while (strcmp(item_kinds[k].name, kinds[i]) != 0)
                k++;
            if (!items_have(t, k) || (only_kind != NULL && strcmp(only_kind, kinds[i]) != 0))
                continue;

            int64_t n = items_count(layout, t, k) * (int64_t)ckpt_type_bytes(item_kinds[k].type);

            for (int64_t b = 0; b < n; b++) {
                unsigned char byte = item_byte(t, k, b, step);

                XXH3_128bits_update(state, &byte, 1);
            }
        }

    XXH128_hash_t hash = XXH3_128bits_digest(state);

    snprintf(hex, 33, "%016lx%016lx", (unsigned long)hash.high64, (unsigned long)hash.low64);
    XXH3_freeState(state);
}

Test(ckpt_items, hash_is_of_the_bytes_whatever_world_wrote_them)
{
    struct layout *layout = items_layout(false);
    char all[33];
    char codes[33];

    expected_hash(layout, 5, NULL, all);
    expected_hash(layout, 5, "exp_avg_sq.packed_codes", codes);
    for (int world = 1; world <= 4; world++) {
        struct items_job job = {
            .root = root, .layout = layout, .step = 5, .chunk = world * 333, .device = world == 3};
        struct ckpt *ckpt = NULL;
        char hex[33];

        cr_assert_eq(world_run(world, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
        cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
        cr_assert_eq(ckpt_hash(ckpt, NULL, hex), SHOAL_OK);
        cr_expect_str_eq(hex, all, "world %d", world);
        cr_assert_eq(ckpt_hash(ckpt, "exp_avg_sq.packed_codes", hex), SHOAL_OK);
        cr_expect_str_eq(hex, codes, "world %d", world);
        ckpt_close(ckpt);
    }
    layout_destroy(layout);
}

Test(ckpt_items, a_reader_can_ask_what_is_there)
{
    struct layout *layout = items_layout(false);
    struct items_job job = {.root = root, .layout = layout, .step = 5};
    struct ckpt *ckpt = NULL;
    struct ckpt_items items;

    cr_assert_eq(world_run(2, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    for (int t = 0; t < layout->n_tensors; t++)
        for (int k = 0; k < ITEM_KINDS; k++) {
            const struct item_kind *kind = &item_kinds[k];
            const char *name = layout->tensors[t].name;

            cr_assert_eq(ckpt_find_items(ckpt, name, kind->name, &items), items_have(t, k));
            if (!items_have(t, k))
                continue;
            cr_expect_eq(items.type, kind->type);
            cr_expect_eq(items.n_items, items_count(layout, t, k));
            cr_expect_str_eq(items.codec, kind->codec != NULL ? kind->codec : "");
        }
    cr_expect(ckpt_find_items(ckpt, "h.0.attn", "per_head", NULL));
    cr_expect_not(ckpt_find_items(ckpt, "h.0.bias", "per_head", NULL));
    cr_expect_not(ckpt_find_items(ckpt, "h.0.attn", "per_hea", NULL));
    cr_expect_not(ckpt_find_items(ckpt, "h.0", "per_head", NULL));
    ckpt_close(ckpt);
    layout_destroy(layout);
}

static void expect_group(const struct ckpt_group *group, const struct ckpt_group *want)
{
    cr_expect_str_eq(group->kind, want->kind);
    cr_expect_eq(group->type, want->type);
    cr_expect_str_eq(group->codec, want->codec);
    cr_expect_eq(group->n_tensors, want->n_tensors);
    cr_expect_eq(group->n_items, want->n_items);
    cr_expect_eq(group->n_bytes, want->n_bytes);
}

/* One kind in two types: two groups. */
Test(ckpt_items, a_listing_sums_up_kinds_by_type_and_codec)
{
    static char data[64];
    static const struct ckpt_group want[3] = {
        {.kind = "a", .type = CKPT_I16, .n_tensors = 1, .n_items = 2, .n_bytes = 4},
        {.kind = "m", .type = CKPT_F32, .n_tensors = 1, .n_items = 1, .n_bytes = 4},
        {.kind = "m", .type = CKPT_U8, .codec = "q", .n_tensors = 2, .n_items = 14, .n_bytes = 14}};
    struct layout *layout = items_layout(false);
    const struct ckpt_piece pieces[4] = {
        {.tensor = 1, .kind = "m", .type = CKPT_U8, .codec = "q", .end = 5, .data = data},
        {.tensor = 2, .kind = "m", .end = 1, .data = data},
        {.kind = "m", .type = CKPT_U8, .codec = "q", .n_items = 9, .end = 9, .data = data},
        {.tensor = 3, .kind = "a", .type = CKPT_I16, .n_items = 2, .end = 2, .data = data}};
    struct given given = {.root = root, .layout = layout, .pieces = pieces, .n_of_rank = {1, 3}};
    struct ckpt_entry *entries = NULL;
    size_t n = 0;

    cr_assert_eq(world_run(2, given_save, &given), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK);
    cr_assert_eq(n, 1);
    cr_assert_eq(entries[0].n_groups, 3);
    for (int i = 0; i < 3; i++)
        expect_group(&entries[0].groups[i], &want[i]);
    free(entries);
    layout_destroy(layout);
}

Test(ckpt_items, public_calls_read_fp32_and_refuse_codes)
{
    struct layout *layout = items_layout(false);
    struct items_job job = {.root = root, .layout = layout, .step = 5};
    struct shoal_checkpoint *checkpoint = NULL;
    float x[7];
    unsigned char bytes[28];

    cr_assert_eq(world_run(2, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(shoal_checkpoint_open(root, &checkpoint), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 0, "exp_avg.q", 0, 1, x), SHOAL_ERR_USAGE);
    cr_expect_neq(strstr(shoal_last_error(), "exp_avg.q of h.0.w is stored as u8"), NULL, "%s",
                  shoal_last_error());
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 0, "per_head", 0, 1, x), SHOAL_ERR_USAGE);
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 1, "per_head", 1, 7, x), SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_checkpoint_read(checkpoint, 1, "per_head", 0, 7, x), SHOAL_OK, "%s",
                 shoal_last_error());
    memcpy(bytes, x, sizeof bytes);
    for (int b = 0; b < 28; b++)
        cr_expect_eq(bytes[b], item_byte(1, 8, b, 5));
    shoal_checkpoint_close(checkpoint);
    layout_destroy(layout);
}

/* ---- other people's tools ---- */

static char output[1 << 16];

/* what: -d for a dataset, -a for an attribute. */
static void dump(const char *what, const char *object)
{
    char path[512];
    const char *argv[] = {"h5dump", what, object, path, NULL};

    file_in_step(path, root, 5, "rank-00000.h5");
    cr_assert_eq(run_command(argv, 20, output, sizeof output, NULL), 0, "%s", output);
}

static void expect_dumped(const char *text)
{
    cr_expect_neq(strstr(output, text), NULL, "expected \"%s\" in: %s", text, output);
}

Test(ckpt_items, hdf5_tools_show_types_codecs_and_values)
{
    struct layout *layout = items_layout(false);
    struct items_job job = {.root = root, .layout = layout, .step = 5};
    char text[64];

    if (system("command -v h5dump >/dev/null") != 0)
        cr_skip_test("hdf5-tools is not installed");
    cr_assert_eq(world_run(1, items_save, &job), SHOAL_OK, "%s", shoal_last_error());

    dump("-d", "/tensors/h.0.attn/exp_avg.q");
    expect_dumped("H5T_STD_U8LE");
    expect_dumped("\"dyn8/256\"");
    expect_dumped("\"u8\"");
    snprintf(text, sizeof text, "(0): %d, %d, %d, %d, %d", item_byte(1, 3, 0, 5),
             item_byte(1, 3, 1, 5), item_byte(1, 3, 2, 5), item_byte(1, 3, 3, 5),
             item_byte(1, 3, 4, 5));
    expect_dumped(text);

    dump("-d", "/tensors/a.one/weight");
    expect_dumped("H5T_STD_U16LE");
    expect_dumped("\"bf16\"");
    snprintf(text, sizeof text, "(0): %d", item_byte(2, 0, 0, 5) | item_byte(2, 0, 1, 5) << 8);
    expect_dumped(text);

    dump("-d", "/tensors/a.one/remainder");
    expect_dumped("H5T_STD_I16LE");
    dump("-d", "/tensors/a.one/remainder8");
    expect_dumped("H5T_STD_I8LE");
    dump("-d", "/tensors/a.one/exp_avg.scale");
    expect_dumped("H5T_IEEE_F32LE");

    dump("-a", "/tensors/h.0.w/exp_avg.q/shape");
    expect_dumped("(0): 331, 63\n");
    /* Not one per element: the shape is the number of items. */
    dump("-a", "/tensors/h.0.w/exp_avg_sq.packed_codes/shape");
    snprintf(text, sizeof text, "(0): %d\n", (331 * 63 + 1) / 2);
    expect_dumped(text);
    layout_destroy(layout);
}

Test(ckpt_items, the_command_shows_bytes_types_and_codecs)
{
    struct layout *layout = items_layout(false);
    struct items_job job = {.root = root, .layout = layout, .step = 5};
    const char *show[] = {SHOAL_BUILD_DIR "/bin/shoal", "ckpt", "show", root, NULL};
    const char *ls[] = {SHOAL_BUILD_DIR "/bin/shoal", "ckpt", "ls", root, NULL};
    const char *json[] = {SHOAL_BUILD_DIR "/bin/shoal", "ckpt", "ls", root, "--json", NULL};

    cr_assert_eq(world_run(2, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(run_command(show, 20, output, sizeof output, NULL), 0, "%s", output);
    expect_dumped("exp_avg_sq.packed_codes u8   fifteen_letters   12.2 KiB  12481 items of 4");
    expect_dumped("per_head                f32                        28 B  7 items of 1 tensor\n");
    cr_assert_eq(run_command(ls, 20, output, sizeof output, NULL), 0, "%s", output);
    expect_dumped("f32+bf16+u8+i8+u16+i16");
    cr_assert_eq(run_command(json, 20, output, sizeof output, NULL), 0, "%s", output);
    expect_dumped("\"codec\": \"fifteen_letters\"");
    layout_destroy(layout);
}

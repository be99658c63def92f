#include "checkpoint/checkpoint_internal.h"
#include "runtime/shoal.h"
#include "tests/checkpoint/support.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char root[256];

static void setup(void)
{
    make_root(root);
}

static void teardown(void)
{
    remove_tree(root);
}

TestSuite(ckpt_roundtrip, .init = setup, .fini = teardown);

struct cut {
    int writers;
    size_t staging_bytes;
    int64_t chunk;
};

ParameterizedTestParameters(ckpt_roundtrip, any_world_size_reads_what_any_other_wrote)
{
    /* The smallest staging buffer, chunks that cut blocks, chunks of whole pages, and neither. */
    static struct cut cuts[] = {{1, 0, 0},         {2, 8192, 0}, {4, 0, 3000},
                                {1, 8192, 100000}, {2, 0, 4096}, {4, 1 << 20, 0}};

    return cr_make_param_array(struct cut, cuts, sizeof cuts / sizeof cuts[0]);
}

ParameterizedTest(struct cut *cut, ckpt_roundtrip, any_world_size_reads_what_any_other_wrote)
{
    struct layout *layout = test_layout(true);
    struct job job = {.root = root,
                      .layout = layout,
                      .step = 7,
                      .staging_bytes = cut->staging_bytes,
                      .chunk = cut->chunk};

    cr_assert_eq(save_with(cut->writers, &job), SHOAL_OK, "%s", shoal_last_error());
    for (int readers = 1; readers <= 4; readers++) {
        int64_t step = -1;
        int64_t wrong = -1;

        cr_assert_eq(read_back(root, layout, readers, &step, &wrong), SHOAL_OK, "%s",
                     shoal_last_error());
        cr_expect_eq(step, 7);
        cr_expect_eq(wrong, 0, "%d -> %d ranks: %ld elements differ", cut->writers, readers,
                     (long)wrong);
    }
    layout_destroy(layout);
}

Test(ckpt_roundtrip, hash_does_not_depend_on_the_world_that_wrote)
{
    struct layout *layout = test_layout(true);
    char hashes[3][33];
    char master[33];
    const int worlds[3] = {1, 3, 4};

    for (int i = 0; i < 3; i++) {
        struct job job = {.root = root, .layout = layout, .step = 7, .chunk = i * 777};
        struct ckpt *ckpt = NULL;

        cr_assert_eq(save_with(worlds[i], &job), SHOAL_OK, "%s", shoal_last_error());
        cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
        cr_assert_eq(ckpt_hash(ckpt, NULL, hashes[i]), SHOAL_OK);
        cr_assert_eq(ckpt_hash(ckpt, "master", master), SHOAL_OK);
        cr_expect_neq(ckpt_hash(ckpt, "no such kind", master), SHOAL_OK);
        ckpt_close(ckpt);
    }
    cr_expect_str_eq(hashes[0], hashes[1]);
    cr_expect_str_eq(hashes[0], hashes[2]);
    cr_expect_str_neq(hashes[0], master);
    layout_destroy(layout);
}

Test(ckpt_roundtrip, meta_comes_back_exactly)
{
    struct layout *layout = test_layout(false);
    struct job job = {.root = root, .layout = layout, .step = 12};
    struct ckpt *ckpt = NULL;

    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());

    const struct ckpt_meta *m = ckpt_meta(ckpt);

    cr_expect_eq(m->step, 12);
    cr_expect_eq(m->consumed_tokens, 12 * 8192);
    cr_expect_eq(m->data_fingerprint, 0x1234567890abcdefu);
    cr_expect_eq(m->loss, 3.25);
    cr_expect_str_eq(m->optimizer, "adamw");
    cr_expect_str_eq(m->config_yaml, "model: tiny\n");
    cr_expect_str_eq(m->topology_json, "{\"zero_stage\": 2}");
    cr_expect_eq(ckpt_tensor_count(ckpt), layout->n_tensors);
    cr_expect_eq(ckpt_kind_count(ckpt), TEST_KINDS);
    cr_expect_str_eq(ckpt_tensor(ckpt, 0)->name, "wte.weight");
    cr_expect_eq(ckpt_tensor(ckpt, 0)->role, ROLE_EMBEDDING);
    ckpt_close(ckpt);
    layout_destroy(layout);
}

Test(ckpt_roundtrip, public_calls_read_slices_and_refuse_what_is_outside)
{
    struct layout *layout = test_layout(false);
    struct job job = {.root = root, .layout = layout, .step = 5};
    struct shoal_checkpoint *checkpoint = NULL;
    struct shoal_tensor_info info;
    float x[100];

    cr_assert_eq(save_with(3, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(shoal_checkpoint_open(root, &checkpoint), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(shoal_checkpoint_step(checkpoint), 5);
    cr_assert_eq(shoal_checkpoint_tensor_info(checkpoint, 2, &info), SHOAL_OK);
    cr_expect_str_eq(info.name, "h.0.attn.c_attn.weight");
    cr_expect_eq(info.n_elements, 192 * 64);
    /* Across the border between two ranks' shards. */
    cr_assert_eq(shoal_checkpoint_read(checkpoint, 2, "exp_avg", 4000, 100, x), SHOAL_OK);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(x[i], test_value(2, 1, 4000 + i, 5));
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 2, "exp_avg", 192 * 64 - 1, 2, x),
                 SHOAL_ERR_USAGE);
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 2, "momentum", 0, 1, x), SHOAL_ERR_USAGE);
    cr_expect_eq(shoal_checkpoint_tensor_info(checkpoint, 99, &info), SHOAL_ERR_USAGE);
    shoal_checkpoint_close(checkpoint);
    layout_destroy(layout);
}

Test(ckpt_roundtrip, another_model_is_named_by_tensor_and_both_shapes)
{
    struct layout *layout = test_layout(false);
    struct layout *other = test_layout(false);
    struct job job = {.root = root, .layout = layout, .step = 5};
    int64_t step;
    int64_t wrong;

    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    other->tensors[2].shape[0] = 64;
    other->tensors[2].shape[1] = 192;
    cr_expect_eq(read_back(root, other, 1, &step, &wrong), SHOAL_ERR_DATA);
    cr_expect_neq(
        strstr(shoal_last_error(), "h.0.attn.c_attn.weight is [192, 64] there, [64, 192]"), NULL,
        "%s", shoal_last_error());
    strcpy(other->tensors[0].name, "model.embed");
    cr_expect_eq(read_back(root, other, 1, &step, &wrong), SHOAL_ERR_DATA);
    cr_expect_neq(strstr(shoal_last_error(), "has no tensor model.embed"), NULL);
    layout_destroy(other);
    layout_destroy(layout);
}

Test(ckpt_roundtrip, a_state_that_was_not_saved_is_named_with_those_that_were)
{
    struct layout *layout = test_layout(false);
    struct job job = {.root = root, .layout = layout, .step = 5};
    struct ckpt *ckpt = NULL;
    float x;
    struct ckpt_piece piece = {.tensor = 0, .kind = "momentum", .begin = 0, .end = 1, .data = &x};

    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK);
    cr_expect_eq(ckpt_read(ckpt, layout, &piece, 1), SHOAL_ERR_DATA);
    cr_expect_neq(strstr(shoal_last_error(), "momentum"), NULL);
    cr_expect_neq(strstr(shoal_last_error(), "exp_avg, exp_avg_sq, master"), NULL, "%s",
                  shoal_last_error());
    ckpt_close(ckpt);
    layout_destroy(layout);
}

Test(ckpt_roundtrip, hdf5_tools_open_the_files_and_see_the_values)
{
    struct layout *layout = test_layout(false);
    struct job job = {.root = root, .layout = layout, .step = 5};
    char command[1024];
    char line[256];
    float value = 0;

    if (system("command -v h5dump >/dev/null && command -v h5ls >/dev/null") != 0)
        cr_skip_test("hdf5-tools is not installed");
    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    snprintf(command, sizeof command,
             "cd %s/step-*5 && h5ls -r rank-00000.h5 manifest.h5 >/dev/null && h5dump -H "
             "rank-00001.h5 > /dev/null && h5dump manifest.h5 > /dev/null",
             root);
    cr_expect_eq(system(command), 0);
    snprintf(
        command, sizeof command,
        "h5dump -y -m '%%.9g' -d /tensors/wte.weight/master -s 17 -c 1 %s/step-*5/rank-00000.h5",
        root);

    FILE *out = popen(command, "r");
    bool seen = false;

    while (fgets(line, sizeof line, out) != NULL)
        if (!seen && strstr(line, "DATA {") != NULL && fgets(line, sizeof line, out) != NULL)
            seen = sscanf(line, "%f", &value) == 1;
    cr_expect_eq(pclose(out), 0);
    cr_expect(seen);
    cr_expect_eq(value, test_value(0, 0, 17, 5));
    layout_destroy(layout);
}

static struct ckpt_piece gap_or_overlap[2];

static shoal_status save_pieces(struct comm *comm, void *arg)
{
    struct ckpt_store *store = NULL;
    struct ckpt_store_params params = {.root = root};
    struct ckpt_meta meta = {.step = 1};
    shoal_status status = ckpt_store_open(comm, &params, &store);

    /* One piece per rank. */
    if (status == SHOAL_OK)
        status = ckpt_save(store, arg, &gap_or_overlap[comm_rank(comm)], 1, &meta, NULL);
    ckpt_store_close(store);
    return status;
}

Test(ckpt_roundtrip, pieces_that_leave_a_gap_or_overlap_are_refused)
{
    static float data[100];
    struct layout *layout = NULL;
    struct tensor t = {.name = "w", .role = ROLE_NORM, .ndim = 1, .shape = {100}};
    struct ckpt *ckpt = NULL;

    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    cr_assert_eq(layout_add_unit(layout, "u"), SHOAL_OK);
    cr_assert_eq(layout_add_tensor(layout, &t), SHOAL_OK);
    gap_or_overlap[0] = (struct ckpt_piece){.kind = "master", .begin = 0, .end = 40, .data = data};
    gap_or_overlap[1] =
        (struct ckpt_piece){.kind = "master", .begin = 41, .end = 100, .data = data};
    cr_expect_eq(world_run(2, save_pieces, layout), SHOAL_ERR_INTERNAL);
    cr_expect_neq(strstr(shoal_last_error(), "master of w: items 40..41 are stored nowhere"), NULL,
                  "%s", shoal_last_error());
    gap_or_overlap[1].begin = 39;
    cr_expect_eq(world_run(2, save_pieces, layout), SHOAL_ERR_INTERNAL);
    cr_expect_neq(strstr(shoal_last_error(), "master of w: items 39..40 are stored twice"), NULL);
    gap_or_overlap[1].begin = 40;
    gap_or_overlap[1].end = 101;
    cr_expect_eq(world_run(2, save_pieces, layout), SHOAL_ERR_INTERNAL);
    cr_expect_neq(strstr(shoal_last_error(), "rank 1 (test): checkpoint piece"), NULL,
                  "rank 0 must learn what only rank 1 knows: %s", shoal_last_error());
    cr_expect_eq(ckpt_open(root, &ckpt), SHOAL_ERR_NOINPUT, "nothing may be left behind");
    gap_or_overlap[1].end = 100;
    cr_expect_eq(world_run(2, save_pieces, layout), SHOAL_OK, "%s", shoal_last_error());
    layout_destroy(layout);
}

/* Hundreds of tensors: the metadata must stay in the head, where one checksum covers it. */
Test(ckpt_roundtrip, many_tensors_keep_their_metadata_outside_the_payload)
{
    struct layout *layout = NULL;
    struct job job = {.root = root, .step = 3};
    struct ckpt *ckpt = NULL;
    int64_t step = -1;
    int64_t wrong = -1;

    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    for (int u = 0; u < 10; u++) {
        char name[32];

        snprintf(name, sizeof name, "block.%d", u);
        cr_assert_eq(layout_add_unit(layout, name), SHOAL_OK);
        for (int i = 0; i < 40; i++) {
            struct tensor t = {.role = ROLE_NORM, .ndim = 1, .shape = {1 + 97 * i}};

            snprintf(t.name, sizeof t.name, "transformer.h.%d.some.longer.name.%d.weight", u, i);
            cr_assert_eq(layout_add_tensor(layout, &t), SHOAL_OK);
        }
    }
    job.layout = layout;
    cr_assert_eq(save_with(2, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(read_back(root, layout, 3, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(wrong, 0);
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK);
    for (uint32_t r = 0; r < 2; r++) {
        const struct file_row *f = &ckpt->files[r];
        size_t n_extents = 0;

        for (size_t i = 0; i < ckpt->n_shards; i++)
            n_extents += ckpt->shards[i].rank == r;
        /* 1.5 KiB per extent in the head, and little behind the payload. */
        cr_expect_lt(f->header_bytes, 1600 * n_extents, "%lu bytes for %zu extents",
                     (unsigned long)f->header_bytes, n_extents);
        cr_expect_lt(f->size - f->payload_end, 200 * n_extents, "%lu bytes for %zu extents",
                     (unsigned long)(f->size - f->payload_end), n_extents);
    }
    ckpt_close(ckpt);
    layout_destroy(layout);
}

/* A checksum table of more than a page, and tensors too small to be aligned behind it. */
Test(ckpt_roundtrip, a_table_of_many_blocks_precedes_small_tensors)
{
    enum { TENSORS = 700 };
    struct layout *layout = NULL;
    struct job job = {.root = root, .step = 7};
    int64_t step = -1;
    int64_t wrong = -1;

    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    cr_assert_eq(layout_add_unit(layout, "block.0"), SHOAL_OK);
    for (int i = 0; i < TENSORS; i++) {
        struct tensor t = {.role = ROLE_BIAS, .ndim = 1, .shape = {1 + (i * 37) % 1500}};

        snprintf(t.name, sizeof t.name, "h.%d.bias", i);
        cr_assert_eq(layout_add_tensor(layout, &t), SHOAL_OK);
    }
    job.layout = layout;
    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(read_back(root, layout, 2, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(step, 7);
    cr_expect_eq(wrong, 0);
    layout_destroy(layout);
}

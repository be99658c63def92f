#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Checkpoints of the format's version 1, which knew one fp32 per element.  The fixture was written
 * by Shoal 0.1.0 at that time, by two ranks; its hashes, too, are that program's.
 */

static const char hash_of_all[] = "85f02bdc0c5b8617b97be6961b64f962";
static const char hash_of_master[] = "7a66f30ac559d4660b49adc941152667";
static const char *const kinds[3] = {"master", "exp_avg", "exp_avg_sq"};

static char root[256];
static struct layout *layout;
static float state[2][3][600];

static float value(int tensor, int kind, int64_t element)
{
    return (float)(1000 * kind + element) + 0.25f * (float)tensor;
}

static void setup(void)
{
    struct tensor w = {.name = "w", .role = ROLE_UP, .ndim = 2, .shape = {40, 15}};
    struct tensor ln = {.name = "ln", .role = ROLE_NORM, .ndim = 1, .shape = {64}};
    char command[1024];

    make_root(root);
    snprintf(command, sizeof command,
             "base64 -d " SHOAL_SOURCE_DIR
             "/tests/fixtures/checkpoint-1.0.tar.gz.b64 | tar -xz -C %s",
             root);
    cr_assert_eq(system(command), 0);
    cr_assert_eq(layout_create(&layout), SHOAL_OK);
    cr_assert_eq(layout_add_unit(layout, "u"), SHOAL_OK);
    cr_assert_eq(layout_add_tensor(layout, &w), SHOAL_OK);
    cr_assert_eq(layout_add_tensor(layout, &ln), SHOAL_OK);
}

static void teardown(void)
{
    layout_destroy(layout);
    remove_tree(root);
}

TestSuite(ckpt_version_1, .init = setup, .fini = teardown);

/* All of the state on one rank. */
static void make_pieces(struct ckpt_piece pieces[6])
{
    for (int i = 0; i < 6; i++) {
        pieces[i] = (struct ckpt_piece){
            .tensor = i / 3, .end = layout->tensors[i / 3].n_elements, .data = state[i / 3][i % 3]};
        strcpy(pieces[i].kind, kinds[i % 3]);
    }
}

static void expect_hashes(struct ckpt *ckpt)
{
    char hex[33];

    cr_assert_eq(ckpt_hash(ckpt, NULL, hex), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_str_eq(hex, hash_of_all);
    cr_assert_eq(ckpt_hash(ckpt, "master", hex), SHOAL_OK);
    cr_expect_str_eq(hex, hash_of_master);
}

Test(ckpt_version_1, an_old_checkpoint_opens_and_reads_as_fp32)
{
    struct ckpt *ckpt = NULL;
    struct ckpt_piece pieces[6];
    struct ckpt_items items;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(ckpt->commit.version, 1);
    cr_expect_eq(ckpt_meta(ckpt)->step, 12);
    cr_expect_str_eq(ckpt_meta(ckpt)->config_yaml, "model: tiny\n");
    make_pieces(pieces);
    cr_assert_eq(ckpt_read(ckpt, layout, pieces, 6), SHOAL_OK, "%s", shoal_last_error());
    for (int i = 0; i < 6; i++) {
        const struct tensor *t = &layout->tensors[i / 3];

        for (int64_t e = 0; e < t->n_elements; e++)
            cr_assert_eq(state[i / 3][i % 3][e], value(i / 3, i % 3, e));
        cr_assert(ckpt_find_items(ckpt, t->name, kinds[i % 3], &items));
        cr_expect_eq(items.type, CKPT_F32);
        cr_expect_eq(items.n_items, t->n_elements);
        cr_expect_str_eq(items.codec, "");
    }
    pieces[0].type = CKPT_U8;
    cr_expect_eq(ckpt_read(ckpt, layout, pieces, 6), SHOAL_ERR_CONFIG);
    expect_hashes(ckpt);
    ckpt_close(ckpt);
}

static shoal_status save(struct comm *comm, void *pieces)
{
    struct ckpt_store *store = NULL;
    struct ckpt_store_params params = {.root = root};
    struct ckpt_meta meta = {.step = 13};

    SHOAL_TRY(ckpt_store_open(comm, &params, &store));

    shoal_status status = ckpt_save(store, layout, pieces, 6, &meta, NULL);

    ckpt_store_close(store);
    return status;
}

Test(ckpt_version_1, the_same_state_saved_today_has_the_same_hash)
{
    struct ckpt *ckpt = NULL;
    struct ckpt_piece pieces[6];

    make_pieces(pieces);
    for (int i = 0; i < 6; i++)
        for (int64_t e = 0; e < pieces[i].end; e++)
            state[i / 3][i % 3][e] = value(i / 3, i % 3, e);
    cr_assert_eq(world_run(1, save, pieces), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(ckpt->commit.version, 2);
    cr_expect_eq(ckpt_meta(ckpt)->step, 13);
    expect_hashes(ckpt);
    ckpt_close(ckpt);
}

/* Write the record again with another version; its checksum fits. */
static void set_commit_version(int version)
{
    struct commit commit;
    char dir[512];
    char text[512];

    file_in_step(dir, root, 12, "");
    cr_assert_eq(ckpt_commit_read(dir, &commit), SHOAL_OK, "%s", shoal_last_error());
    commit.version = version;
    cr_assert_eq(
        ckpt_fs_write_file(dir, "COMMIT", text, ckpt_commit_format(text, sizeof text, &commit)),
        SHOAL_OK);
}

Test(ckpt_version_1, newer_formats_and_versions_that_differ_are_refused)
{
    struct ckpt *ckpt = NULL;

    set_commit_version(2);
    cr_expect_eq(ckpt_open(root, &ckpt), SHOAL_ERR_DATA);
    cr_expect_neq(strstr(shoal_last_error(), "format version 1.0, COMMIT says 2"), NULL, "%s",
                  shoal_last_error());
    set_commit_version(3);
    cr_expect_eq(ckpt_open(root, &ckpt), SHOAL_ERR_CONFIG);
    cr_expect_neq(strstr(shoal_last_error(), "format version 3, this program reads up to 2"), NULL,
                  "%s", shoal_last_error());
}

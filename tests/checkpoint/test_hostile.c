#include "checkpoint/checkpoint_internal.h"
#include "runtime/shoal.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Manifests that mean harm; their checksums fit. */

static char manifest[512];

static void setup(void)
{
    struct job job;

    fixture_empty();
    job = (struct job){.root = root, .layout = layout, .step = 2};
    cr_assert_eq(save_with(1, &job), SHOAL_OK, "%s", shoal_last_error());
    file_in_step(manifest, root, 2, "manifest.h5");
}

TestSuite(ckpt_hostile, .init = setup, .fini = fixture_teardown, .timeout = 20);

static hid_t edit(void)
{
    hid_t fapl = ckpt_h5_access(0);
    hid_t file = H5Fopen(manifest, H5F_ACC_RDWR, fapl);

    H5Pclose(fapl);
    cr_assert_geq(file, 0);
    return file;
}

/* Make COMMIT fit what was edited. */
static void commit_again(hid_t file)
{
    char dir[512], text[512];
    struct commit commit;
    char *image = NULL;
    size_t n = 0;

    cr_assert_geq(H5Fclose(file), 0);
    file_in_step(dir, root, 2, "");
    cr_assert_eq(ckpt_commit_read(dir, &commit), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(ckpt_fs_read_file(manifest, 1 << 26, &image, &n), SHOAL_OK);
    commit.manifest_bytes = n;
    commit.manifest_crc = ckpt_crc32c(0, image, n);
    free(image);
    cr_assert_eq(
        ckpt_fs_write_file(dir, "COMMIT", text, ckpt_commit_format(text, sizeof text, &commit)),
        SHOAL_OK);
}

static void expect_refused(const char *why)
{
    struct ckpt *ckpt = NULL;

    cr_expect_eq(ckpt_open(root, &ckpt), SHOAL_ERR_DATA, "%s", why);
    cr_expect_neq(strstr(shoal_last_error(), why), NULL, "expected \"%s\" in: %s", why,
                  shoal_last_error());
    ckpt_close(ckpt);
    cr_expect_eq(H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL), 0, "ids are left open");
}

/* Following them would open other files, here one that never answers. */
Test(ckpt_hostile, links_that_lead_elsewhere_are_not_followed)
{
    const char *names[] = {"/tensors", "/states", "/files", "/config", "/config/yaml"};
    char trap[512], saved[512];

    snprintf(trap, sizeof trap, "%s/trap", root);
    snprintf(saved, sizeof saved, "%s/saved", root);
    cr_assert_eq(mkfifo(trap, 0666), 0);
    copy_file(manifest, saved);
    for (int i = 0; i < 5; i++)
        for (int soft = 0; soft < 2; soft++) {
            char why[96];
            hid_t file;

            copy_file(saved, manifest);
            file = edit();
            cr_assert_geq(H5Ldelete(file, names[i], H5P_DEFAULT), 0);
            if (soft == 0)
                cr_assert_geq(
                    H5Lcreate_external(trap, "/x", file, names[i], H5P_DEFAULT, H5P_DEFAULT), 0);
            else
                cr_assert_geq(H5Lcreate_soft("/kinds", file, names[i], H5P_DEFAULT, H5P_DEFAULT),
                              0);
            commit_again(file);
            snprintf(why, sizeof why, "%s is a link to somewhere else", names[i]);
            expect_refused(why);
        }
}

/* A few hundred bytes must not make gigabytes of zeros. */
Test(ckpt_hostile, a_table_of_rows_that_nobody_wrote_is_refused)
{
    hid_t file = edit();
    hid_t type = ckpt_h5_tensor_type();
    hsize_t n = 1 << 24;
    hid_t space = H5Screate_simple(1, &n, NULL);

    cr_assert_geq(H5Ldelete(file, "/tensors", H5P_DEFAULT), 0);
    hid_t dataset =
        H5Dcreate2(file, "/tensors", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);

    cr_assert_geq(dataset, 0);
    H5Dclose(dataset);
    H5Sclose(space);
    H5Tclose(type);
    commit_again(file);
    expect_refused("table /tensors has another type, layout or size than expected");
}

Test(ckpt_hostile, a_table_that_is_missing_is_named)
{
    hid_t file = edit();

    cr_assert_geq(H5Ldelete(file, "/shards", H5P_DEFAULT), 0);
    commit_again(file);
    expect_refused("has no table /shards");
}

Test(ckpt_hostile, texts_are_optional_one_by_one_and_all)
{
    hid_t file = edit();
    struct ckpt *ckpt = NULL;

    cr_assert_geq(H5Ldelete(file, "/config/yaml", H5P_DEFAULT), 0);
    commit_again(file);
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_null(ckpt_meta(ckpt)->config_yaml);
    cr_expect_not_null(ckpt_meta(ckpt)->model_json);
    ckpt_close(ckpt);
    file = edit();
    cr_assert_geq(H5Ldelete(file, "/config", H5P_DEFAULT), 0);
    commit_again(file);
    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_null(ckpt_meta(ckpt)->model_json);
    ckpt_close(ckpt);
}

Test(ckpt_hostile, words_for_people_hold_no_terminal_commands)
{
    const char *names[] = {"optimizer", "run_uuid", "conventions", "format"};
    char saved[512];

    snprintf(saved, sizeof saved, "%s/saved", root);
    copy_file(manifest, saved);
    for (int i = 0; i < 4; i++) {
        char why[64];
        hid_t file;

        copy_file(saved, manifest);
        file = edit();
        cr_assert_geq(H5Adelete(file, names[i]), 0);
        cr_assert_geq(ckpt_h5_put_text_attr(file, names[i], "\033[2Jadamw"), 0);
        commit_again(file);
        snprintf(why, sizeof why, "attribute %s is not printable", names[i]);
        expect_refused(why);
    }
}

Test(ckpt_hostile, a_commit_names_a_step_and_an_attempt)
{
    const char *attempts[] = {"\033[2J", "../x"};
    char dir[512], text[512];
    struct commit good, bad;

    file_in_step(dir, root, 2, "");
    cr_assert_eq(ckpt_commit_read(dir, &good), SHOAL_OK);
    for (int i = 0; i < 3; i++) {
        bad = good;
        if (i < 2)
            snprintf(bad.attempt, sizeof bad.attempt, "%s", attempts[i]);
        else
            bad.step = -2;
        cr_assert_eq(
            ckpt_fs_write_file(dir, "COMMIT", text, ckpt_commit_format(text, sizeof text, &bad)),
            SHOAL_OK);
        expect_refused("is not a commit record");
    }
}

Test(ckpt_hostile, public_calls_refuse_null)
{
    struct shoal_checkpoint *checkpoint = NULL;
    float x;

    cr_assert_eq(shoal_checkpoint_open(root, &checkpoint), SHOAL_OK);
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 0, NULL, 0, 1, &x), SHOAL_ERR_USAGE);
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 0, "master", 0, 1, NULL), SHOAL_ERR_USAGE);
    cr_expect_eq(shoal_checkpoint_read(checkpoint, 0, "master", 0, 1, &x), SHOAL_OK);
    shoal_checkpoint_close(checkpoint);
}

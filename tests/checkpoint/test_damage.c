#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/fixture.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Damaged and foreign checkpoints: every change is detected or changes nothing that is read. */

static void setup(void)
{
    fixture_saved(2);
}

TestSuite(ckpt_damage, .init = setup, .fini = fixture_teardown);

static const char *const files[] = {"COMMIT", "manifest.h5", "rank-00000.h5", "rank-00001.h5"};

/* Step 2 given explicitly: an error, or every element right. */
static void expect_detected_or_harmless(const char *what, size_t *n_detected)
{
    char dir[512];
    int64_t step = -1;
    int64_t wrong = -1;

    file_in_step(dir, root, 2, "");

    shoal_status status = read_back(dir, layout, 1, &step, &wrong);

    if (status != SHOAL_OK) {
        (*n_detected)++;
        cr_assert_eq(status, SHOAL_ERR_DATA, "%s: %s", what, shoal_last_error());
        return;
    }
    cr_assert_eq(step, 2, "%s", what);
    cr_assert_eq(wrong, 0, "%s: %ld elements are wrong", what, (long)wrong);
}

static long size_of(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 ? (long)st.st_size : -1;
}

Test(ckpt_damage, one_flipped_bit_anywhere_is_detected_or_harmless, .timeout = 200)
{
    for (size_t i = 0; i < 4; i++) {
        char path[512];
        size_t n_detected = 0;
        size_t n = 0;

        file_in_step(path, root, 2, files[i]);

        /* Each region: dense at the head, then strides that are no multiple of a page. */
        long size = size_of(path);

        for (long at = 0; at < size; n++) {
            char what[64];

            snprintf(what, sizeof what, "%s, byte %ld", files[i], at);
            flip_bit(path, at, (int)(at % 8));
            expect_detected_or_harmless(what, &n_detected);
            flip_bit(path, at, (int)(at % 8));
            at += i == 0 ? 1 : at < 4000 ? 61 : 1777;
        }
        cr_log_info("%s: %zu of %zu flips detected", files[i], n_detected, n);
        /* COMMIT and the manifest are covered whole; a rank file only has padding besides. */
        if (i < 2)
            cr_expect_eq(n_detected, n, "%s: %zu of %zu", files[i], n_detected, n);
        else
            cr_expect_geq(100 * n_detected, 95 * n, "%s: %zu of %zu", files[i], n_detected, n);
    }
}

Test(ckpt_damage, a_flipped_payload_bit_is_named_with_file_tensor_and_bytes)
{
    struct ckpt *ckpt = NULL;
    char path[512];
    int64_t step;
    int64_t wrong;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK);

    /* exp_avg_sq of the QKV matrix, wherever rank 1 put it. */
    size_t n = 0;
    int kind = ckpt_find_kind(ckpt, "exp_avg_sq");
    size_t first = ckpt_shards_find(ckpt->shards, ckpt->n_shards, 2, (uint32_t)kind, &n);

    cr_assert_eq(n, 2);
    long at = (long)ckpt->shards[first + 1].byte_off + 1001;

    ckpt_close(ckpt);
    file_in_step(path, root, 2, "rank-00001.h5");
    flip_bit(path, at, 3);
    cr_assert_eq(read_back(root, layout, 2, &step, &wrong), SHOAL_ERR_DATA);
    cr_expect_neq(strstr(shoal_last_error(), "rank-00001.h5: exp_avg_sq of h.0.attn.c_attn.weight"),
                  NULL, "%s", shoal_last_error());
    cr_expect_neq(strstr(shoal_last_error(), "crc32c"), NULL);
}

Test(ckpt_damage, truncation_skips_to_the_older_step_and_says_why)
{
    const long cuts[] = {1, 4096, -2};

    for (size_t i = 0; i < 4; i++)
        for (size_t c = 0; c < 3; c++) {
            char path[512];
            char dir[512];
            char saved[512];
            int64_t step = -1;
            int64_t wrong = -1;

            file_in_step(path, root, 2, files[i]);
            file_in_step(dir, root, 2, "");
            snprintf(saved, sizeof saved, "%s/saved", root);

            long size = size_of(path);
            long left = cuts[c] < 0 ? size / 2 : size - cuts[c];

            if (left < 0)
                left = 0;
            copy_file(path, saved);
            cr_assert_eq(truncate(path, left), 0);
            cr_expect_eq(read_back(dir, layout, 1, &step, &wrong), SHOAL_ERR_DATA, "%s to %ld",
                         files[i], left);
            cr_expect_neq(strstr(shoal_last_error(), files[i]), NULL, "%s", shoal_last_error());
            cr_assert_eq(read_back(root, layout, 1, &step, &wrong), SHOAL_OK, "%s",
                         shoal_last_error());
            cr_expect_eq(step, 1, "the older step is whole");
            cr_expect_eq(wrong, 0);
            copy_file(saved, path);
            unlink(saved);
        }
}

static void expect_refused(const char *why)
{
    char dir[512];
    int64_t step = -1;
    int64_t wrong = -1;

    file_in_step(dir, root, 2, "");
    cr_expect_eq(read_back(dir, layout, 1, &step, &wrong), SHOAL_ERR_DATA);
    cr_expect_neq(strstr(shoal_last_error(), why), NULL, "expected \"%s\" in: %s", why,
                  shoal_last_error());
    cr_assert_eq(read_back(root, layout, 1, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(step, 1);
}

Test(ckpt_damage, a_missing_rank_file_is_named)
{
    char path[512];

    file_in_step(path, root, 2, "rank-00001.h5");
    unlink(path);
    expect_refused("rank-00001.h5: is missing");
}

Test(ckpt_damage, swapped_rank_files_are_told_by_rank_or_size)
{
    char a[512];
    char b[512];
    char c[512];

    /* The same size, so that only the header can tell. */
    file_in_step(a, root, 2, "rank-00000.h5");
    file_in_step(b, root, 2, "rank-00001.h5");
    snprintf(c, sizeof c, "%s/x", root);
    copy_file(a, c);
    cr_assert_eq(truncate(c, size_of(b)), 0);
    rename(c, b);
    expect_refused("rank-00001.h5");
}

Test(ckpt_damage, a_file_of_another_save_is_told_by_its_attempt)
{
    char from[512];
    char to[512];

    file_in_step(from, root, 1, "rank-00000.h5");
    file_in_step(to, root, 2, "rank-00000.h5");
    cr_assert_eq(size_of(from), size_of(to));
    copy_file(from, to);
    expect_refused("belongs to another save");
}

Test(ckpt_damage, a_manifest_of_another_step_is_refused)
{
    char from[512];
    char to[512];

    for (size_t i = 0; i < 2; i++) {
        file_in_step(from, root, 1, files[i]);
        file_in_step(to, root, 2, files[i]);
        copy_file(from, to);
    }
    expect_refused("holds step 1");
}

Test(ckpt_damage, a_temporary_directory_is_refused_by_name)
{
    char from[512];
    char to[512];
    struct ckpt *ckpt = NULL;

    file_in_step(from, root, 2, "");
    snprintf(to, sizeof to, "%s/step-000000000002.tmp-abc", root);
    cr_assert_eq(rename(from, to), 0);
    cr_expect_eq(ckpt_open(to, &ckpt), SHOAL_ERR_DATA);
    cr_expect_neq(strstr(shoal_last_error(), "unfinished"), NULL, "%s", shoal_last_error());
}

Test(ckpt_damage, a_renamed_whole_step_opens_by_its_path)
{
    char from[512];
    char to[512];
    int64_t step = -1;
    int64_t wrong = -1;

    file_in_step(from, root, 2, "");
    snprintf(to, sizeof to, "%s/best", root);
    cr_assert_eq(rename(from, to), 0);
    cr_expect_eq(read_back(to, layout, 3, &step, &wrong), SHOAL_OK, "%s", shoal_last_error());
    cr_expect_eq(step, 2);
}

#ifdef __SANITIZE_ADDRESS__
/* HDF5 1.10.8 loses some memory of its own when a file turns out to be damaged. */
__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libhdf5\nleak:libcriterion\n";
}
#endif

/* ---- a hostile manifest: its checksum in COMMIT fits ---- */

static void write_image(const char *image, size_t n)
{
    struct commit commit;
    char dir[512];
    char text[512];

    file_in_step(dir, root, 2, "");
    cr_assert_eq(ckpt_commit_read(dir, &commit), SHOAL_OK, "%s", shoal_last_error());
    commit.manifest_bytes = n;
    commit.manifest_crc = ckpt_crc32c(0, image, n);
    cr_assert_eq(ckpt_fs_write_file(dir, "manifest.h5", image, n), SHOAL_OK);
    cr_assert_eq(
        ckpt_fs_write_file(dir, "COMMIT", text, ckpt_commit_format(text, sizeof text, &commit)),
        SHOAL_OK);
}

/* Find the tables in the image by what they must contain. */
static size_t find_bytes(const char *image, size_t n, const void *what, size_t m)
{
    const char *at = memmem(image, n, what, m);

    cr_assert_not_null(at);
    return (size_t)(at - image);
}

Test(ckpt_damage, mutated_manifests_with_a_fitting_checksum_never_crash_the_reader, .timeout = 250)
{
    static const uint64_t odd[] = {0, 1, 0x7fffffff, 0xffffffff, 1ull << 62, ~0ull};
    struct ckpt *ckpt = NULL;
    char path[512];
    char *image = NULL;
    size_t n = 0;
    size_t n_detected = 0;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK);
    file_in_step(path, root, 2, "manifest.h5");
    cr_assert_eq(ckpt_fs_read_file(path, 1 << 26, &image, &n), SHOAL_OK);

    /* The regions that HDF5's own checksums do not cover: the rows. */
    size_t shards_at = find_bytes(image, n, &ckpt->files[0], sizeof(struct file_row));
    size_t tensors_at = find_bytes(image, n, "wte.weight\0\0", 12);
    struct state_row state = ckpt_state_row(&ckpt->states[0]);
    size_t states_at = find_bytes(image, n, &state, sizeof state);
    size_t states_bytes = ckpt->n_states * sizeof state;
    char *copy = malloc(n);

    ckpt_close(ckpt);
    srand(7);
    for (int i = 0; i < 500; i++) {
        char what[64];
        size_t at = (size_t)rand() % n;

        memcpy(copy, image, n);
        if (i % 4 == 1)
            at = shards_at - 400 + (size_t)rand() % 496;
        else if (i % 4 == 2)
            at = tensors_at + (size_t)rand() % (160 * 5);
        else if (i % 4 == 3)
            at = states_at + (size_t)rand() % states_bytes;
        if (i % 2 == 0)
            copy[at] = (char)(copy[at] ^ (1 << (rand() % 8)));
        else
            memcpy(copy + (at & ~7ul) % (n - 8), &odd[rand() % 6], 8);
        snprintf(what, sizeof what, "mutation %d at %zu", i, at);
        write_image(copy, i % 50 == 49 ? (size_t)rand() % n : n);

        /* Names, shapes and texts may differ now: then the tensors do not match the layout. */
        struct ckpt *opened = NULL;
        char dir[512];
        char hash[33];

        file_in_step(dir, root, 2, "");
        if (ckpt_open(dir, &opened) == SHOAL_OK)
            (void)ckpt_hash(opened, NULL, hash);
        else
            n_detected++;
        ckpt_close(opened);
    }
    cr_log_info("%zu of 500 mutations refused at open", n_detected);
    cr_expect_eq(H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL), 0, "ids are left open");
    cr_expect_gt(n_detected, 100);
    free(copy);
    free(image);
}

Test(ckpt_damage, extents_that_leave_their_file_or_overlap_are_refused)
{
    struct ckpt *ckpt = NULL;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK);

    struct shard_space space = ckpt->space;
    size_t n = ckpt->n_shards;
    struct shard_row *rows = malloc(n * sizeof *rows);

#define EXPECT_REFUSED(change, why)                                                                \
    do {                                                                                           \
        memcpy(rows, ckpt->shards, n * sizeof *rows);                                              \
        change;                                                                                    \
        cr_expect_eq(ckpt_shards_check(SHOAL_ERR_DATA, "test", &space, rows, n), SHOAL_ERR_DATA,   \
                     #change);                                                                     \
        cr_expect_neq(strstr(shoal_last_error(), why), NULL, "%s: %s", #change,                    \
                      shoal_last_error());                                                         \
    } while (0)

    memcpy(rows, ckpt->shards, n * sizeof *rows);
    cr_expect_eq(ckpt_shards_check(SHOAL_ERR_DATA, "test", &space, rows, n), SHOAL_OK);
    EXPECT_REFUSED(rows[0].tensor = 99, "does not exist");
    EXPECT_REFUSED(rows[0].rank = 2, "does not exist");
    EXPECT_REFUSED(rows[0].kind = 0xffffffff, "does not exist");
    EXPECT_REFUSED(rows[0].byte_off = UINT64_MAX - 8, "outside the payload");
    EXPECT_REFUSED(rows[0].byte_off = 0, "outside the payload");
    EXPECT_REFUSED(rows[0].first_block = 0xffffffff, "outside rank 0's table");
    EXPECT_REFUSED(rows[0].end = INT64_MAX, "which has");
    EXPECT_REFUSED(rows[0].begin = -1, "which has");
    EXPECT_REFUSED(rows[0].end -= 1, "stored nowhere");
    EXPECT_REFUSED(rows[1].begin -= 1, "");
    EXPECT_REFUSED(rows[0].byte_off = rows[2].byte_off, "share bytes");
#undef EXPECT_REFUSED
    free(rows);
    ckpt_close(ckpt);
}

#include "checkpoint/checkpoint_internal.h"
#include "tests/checkpoint/items.h"
#include "tests/checkpoint/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Items that do not fit together, damaged ones, and copies that fail. */

static char root[256];
static struct layout *layout;
static char bytes[8192];

static void setup(void)
{
    make_root(root);
    layout = items_layout(false);
}

static void teardown(void)
{
    layout_destroy(layout);
    remove_tree(root);
}

TestSuite(ckpt_items_faults, .init = setup, .fini = teardown);

static void expect_error(const char *text)
{
    cr_expect_neq(strstr(shoal_last_error(), text), NULL, "expected \"%s\" in: %s", text,
                  shoal_last_error());
}

static void save_step(int64_t step, int n_ranks)
{
    struct items_job job = {.root = root, .layout = layout, .step = step};

    cr_assert_eq(world_run(n_ranks, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
}

static struct ckpt *open_root(void)
{
    struct ckpt *ckpt = NULL;

    cr_assert_eq(ckpt_open(root, &ckpt), SHOAL_OK, "%s", shoal_last_error());
    return ckpt;
}

/* ---- what does not fit ---- */

static void expect_config_error(struct ckpt *ckpt, struct ckpt_piece piece, const char *text)
{
    memset(bytes, 0x77, sizeof bytes);
    piece.data = bytes;
    cr_expect_eq(ckpt_read(ckpt, layout, &piece, 1), SHOAL_ERR_CONFIG, "%s", text);
    expect_error(text);
    for (size_t i = 0; i < sizeof bytes; i++)
        cr_assert_eq(bytes[i], 0x77, "byte %zu was written", i);
}

Test(ckpt_items_faults, another_type_codec_or_length_is_refused_before_anything_is_read)
{
    save_step(3, 2);

    struct ckpt *ckpt = open_root();
    const struct ckpt_piece codes = {
        .kind = "exp_avg.q", .tensor = 0, .type = CKPT_U8, .codec = "dyn8/256", .end = 100};
    struct ckpt_piece p = codes;

    p.codec[5] = '1';
    expect_config_error(ckpt, p,
                        "exp_avg.q of h.0.w is 20853 x u8, codec dyn8/256 there, "
                        "20853 x u8, codec dyn8/156 in this run");
    p = codes;
    p.codec[0] = '\0';
    expect_config_error(ckpt, p, "codec dyn8/256 there, 20853 x u8, no codec in this run");
    p = codes;
    p.type = CKPT_I8;
    expect_config_error(ckpt, p, "20853 x u8, codec dyn8/256 there, 20853 x i8, codec dyn8/256 in");
    p = codes;
    p.type = CKPT_F32;
    p.codec[0] = '\0';
    expect_config_error(ckpt, p, "20853 x u8, codec dyn8/256 there, 20853 x f32, no codec in");
    p = codes;
    p.n_items = 20854;
    expect_config_error(ckpt, p, "20853 x u8, codec dyn8/256 there, 20854 x u8");
    p = (struct ckpt_piece){.kind = "exp_avg.scale", .codec = "dyn8/256", .end = 1};
    expect_config_error(ckpt, p, "82 x f32, codec dyn8/256 there, 20853 x f32, codec dyn8/256 in");

    /* A good piece in front of a bad one is not read either. */
    struct ckpt_piece pair[2] = {codes, codes};

    pair[0].data = pair[1].data = bytes;
    pair[1].type = CKPT_I8;
    cr_expect_eq(ckpt_read(ckpt, layout, pair, 2), SHOAL_ERR_CONFIG);
    cr_expect_eq(bytes[0], 0x77);

    /* A tensor without the kind, though others have it. */
    p = (struct ckpt_piece){.kind = "per_head", .n_items = 7, .end = 7, .data = bytes};
    cr_expect_eq(ckpt_read(ckpt, layout, &p, 1), SHOAL_ERR_DATA);
    expect_error("has no per_head of h.0.w");
    ckpt_close(ckpt);
}

static void expect_refused(const struct given *given, int n_ranks, const char *text)
{
    struct ckpt *ckpt = NULL;

    cr_expect_eq(world_run(n_ranks, given_save, (void *)(uintptr_t)given), SHOAL_ERR_INTERNAL, "%s",
                 text);
    expect_error(text);
    cr_expect_eq(ckpt_open(root, &ckpt), SHOAL_ERR_NOINPUT, "nothing may be left behind");
}

Test(ckpt_items_faults, pieces_that_disagree_are_refused_within_a_rank_and_across_ranks)
{
    struct ckpt_piece p[2] = {
        {.kind = "m", .tensor = 1, .type = CKPT_U8, .n_items = 9, .end = 4, .data = bytes},
        {.kind = "m",
         .tensor = 1,
         .type = CKPT_U8,
         .n_items = 9,
         .begin = 4,
         .end = 9,
         .data = bytes}};
    struct given one = {.root = root, .layout = layout, .pieces = p, .n_of_rank = {2}};
    struct given two = {.root = root, .layout = layout, .pieces = p, .n_of_rank = {1, 1}};

    strcpy(p[1].codec, "x");
    expect_refused(&one, 1, "m of h.0.attn is given as 9 x u8, no codec and as 9 x u8, codec x");
    expect_refused(&two, 2, "m of h.0.attn is given as 9 x u8, ");
    p[1].codec[0] = '\0';
    p[1].type = CKPT_I8;
    expect_refused(&one, 1, "as 9 x u8, no codec and as 9 x i8, no codec");
    expect_refused(&two, 2, "m of h.0.attn is given as 9 x ");
    p[1].type = CKPT_U8;
    p[1].n_items = 10;
    expect_refused(&one, 1, "as 9 x u8, no codec and as 10 x u8, no codec");
    expect_refused(&two, 2, "m of h.0.attn is given as ");
}

Test(ckpt_items_faults, a_kind_of_its_own_length_must_be_covered_whole)
{
    struct ckpt_piece p[2] = {
        {.kind = "m", .tensor = 1, .type = CKPT_U16, .n_items = 9, .end = 3, .data = bytes},
        {.kind = "m",
         .tensor = 1,
         .type = CKPT_U16,
         .n_items = 9,
         .begin = 4,
         .end = 9,
         .data = bytes}};
    struct given two = {.root = root, .layout = layout, .pieces = p, .n_of_rank = {1, 1}};

    expect_refused(&two, 2, "m of h.0.attn: items 3..4 are stored nowhere");
    p[1].begin = 2;
    expect_refused(&two, 2, "m of h.0.attn: items 2..3 are stored twice");
    p[1].begin = 3;
    p[1].end = 8;
    expect_refused(&two, 2, "m of h.0.attn: items 8..9 are stored nowhere");
    p[1].end = 10;
    expect_refused(&two, 2, "m of h.0.attn: items 3..10 of 9");
    p[1].end = 9;
    expect_refused(&two, 2, "tensor h.0.w is stored nowhere");
}

Test(ckpt_items_faults, pieces_that_cannot_be_stored_are_refused)
{
    const struct ckpt_piece good = {
        .kind = "m", .tensor = 1, .type = CKPT_U8, .end = 5, .data = bytes};
    struct ckpt_piece p = good;
    struct given given = {.root = root, .layout = layout, .pieces = &p, .n_of_rank = {1}};

    memset(p.kind, 'k', sizeof p.kind);
    expect_refused(&given, 1, "bad state name");
    p = good;
    p.type = CKPT_TYPE_COUNT;
    expect_refused(&given, 1, "m of h.0.attn: bad type");
    p = good;
    p.type = (enum ckpt_type) - 1;
    expect_refused(&given, 1, "m of h.0.attn: bad type");
    p = good;
    memset(p.codec, 'c', sizeof p.codec);
    expect_refused(&given, 1, "m of h.0.attn: bad codec");
    p = good;
    strcpy(p.codec, "a b");
    expect_refused(&given, 1, "m of h.0.attn: bad codec");
    p = good;
    p.n_items = -1;
    expect_refused(&given, 1, "items 0..5 of -1");
    p = good;
    p.n_items = INT64_MAX;
    expect_refused(&given, 1, "items 0..5 of 9223372036854775807");
    p = good;
    p.data = NULL;
    expect_refused(&given, 1, "no memory given");
}

Test(ckpt_items_faults, more_kinds_than_the_format_has_room_for_are_refused)
{
    static struct ckpt_piece p[CKPT_MAX_KINDS + 1];
    struct given given = {.root = root, .layout = layout, .pieces = p};

    for (int k = 0; k <= CKPT_MAX_KINDS; k++) {
        p[k] = (struct ckpt_piece){
            .tensor = k % 4, .type = CKPT_U8, .n_items = 1, .end = 1, .data = bytes};
        snprintf(p[k].kind, sizeof p[k].kind, "kind %d", k);
    }
    given.n_of_rank[0] = CKPT_MAX_KINDS + 1;
    expect_refused(&given, 1, "more than 64 state kinds");
    given.n_of_rank[0] = CKPT_MAX_KINDS / 2;
    given.n_of_rank[1] = CKPT_MAX_KINDS / 2 + 1;
    expect_refused(&given, 2, "more than 64 state kinds");
    given.n_of_rank[1] = CKPT_MAX_KINDS / 2;
    cr_expect_eq(world_run(2, given_save, &given), SHOAL_OK, "%s", shoal_last_error());
}

/* ---- copies that fail ---- */

Test(ckpt_items_faults, a_failing_copy_ends_the_save_and_leaves_the_step_before)
{
    const int fails[] = {1, 2, 17};
    int64_t step = -1;
    int64_t wrong = -1;

    save_step(3, 2);
    for (int i = 0; i < 3; i++) {
        struct items_job job = {.root = root,
                                .layout = layout,
                                .step = 4,
                                .staging_bytes = 8192,
                                .chunk = 1000,
                                .device = true,
                                .fail_copy = fails[i]};
        struct ckpt_entry *entries = NULL;
        size_t n = 0;

        cr_expect_eq(world_run(2, items_save, &job), SHOAL_ERR_UNAVAILABLE);
        expect_error("test device: copy");
        cr_assert_eq(ckpt_list(root, &entries, &n), SHOAL_OK);
        cr_expect_eq(n, 1, "the temporary is removed");
        free(entries);
        cr_assert_eq(items_read_back(root, layout, 1, false, &step, &wrong), SHOAL_OK);
        cr_expect_eq(step, 3);
        cr_expect_eq(wrong, 0);
        job.fail_copy = 0;
        job.step = 5 + i;
        cr_assert_eq(world_run(2, items_save, &job), SHOAL_OK, "%s", shoal_last_error());
        cr_assert_eq(items_read_back(root, layout, 3, true, &step, &wrong), SHOAL_OK);
        cr_expect_eq(step, 5 + i);
        cr_expect_eq(wrong, 0);
        remove_tree(root);
        cr_assert_eq(mkdir(root, 0777), 0);
        save_step(3, 2);
    }
}

Test(ckpt_items_faults, a_failing_copy_ends_the_read)
{
    const struct items_cut cut = {.n_ranks = 1, .chunk = 1000, .device = true};
    struct items items;

    save_step(3, 2);

    struct ckpt *ckpt = open_root();

    items_create(&items, layout, &cut);
    items.device.fail_copy = 5;
    cr_expect_eq(ckpt_read(ckpt, layout, items.pieces, items.n), SHOAL_ERR_UNAVAILABLE);
    expect_error("test device: copy 5 fails");
    cr_expect_eq(items.device.n_copies, 5, "nothing is copied after the failure");
    items.device.fail_copy = 0;
    cr_expect_eq(ckpt_read(ckpt, layout, items.pieces, items.n), SHOAL_OK, "%s",
                 shoal_last_error());
    cr_expect_eq(items_wrong(&items, 3), 0);
    items_destroy(&items);
    ckpt_close(ckpt);
}

/* ---- damage ---- */

/* The first, the last and a byte in the middle of every extent of every type. */
Test(ckpt_items_faults, a_flipped_bit_of_any_item_is_named_with_kind_and_tensor)
{
    save_step(3, 3);

    struct ckpt *ckpt = open_root();

    for (size_t i = 0; i < ckpt->n_shards; i++)
        for (uint64_t part = 0; part < 3; part++) {
            const struct shard_row *s = &ckpt->shards[i];
            uint64_t at = s->byte_off + (ckpt_shard_bytes(&ckpt->space, s) - 1) * part / 2;
            char name[CKPT_NAME_BYTES];
            char path[512];
            char text[256];
            int64_t step;
            int64_t wrong;

            ckpt_rank_file_name(name, s->rank);
            file_in_step(path, root, 3, name);
            flip_bit(path, (long)at, 4);
            cr_assert_eq(items_read_back(root, layout, 2, false, &step, &wrong), SHOAL_ERR_DATA);
            snprintf(text, sizeof text, "%s: %s of %s is damaged", name, ckpt->kinds[s->kind],
                     ckpt->tensors[s->tensor].name);
            expect_error(text);
            flip_bit(path, (long)at, 4);
        }
    cr_expect_gt(ckpt->n_shards, 60);
    ckpt_close(ckpt);
}

Test(ckpt_items_faults, truncated_codes_are_refused_and_the_older_step_is_taken)
{
    char path[512];
    struct stat st;
    int64_t step = -1;
    int64_t wrong = -1;

    save_step(3, 2);
    save_step(4, 2);
    file_in_step(path, root, 4, "rank-00001.h5");
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(truncate(path, st.st_size - 1), 0);
    cr_assert_eq(items_read_back(root, layout, 2, false, &step, &wrong), SHOAL_OK);
    cr_expect_eq(step, 3);
    cr_expect_eq(wrong, 0);
    file_in_step(path, root, 4, "");
    cr_expect_eq(items_read_back(path, layout, 2, false, &step, &wrong), SHOAL_ERR_DATA);
    expect_error("rank-00001.h5: holds");
}

Test(ckpt_items_faults, a_table_of_states_that_makes_no_sense_is_refused)
{
    save_step(3, 2);

    struct ckpt *ckpt = open_root();
    size_t n = ckpt->n_states;
    struct state_row *good = malloc(n * sizeof *good);
    struct state_row *rows = malloc(n * sizeof *rows);
    struct state *states = NULL;

    for (size_t i = 0; i < n; i++)
        good[i] = ckpt_state_row(&ckpt->states[i]);
    cr_assert_eq(ckpt_states_take("test", &ckpt->space, good, n, &states), SHOAL_OK);
    free(states);
#define EXPECT_REFUSED(change, why)                                                                \
    do {                                                                                           \
        memcpy(rows, good, n * sizeof *rows);                                                      \
        change;                                                                                    \
        cr_expect_eq(ckpt_states_take("test", &ckpt->space, rows, n, &states), SHOAL_ERR_DATA,     \
                     #change);                                                                     \
        expect_error(why);                                                                         \
    } while (0)
    EXPECT_REFUSED(rows[1].tensor = 4, "does not exist");
    EXPECT_REFUSED(rows[1].kind = UINT32_MAX, "does not exist");
    EXPECT_REFUSED(rows[1].type[0] = 'x', "not known to this program");
    EXPECT_REFUSED(rows[1].type[0] = '\0', "not known to this program");
    EXPECT_REFUSED(memset(rows[1].type, 'f', 8), "items of type ffffffff, not known");
    EXPECT_REFUSED(rows[1].n_items = 0, "0 items");
    EXPECT_REFUSED(rows[1].n_items = INT64_MIN, "items");
    EXPECT_REFUSED(rows[1].n_items = INT64_MAX, "items");
    EXPECT_REFUSED(memset(rows[1].codec, 'c', CKPT_CODEC_BYTES), "not printable");
    EXPECT_REFUSED(rows[1].codec[0] = '\n', "not printable");
    EXPECT_REFUSED(rows[1] = rows[0], "listed twice");
    EXPECT_REFUSED((rows[1] = rows[0], rows[1].n_items++), "is given as");
#undef EXPECT_REFUSED

    /* Tables that are fine by themselves but do not fit the shards. */
    struct shard_space space = ckpt->space;
    struct shard_row *shards = malloc(ckpt->n_shards * sizeof *shards);

    memcpy(shards, ckpt->shards, ckpt->n_shards * sizeof *shards);
    space.states = ckpt->states + 1;
    space.n_states = n - 1;
    cr_expect_eq(ckpt_shards_check(SHOAL_ERR_DATA, "test", &space, shards, ckpt->n_shards),
                 SHOAL_ERR_DATA);
    expect_error("which the table of states does not list");
    space.states = ckpt->states;
    space.n_states = n;
    cr_expect_eq(ckpt_shards_check(SHOAL_ERR_DATA, "test", &space, shards, ckpt->n_shards - 1),
                 SHOAL_ERR_DATA);
    expect_error("stored nowhere");
    ckpt->states[0].n_items++;
    cr_expect_eq(ckpt_shards_check(SHOAL_ERR_DATA, "test", &space, shards, ckpt->n_shards),
                 SHOAL_ERR_DATA);
    expect_error("stored nowhere");
    ckpt->states[0].n_items--;
    free(shards);
    free(rows);
    free(good);
    ckpt_close(ckpt);
}

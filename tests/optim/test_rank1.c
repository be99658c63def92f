#include "optim/codec_map.h"
#include "optim/stats.h"
#include "runtime/base/rng.h"
#include "tests/optim/codecs.h"
#include "tests/optim/world.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/* Second moments with a scale for each row and each column (Li et al.), against plain loops. */

enum { MLP_UP = 3, N_UPDATES = 5, ROWS = 150, COLS = 67 };

static const float GRAD_SCALE = 0.7f; /* world_begin's */

/* The state of one tensor as a reference keeps it. */
struct reference {
    uint8_t codes[ROWS][COLS];
    float row[ROWS], col[COLS];
};

static float scale_of(const struct reference *r, int i, int j)
{
    return fminf(r->row[i], r->col[j]);
}

/* By distance to all values, the lowest of the nearest; NaN has no distance. */
static uint8_t nearest(float share)
{
    int best = 0;

    for (int k = 1; k < 16; k++)
        if (fabsf(share - (float)(k + 1) / 16) < fabsf(share - (float)(best + 1) / 16))
            best = k;
    return (uint8_t)best;
}

static void reference_update(struct reference *r, const float *grad)
{
    static float v[ROWS][COLS];
    const float beta2 = (float)0.95, rest = (float)(1 - 0.95);

    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) {
            const float g = grad[i * COLS + j] * GRAD_SCALE;
            const float kept = (float)(r->codes[i][j] + 1) / 16 * scale_of(r, i, j);

            v[i][j] = kept * beta2 + g * rest * g;
        }
    memset(r->row, 0, sizeof r->row);
    memset(r->col, 0, sizeof r->col);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) {
            r->row[i] = fmaxf(r->row[i], v[i][j]);
            r->col[j] = fmaxf(r->col[j], v[i][j]);
        }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++)
            r->codes[i][j] = nearest(v[i][j] / scale_of(r, i, j));
}

static void assert_matches(const struct world *world, const struct reference *r, int64_t update)
{
    const int kind = world->setup->tensors[MLP_UP].codes[1];
    const struct shard whole = {0, world->layout->units[0].n_elements};
    const char *rest = plan_ref(world->plan, world->refs[0].kinds[kind]);
    const uint8_t *codes =
        (const uint8_t *)rest + optim_kind_offset(world->setup, MLP_UP, kind, whole);
    float *row = NULL, *col = NULL;

    optim_rank1_vectors(world->setup, MLP_UP, plan_ref(world->plan, world->refs[0].vectors), &row,
                        &col);
    cr_assert_arr_eq(row, r->row, sizeof r->row, "rows after %d", (int)update);
    cr_assert_arr_eq(col, r->col, sizeof r->col, "columns after %d", (int)update);
    for (int e = 0; e < ROWS * COLS; e++)
        cr_assert_eq(codes[e / 2] >> (e % 2 * 4) & 15, r->codes[e / COLS][e % COLS],
                     "code %d after %d", e, (int)update);
}

Test(rank1, states_are_those_of_plain_loops)
{
    static struct reference r;
    struct world world;

    world_open(&world,
               &(struct world_params){.rule = "adamw", .state = "lpmm4_rank1", .master = "fp32"});
    for (int64_t update = 1; update <= N_UPDATES; update++) {
        const float *grad = plan_ref(world.plan, world.refs[0].grad);

        world_begin(&world, update, 1e-2);
        reference_update(&r, grad + world.layout->tensors[MLP_UP].offset);
        world_run(&world);
        assert_matches(&world, &r, update);
    }
    world_close(&world);
}

Test(rank1, is_of_coded_second_moments_of_matrices_alone)
{
    static const int ranks[] = {-1, 1,  -1, 1,
                                1,  -1, -1}; /* embedding, bias, small and norm: fp32 */
    struct world world;

    world_open(&world,
               &(struct world_params){.rule = "adamw", .state = "lpmm4_rank1", .master = "fp32"});
    for (int t = 0; t < world.layout->n_tensors; t++)
        cr_assert_eq(world.setup->tensors[t].rank1, ranks[t], "%s", world.layout->tensors[t].name);
    cr_assert_eq(world.setup->tensors[MLP_UP].scales[1], -1);
    cr_assert_geq(world.setup->tensors[MLP_UP].scales[0], 0);
    cr_assert(!optim_pass_is_used(world.setup, 0) && !optim_pass_is_used(world.setup, 1) &&
              !optim_pass_is_used(world.setup, 2) &&
              optim_pass_is_used(world.setup, STATS_PASS_MAXIMA));
    world_close(&world);

    /* A rule without second moments of elements has the blocks of lpmm4. */
    world_open(&world, &(struct world_params){
                           .rule = "adam_mini", .state = "lpmm4_rank1", .master = "fp32"});
    for (int t = 0; t < world.layout->n_tensors; t++)
        cr_assert_eq(world.setup->tensors[t].rank1, -1);
    world_close(&world);
}

/* One dimension has blocks, also where it is told to be coded. */
Test(rank1, has_blocks_in_one_dimension)
{
    struct world world;

    world_open(&world, &(struct world_params){.rule = "adamw",
                                              .state = "fp32",
                                              .master = "fp32",
                                              .add_group = "bias: state=lpmm4_rank1"});
    cr_assert_eq(world.setup->tensors[2].rank1, -1);
    cr_assert_geq(world.setup->tensors[2].scales[1], 0);
    world_close(&world);
}

Test(rank1, a_step_that_is_skipped_leaves_everything)
{
    struct world world;
    size_t n = 0, m = 0;

    world_open(&world,
               &(struct world_params){.rule = "adamw", .state = "lpmm4_rank1", .master = "fp32"});
    world_update(&world, 1, 1e-2);
    for (int i = 0; world_kind(&world, i) != NULL; i++) {
        unsigned char *before = world_bytes(&world, world_kind(&world, i), &n);

        world_begin(&world, 2, 1e-2);
        world.step.skip = true;
        world_run(&world);

        unsigned char *after = world_bytes(&world, world_kind(&world, i), &m);
        cr_assert_eq(n, m);
        cr_assert_arr_eq(after, before, n, "%s", world_kind(&world, i));
        free(before);
        free(after);
    }
    world_close(&world);
}

/* By hand: scales {4 1; 2 1}, one of a row and of a column each; ties go down; 0 / 0 is code 0. */
Test(rank1, codes_by_hand)
{
    const struct optim_codec *codec = find_codec("lpmm4_rank1");
    const float x[6] = {4, 1, 0, 2, 0.40625f, 0};
    const float want[6] = {4, 1, 0, 2, 0.375f, 0}; /* 0.40625 is between 6/16 and 7/16 */
    float row[2] = {0}, col[3] = {0}, scales[6], got[6];
    uint8_t codes[3];

    codec_rank1_maxima(x, 3, 0, 4, row, col);
    codec_rank1_maxima(x + 4, 3, 4, 2, row, col);
    cr_assert(row[0] == 4 && row[1] == 2 && col[0] == 4 && col[1] == 1 && col[2] == 0);
    codec_rank1_scales(row, col, 3, 0, 6, scales);
    cr_assert(scales[0] == 4 && scales[1] == 1 && scales[3] == 2 && scales[4] == 1);
    codec->encode_scaled(x, scales, 6, codes);
    cr_assert(codes[0] == 0xff && codes[1] == 0xf0 && codes[2] == 0x05);
    codec->decode_scaled(codes, scales, 6, got);
    cr_assert_arr_eq(got, want, sizeof want);
}

/* Scales from any element on, across ends of rows. */
Test(rank1, scales_follow_the_elements)
{
    float row[7], col[5], scales[35];

    for (int i = 0; i < 7; i++)
        row[i] = (float)(i * 3 % 7);
    for (int j = 0; j < 5; j++)
        col[j] = (float)(j * 2 % 5);
    for (int64_t first = 0; first < 35; first++)
        for (size_t n = 0; n <= (size_t)(35 - first); n++) {
            scales[n < 35 ? n : 34] = -1;
            codec_rank1_scales(row, col, 5, first, n, scales);
            for (int64_t i = 0; i < (int64_t)n; i++)
                cr_assert_eq(scales[i], fminf(row[(first + i) / 5], col[(first + i) % 5]));
            cr_assert(n == 35 || scales[n] == -1);
        }
}

/* All forms, on all kinds of floats, against the search that specifies the map. */
Test(rank1, codes_are_those_of_the_search_in_every_form)
{
    enum { COUNT = 4099 };
    const struct optim_codec *codec = find_codec("lpmm4_rank1");
    static float x[COUNT], scales[COUNT], decoded[COUNT], want[COUNT];
    static uint8_t codes[(COUNT + 1) / 2];

    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t words[4];

        rng_block(5, 1, i, 0, words);
        memcpy(&x[i], &words[0], sizeof x[i]);
        words[1] &= 0x7fffffff;
        memcpy(&scales[i], &words[1], sizeof scales[i]);
        if (i % 3 != 0)
            x[i] = scales[i] * (float)(words[2] % 1025) / 1024;
    }
    scales[17] = scales[18] = 0;
    x[17] = 0;
    for (enum isa isa = ISA_SCALAR; isa <= isa_best(); isa++) {
        codec_encode_scaled_for(codec, isa)(x, scales, COUNT, codes);
        codec_decode_scaled_for(codec, isa)(codes, scales, COUNT,
                                            isa == ISA_SCALAR ? want : decoded);
        for (uint32_t i = 0; i < COUNT; i++) {
            const int code = codec_map_search(MAP_LPMM4, CODEC_UNSIGNED, x[i] / scales[i]);

            cr_assert_eq(codes[i / 2] >> (i % 2 * 4) & 15, code, "%s: %a / %a", isa_name(isa),
                         (double)x[i], (double)scales[i]);
        }
        cr_assert_eq(codes[COUNT / 2] >> 4, 0);
        if (isa != ISA_SCALAR)
            cr_assert_arr_eq(decoded, want, sizeof want, "%s", isa_name(isa));
    }
}

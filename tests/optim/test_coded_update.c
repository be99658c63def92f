#include "tests/optim/world.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every rule with every codec: bytes that depend on nothing but the tensor and the step. */

static const char *const RULES[] = {
    "adamw",         "adam",       "adam_atan2", "ademamix",        "adopt",
    "lion",          "mars",       "sgd",        "adam_mini",       "adafactor",
    "came",          "adamw_apex", "adamw_bnb",  "adamw_deepspeed", "adamw_torch_fused",
    "schedule_free",
};

enum { N_RULES = sizeof RULES / sizeof RULES[0], N_MASTERS = 4, N_UPDATES = 4 };

static void run(struct world *world, const struct world_params *params)
{
    world_open(world, params);
    for (int64_t update = 1; update <= N_UPDATES; update++)
        world_update(world, update, 1e-2);
}

static void assert_same(const struct world *got, const struct world *want, const char *what)
{
    for (int i = 0; world_kind(want, i) != NULL; i++) {
        size_t n_got = 0, n_want = 0;
        unsigned char *a = world_bytes(got, world_kind(want, i), &n_got);
        unsigned char *b = world_bytes(want, world_kind(want, i), &n_want);

        cr_assert_eq(n_got, n_want, "%s: %s has %zu bytes, not %zu", what, world_kind(want, i),
                     n_got, n_want);
        for (size_t k = 0; k < n_want; k++)
            cr_assert_eq(a[k], b[k], "%s: %s differs at byte %zu", what, world_kind(want, i), k);
        free(a);
        free(b);
    }
}

static void same_for_all_cuts(struct world_params params)
{
    static const struct {
        int n_ranks, n_threads;
        int64_t chunk;
    } cuts[] = {{2, 1, 0}, {3, 2, 5 * QUANTUM}, {4, 1, QUANTUM}, {8, 3, 0}};
    struct world want;
    char what[64];

    run(&want, &params);
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        struct world got;

        params.n_ranks = cuts[i].n_ranks;
        params.n_threads = cuts[i].n_threads;
        params.chunk = cuts[i].chunk;
        run(&got, &params);
        snprintf(what, sizeof what, "%s %s %s on %d ranks", params.rule, params.state,
                 params.master, cuts[i].n_ranks);
        assert_same(&got, &want, what);
        world_close(&got);
    }
    world_close(&want);
}

Test(coded_update, gives_the_same_bytes_for_every_rule_codec_and_cut)
{
    for (int r = 0; r < N_RULES; r++)
        for (int s = 0; codec_name(s) != NULL; s++)
            if (s == 0 || strcmp(RULES[r], "adafactor") != 0) /* it has no state per element */
                same_for_all_cuts(
                    (struct world_params){.rule = RULES[r],
                                          .state = codec_name(s),
                                          .master = master_codec_name((r + s) % N_MASTERS)});
}

Test(coded_update, gives_the_same_bytes_for_every_master_codec_and_cut)
{
    for (int m = 0; master_codec_name(m) != NULL; m++)
        same_for_all_cuts((struct world_params){
            .rule = "adamw", .state = "int8", .master = master_codec_name(m)});
}

Test(coded_update, gives_the_same_bytes_with_options_that_look_at_whole_tensors)
{
    same_for_all_cuts((struct world_params){
        .rule = "adamw", .state = "int8", .master = "ecc8", .cautious = true});
    same_for_all_cuts(
        (struct world_params){.rule = "lion", .state = "int4", .master = "fp32", .cautious = true});
    same_for_all_cuts((struct world_params){
        .rule = "mars", .state = "int8", .master = "split16", .tensor_clip = true});
}

/* The lossless split is the fp32 master in another form: the very same states. */
Test(coded_update, has_the_states_of_fp32_weights_with_the_lossless_split)
{
    struct world fp32, split;
    size_t n = 0;

    run(&fp32, &(struct world_params){.rule = "adamw", .state = "int8", .master = "fp32"});
    run(&split, &(struct world_params){.rule = "adamw", .state = "int8", .master = "split16"});
    for (int i = 0; i < fp32.setup->n_kinds; i++) {
        unsigned char *a = world_bytes(&fp32, fp32.setup->kinds[i], &n);
        unsigned char *b = world_bytes(&split, fp32.setup->kinds[i], &n);

        cr_assert_arr_eq(a, b, n, "%s", fp32.setup->kinds[i]);
        free(a);
        free(b);
    }

    const size_t n_elements = (size_t)fp32.layout->units[0].n_elements;
    const bf16_t *hi = plan_ref(split.plan, split.refs[0].param);
    const char *low = plan_ref(split.plan, split.refs[0].master);
    const float *want = plan_ref(fp32.plan, fp32.refs[0].master);
    float *joined = calloc(n_elements, sizeof *joined);
    split.setup->master->decode(hi, low, n_elements, joined);
    cr_assert_arr_eq(joined, want, n_elements * sizeof *want);
    free(joined);
    world_close(&fp32);
    world_close(&split);
}

Test(coded_update, keeps_fp32_where_the_default_says_so_and_codes_where_a_group_says_so)
{
    struct world world, forced;

    world_open(&world, &(struct world_params){.rule = "adamw", .state = "int8", .master = "fp32"});
    for (int t = 0; t < world.layout->n_tensors; t++) {
        const char *name = world.layout->tensors[t].name;
        const bool coded = strcmp(name, "attn.qkv") == 0 || strncmp(name, "mlp", 3) == 0;

        cr_assert_str_eq(world.setup->tensors[t].codecs[0]->name, coded ? "int8" : "fp32", "%s",
                         name);
    }
    world_close(&world);

    world_open(&forced, &(struct world_params){.rule = "adamw",
                                               .state = "int8",
                                               .master = "fp32",
                                               .add_group = "embedding,s*: state=bf16"});
    cr_assert_str_eq(forced.setup->tensors[0].codecs[0]->name, "bf16");
    cr_assert_str_eq(forced.setup->tensors[5].codecs[1]->name, "bf16");
    cr_assert_str_eq(forced.setup->tensors[1].codecs[0]->name, "int8");
    cr_assert_str_eq(forced.setup->tensors[6].codecs[0]->name, "fp32");
    world_close(&forced);
}

/* A group with another rule: its tensors change as if the whole unit had that rule. */
Test(coded_update, gives_a_group_its_own_rule_and_rate)
{
    struct world mixed, lion, adamw;
    const char *group = "up,down: rule=lion betas=0.9,0.95 weight_decay=0.1 lr_scale=0.5";

    world_open(&mixed, &(struct world_params){
                           .rule = "adamw", .state = "int8", .master = "fp32", .add_group = group});
    world_open(&lion, &(struct world_params){.rule = "lion", .state = "int8", .master = "fp32"});
    world_open(&adamw, &(struct world_params){.rule = "adamw", .state = "int8", .master = "fp32"});
    for (int64_t update = 1; update <= N_UPDATES; update++) {
        world_update(&mixed, update, 1e-2);
        world_update(&lion, update, 5e-3);
        world_update(&adamw, update, 1e-2);
    }
    for (int t = 0; t < mixed.layout->n_tensors; t++) {
        const struct tensor *tensor = &mixed.layout->tensors[t];
        const bool in_group = tensor->role == ROLE_UP || tensor->role == ROLE_DOWN;
        const struct world *same = in_group ? &lion : &adamw;
        const float *got = plan_ref(mixed.plan, mixed.refs[0].master);
        const float *want = plan_ref(same->plan, same->refs[0].master);

        cr_assert_arr_eq(got + tensor->offset, want + tensor->offset,
                         (size_t)tensor->n_elements * sizeof *got, "%s", tensor->name);
    }
    world_close(&mixed);
    world_close(&lion);
    world_close(&adamw);
}

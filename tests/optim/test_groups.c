#include "tests/optim/world.h"

#include <criterion/criterion.h>
#include <string.h>

static struct optim_group base_group(void)
{
    struct optim_group base = {.match = "*", .lr_scale = 1};

    base.hyper = (struct optim_hyper){.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    cr_assert_eq(optim_find("adamw", &base.rule), SHOAL_OK);
    cr_assert_eq(codec_find("fp32", &base.state), SHOAL_OK);
    return base;
}

Test(groups, reads_every_word_and_leaves_the_rest_as_in_the_base)
{
    const struct optim_group base = base_group();
    struct optim_group group = {0};

    cr_assert_eq(optim_group_parse("norm,bias: rule=lion lr_scale=0.5 weight_decay=0.2 "
                                   "betas=0.8,0.99 eps=1e-6 momentum=0.7 state=int8",
                                   &base, &group),
                 SHOAL_OK, "%s", shoal_last_error());
    cr_assert_str_eq(group.match, "norm,bias");
    cr_assert_str_eq(group.rule->name, "lion");
    cr_assert_str_eq(group.state->name, "int8");
    cr_assert(group.state_forced && group.decay_forced);
    cr_assert_eq(group.lr_scale, 0.5);
    cr_assert_eq(group.hyper.weight_decay, 0.2);
    cr_assert_eq(group.hyper.beta1, 0.8);
    cr_assert_eq(group.hyper.beta2, 0.99);
    cr_assert_eq(group.hyper.eps, 1e-6);
    cr_assert_eq(group.hyper.momentum, 0.7);

    cr_assert_eq(optim_group_parse("head:", &base, &group), SHOAL_OK);
    cr_assert_str_eq(group.rule->name, "adamw");
    cr_assert(!group.state_forced && !group.decay_forced);
    cr_assert_eq(group.hyper.beta2, 0.95);
}

Test(groups, names_the_word_that_is_wrong)
{
    static const struct {
        const char *text, *word;
    } bad[] = {
        {"norm", "MATCH"},
        {": rule=lion", "MATCH"},
        {"norm: rule", "KEY=VALUE"},
        {"norm: rule=lyon", "lion"},
        {"norm: state=int9", "int8"},
        {"norm: colour=red", "colour"},
        {"norm: lr_scale=-1", "lr_scale"},
        {"norm: lr_scale=nan", "lr_scale"},
        {"norm: eps=0", "eps"},
        {"norm: betas=0.9", "betas"},
        {"norm: betas=0.9,1", "betas"},
        {"norm: weight_decay=1x", "weight_decay"},
    };
    const struct optim_group base = base_group();

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct optim_group group = {.lr_scale = 42};

        cr_assert_eq(optim_group_parse(bad[i].text, &base, &group), SHOAL_ERR_CONFIG, "%s",
                     bad[i].text);
        cr_assert_not_null(strstr(shoal_last_error(), bad[i].word), "%s: %s", bad[i].text,
                           shoal_last_error());
        cr_assert_eq(group.lr_scale, 42);
    }
}

Test(groups, refuses_a_group_that_takes_no_tensor)
{
    struct world world;
    struct optim_group groups[2] = {base_group(), base_group()};
    const struct master_codec *master = NULL;
    struct optim_setup *setup = NULL;

    world_open(&world, &(struct world_params){.rule = "adamw", .state = "fp32", .master = "fp32"});
    cr_assert_eq(master_codec_find("fp32", &master), SHOAL_OK);
    strcpy(groups[0].match, "*.nothing,gate_up");
    cr_assert_eq(optim_setup_create(world.layout, groups, 2, master, &setup), SHOAL_ERR_CONFIG);
    cr_assert_not_null(strstr(shoal_last_error(), "gate_up"));
    cr_assert_null(setup);
    world_close(&world);
}

/* test_codec_states has why. */
Test(setup, holds_slow_states_in_eight_bits_where_a_coarse_codec_is_asked_for)
{
    static const struct {
        const char *rule, *state, *want[3];
    } cases[] = {
        {"ademamix", "int4", {"int4", "int4", "int8"}},
        {"ademamix", "bf16", {"bf16", "bf16", "bf16"}},
        {"ademamix", "fp8", {"fp8", "fp8", "fp8"}},
        {"ademamix", "bnb8", {"bnb8", "bnb8", "bnb8"}},
        {"schedule_free", "lpmm4", {"int8", "lpmm4"}},
        {"adamw", "int4", {"int4", "int4"}},
    };
    enum { MLP_UP = 3 };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct world world;

        world_open(&world, &(struct world_params){
                               .rule = cases[i].rule, .state = cases[i].state, .master = "fp32"});
        for (int k = 0; k < world.setup->tensors[MLP_UP].rule->n_states; k++)
            cr_assert_str_eq(world.setup->tensors[MLP_UP].codecs[k]->name, cases[i].want[k]);
        cr_assert_str_eq(world.setup->tensors[0].codecs[0]->name, "fp32");
        world_close(&world);
    }
}

Test(setup, counts_bytes_that_do_not_depend_on_the_ranks)
{
    struct world world;

    world_open(&world, &(struct world_params){.rule = "adamw", .state = "int8", .master = "fp32"});
    for (int kind = 0; kind < world.setup->n_kinds; kind++) {
        const struct shard all = layout_shard(world.layout, 0, 0, 1);
        const size_t want = optim_kind_bytes(world.setup, 0, kind, all);

        for (int n_ranks = 1; n_ranks <= 8; n_ranks++) {
            size_t sum = 0;

            for (int rank = 0; rank < n_ranks; rank++)
                sum += optim_kind_bytes(world.setup, 0, kind,
                                        layout_shard(world.layout, 0, rank, n_ranks));
            cr_assert_eq(sum, want, "%s on %d ranks", world.setup->kinds[kind], n_ranks);
        }
    }
    world_close(&world);
}

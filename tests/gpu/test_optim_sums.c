#include "optim/cuda/update.h"
#include "optim/element_rules.h"
#include "tests/gpu/optim_rig.h"

#include <criterion/criterion.h>
#include <string.h>

/*
 * Rules over sums by the kernels against the CPU: integers of the sums, vectors, weights and states,
 * on matrices with rows of 30 to 479 elements, heads, single elements and tensors of a few.
 */

/* Every rule and option over sums; those of element-wise rules with all of their states. */
static const struct world_params CASES[] = {
    {.rule = "adam_mini"},
    {.rule = "adafactor"},
    {.rule = "adafactor", .scale_parameter = true},
    {.rule = "came"},
    {.rule = "adamw", .cautious = true},
    {.rule = "ademamix", .cautious = true},
    {.rule = "lion", .cautious = true},
    {.rule = "mars", .tensor_clip = true},
    {.rule = "mars", .tensor_clip = true, .cautious = true},
};

enum { N_CASES = sizeof CASES / sizeof CASES[0], N_MASTERS = 4, WHOLE = 0 };

static struct world_params with(int c, const char *state, const char *master)
{
    struct world_params params = CASES[c];

    params.state = state;
    params.master = master;
    return params;
}

/* Every codec with a third of the cases, every case with a third of the codecs. */
Test(gpu_optim_sums, gives_the_bytes_of_the_cpu_for_every_state_codec)
{
    gpu_require();
    for (int c = 0; c < N_CASES; c++)
        for (int s = c % 3; codec_name(s) != NULL; s += 3) {
            const bool has_states = strcmp(CASES[c].rule, "adafactor") != 0;
            struct world_params params = with(c, has_states ? codec_name(s) : "fp32",
                                              master_codec_name((c + s) % N_MASTERS));

            params.n_ranks = (c + s) / 3 % 3 + 1;
            params.chunk = s % 2 == 0 ? WHOLE : 7 * QUANTUM;
            optim_rig_check(&params, WITHOUT_CORNERS);
        }
}

Test(gpu_optim_sums, gives_the_bytes_of_the_cpu_for_every_master_codec)
{
    gpu_require();
    for (int c = 0; c < N_CASES; c++)
        for (int m = 0; master_codec_name(m) != NULL; m++) {
            struct world_params params = with(c, "fp32", master_codec_name(m));

            params.n_ranks = m + 1;
            optim_rig_check(&params, WITH_FINITE_CORNERS);
        }
}

Test(gpu_optim_sums, gives_the_bytes_of_the_cpu_where_rules_are_mixed)
{
    const struct world_params mixed = {.rule = "came",
                                       .state = "int8",
                                       .master = "split16",
                                       .n_ranks = 2,
                                       .add_group = "down,norm: rule=adamw"};

    gpu_require();
    optim_rig_check(&mixed, WITHOUT_CORNERS);
}

Test(gpu_optim_sums, refuses_work_that_is_not_whole)
{
    static float memory[QUANTUM];
    static int64_t limbs[3];
    const struct update_part good = {.grad = memory,
                                     .low = memory,
                                     .n = 5,
                                     .n_states = 1,
                                     .codes = {memory},
                                     .rule = RULE_ADAM_MINI,
                                     .vectors = {[MINI_DENOMINATOR] = memory},
                                     .cols = 5,
                                     .n_blocks = 1,
                                     .blocks = {{.length = 5}},
                                     .sum = SUM_BLOCKS,
                                     .value = VALUE_GRAD,
                                     .n_sums = 1,
                                     .scale = 1.0,
                                     .limbs = limbs};
    struct update_work work = {.n_parts = 1, .grad_scale = 1, .parts = {good}};

    gpu_require();
    work.parts[0].limbs = NULL;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].sum = SUM_ELEMENTS; /* of what does not agree */
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].n_blocks = 0;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].sum = SUM_COLUMNS;
    work.parts[0].cols = 0;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].vectors[MINI_DENOMINATOR] = NULL;
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0].rule = RULE_CAME;
    work.parts[0].vectors[FACTORED_STEP] = work.parts[0].vectors[FACTORED_ROW_FACTOR] =
        work.parts[0].vectors[FACTORED_COL_FACTOR] = memory;
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL); /* without the residual's factors */
}

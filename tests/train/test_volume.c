#include "models/model.h"
#include "runtime/layout/layout.h"
#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The ledger of a step against the volume of each stage (Rajbhandari et al. 2020, "ZeRO", sec. 7).
 * Over R ranks, with P padded parameters of the units, A microbatches per rank, elements received:
 *
 *   stage 0   reduce-scatter (R-1)/R P, all-gather of gradients (R-1)/R P
 *   stage 1   the same, the all-gather is of weights
 *   stage 2   reduce-scatter A times (horizontal), all-gather of weights once
 *   stage 3   reduce-scatter A times (once if vertical); gathers: blocks twice, embed and head once,
 *             per microbatch (per step if vertical)
 */

struct volume {
    long gather_calls, gather_bytes, reduce_calls, reduce_bytes;
};

static struct volume measured(const char *directory)
{
    static const char *const keys[] = {"gather_calls", "gather_bytes", "reduce_calls",
                                       "reduce_bytes"};
    char path[200], line[4096], last[4096] = "";
    long values[4];

    snprintf(path, sizeof path, "%s/run/metrics.jsonl", directory);
    FILE *in = fopen(path, "r");
    cr_assert_not_null(in);
    while (fgets(line, sizeof line, in) != NULL)
        memcpy(last, line, sizeof last);
    fclose(in);
    for (int i = 0; i < 4; i++) {
        char quoted[40];
        snprintf(quoted, sizeof quoted, "\"%s\":", keys[i]);
        const char *p = strstr(last, quoted);
        cr_assert_not_null(p, "%s in %s", keys[i], last);
        values[i] = strtol(p + strlen(quoted), NULL, 10);
    }
    return (struct volume){values[0], values[1], values[2], values[3]};
}

static struct volume expected(int stage, bool vertical, int R, int A, enum dtype dtype)
{
    struct model_config config = {.layers = 2,
                                  .hidden = 32,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .head_size = 8,
                                  .ffn = 96,
                                  .vocab = 257,
                                  .max_seq = 32,
                                  .norm = NORM_RMS,
                                  .position = POSITION_ROPE,
                                  .mlp = MLP_SWIGLU,
                                  .norm_eps = 1e-5f,
                                  .rope_theta = 1e4};
    struct model *model = NULL;
    struct volume v = {0};
    long width = (long)dtype_bytes(dtype), reductions = stage >= 2 && !vertical ? A : 1;

    cr_assert_eq(model_create(&config, &model), SHOAL_OK, "%s", shoal_last_error());
    const struct layout *layout = model_layout(model);
    for (int unit = 0; unit < layout->n_units; unit++) {
        long shard = (long)layout_shard_elements(layout, unit, R);
        bool edge = unit == model_embed_unit(model) || unit == model_head_unit(model);
        long gathers = stage < 3 ? 1 : (edge ? 1 : 2) * (vertical ? 1 : A);
        v.reduce_calls += reductions;
        v.reduce_bytes += reductions * (R - 1) * shard * 4;
        v.gather_calls += gathers;
        v.gather_bytes += gathers * (R - 1) * shard * (stage == 0 ? 4 : width);
    }
    model_destroy(model);
    return v;
}

static void check(int stage, bool vertical, int R, const char *compute, enum dtype dtype)
{
    const char *directory = rig_directory();
    char zero[32], precision[48];
    const char *words[] = {zero, precision,
                           vertical ? "parallel.order=vertical" : "parallel.order=horizontal",
                           "steps=2", NULL};

    snprintf(zero, sizeof zero, "parallel.zero=%d", stage);
    snprintf(precision, sizeof precision, "precision.compute=%s", compute);
    cr_assert_eq(rig_train(directory, "run", R, rig_words(rig_llama, words)), 0, "%s", rig_log());
    struct volume got = measured(directory), want = expected(stage, vertical, R, 8 / R, dtype);
    cr_assert_eq(got.reduce_calls, want.reduce_calls, "stage %d: %ld reduce-scatters, want %ld",
                 stage, got.reduce_calls, want.reduce_calls);
    cr_assert_eq(got.reduce_bytes, want.reduce_bytes, "stage %d: %ld bytes, want %ld", stage,
                 got.reduce_bytes, want.reduce_bytes);
    cr_assert_eq(got.gather_calls, want.gather_calls, "stage %d: %ld all-gathers, want %ld", stage,
                 got.gather_calls, want.gather_calls);
    cr_assert_eq(got.gather_bytes, want.gather_bytes, "stage %d: %ld bytes, want %ld", stage,
                 got.gather_bytes, want.gather_bytes);
    rig_cleanup(directory);
}

Test(volume, horizontal_order_moves_what_the_stage_says)
{
    for (int stage = 0; stage <= 3; stage++)
        for (int R = 2; R <= 4; R *= 2)
            check(stage, false, R, "fp32", DTYPE_F32);
}

Test(volume, vertical_order_gathers_each_unit_once_per_pass)
{
    for (int stage = 0; stage <= 3; stage++)
        check(stage, true, 2, "fp32", DTYPE_F32);
}

Test(volume, weights_travel_in_compute_precision)
{
    check(1, false, 2, "bf16", DTYPE_BF16);
    check(3, false, 2, "bf16", DTYPE_BF16);
}

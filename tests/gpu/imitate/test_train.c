#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Whole runs on the cuda device, on the imitation of its libraries: everything between a config
 * and the kernels, beside a run on the host.
 */

static const char imitated[] = SHOAL_BUILD_DIR "/world/imitated_shoal";
static const char host[] = SHOAL_BUILD_DIR "/bin/shoal";
static const char *directory;

static void setup(void)
{
    directory = rig_directory();
    setenv("SHOAL_IMITATE_LAZY", "1", 1);
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(imitated_train, .init = setup, .fini = teardown, .timeout = 240);

static int run(const char *program, const char *name, const char *device, const char *const *words)
{
    const char *const more[] = {device, "batch.global=4", NULL};

    rig_use(program);
    return rig_train(directory, name, 0, rig_words(words, more));
}

/* Products of the imitation are summed in double: losses differ in the last digits. */
static void expect_close(const char *a, const char *b, double tolerance)
{
    char got[RIG_SERIES_BYTES], want[RIG_SERIES_BYTES];
    char *x = got, *y = want;
    int n = 0;

    rig_series(directory, a, got);
    rig_series(directory, b, want);
    for (; *y != '\0'; n++) {
        const double u = strtod(x, &x), v = strtod(y, &y);

        cr_assert_leq(fabs(u - v), tolerance * fabs(v), "%s\nand\n%s", got, want);
        while (*x == '\n' || *x == ' ')
            x++;
        while (*y == '\n' || *y == ' ')
            y++;
    }
    cr_assert_gt(n, 3);
    cr_assert_eq(*x, '\0');
}

static void check(const char *const *words, double tolerance)
{
    char path[96];

    cr_assert_eq(run(imitated, "cuda", "run.device=cuda", words), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "imitation (GPU 0)"), "%s", rig_log());
    cr_assert_eq(run(host, "host", "run.device=cpu", words), 0, "%s", rig_log());
    expect_close("cuda", "host", tolerance);
    snprintf(path, sizeof path, "%s/cuda", directory);
    rig_cleanup(path);
    snprintf(path, sizeof path, "%s/host", directory);
    rig_cleanup(path);
}

Test(imitated_train, is_that_of_the_host_in_fp32)
{
    check((const char *[]){NULL}, 1e-4);
    check((const char *[]){"optimizer.name=mars", "optimizer.state=int4", "parallel.zero=0", NULL},
          1e-3);
}

Test(imitated_train, is_that_of_the_host_in_bf16_with_coded_states)
{
    check((const char *[]){"precision.compute=bf16", "optimizer.state=int8",
                           "precision.master=split16", NULL},
          3e-3);
    check((const char *[]){"precision.compute=bf16", "optimizer.name=lion", "optimizer.state=fp8",
                           "precision.master=ecc8", NULL},
          3e-3);
    check((const char *[]){"precision.compute=bf16", "optimizer.name=ademamix",
                           "optimizer.state=ao8", "precision.master=bf16sr", NULL},
          3e-3);
}

/* The CPU knows the key and does nothing about it. */
Test(imitated_train, is_that_of_the_host_with_full_epilogues)
{
    static const char *const precisions[] = {"precision.compute=bf16", "precision.compute=fp32"};

    for (int p = 0; p < 2; p++)
        check((const char *[]){"model.preset=gpt2", "run.epilogue=full", "parallel.recompute=none",
                               precisions[p], NULL},
              p == 0 ? 3e-3 : 1e-4);
}

/* The average takes the weights' place on the device and leaves it again. */
Test(imitated_train, is_that_of_the_host_with_averaged_weights)
{
    static const char *const precisions[][2] = {
        {"precision.compute=fp32", "precision.master=fp32"},
        {"precision.compute=bf16", "precision.master=fp32"},
        {"precision.compute=bf16", "precision.master=split16"},
    };

    for (int p = 0; p < 3; p++)
        check((const char *[]){"optimizer.name=schedule_free", "optimizer.state=int8",
                               "eval.every=1", precisions[p][0], precisions[p][1], NULL},
              p == 0 ? 1e-4 : 3e-3);
}

Test(imitated_train, goes_on_from_a_checkpoint_of_the_host)
{
    const char *const words[] = {"precision.compute=bf16",      "optimizer.state=int8",
                                 "precision.master=split16",    "checkpoint.every=2",
                                 "optimizer.schedule=constant", NULL};
    const char *const begin[] = {"steps=2", NULL};

    cr_assert_eq(run(host, "host", "run.device=cpu", words), 0, "%s", rig_log());
    cr_assert_eq(
        rig_train(directory, "cuda", 0,
                  rig_words(rig_words(words, begin), (const char *[]){"batch.global=4", NULL})),
        0, "%s", rig_log());
    cr_assert_eq(run(imitated, "cuda", "run.device=cuda", words), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "continuing after step 2"), "%s", rig_log());
    expect_close("cuda", "host", 3e-3);
}

/* The losses of a run of six steps with the words of the second on top of those of the first. */
static void imitated_series(const char *name, const char *const *words, const char *word,
                            char out[RIG_SERIES_BYTES])
{
    const char *const more[] = {"steps=6", word, NULL};

    cr_assert_eq(run(imitated, name, "run.device=cuda", rig_words(words, more)), 0, "%s",
                 rig_log());
    rig_series(directory, name, out);
}

Test(imitated_train, is_the_same_from_recorded_graphs)
{
    static const char *const plain[] = {"parallel.prefetch=off", NULL};
    static const char *const more[] = {"precision.compute=bf16",  "parallel.recompute=full",
                                       "model.hidden=128",        "model.heads=2",
                                       "model.kv_heads=2",        "batch.micro=2",
                                       "parallel.order=vertical", NULL};
    char with[RIG_SERIES_BYTES], without[RIG_SERIES_BYTES];

    imitated_series("a", plain, "run.graphs=false", without);
    imitated_series("b", plain, "run.graphs=true", with);
    cr_assert_str_eq(with, without);
    imitated_series("c", more, "run.graphs=false", without);
    imitated_series("d", more, "run.graphs=true", with);
    cr_assert_str_eq(with, without);
}

static int one_step(const char *program, const char *device, const char *word)
{
    const char *const words[] = {"model.hidden=128",
                                 "model.heads=2",
                                 "model.kv_heads=2",
                                 "precision.compute=bf16",
                                 "parallel.recompute=none",
                                 "steps=1",
                                 "checkpoint.resume=never",
                                 word,
                                 NULL};

    return run(program, "one-step", device, words);
}

/* MiB in the row of what `who` took of the device. */
static double taken_by(const char *who)
{
    const char *row = strstr(rig_log(), who);

    cr_assert_not_null(row, "no \"%s\" in\n%s", who, rig_log());
    return strtod(row + strlen(who), NULL);
}

/* In the imitation that is the workspace of products and loaded kernels; `plan` sees it, too. */
Test(imitated_train, tells_what_libraries_take_of_the_device)
{
    enum { WORKSPACE_MIB = 32, DEVICE_MIB = 1024 };
    char config[96];
    const char *const plan[] = {"plan", config, "run.device=cuda", NULL};

    cr_assert_eq(one_step(imitated, "run.device=cuda", "steps=1"), 0, "%s", rig_log());
    const double by_run = taken_by("driver and libraries");
    cr_assert(by_run > WORKSPACE_MIB + 1 && by_run < WORKSPACE_MIB + 16, "%s", rig_log());
    cr_assert_float_eq(taken_by("left "), DEVICE_MIB - by_run, 0.015, "%s", rig_log());
    snprintf(config, sizeof config, "%s/tiny.yaml", directory);
    cr_assert_eq(rig_shoal(plan), 0, "%s", rig_log());
    cr_assert_float_eq(taken_by("driver and libraries"), by_run, 0.015, "%s", rig_log());
    cr_assert_null(strstr(rig_log(), "no GPU here"), "%s", rig_log());
    rig_use(host);
    cr_assert_eq(rig_shoal(plan), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "no GPU here"), "%s", rig_log());
}

/* A rank whose library refuses what the others' takes is named, and what follows is said. */
Test(imitated_train, says_that_a_rank_has_other_algorithms)
{
    const char *const words[] = {"run.device=cuda", "comm.transport=staged", "batch.global=4",
                                 "steps=1", NULL};

    rig_use(imitated);
    cr_assert_eq(rig_train(directory, "same", 2, words), 0, "%s", rig_log());
    cr_assert_null(strstr(rig_log(), "other algorithms"), "%s", rig_log());
    setenv("SHOAL_IMITATE_REFUSING_RANK", "1", 1);
    cr_assert_eq(rig_train(directory, "other", 2, words), 0, "%s", rig_log());
    cr_assert_not_null(
        strstr(rig_log(), "[rank 1] computes by other algorithms than rank 0: \"NT "), "%s",
        rig_log());
    cr_assert_not_null(strstr(rig_log(), ", after 1 refused (CUBLAS_STATUS_NOT_SUPPORTED)\" here"),
                       "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "1 of 2 ranks compute by other algorithms than rank 0: "
                                         "losses depend on which rank computes what"),
                       "%s", rig_log());
}

static void expect_said(const char *word, const char *said)
{
    cr_assert_eq(one_step(imitated, "run.device=cuda", word), 0, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), said), "%s: no \"%s\" in\n%s", word, said, rig_log());
}

Test(imitated_train, says_what_attention_runs_on)
{
    expect_said("run.attention=auto", "forward cuDNN engine ");
    expect_said("run.attention=cudnn", "forward cuDNN engine ");
    expect_said("run.attention=own", "forward own kernels; backward own kernels");
    expect_said("data.seq_len=33",
                "forward cuDNN engine "); /* sizes that no power of two divides */
    expect_said("precision.tf32=true", "(tf32), attention");
    expect_said("run.epilogue=full", "(full epilogues), attention");
    cr_assert_eq(
        run(imitated, "fp32", "run.device=cuda", (const char *[]){"run.attention=cudnn", NULL}), 69,
        "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "cuDNN takes bf16, not fp32"), "%s", rig_log());
    cr_assert_null(strstr(rig_log(), "saving to"), "it began:\n%s", rig_log());
    cr_assert_eq(one_step(host, "run.device=cpu", "run.attention=cudnn"), 69, "%s", rig_log());
    cr_assert_not_null(strstr(rig_log(), "run.attention: cudnn, but this run computes on the CPU"),
                       "%s", rig_log());
}

Test(imitated_train, is_that_of_the_host_with_rules_over_sums)
{
    check((const char *[]){"optimizer.name=adam_mini", "parallel.zero=0", NULL}, 1e-3);
    check((const char *[]){"optimizer.name=adafactor", "optimizer.lr=1e-2",
                           "optimizer.scale_parameter=true", NULL},
          1e-3);
    check((const char *[]){"optimizer.groups=[\"norm: rule=came\", \"up,down: rule=adafactor\"]",
                           "optimizer.name=mars", "optimizer.tensor_clip=true", NULL},
          1e-3);
    check((const char *[]){"precision.compute=bf16", "optimizer.name=came", "optimizer.state=int8",
                           "precision.master=bf16sr", NULL},
          3e-3);
    check((const char *[]){"optimizer.name=lion", "optimizer.lr=1e-4", "optimizer.cautious=true",
                           NULL},
          3e-3);
}

/* What the host makes of sums is saved from there, and read back by either. */
Test(imitated_train, goes_on_with_sums_from_a_checkpoint_of_the_host_and_its_own)
{
    const char *const words[] = {"optimizer.name=came", "checkpoint.every=2",
                                 "optimizer.schedule=constant", NULL};
    const char *const begin[] = {"steps=2", NULL};
    const char *const first[] = {"run.device=cpu", "run.device=cuda"};
    const char *const programs[] = {host, imitated};
    char path[96];

    cr_assert_eq(run(host, "host", "run.device=cpu", words), 0, "%s", rig_log());
    for (int i = 0; i < 2; i++) {
        rig_use(programs[i]);
        cr_assert_eq(rig_train(directory, "cuda", 0,
                               rig_words(rig_words(words, begin),
                                         (const char *[]){first[i], "batch.global=4", NULL})),
                     0, "%s", rig_log());
        cr_assert_eq(run(imitated, "cuda", "run.device=cuda", words), 0, "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), "continuing after step 2"), "%s", rig_log());
        expect_close("cuda", "host", 1e-3);
        snprintf(path, sizeof path, "%s/cuda", directory);
        rig_cleanup(path);
    }
}

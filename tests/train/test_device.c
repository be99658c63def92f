#include "runtime/device/device.h"
#include "tests/train/rig.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Runs on the test device, whose memory faults when host code touches it outside of copies and
 * operations: every number goes through the paths that a GPU needs, and comes out the same.
 */

static const char *directory;

static void setup(void)
{
    directory = rig_directory();
}

static void teardown(void)
{
    rig_cleanup(directory);
}

TestSuite(train_device, .init = setup, .fini = teardown, .timeout = 300);

static void run(const char *name, bool remote, int ranks, const char *const *words)
{
    if (remote)
        setenv("SHOAL_TEST_DEVICE", "remote", 1);
    int rc = rig_train(directory, name, ranks, words);
    unsetenv("SHOAL_TEST_DEVICE");
    cr_assert_eq(rc, 0, "%s: exit %d\n%s", name, rc, rig_log());
    if (remote)
        cr_assert_not_null(strstr(rig_log(), "test device: host memory behind copies"));
}

static void same(const char *a, const char *b)
{
    char series[2][RIG_SERIES_BYTES], hash[2][64];

    rig_series(directory, a, series[0]);
    rig_series(directory, b, series[1]);
    rig_hash(directory, a, hash[0]);
    rig_hash(directory, b, hash[1]);
    cr_assert_str_eq(series[0], series[1], "%s and %s", a, b);
    cr_assert_str_eq(hash[0], hash[1], "%s and %s", a, b);
}

static void compare(const char *const *model, const char *const *words)
{
    const char *all[64];
    size_t n = 0;

    for (const char *const *w = rig_words(model, words); *w != NULL; w++)
        all[n++] = *w;
    all[n] = NULL;
    run("host", false, 0, all);
    run("remote", true, 0, all);
    same("host", "remote");
}

Test(train_device, separate_memory_gives_the_bits_of_the_host)
{
    compare(rig_gpt, (const char *[]){"run.threads=2", NULL});
}

Test(train_device, so_it_does_in_bf16_with_recomputation_and_vertical_order)
{
    compare(rig_llama, (const char *[]){"precision.compute=bf16", "parallel.recompute=full",
                                        "parallel.order=vertical", NULL});
}

Test(train_device, so_it_does_with_coded_states_and_sums_over_tensors)
{
    compare(rig_gpt, (const char *[]){"optimizer.state=int8", "precision.compute=bf16",
                                      "precision.master=split16", NULL});
    char path[128];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, i == 0 ? "host" : "remote");
        rig_cleanup(path);
    }
    compare(rig_llama, (const char *[]){"optimizer.name=adam_mini", NULL});
}

/* Two ranks whose bulk goes from device to device by way of the host. */
Test(train_device, ranks_on_devices_give_the_bits_of_one_on_the_host)
{
    static const char *const stages[] = {"parallel.zero=0", "parallel.zero=1", "parallel.zero=2",
                                         "parallel.zero=3"};

    run("host", false, 0, rig_gpt);
    for (int stage = 0; stage <= 3; stage++) {
        const char *words[] = {stages[stage],
                               stage % 2 ? "parallel.order=vertical" : "run.threads=1",
                               "comm.transport=staged", NULL};
        run("remote", true, 2, rig_words(rig_gpt, words));
        same("host", "remote");
        cr_assert_not_null(strstr(rig_log(), "transport staged"), "%s", rig_log());
        char path[128];
        snprintf(path, sizeof path, "%s/remote", directory);
        rig_cleanup(path);
    }
}

/* Each adds up its shards on the device; the host of each makes the same vectors of the sums. */
Test(train_device, ranks_on_devices_add_up_sums_over_tensors)
{
    const char *const words[] = {"optimizer.name=came", NULL};

    run("host", false, 0, rig_words(rig_llama, words));
    for (int stage = 0; stage <= 2; stage += 2) {
        const char *const more[] = {"optimizer.name=came",
                                    stage == 0 ? "parallel.zero=0" : "parallel.zero=2",
                                    "comm.transport=staged", NULL};
        char path[128];

        run("remote", true, 2, rig_words(rig_llama, more));
        same("host", "remote");
        snprintf(path, sizeof path, "%s/remote", directory);
        rig_cleanup(path);
    }
}

Test(train_device, a_transport_that_does_not_fit_the_device_is_refused)
{
    int rc = rig_train(directory, "run", 2, (const char *[]){"comm.transport=nccl", NULL});

    cr_assert_eq(rc, 69, "exit %d\n%s", rc, rig_log());
    cr_assert_not_null(strstr(rig_log(), "transport nccl"), "%s", rig_log());
    setenv("SHOAL_TEST_DEVICE", "remote", 1);
    rc = rig_train(directory, "run", 2, (const char *[]){"comm.transport=mpi", NULL});
    cr_assert_eq(rc, 78, "exit %d\n%s", rc, rig_log());
}

/* "eval ... val 5.2" and "sample ..." lines: what they say must not depend on the device. */
Test(train_device, evaluation_and_samples_are_the_same)
{
    const char *words[] = {"eval.every=2", "eval.sample_every=2", "eval.sample_tokens=20",
                           "log.every=100", NULL};
    static char eval[2][RIG_SERIES_BYTES], sample[2][RIG_SERIES_BYTES];

    for (int remote = 0; remote <= 1; remote++) {
        run(remote ? "remote" : "host", remote, 0, words);
        rig_lines("eval", eval[remote]);
        rig_lines("sample", sample[remote]);
    }
    cr_assert_str_eq(eval[0], eval[1]);
    cr_assert_str_eq(sample[0], sample[1]);
}

Test(train_device, resumes_from_what_the_other_saved)
{
    run("whole", false, 0, (const char *[]){"steps=4", NULL});
    run("mixed", true, 0, (const char *[]){"steps=4", "checkpoint.every=2", NULL});
    run("mixed", false, 0, (const char *[]){"steps=4", "checkpoint.resume=2", NULL});
    same("whole", "mixed");
}

Test(train_device, prefetch_changes_no_bit)
{
    static const char *const orders[] = {"parallel.order=horizontal", "parallel.order=vertical"};
    static const char *const stages[] = {"parallel.zero=2", "parallel.zero=3"};

    for (int tied = 0; tied <= 1; tied++) {
        const char *const *model = tied ? rig_gpt : rig_llama;
        run("reference", false, 0, model);
        for (int i = 0; i < 4; i++) {
            const char *words[] = {orders[i % 2], stages[i / 2], "parallel.prefetch=on", NULL};
            run("ahead", false, 2, rig_words(model, words));
            same("reference", "ahead");
            char path[128];
            snprintf(path, sizeof path, "%s/ahead", directory);
            rig_cleanup(path);
        }
        char path[128];
        snprintf(path, sizeof path, "%s/reference", directory);
        rig_cleanup(path);
    }
}

/* The trace lists operations as they are issued: "gather block.0" and so on, in one line each. */
static void names_of(const char *path, char *out, size_t n_bytes)
{
    FILE *in = fopen(path, "r");
    char line[512];
    size_t n = 0;

    cr_assert_not_null(in, "%s", path);
    out[0] = '\0';
    while (fgets(line, sizeof line, in) != NULL) {
        const char *name = strstr(line, "\"ph\":\"X\"") ? strstr(line, "\"name\":\"") : NULL;
        if (name == NULL)
            continue;
        name += strlen("\"name\":\"");
        n += (size_t)snprintf(out + n, n_bytes - n, "%.*s,", (int)strcspn(name, "\""), name);
        cr_assert_lt(n, n_bytes);
    }
    fclose(in);
}

Test(train_device, prefetch_issues_a_gather_between_computation_and_its_reduction)
{
    char trace[128], path[160];
    static char names[1 << 16];

    snprintf(trace, sizeof trace, "log.trace=%s/trace", directory);
    snprintf(path, sizeof path, "%s/trace.rank0.json", directory);
    run("run", true, 2,
        rig_words(rig_llama, (const char *[]){"parallel.zero=3", "steps=1", trace, NULL}));
    names_of(path, names, sizeof names);
    cr_assert_not_null(strstr(names, "forward embed,gather block.0,forward block.0,gather block.1,"
                                     "forward block.1,gather head,backward head,gather block.1,"
                                     "reduce head,"),
                       "%s", names);
    cr_assert_not_null(strstr(names, "backward block.1,gather block.0,reduce block.1"), "%s",
                       names);
    snprintf(path, sizeof path, "%s/run", directory);
    rig_cleanup(path);
    run("run", false, 2,
        rig_words(rig_llama, (const char *[]){"parallel.zero=3", "steps=1", trace, NULL}));
    snprintf(path, sizeof path, "%s/trace.rank0.json", directory);
    names_of(path, names, sizeof names);
    cr_assert_not_null(strstr(names, "backward block.1,reduce block.1"), "%s", names);
}

/* When the nth operation of this name began and ended, in the test device's own time. */
struct span {
    double begin, end;
};

static struct span span_of(const char *path, const char *name, int nth)
{
    FILE *in = fopen(path, "r");
    char line[512], quoted[64];
    struct span span = {-1, -1};

    cr_assert_not_null(in, "%s", path);
    snprintf(quoted, sizeof quoted, "\"name\":\"%s\"", name);
    while (nth >= 0 && fgets(line, sizeof line, in) != NULL) {
        if (strstr(line, "\"ph\":\"X\"") == NULL || strstr(line, quoted) == NULL || nth-- > 0)
            continue;
        span.begin = 1e-6 * strtod(strstr(line, "\"ts\":") + strlen("\"ts\":"), NULL);
        span.end = span.begin + 1e-6 * strtod(strstr(line, "\"dur\":") + strlen("\"dur\":"), NULL);
    }
    fclose(in);
    cr_assert_geq(span.begin, 0, "no %s in %s", name, path);
    return span;
}

/* `later` begins when `first` ends, or only after something between. */
static void expect_follows(const char *path, const char *first, const char *later, bool at_once)
{
    const struct span a = span_of(path, first, 0), b = span_of(path, later, 0);

    cr_expect_geq(b.begin, a.end - 1e-3, "%s %g, %s %g", first, a.end, later, b.begin);
    cr_expect_eq(b.begin < a.end + 1e-3, at_once, "%s [%g, %g], %s [%g, %g]", first, a.begin, a.end,
                 later, b.begin, b.end);
}

/*
 * As the issue order and the waits between queues make it: with a window nothing but the first unit
 * waits for a gather, and no unit is gathered before its half of the window is free.
 */
Test(train_device, prefetch_hides_communication_behind_computation)
{
    char trace[128], path[160], made[128];

    snprintf(trace, sizeof trace, "log.trace=%s/trace", directory);
    snprintf(path, sizeof path, "%s/trace.rank0.json", directory);
    snprintf(made, sizeof made, "%s/run", directory);
    for (int ahead = 0; ahead <= 1; ahead++) {
        const char *window = ahead ? "parallel.prefetch=on" : "parallel.prefetch=off";
        const char *words[] = {"parallel.zero=3",
                               "steps=1",
                               "model.layers=4",
                               "model.tied=false",
                               trace,
                               window,
                               NULL};

        run("run", true, 2, rig_words(rig_llama, words));
        expect_follows(path, "forward block.0", "forward block.1", ahead);
        expect_follows(path, "forward block.2", "forward block.3", ahead);
        expect_follows(path, "forward block.3", "backward head", ahead);
        expect_follows(path, "backward head", "backward block.3", ahead);
        expect_follows(path, "backward block.2", "backward block.1", ahead);
        expect_follows(path, "backward block.1", "backward block.0", ahead);
        expect_follows(path, "forward block.0", "gather block.2", ahead);
        /* Gradients travel while the unit below computes, window or not. */
        cr_expect_lt(span_of(path, "reduce block.2", 0).begin,
                     span_of(path, "backward block.1", 0).end - 1);
        rig_cleanup(made);
    }
}

Test(train_device, prefetch_is_in_the_plan)
{
    char config[128];
    const char *words[] = {"plan", config, "parallel.zero=3", "parallel.prefetch=off", "--ranks",
                           "2",    NULL};

    snprintf(config, sizeof config, "%s/tiny.yaml", directory);
    cr_assert_eq(rig_shoal(words), 0, "%s", rig_log());
    const char *gathered = strstr(rig_log(), "gathered");
    cr_assert_not_null(gathered);
    double without = strtod(gathered + strlen("gathered") + 40, NULL);
    words[3] = "parallel.prefetch=on";
    cr_assert_eq(rig_shoal(words), 0, "%s", rig_log());
    double with = strtod(strstr(rig_log(), "gathered") + strlen("gathered") + 40, NULL);
    cr_assert_gt(with, without + 0.01, "%s", rig_log());
}

Test(train_device, without_a_gpu_the_run_says_that_it_is_on_the_cpu)
{
    if (strcmp(device_auto_name(), "cuda") == 0)
        cr_skip_test("this machine has a GPU");
    run("host", false, 0, (const char *[]){"steps=1", NULL});
#ifdef SHOAL_WITH_CUDA
    cr_assert_not_null(strstr(rig_log(), "no CUDA device: running on the CPU"));
#else
    cr_assert_null(strstr(rig_log(), "CUDA"));
#endif
}

/* Every array of an update lies behind copies; rules over sums too. */
Test(train_device, the_bench_of_optimizers_runs_on_it)
{
    static const char *const rules[] = {"adamw", "came", NULL};

    for (int i = 0; rules[i] != NULL; i++) {
        const char *words[] = {"bench",      "optim",   "--device",  "auto",     "--rule",
                               rules[i],     "--state", "int8",      "--master", "ecc8",
                               "--elements", "1",       "--repeats", "1",        NULL};

        setenv("SHOAL_TEST_DEVICE", "remote", 1);
        const int rc = rig_shoal(words);
        unsetenv("SHOAL_TEST_DEVICE");
        cr_assert_eq(rc, 0, "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), "test device"), "%s", rig_log());
        cr_assert_not_null(strstr(rig_log(), rules[i]), "%s", rig_log());
    }
    if (strcmp(device_auto_name(), "cuda") != 0)
        cr_assert_eq(rig_shoal((const char *const[]){"bench", "optim", "--device", "cuda", NULL}),
                     69, "%s", rig_log());
}

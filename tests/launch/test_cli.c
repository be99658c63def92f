#include "cli_run.h"

#include "models/model.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The command line from outside: exit codes, exact messages, help, and what goes to stdout. */

static char dir[64];

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    return remove(path);
}

static void setup(void)
{
    strcpy(dir, "/tmp/shoal_cli_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    unsetenv("PMI_RANK");
}

static void teardown(void)
{
    nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(cli, .init = setup, .fini = teardown, .timeout = 120);

static void put(const char *name, const char *text)
{
    char path[128];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    cr_assert_not_null(file);
    fputs(text, file);
    fclose(file);
}

static const struct run *good(const char *words)
{
    const struct run *run = shoal_run(dir, words);

    cr_assert_eq(run->exit_code, 0, "shoal %s: exit %d\n%s", words, run->exit_code, run->err);
    cr_assert_str_eq(run->err, "", "shoal %s", words);
    return run;
}

static void equals_file(const char *text, const char *path)
{
    FILE *file = fopen(path, "r");
    size_t n = strlen(text);
    char *stored = calloc(1, n + 2);

    cr_assert_not_null(file, "%s is missing", path);
    size_t n_stored = fread(stored, 1, n + 1, file);
    fclose(file);
    cr_assert(n_stored == n && memcmp(stored, text, n) == 0, "%s is out of date", path);
    free(stored);
}

/* ---- refusals ---- */

Test(cli, wrong_calls_are_refused_with_these_words)
{
    static const struct {
        const char *words, *err;
        int exit_code;
    } rows[] = {
        {"",
         "error   shoal: expected a command\n"
         "        hint: `shoal --help` shows how to call it   [exit 64]\n",
         64},
        {"tarin",
         "error   shoal: unknown command \"tarin\"\n"
         "        the commands are: train sample plan ckpt data config bench version help\n"
         "        hint: did you mean shoal train?   [exit 64]\n",
         64},
        {"ckpt sohw x",
         "error   shoal ckpt: unknown command \"sohw\"\n"
         "        the commands are: ls show\n"
         "        hint: did you mean shoal ckpt show?   [exit 64]\n",
         64},
        {"config",
         "error   shoal config: expected a command\n"
         "        hint: `shoal config --help` shows how to call it   [exit 64]\n",
         64},
        {"train r.yaml --step 3",
         "error   shoal train: unknown option --step\n"
         "        hint: did you mean --steps?   [exit 64]\n",
         64},
        {"train r.yaml --banana",
         "error   shoal train: unknown option --banana\n"
         "        hint: `shoal train --help` shows how to call it   [exit 64]\n",
         64},
        {"train r.yaml -x",
         "error   shoal train: unknown option -x\n"
         "        hint: `shoal train --help` shows how to call it   [exit 64]\n",
         64},
        {"train",
         "error   shoal train: expected CONFIG [KEY=VALUE...]\n"
         "        hint: `shoal train --help` shows how to call it   [exit 64]\n",
         64},
        {"train steps=1",
         "error   shoal train: expected CONFIG before \"steps=1\"\n"
         "        hint: `shoal train --help` shows how to call it   [exit 64]\n",
         64},
        {"train r.yaml --steps",
         "error   shoal train: option --steps needs a value: --steps N\n"
         "        hint: `shoal train --help` shows how to call it   [exit 64]\n",
         64},
        {"train r.yaml --dry-run=1",
         "error   shoal train: option --dry-run takes no value\n"
         "        hint: `shoal train --help` shows how to call it   [exit 64]\n",
         64},
        {"plan r.yaml -n2 --ranks=3",
         "error   shoal plan: option --ranks is given twice\n"
         "        hint: `shoal plan --help` shows how to call it   [exit 64]\n",
         64},
        {"plan r.yaml -n 0",
         "error   shoal plan: option --ranks: expected an integer in 1 .. 1048576, found \"0\"\n"
         "        hint: `shoal plan --help` shows how to call it   [exit 64]\n",
         64},
        {"sample run --top-p 2",
         "error   shoal sample: option --top-p: expected a number in 0 .. 1, found \"2\"\n"
         "        hint: `shoal sample --help` shows how to call it   [exit 64]\n",
         64},
        {"config keys extra",
         "error   shoal config keys: unexpected argument \"extra\"\n"
         "        hint: `shoal config keys --help` shows how to call it   [exit 64]\n",
         64},
        {"data prepare in.txt",
         "error   shoal data prepare: expected --out FILE\n"
         "        hint: `shoal data prepare --help` shows how to call it   [exit 64]\n",
         64},
        {"ckpt show run --kind master",
         "error   shoal ckpt show: option --kind is for --hash\n"
         "        hint: `shoal ckpt show --help` shows how to call it   [exit 64]\n",
         64},
        {"config check r.yaml extra",
         "error   command line: expected KEY=VALUE, found \"extra\"\n"
         "        hint: for example optimizer.lr=1e-3   [exit 64]\n",
         64},
        {"train no.yaml",
         "error   no.yaml: cannot read the config file\n"
         "        No such file or directory\n"
         "        hint: `shoal config new > no.yaml` makes one to start from   [exit 66]\n",
         66},
        {"train r.yaml --steps=x",
         "error   command line: steps: expected integer in 0 .. 9007199254740992, found \"x\"\n"
         "        steps: Optimizer steps of the whole run.\n"
         "        hint: the default is 1000   [exit 78]\n",
         78},
        {"train bad.yaml",
         "error   bad.yaml:2:3: unknown key \"optimizer.leanring_rate\"\n"
         "        the keys of optimizer are: name lr min_lr warmup_steps schedule betas eps "
         "weight_decay momentum nesterov beta3 alpha slow_warmup_steps gamma cautious tensor_clip "
         "clip_threshold scale_parameter relative_step grad_clip "
         "on_nonfinite state groups\n"
         "        hint: did you mean optimizer.lr?   [exit 78]\n",
         78},
        {"config explain optimizer.leanring_rate",
         "error   unknown key \"optimizer.leanring_rate\"\n"
         "        hint: did you mean optimizer.lr?   [exit 78]\n",
         78},
    };

    put("r.yaml", "steps: 3\n");
    put("bad.yaml", "optimizer:\n  leanring_rate: 1\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct run *run = shoal_run(dir, rows[i].words);

        cr_assert_str_eq(run->err, rows[i].err, "shoal %s\nexpected:\n%s\nfound:\n%s",
                         rows[i].words, rows[i].err, run->err);
        cr_assert_eq(run->exit_code, rows[i].exit_code, "shoal %s", rows[i].words);
        cr_assert_str_eq(run->out, "", "shoal %s", rows[i].words);
    }
}

Test(cli, only_rank_0_speaks_but_all_ranks_fail_alike)
{
    setenv("PMI_RANK", "1", 1);
    const struct run *run = shoal_run(dir, "train no.yaml");

    cr_assert_eq(run->exit_code, 66);
    cr_assert_str_eq(run->err, "");
    setenv("PMI_RANK", "0", 1);
    cr_assert_str_neq(shoal_run(dir, "train no.yaml")->err, "");
}

Test(cli, missing_checkpoints_and_unknown_presets_have_their_exit_codes)
{
    cr_assert_eq(shoal_run(dir, "ckpt ls nowhere")->exit_code, 66);
    cr_assert_eq(shoal_run(dir, "ckpt show .")->exit_code, 66);
    cr_assert_eq(shoal_run(dir, "sample nowhere")->exit_code, 66);
    cr_assert_eq(shoal_run(dir, "data show data.train=nowhere.txt")->exit_code, 66);
    const struct run *run = shoal_run(dir, "config new --preset lama-tiny");
    cr_assert_eq(run->exit_code, 78);
    cr_assert_not_null(strstr(run->err, "did you mean llama-tiny?"));
    cr_assert_eq(shoal_run(dir, "config check /dev/null model.preset=nope")->exit_code, 78);
}

Test(cli, a_full_stdout_is_an_io_error)
{
    int state =
        system("PMI_RANK=0 " SHOAL_BUILD_DIR "/bin/shoal config keys > /dev/full 2> /dev/null");
    cr_assert_eq(WEXITSTATUS(state), 74);
}

/* ---- help ---- */

Test(cli, every_command_has_help_with_options_and_two_examples)
{
    char *markdown = strdup(good("help --markdown")->out);
    int n_commands = 0;

    for (char *line = strtok(markdown, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        char words[128];
        char usage[128];

        if (strncmp(line, "## shoal ", 9) != 0)
            continue;
        n_commands++;
        snprintf(words, sizeof words, "%s --help", line + 9);
        snprintf(usage, sizeof usage, "\n\nusage: shoal %s ", line + 9);
        const struct run *run = good(words);
        cr_assert_not_null(strstr(run->out, usage), "%s", words);
        cr_assert_not_null(strstr(run->out, "\noptions\n"), "%s", words);
        if (strstr(run->out, "\ncommands\n") == NULL) {
            const char *examples = strstr(run->out, "\nexamples\n");

            cr_assert_not_null(examples, "%s", words);
            const char *first = strstr(examples, "\n  ");
            cr_assert_not_null(strstr(first + 1, "\n  "), "%s has one example", words);
        }
        snprintf(words, sizeof words, "help %s", line + 9);
        char *by_option = strdup(run->out);
        cr_assert_str_eq(good(words)->out, by_option);
        free(by_option);
    }
    cr_assert_geq(n_commands, 15);
    free(markdown);
}

Test(cli, the_command_reference_in_docs_is_the_generated_one)
{
    equals_file(good("help --markdown")->out, SHOAL_SOURCE_DIR "/docs/cli.md");
    equals_file(good("config keys --markdown")->out, SHOAL_SOURCE_DIR "/docs/config.md");
}

/* ---- results ---- */

Test(cli, json_goes_to_stdout_as_one_value)
{
    static const char *const lines[] = {
        "version --json",
        "config keys --json",
        "plan " SHOAL_SOURCE_DIR "/launch/configs/quickstart.yaml -n 2 --json",
    };

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        json_error_t error;
        json_t *value = json_loads(good(lines[i])->out, 0, &error);

        cr_assert_not_null(value, "%s: %s", lines[i], error.text);
        json_decref(value);
    }
}

Test(cli, sample_configs_are_good)
{
    static const char *const names[] = {"quickstart", "shakespeare-char", "gpt2-124m", "llama-1b"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char words[256];

        snprintf(words, sizeof words, "config check " SHOAL_SOURCE_DIR "/launch/configs/%s.yaml",
                 names[i]);
        cr_assert_not_null(strstr(good(words)->out, ".yaml: good, hash "));
        snprintf(words, sizeof words, "plan " SHOAL_SOURCE_DIR "/launch/configs/%s.yaml -n 2",
                 names[i]);
        good(words);
    }
}

Test(cli, a_new_config_of_every_preset_is_good)
{
    char *presets = strdup(model_presets());

    for (char *name = strtok(presets, " "); name != NULL; name = strtok(NULL, " ")) {
        char words[256];

        snprintf(words, sizeof words, "config new --preset %s", name);
        put("new.yaml", good(words)->out);
        good("config check new.yaml");
        good("plan new.yaml");
    }
    free(presets);
}

Test(cli, shown_config_names_origins_and_loads_again)
{
    put("run.yaml", "steps: 5\n");
    const struct run *run = good("config show run.yaml optimizer.lr=1e-3");

    cr_assert_not_null(strstr(run->out, "\nsteps: 5  # run.yaml:1\n"));
    cr_assert_not_null(strstr(run->out, "\n  lr: 0.001  # command line\n"));
    put("again.yaml", run->out);
    cr_assert_not_null(strstr(good("config show again.yaml")->out, "\n  lr: 0.001  # again.yaml:"));
}

Test(cli, data_windows_are_shown_as_text_and_tokens)
{
    put("corpus.txt", "to be or not to be\n");
    const struct run *run =
        good("data show data.train=corpus.txt data.seq_len=4 data.val=none --windows 1");

    cr_assert_not_null(strstr(run->out, "format       text, 1 files, 1 documents, 19 B\n"));
    cr_assert_not_null(strstr(run->out, "train        20 tokens, 4 windows\n"));
    cr_assert_not_null(strstr(run->out, "\n\ntrain 0\n"));
    run = good("data show data.train=corpus.txt data.seq_len=18 data.val=none -n1 --tokens");
    cr_assert_not_null(strstr(run->out, "\ntrain 0\n116 111 32 98 101 32 111 114 32 110 111 116 32 "
                                        "116 111 32 98 101 10\n"));
}

Test(cli, prepared_data_is_read_back)
{
    put("a.txt", "one");
    put("b.txt", "two");
    cr_assert_str_eq(good("data prepare a.txt b.txt --out ab.bin")->out, "ab.bin: 8 tokens\n");
    const struct run *run = good("data show data.train=ab.bin data.tokenizer=none data.seq_len=7 "
                                 "data.val=none -n 1 --tokens");
    cr_assert_not_null(strstr(run->out, "\n111 110 101 256 116 119 111 256\n"), "%s", run->out);
}

Test(cli, options_may_stand_anywhere_and_two_dashes_end_them)
{
    put("r.yaml", "steps: 3\n");
    good("-q config check r.yaml");
    good("config check --quiet r.yaml -v");
    good("config check -- r.yaml");
    cr_assert_eq(shoal_run(dir, "config check -- --quiet")->exit_code, 66);
}

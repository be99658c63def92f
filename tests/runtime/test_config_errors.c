#include "runtime/base/rng.h"
#include "runtime/config/config.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Every way in which a config can be wrong, with its exact message; and a fuzz of the parser. */

static struct config *config;

static void setup(void)
{
    config = calloc(1, sizeof *config);
    cr_assert_not_null(config);
}

static void teardown(void)
{
    free(config);
}

TestSuite(config_errors, .init = setup, .fini = teardown);

struct row {
    const char *text, *message;
};

/* The first line must be equal, what follows "\n" only contained. */
static void check_message(const char *input, const char *expected)
{
    const char *found = shoal_last_error();
    size_t n = strcspn(expected, "\n");

    cr_assert(strncmp(found, expected, n) == 0 && (found[n] == '\n' || found[n] == '\0'),
              "input:\n%s\nexpected: %s\nfound:    %s", input, expected, found);
    if (expected[n] == '\n')
        cr_assert_not_null(strstr(found + n, expected + n + 1),
                           "input:\n%s\nexpected: %s\nfound:    %s", input, expected, found);
}

static void check_texts(const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        config->steps = -5;
        cr_assert_eq(config_load_text("run.yaml", rows[i].text, NULL, 0, config), SHOAL_ERR_CONFIG,
                     "%s", rows[i].text);
        check_message(rows[i].text, rows[i].message);
        cr_assert_eq(config->steps, -5, "the output was written on failure");
    }
}

#define CHECK_TEXTS(...)                                                                           \
    do {                                                                                           \
        static const struct row rows_[] = {__VA_ARGS__};                                           \
        check_texts(rows_, sizeof rows_ / sizeof rows_[0]);                                        \
    } while (0)

Test(config_errors, an_unknown_key_is_named_with_its_place_and_the_nearest_one)
{
    CHECK_TEXTS(
        {"optimizer:\n  leanring_rate: 1\n",
         "run.yaml:2:3: unknown key \"optimizer.leanring_rate\"\nhint: did you mean optimizer.lr?"},
        {"optimizer:\n  banana: 1\n", "run.yaml:2:3: unknown key \"optimizer.banana\"\nhint: "
                                      "`shoal config keys` lists all keys"},
        {"optimizer:\n  banana: 1\n",
         "run.yaml:2:3: unknown key \"optimizer.banana\"\nthe keys of optimizer are: name lr"},
        {"optimiser:\n  lr: 1\n",
         "run.yaml:1:1: unknown key \"optimiser\"\nhint: did you mean optimizer?"},
        {"stepz: 1\n", "run.yaml:1:1: unknown key \"stepz\"\nhint: did you mean steps?"},
        {"run: {seed: 1, sed: 2}\n",
         "run.yaml:1:16: unknown key \"run.sed\"\nhint: did you mean run.seed?"},
        {"{\"run\": {\"sead\": 1}}", "run.yaml:1:10: unknown key \"run.sead\"\nrun.seed"},
        {"<<: {steps: 1}\n", "run.yaml:1:1: unknown key \"<<\""},
        {"? [a]\n: 1\n", "run.yaml:1:1: a key of this mapping is not a plain word"});
}

Test(config_errors, a_wrong_type_names_what_was_expected_and_found)
{
    CHECK_TEXTS(
        {"optimizer:\n  lr: fast\n",
         "run.yaml:2:7: optimizer.lr: expected number in 0 .. 100, found \"fast\"\n"
         "hint: the default is 3e-4"},
        {"optimizer:\n  lr: fast\n", "run.yaml:2:7: optimizer.lr: expected number in 0 .. 100, "
                                     "found \"fast\"\noptimizer.lr: Learning rate after"},
        {"optimizer:\n  lr: \"1e-3\"\n",
         "run.yaml:2:7: optimizer.lr: expected number in 0 .. 100, found the quoted text \"1e-3\""},
        {"optimizer:\n  lr:\n",
         "run.yaml:2:3: optimizer.lr: expected number in 0 .. 100, found nothing"},
        {"optimizer: {lr: [1]}\n",
         "run.yaml:1:13: optimizer.lr: expected number in 0 .. 100, found a list"},
        {"optimizer: {lr: {a: 1}}\n",
         "run.yaml:1:13: optimizer.lr: expected number in 0 .. 100, found a mapping"},
        {"steps: 1.5\n",
         "run.yaml:1:8: steps: expected integer in 0 .. 9007199254740992, found \"1.5\""},
        {"steps: 1__0\n",
         "run.yaml:1:8: steps: expected integer in 0 .. 9007199254740992, found \"1__0\""},
        {"steps: 0x10\n",
         "run.yaml:1:8: steps: expected integer in 0 .. 9007199254740992, found \"0x10\""},
        {"optimizer: {lr: nan}\n",
         "run.yaml:1:17: optimizer.lr: expected number in 0 .. 100, found \"nan\""},
        {"optimizer: {lr: 0x1p3}\n",
         "run.yaml:1:17: optimizer.lr: expected number in 0 .. 100, found \"0x1p3\""},
        {"run: {bind: maybe}\n", "run.yaml:1:13: run.bind: expected true | false, found \"maybe\""},
        {"run: {out: null}\n", "run.yaml:1:12: run.out: expected text, found nothing\n"
                               "hint: write \"\" for an empty text"},
        {"run: {out: [a]}\n", "run.yaml:1:7: run.out: expected text, found a list"},
        {"data: {train: {a: b}}\n",
         "run.yaml:1:8: data.train: expected text or list of texts, found a mapping"},
        {"data: {train: [a, [b]]}\n",
         "run.yaml:1:8: data.train: expected text or list of texts, found a list"},
        {"optimizer: {betas: 0.9}\n", "run.yaml:1:20: optimizer.betas: expected list of 2 numbers "
                                      "in 0 .. 0.999999, found \"0.9\""},
        {"optimizer: {betas: [0.9]}\n",
         "run.yaml:1:13: optimizer.betas: expected 2 numbers, found 1"},
        {"optimizer: adamw\n", "run.yaml:1:12: optimizer: expected a section, found a value"},
        {"steps\n", "run.yaml:1:1: expected `key: value` lines, found a text"},
        {"- steps\n", "run.yaml:1:1: expected `key: value` lines, found a list"});
}

Test(config_errors, a_value_out_of_range_names_the_range)
{
    CHECK_TEXTS(
        {"parallel:\n  zero: 4\n",
         "run.yaml:2:9: parallel.zero: expected integer in 0 .. 3, found \"4\""},
        {"parallel:\n  zero: -1\n",
         "run.yaml:2:9: parallel.zero: expected integer in 0 .. 3, found \"-1\""},
        {"steps: 99999999999999999999\n", "run.yaml:1:8: steps: expected integer in 0 .. "
                                          "9007199254740992, found \"99999999999999999999\""},
        {"optimizer: {lr: 1e999}\n",
         "run.yaml:1:17: optimizer.lr: expected number in 0 .. 100, found \"1e999\""},
        {"optimizer: {betas: [0.9, 1.0]}\n",
         "run.yaml:1:26: optimizer.betas: expected list of 2 numbers in 0 .. 0.999999, found "
         "\"1.0\""},
        {"data: {seq_len: 0}\n",
         "run.yaml:1:17: data.seq_len: expected integer in 1 .. 16777216, found \"0\""});
}

Test(config_errors, a_wrong_choice_lists_the_choices_and_the_nearest)
{
    CHECK_TEXTS({"optimizer: {schedule: cosin}\n",
                 "run.yaml:1:23: optimizer.schedule: expected cosine | linear | constant | wsd, "
                 "found \"cosin\"\nhint: did you mean cosine?"},
                {"precision: {compute: fp8}\n", "run.yaml:1:22: precision.compute: expected fp32 | "
                                                "bf16, found \"fp8\""},
                {"precision: {master: bf16}\n", "run.yaml:1:21: precision.master: expected fp32 | "
                                                "split16 | ecc8 | bf16sr, found \"bf16\""});
}

Test(config_errors, a_duplicate_names_both_places)
{
    CHECK_TEXTS({"optimizer:\n  lr: 1\n  eps: 1e-8\n  lr: 2\n",
                 "run.yaml:4:3: duplicate key \"optimizer.lr\"\nit was set before, at "
                 "run.yaml:2:3"},
                {"steps: 1\nsteps: 1\n", "run.yaml:2:1: duplicate key \"steps\"\nat run.yaml:1:1"},
                {"optimizer.lr: 1\noptimizer: {lr: 1}\n",
                 "run.yaml:2:13: duplicate key \"optimizer.lr\"\nat run.yaml:1:1"},
                {"log: {every: 1}\nlog: {trace: x}\n",
                 "run.yaml:2:1: duplicate section \"log\"\nat run.yaml:1:1"});
}

Test(config_errors, text_that_is_no_yaml_is_named_with_line_and_column)
{
    CHECK_TEXTS(
        {"run:\n\tseed: 1\n",
         "run.yaml:2:1: not valid YAML: tab character may not be used as indentation"},
        {"data: {train: [a\nsteps: 1\n", "run.yaml:3:1: not valid YAML: flow sequence without a "
                                         "closing bracket"},
        {"steps: 1: 2\n",
         "run.yaml:1:9: not valid YAML: invalid nested block mapping on the same line"},
        {"  steps: 1\n run: 2\n",
         "run.yaml:2:2: not valid YAML: invalid mapping in plain multiline"},
        {"steps: 1\n---\nsteps: 2\n", "run.yaml: holds more than one YAML document"},
        {"steps: &a 1\n",
         "run.yaml:1:11: tags (!name) and anchors (&name) are not used in config files"},
        {"steps: !!int 1\n",
         "run.yaml:1:14: tags (!name) and anchors (&name) are not used in config files"},
        {"steps: *a\n", "run.yaml:1:8: aliases (*name) are not used in config files"},
        {"run: {out: \"a\\0b\"}\n", "run.yaml:1:12: a text may not hold the character \\0"},
        {"steps: 1\nrun: {out: \xff}\n", "run.yaml:2:12: byte 0xff is not valid UTF-8\niconv"},
        {"run: {out: \xc0\x80}\n", "run.yaml:1:12: byte 0xc0 is not valid UTF-8"},
        {"run: {out: \xed\xa0\x80}\n", "run.yaml:1:12: byte 0xed is not valid UTF-8"},
        {"run: {out: \x01}\n", "run.yaml:1:12: control character 0x01 in the text"},
        {"run: {out: [[[[[[[[[[a]]]]]]]]]]}\n", "run.yaml:1:7: nested more than 8 levels deep"});
}

Test(config_errors, texts_and_lists_have_a_length)
{
    char text[4096];
    char override[1024];
    const char *overrides[] = {override};
    size_t n = (size_t)snprintf(text, sizeof text, "data:\n  train:\n");

    for (int i = 0; i <= CONFIG_LIST; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "    - f%d\n", i);
    cr_assert_eq(config_load_text("run.yaml", text, NULL, 0, config), SHOAL_ERR_CONFIG);
    check_message(text, "run.yaml:67:7: data.train: expected at most 64 items");

    snprintf(override, sizeof override, "run.out=%0600d", 1);
    cr_assert_eq(config_load(NULL, overrides, 1, config), SHOAL_ERR_CONFIG);
    check_message(override, "command line: run.out: expected at most 511 bytes, found 600");
}

Test(config_errors, an_override_is_named_as_the_command_line)
{
    static const struct {
        const char *override, *message;
        shoal_status status;
    } rows[] = {
        {"optimizer.leanring_rate=1",
         "command line: unknown key \"optimizer.leanring_rate\"\nhint: did you mean optimizer.lr?",
         SHOAL_ERR_CONFIG},
        {"optimizer.lr=abc",
         "command line: optimizer.lr: expected number in 0 .. 100, found \"abc\"",
         SHOAL_ERR_CONFIG},
        {"optimizer.lr=", "command line: optimizer.lr: expected number in 0 .. 100, found \"\"",
         SHOAL_ERR_CONFIG},
        {"optimizer.betas=[0.9",
         "command line:2:1: not valid YAML: flow sequence without a closing "
         "bracket",
         SHOAL_ERR_CONFIG},
        {"optimizer.betas=[0.9, x]",
         "command line: optimizer.betas: expected list of 2 numbers in 0 .. 0.999999, found \"x\"",
         SHOAL_ERR_CONFIG},
        {"optimizer", "command line: expected KEY=VALUE, found \"optimizer\"\nhint: for example",
         SHOAL_ERR_USAGE},
        {"optimizer=adamw", "command line: unknown key \"optimizer\"", SHOAL_ERR_CONFIG},
        {"run.out=\xff", "command line:1:9: byte 0xff is not valid UTF-8", SHOAL_ERR_CONFIG},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        cr_assert_eq(config_load(NULL, &rows[i].override, 1, config), rows[i].status);
        check_message(rows[i].override, rows[i].message);
    }
}

Test(config_errors, a_file_that_cannot_be_read_is_missing_input)
{
    char path[] = "/tmp/shoal_config_XXXXXX";
    char expected[128];

    cr_assert_eq(config_load("/nonexistent/run.yaml", NULL, 0, config), SHOAL_ERR_NOINPUT);
    check_message("missing", "/nonexistent/run.yaml: cannot read the config file\nNo such file");
    cr_assert_eq(config_load("/tmp", NULL, 0, config), SHOAL_ERR_NOINPUT);
    check_message("directory", "/tmp: cannot read the config file\nIs a directory");

    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, "steps: 1\n\0", 10), 10);
    cr_assert_eq(config_load(path, NULL, 0, config), SHOAL_ERR_CONFIG);
    snprintf(expected, sizeof expected, "%s: holds a zero byte", path);
    check_message("zero byte", expected);
    cr_assert_eq(ftruncate(fd, 2 << 20), 0);
    cr_assert_eq(config_load(path, NULL, 0, config), SHOAL_ERR_CONFIG);
    snprintf(expected, sizeof expected,
             "%s: expected a config of at most 1048576 bytes, found more", path);
    check_message("large", expected);
    close(fd);
    unlink(path);
}

/* ---- fuzz ---- */

static const char seed_text[] =
    "# a config\nrun: {out: \"a b\", seed: 1_000, bind: yes}\nmodel:\n  preset: gpt2\n"
    "  tied: auto\ndata:\n  train: [a.txt, 'b: c', \"d\\n\"]\n  val: 0.5%\n"
    "optimizer:\n  lr: 3e-4 # peak\n  betas: [0.9, 0.95]\neval:\n  sample_prompts:\n"
    "    - |\n      block\n      text\n    - >-\n      folded\n\"steps\": 10\n";

static const char *const tokens[] = {
    ":",           ": ",        "\n",
    "\n  ",        "- ",        "[",
    "]",           "{",         "}",
    "\"",          "'",         "#",
    " #",          "|",         ">",
    "&a ",         "*a",        "!t ",
    "? ",          "---\n",     "...\n",
    "%YAML 1.1\n", "\t",        "<<: ",
    "\\",          "\xc2\x85",  "\xef\xbb\xbf",
    "\r\n",        "null",      "~",
    ",",           "\xff",      "\x00",
    "lr",          "optimizer", "steps: 1\n",
    "\"\\u0000\"",
};

/* Cut, repeat, insert and overwrite at places that depend on (case, round) alone. */
static size_t mutate(uint64_t number, char *text, size_t n, size_t capacity)
{
    uint32_t r[4];

    rng_block(1, RNG_STREAM_DATA, number, 0, r);
    int rounds = 1 + (int)(r[0] % 4);
    for (int round = 1; round <= rounds; round++) {
        rng_block(1, RNG_STREAM_DATA, number, (uint64_t)round, r);
        size_t at = n > 0 ? r[1] % n : 0;
        const char *token = tokens[r[2] % (sizeof tokens / sizeof tokens[0])];
        size_t n_token = token[0] == '\0' ? 1 : strlen(token);

        if (r[0] % 4 == 0 && n > 0) {
            size_t cut = 1 + r[3] % (n - at);
            memmove(text + at, text + at + cut, n - at - cut);
            n -= cut;
        } else if (r[0] % 4 == 1 && n > 0) {
            text[at] = (char)r[3];
        } else if (n + n_token <= capacity) {
            memmove(text + at + n_token, text + at, n - at);
            memcpy(text + at, token, n_token);
            n += n_token;
        }
    }
    return n;
}

Test(config_errors, no_mutated_text_does_worse_than_be_refused, .timeout = 120)
{
    enum { CASES = 20000, CAPACITY = 4096 };
    char *text = malloc(CAPACITY + 1);
    int n_good = 0;
    int n_bad = 0;

    for (uint64_t number = 0; number < CASES; number++) {
        memcpy(text, seed_text, sizeof seed_text);
        text[mutate(number, text, sizeof seed_text - 1, CAPACITY)] = '\0';
        shoal_status status = config_load_text("fuzz", text, NULL, 0, config);

        if (status == SHOAL_OK) {
            struct config *again = calloc(1, sizeof *again);
            char *yaml;

            n_good++;
            cr_assert_eq(config_to_yaml(config, &yaml), SHOAL_OK);
            cr_assert_eq(config_load_text("again", yaml, NULL, 0, again), SHOAL_OK,
                         "case %d: %s\n%s", (int)number, shoal_last_error(), yaml);
            cr_assert_eq(config_hash(config), config_hash(again));
            free(yaml);
            free(again);
        } else {
            n_bad++;
            cr_assert_eq(status, SHOAL_ERR_CONFIG, "case %d", (int)number);
            cr_assert_eq(strncmp(shoal_last_error(), "fuzz:", 5), 0, "case %d: %s", (int)number,
                         shoal_last_error());
        }
    }
    free(text);
    cr_assert_gt(n_good, CASES / 100, "the mutations no longer reach good texts");
    cr_assert_gt(n_bad, CASES / 4);
}

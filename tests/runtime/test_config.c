#include "runtime/config/config.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The key table, the layers and what is printed from them.  Errors are in test_config_errors.c. */

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

TestSuite(config, .init = setup, .fini = teardown);

static void load(const char *text)
{
    cr_assert_eq(config_load_text("run.yaml", text, NULL, 0, config), SHOAL_OK, "%s",
                 shoal_last_error());
}

static void load_with(const char *text, const char *override)
{
    cr_assert_eq(config_load_text("run.yaml", text, &override, 1, config), SHOAL_OK, "%s",
                 shoal_last_error());
}

static void value_is(const char *path, const char *expected)
{
    char text[1024];
    const struct config_key *key = config_find(path);

    cr_assert_not_null(key, "%s", path);
    config_value_text(config, key, text, sizeof text);
    cr_assert_str_eq(text, expected, "%s is %s, expected %s", path, text, expected);
}

/* Everything but the origins. */
static void same_values(const struct config *a, const struct config *b)
{
    size_t n;
    const struct config_key *keys = config_keys(&n);

    for (size_t i = 0; i < n; i++)
        cr_assert_eq(memcmp((const char *)a + keys[i].offset, (const char *)b + keys[i].offset,
                            keys[i].n_bytes),
                     0, "%s differs", keys[i].path);
}

/* ---- the table ---- */

Test(config, every_key_has_a_help_sentence_and_a_place_in_the_struct)
{
    size_t n;
    const struct config_key *keys = config_keys(&n);

    cr_assert_gt(n, 50);
    for (size_t i = 0; i < n; i++) {
        size_t length = strlen(keys[i].help);

        cr_assert_gt(length, 10, "%s", keys[i].path);
        cr_assert_eq(keys[i].help[length - 1], '.', "%s", keys[i].path);
        cr_assert_leq(keys[i].offset + keys[i].n_bytes, offsetof(struct config, source));
        cr_assert_eq(config_find(keys[i].path), &keys[i], "%s is listed twice", keys[i].path);
        for (size_t j = i + 1; j < n; j++)
            cr_assert(keys[i].offset + keys[i].n_bytes <= keys[j].offset ||
                          keys[j].offset + keys[j].n_bytes <= keys[i].offset,
                      "%s and %s share bytes", keys[i].path, keys[j].path);
    }
}

Test(config, numbers_have_a_range_and_choices_fit_their_field)
{
    size_t n;
    const struct config_key *keys = config_keys(&n);

    for (size_t i = 0; i < n; i++) {
        const struct config_key *key = &keys[i];
        bool number =
            key->type == CONFIG_INT || key->type == CONFIG_REAL || key->type == CONFIG_REALS;

        cr_assert_eq(number, key->min < key->max, "%s", key->path);
        cr_assert_eq(key->type == CONFIG_CHOICE, key->choices != NULL, "%s", key->path);
        if (key->type == CONFIG_INT)
            cr_assert(key->n_bytes == 8 || (key->n_bytes == 4 && key->max <= 2147483647.0));
        if (key->choices == NULL)
            continue;
        cr_assert_lt(strlen(key->choices), 128);
        for (const char *word = key->choices; *word != '\0'; word += *word == '|') {
            cr_assert_lt(strcspn(word, "|"), key->n_bytes, "%s", key->path);
            word += strcspn(word, "|");
        }
    }
}

Test(config, every_default_is_what_a_config_without_keys_holds)
{
    struct config *again = calloc(1, sizeof *again);
    size_t n;
    const struct config_key *keys = config_keys(&n);

    load("");
    for (size_t i = 0; i < n; i++) {
        char line[512];

        snprintf(line, sizeof line, "%s: %s\n", keys[i].path, keys[i].fallback);
        cr_assert_eq(config_load_text("line", line, NULL, 0, again), SHOAL_OK, "%s",
                     shoal_last_error());
        same_values(config, again);
    }
    free(again);
}

Test(config, defaults_are_the_documented_ones)
{
    cr_assert_eq(config_load(NULL, NULL, 0, config), SHOAL_OK);
    value_is("run.out", "runs/shoal");
    value_is("optimizer.lr", "0.0003");
    value_is("optimizer.betas", "[0.9, 0.95]");
    value_is("optimizer.eps", "1e-08");
    value_is("data.train", "[]");
    value_is("parallel.zero", "3");
    value_is("comm.timeout", "30");
    value_is("checkpoint.resume", "auto");
    cr_assert_eq(config->steps, 1000);
    cr_assert_eq(config->batch.global, 16);
    cr_assert_eq(config->optimizer.betas[1], 0.95);
    cr_assert_eq(config->eval.sample_prompts.n, 1);
    cr_assert_str_eq(config->eval.sample_prompts.items[0], "\n");
}

/* ---- values ---- */

Test(config, yaml_and_json_say_the_same)
{
    struct config *json = calloc(1, sizeof *json);

    load("optimizer:\n  lr: 1e-3\n  betas: [0.8, 0.9]\ndata: {train: a.txt}\nrun: {bind: yes}\n");
    cr_assert_eq(config_load_text("run.json",
                                  "{\"optimizer\": {\"lr\": 0.001, \"betas\": [0.8, 0.9]}, "
                                  "\"data\": {\"train\": [\"a.txt\"]}, \"run\": {\"bind\": true}}",
                                  NULL, 0, json),
                 SHOAL_OK, "%s", shoal_last_error());
    same_values(config, json);
    free(json);
}

Test(config, integers_may_be_grouped_and_numbers_have_exponents)
{
    load("steps: 1_000_000\noptimizer: {lr: 1E-2, weight_decay: .5, eps: 1e-12}\n");
    cr_assert_eq(config->steps, 1000000);
    cr_assert_eq(config->optimizer.lr, 0.01);
    cr_assert_eq(config->optimizer.weight_decay, 0.5);
    cr_assert_eq(config->optimizer.eps, 1e-12);
}

Test(config, booleans_have_six_words)
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on"};

    for (int i = 0; i < 6; i++) {
        char override[64];

        snprintf(override, sizeof override, "run.bind=%s", words[i]);
        load_with(NULL, override);
        cr_assert_eq(config->run.bind, i % 2 == 1, "%s", words[i]);
    }
}

Test(config, training_files_are_a_text_or_a_list)
{
    load("data: {train: one.txt}\n");
    cr_assert_eq(config->data.train.n, 1);
    load("data:\n  train:\n    - one.txt\n    - \"two three.txt\"\n");
    cr_assert_eq(config->data.train.n, 2);
    cr_assert_str_eq(config->data.train.items[1], "two three.txt");
    load_with("data: {train: one.txt}\n", "data.train=[a.txt, 'b c.txt']");
    cr_assert_eq(config->data.train.n, 2);
    cr_assert_str_eq(config->data.train.items[1], "b c.txt");
}

Test(config, a_key_may_be_written_with_dots_and_a_section_may_be_empty)
{
    load("optimizer.lr: 1e-2\nlog:\n# every: 3\n");
    cr_assert_eq(config->optimizer.lr, 0.01);
    cr_assert_eq(config->log.every, 10);
}

Test(config, an_override_is_taken_literally)
{
    load_with(NULL, "eval.sample_prompts=to be: or # \"not\"");
    cr_assert_str_eq(config->eval.sample_prompts.items[0], "to be: or # \"not\"");
    load_with(NULL, "log.trace=");
    cr_assert_str_eq(config->log.trace, "");
    load_with(NULL, "run.out=a=b");
    cr_assert_str_eq(config->run.out, "a=b");
}

Test(config, later_layers_win)
{
    static const char *const overrides[] = {"steps=7", "steps=8"};

    cr_assert_eq(config_load_text("run.yaml", "steps: 5\n", overrides, 2, config), SHOAL_OK);
    cr_assert_eq(config->steps, 8);
}

/* ---- printing ---- */

Test(config, the_resolved_config_shows_where_each_value_came_from)
{
    static const char *const overrides[] = {"run.seed=9"};
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);

    cr_assert_eq(
        config_load_text("run.yaml", "steps: 5\noptimizer:\n  lr: 1e-3\n", overrides, 1, config),
        SHOAL_OK);
    cr_assert_eq(config_write(config, stream), SHOAL_OK);
    fclose(stream);
    cr_assert_not_null(strstr(text, "\nsteps: 5  # run.yaml:1\n"));
    cr_assert_not_null(strstr(text, "\n  lr: 0.001  # run.yaml:3\n"));
    cr_assert_not_null(strstr(text, "\n  seed: 9  # command line\n"));
    cr_assert_not_null(strstr(text, "\n  min_lr: 3e-05  # default\n"));
    free(text);
}

/* Whatever a config holds, its text gives it back; with origins as comments, too. */
static void survives_printing(void)
{
    struct config *again = calloc(1, sizeof *again);
    char *yaml;
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);

    cr_assert_eq(config_to_yaml(config, &yaml), SHOAL_OK);
    cr_assert_eq(config_load_text("again", yaml, NULL, 0, again), SHOAL_OK, "%s\n%s",
                 shoal_last_error(), yaml);
    same_values(config, again);
    config_write(config, stream);
    fclose(stream);
    cr_assert_eq(config_load_text("again", text, NULL, 0, again), SHOAL_OK, "%s",
                 shoal_last_error());
    same_values(config, again);
    free(yaml);
    free(text);
    free(again);
}

Test(config, awkward_texts_survive_printing_and_loading)
{
    static const char *const texts[] = {
        "null",
        "~",
        "true",
        "123",
        "1e-4",
        "a: b",
        "a #b",
        "- x",
        "[x]",
        "{x}",
        "*x",
        "&x",
        "!x",
        "%x",
        "@x",
        "`x`",
        "'x'",
        "\"x\"",
        "\\n",
        "a\nb",
        "a\tb",
        " x ",
        "",
        "?",
        "-",
        ":",
        "#",
        "=",
        "<<",
        "---",
        "...",
        "\xc3\xa9t\xc3\xa9",
        "\xe2\x80\xa8",
        "\xe2\x80\xa9",
        "\xc2\x85",
        "\xc2\xa0",
        "\xef\xbb\xbfx",
        "\xef\xbf\xbe",
        "\xf0\x9f\x90\x9f",
        "x\r\ny",
        "\\x41",
    };

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char override[128];

        snprintf(override, sizeof override, "eval.sample_prompts=%s", texts[i]);
        if (texts[i][0] == '[')
            snprintf(override, sizeof override, "eval.sample_prompts=['%s']", texts[i]);
        load_with(NULL, override);
        cr_assert_str_eq(config->eval.sample_prompts.items[0], texts[i]);
        survives_printing();
    }
}

Test(config, numbers_survive_printing_with_every_bit)
{
    static const char *const numbers[] = {"0.1", "0.30000000000000004", "1e-30", "3.0000000001e-4",
                                          "99.99999999999999"};

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        char override[64];

        snprintf(override, sizeof override, "optimizer.lr=%s", numbers[i]);
        load_with(NULL, override);
        survives_printing();
    }
}

static char *print_new(const char *preset)
{
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);

    cr_assert_eq(config_print_new(preset, stream), SHOAL_OK, "%s", shoal_last_error());
    fclose(stream);
    return text;
}

Test(config, a_new_config_loads_back_to_the_defaults)
{
    struct config *defaults = calloc(1, sizeof *defaults);
    char *text = print_new(NULL);

    cr_assert_eq(config_load(NULL, NULL, 0, defaults), SHOAL_OK);
    load(text);
    same_values(config, defaults);
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1)
        cr_assert_leq(strcspn(line, "\n"), 96);
    free(text);
    free(defaults);
}

Test(config, a_new_config_for_a_preset_has_fitting_sizes)
{
    char *text = print_new("gpt2-medium");

    load(text);
    cr_assert_str_eq(config->model.preset, "gpt2-medium");
    cr_assert_str_eq(config->data.tokenizer, "none");
    cr_assert_eq(config->data.seq_len, 1024);
    free(text);
    text = print_new("llama-tiny");
    load(text);
    cr_assert_str_eq(config->data.tokenizer, "bytes");
    free(text);
}

Test(config, the_reference_page_in_docs_is_the_generated_one)
{
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);
    FILE *page = fopen(SHOAL_SOURCE_DIR "/docs/config.md", "r");

    cr_assert_not_null(page, "docs/config.md is missing");
    config_print_reference(stream);
    fclose(stream);
    char *stored = calloc(1, n + 2);
    size_t n_stored = fread(stored, 1, n + 1, page);
    fclose(page);
    cr_assert(n_stored == n && memcmp(stored, text, n) == 0,
              "run: shoal config keys --markdown > docs/config.md");
    free(stored);
    free(text);
}

/* ---- hash and suggestions ---- */

Test(config, the_hash_covers_all_keys_but_rank_local_ones)
{
    size_t n;
    const struct config_key *keys = config_keys(&n);

    load("");
    uint64_t before = config_hash(config);
    for (size_t i = 0; i < n; i++) {
        load("");
        ((unsigned char *)config)[keys[i].offset] ^= 1;
        cr_assert_eq(config_hash(config) == before, keys[i].rank_local, "%s", keys[i].path);
    }
    load("data: {train: x}\n");
    cr_assert_neq(config_hash(config), before);
    load("run: {threads: 3, bind: true}\n");
    cr_assert_eq(config_hash(config), before);
}

Test(config, nearest_key_knows_misspellings_and_other_programs_words)
{
    static const char *const rows[][2] = {
        {"optimizer.rl", NULL},
        {"optimizer.leanring_rate", "optimizer.lr"},
        {"learning_rate", "optimizer.lr"},
        {"lr", "optimizer.lr"},
        {"optimizer.wieght_decay", "optimizer.weight_decay"},
        {"optimiser.eps", "optimizer.eps"},
        {"model.seq_len", "data.seq_len"},
        {"micro_batch_size", "batch.micro"},
        {"gradient_accumulation_steps", "batch.global"},
        {"max_steps", "steps"},
        {"step", "steps"},
        {"checkpoint.save_total_limit", "checkpoint.keep"},
        {"eval.evry", "eval.every"},
        {"log.evry", "log.every"},
        {"model.form", "model.from"},
        {"zero_stage", "parallel.zero"},
        {"banana", NULL},
        {"", NULL},
        {".", NULL},
        {"a.b.c.d", NULL},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *near = config_nearest(rows[i][0]);

        if (rows[i][1] == NULL)
            cr_assert_null(near, "\"%s\" suggests %s", rows[i][0], near);
        else
            cr_assert(near != NULL && strcmp(near, rows[i][1]) == 0, "\"%s\" suggests %s",
                      rows[i][0], near != NULL ? near : "nothing");
    }
}

Test(config, nearest_word_is_at_most_a_third_away)
{
    char out[16];

    cr_assert_str_eq(nearest_word("tarin", "sample train plan", out, sizeof out), "train");
    cr_assert_str_eq(nearest_word("pln", " plan ", out, sizeof out), "plan");
    cr_assert_null(nearest_word("xyz", "sample train plan", out, sizeof out));
    cr_assert_null(nearest_word("tarin", "", out, sizeof out));
    cr_assert_null(nearest_word("tarin", "train", out, 5), "no room for the zero");
}

/* shoal config: write, check and explain configs. */
#include "launch/cli/cli_internal.h"
#include "models/model.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- new ---- */

static shoal_status check_preset(const char *preset)
{
    struct model_config config;

    return preset[0] != '\0' ? model_config_preset(preset, &config) : SHOAL_OK;
}

static shoal_status run_new(const struct command_line *line)
{
    const char *preset = option_text(line, "preset");

    if (preset != NULL)
        SHOAL_TRY(check_preset(preset));
    return config_print_new(preset, stdout);
}

static const struct option new_options[] = {
    {"preset", 0, "NAME", "start from this model (llama-tiny)"},
    {.name = NULL},
};

static const struct command command_new = {
    .path = "config new",
    .purpose = "Print a commented config with every key.",
    .examples = {"shoal config new > run.yaml", "shoal config new --preset gpt2 > gpt2.yaml"},
    .options = new_options,
    .run = run_new,
};

/* ---- check, show ---- */

static shoal_status run_check(const struct command_line *line)
{
    struct config *config;

    SHOAL_TRY(config_from_line(line, NULL, &config));
    shoal_status status = check_preset(config->model.preset);
    if (status == SHOAL_OK)
        printf("%s: good, hash %016" PRIx64 "\n", line->args[0], config_hash(config));
    free(config);
    return status;
}

static shoal_status run_show(const struct command_line *line)
{
    struct config *config;

    SHOAL_TRY(config_from_line(line, NULL, &config));
    shoal_status status = config_write(config, stdout);
    free(config);
    return status;
}

static const struct option no_options[] = {{.name = NULL}};

static const struct command command_check = {
    .path = "config check",
    .purpose = "Check a config key by key.",
    .arguments = "CONFIG [KEY=VALUE...]",
    .notes = "`shoal train --dry-run` also checks the data and how the keys fit together.",
    .examples = {"shoal config check run.yaml", "shoal config check run.yaml parallel.zero=2"},
    .options = no_options,
    .min_args = 1,
    .max_args = -1,
    .run = run_check,
};

static const struct command command_show = {
    .path = "config show",
    .purpose = "Print every value of a config and where it came from.",
    .arguments = "[CONFIG] [KEY=VALUE...]",
    .examples = {"shoal config show run.yaml", "shoal config show run.yaml optimizer.lr=1e-3"},
    .options = no_options,
    .max_args = -1,
    .run = run_show,
};

/* ---- keys, explain ---- */

static json_t *key_json(const struct config_key *key)
{
    char expected[160];

    config_expected_text(key, expected, sizeof expected);
    return json_pack("{s:s, s:s, s:s, s:s, s:b, s:s}", "key", key->path, "value", expected,
                     "default", key->fallback, "unit", key->unit != NULL ? key->unit : "",
                     "rank_local", key->rank_local, "help", key->help);
}

static shoal_status run_keys(const struct command_line *line)
{
    size_t n;
    const struct config_key *keys = config_keys(&n);

    if (option_is_set(line, "markdown")) {
        config_print_reference(stdout);
        return SHOAL_OK;
    }
    if (option_is_set(line, "json")) {
        json_t *array = json_array();

        for (size_t i = 0; i < n; i++)
            json_array_append_new(array, key_json(&keys[i]));
        return print_json(array);
    }
    for (size_t i = 0; i < n; i++)
        printf("%-24s %-16s %s\n", keys[i].path, keys[i].fallback, keys[i].help);
    return SHOAL_OK;
}

static const struct option keys_options[] = {
    {"json", 0, NULL, "a JSON array on stdout"},
    {"markdown", 0, NULL, "the reference page, as docs/config.md"},
    {.name = NULL},
};

static const struct command command_keys = {
    .path = "config keys",
    .purpose = "List all keys with their defaults.",
    .examples = {"shoal config keys", "shoal config keys --json"},
    .options = keys_options,
    .run = run_keys,
};

static shoal_status run_explain(const struct command_line *line)
{
    const char *path = line->args[0];
    const struct config_key *key = config_find(path);
    const char *near = config_nearest(path);
    char expected[160];

    if (key == NULL) {
        fail(SHOAL_ERR_CONFIG, "unknown key \"%.200s\"", path);
        if (near != NULL)
            return fail_hint(SHOAL_ERR_CONFIG, "did you mean %s?", near);
        return fail_hint(SHOAL_ERR_CONFIG, "`shoal config keys` lists all keys");
    }
    config_expected_text(key, expected, sizeof expected);
    printf("%s\n  %s\n  value    %s\n  default  %s\n", key->path, key->help, expected,
           key->fallback);
    if (key->unit != NULL)
        printf("  unit     %s\n", key->unit);
    if (key->also != NULL)
        printf("  elsewhere called  %s\n", key->also);
    return SHOAL_OK;
}

static const struct command command_explain = {
    .path = "config explain",
    .purpose = "Explain one key.",
    .arguments = "KEY",
    .examples = {"shoal config explain optimizer.lr", "shoal config explain parallel.zero"},
    .options = no_options,
    .min_args = 1,
    .max_args = 1,
    .run = run_explain,
};

static const struct command *const commands[] = {
    &command_new, &command_check, &command_show, &command_keys, &command_explain, NULL,
};

const struct command command_config = {
    .path = "config",
    .purpose = "Write, check and explain configs.",
    .commands = commands,
};

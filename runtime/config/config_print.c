/* What is printed from the key table: resolved configs, new configs, the reference page. */
#include "runtime/config/config_internal.h"

#include <stdlib.h>
#include <string.h>

static const char *leaf_of(const struct config_key *key)
{
    const char *dot = strrchr(key->path, '.');

    return dot != NULL ? dot + 1 : key->path;
}

/* ---- resolved configs ---- */

/* "run.yaml:7", without what could end the comment. */
static void print_origin(const struct config *config, size_t row, FILE *out)
{
    if (config->origin[row] == CONFIG_ORIGIN_DEFAULT) {
        fputs("default", out);
    } else if (config->origin[row] == CONFIG_ORIGIN_COMMAND_LINE) {
        fputs("command line", out);
    } else {
        for (const char *c = config->source; *c != '\0'; c++)
            putc((unsigned char)*c < 0x20 ? '?' : *c, out);
        fprintf(out, ":%d", config->origin[row]);
    }
}

static void print_config(const struct config *config, bool origins, FILE *out)
{
    size_t n_keys;
    size_t n_sections;
    const struct config_key *keys = config_keys(&n_keys);
    const struct config_section *sections = config_sections(&n_sections);

    for (size_t s = 0; s < n_sections; s++) {
        const char *section = sections[s].name;

        if (section[0] != '\0')
            fprintf(out, "%s:\n", section);
        for (size_t i = 0; i < n_keys; i++) {
            if (!key_in_section(&keys[i], section))
                continue;
            fprintf(out, "%s%s: ", section[0] != '\0' ? "  " : "", leaf_of(&keys[i]));
            value_print(config, &keys[i], out);
            if (origins) {
                fputs("  # ", out);
                print_origin(config, i, out);
            }
            putc('\n', out);
        }
    }
}

shoal_status config_write(const struct config *config, FILE *out)
{
    print_config(config, true, out);
    if (fflush(out) != 0 || ferror(out))
        return fail(SHOAL_ERR_IO, "resolved config: cannot be written: %m");
    return SHOAL_OK;
}

shoal_status config_to_yaml(const struct config *config, char **yaml_out)
{
    char *text = NULL;
    size_t n_bytes = 0;
    FILE *stream = open_memstream(&text, &n_bytes);

    if (stream == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve memory for its text");
    print_config(config, false, stream);
    if (fclose(stream) != 0) {
        free(text);
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve memory for its text");
    }
    *yaml_out = text;
    return SHOAL_OK;
}

/* ---- a config to start from ---- */

/* "  # <words>", folded at 90 columns. */
static void print_comment(const char *text, const char *indent, FILE *out)
{
    size_t column = 0;

    while (*text != '\0') {
        size_t n = strcspn(text, " ");

        if (column == 0 || column + 1 + n > 90) {
            fprintf(out, "%s%s#", column == 0 ? "" : "\n", indent);
            column = strlen(indent) + 1;
        }
        fprintf(out, " %.*s", (int)n, text);
        column += 1 + n;
        text += n;
        text += strspn(text, " ");
    }
    putc('\n', out);
}

static void print_new_key(const struct config *config, size_t row, const char *indent, FILE *out)
{
    size_t n_keys;
    const struct config_key *key = &config_keys(&n_keys)[row];
    char expected[160];
    char comment[640];

    config_expected_text(key, expected, sizeof expected);
    snprintf(comment, sizeof comment, "%s (%s%s%s)", key->help, expected,
             key->unit != NULL ? "; " : "", key->unit != NULL ? key->unit : "");
    print_comment(comment, indent, out);
    fprintf(out, "%s%s: ", indent, leaf_of(key));
    if (config->origin[row] == CONFIG_ORIGIN_DEFAULT)
        fputs(key->fallback, out);
    else
        value_print(config, key, out);
    putc('\n', out);
}

static void print_new(const struct config *config, FILE *out)
{
    size_t n_keys;
    size_t n_sections;
    const struct config_key *keys = config_keys(&n_keys);
    const struct config_section *sections = config_sections(&n_sections);

    fputs("# A Shoal config.  Every key is shown; those left out have their default.\n"
          "# Train with:  mpirun -n 2 shoal train THIS_FILE [KEY=VALUE...]\n",
          out);
    for (size_t s = 0; s < n_sections; s++) {
        bool top = sections[s].name[0] == '\0';

        fprintf(out, "\n# %s\n", sections[s].help);
        if (!top)
            fprintf(out, "%s:\n", sections[s].name);
        for (size_t i = 0; i < n_keys; i++)
            if (key_in_section(&keys[i], sections[s].name))
                print_new_key(config, i, top ? "" : "  ", out);
    }
}

shoal_status config_print_new(const char *preset, FILE *out)
{
    const char *overrides[16];
    char preset_override[128];
    size_t n = 0;
    struct config *config = malloc(sizeof *config);

    if (config == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve %zu bytes", sizeof *config);
    if (preset != NULL) {
        snprintf(preset_override, sizeof preset_override, "model.preset=%s", preset);
        overrides[n++] = preset_override;
        for (const char *const *p = config_profile(preset); *p != NULL; p++)
            overrides[n++] = *p;
    }
    shoal_status status = config_load(NULL, overrides, n, config);
    if (status == SHOAL_OK) {
        print_new(config, out);
        if (fflush(out) != 0 || ferror(out))
            status = fail(SHOAL_ERR_IO, "new config: cannot be written: %m");
    }
    free(config);
    return status;
}

/* ---- the reference page ---- */

/* A table's cell: '|' would end it. */
static void print_cell(const char *text, FILE *out)
{
    for (; *text != '\0'; text++) {
        if (*text == '|')
            putc('\\', out);
        putc(*text, out);
    }
}

static void print_reference_row(const struct config_key *key, FILE *out)
{
    char expected[160];

    config_expected_text(key, expected, sizeof expected);
    fprintf(out, "| `%s` | ", key->path);
    print_cell(expected, out);
    fprintf(out, " | `%s` | %s | ", key->fallback, key->unit != NULL ? key->unit : "");
    print_cell(key->help, out);
    fputs(key->rank_local ? " May differ between ranks. |\n" : " |\n", out);
}

void config_print_reference(FILE *out)
{
    size_t n_keys;
    size_t n_sections;
    const struct config_key *keys = config_keys(&n_keys);
    const struct config_section *sections = config_sections(&n_sections);

    fputs("# Config reference\n\n"
          "Generated by `shoal config keys --markdown` from the key table "
          "(runtime/config/config_table.c); a test compares the two.\n\n"
          "A config is a YAML (or JSON) file. Later layers win: defaults, the file, `KEY=VALUE` on "
          "the command line. A key that is not listed here, a value of the wrong type or out of "
          "range, and a key given twice are refused with their line and column (exit code 78). "
          "Integers may be written `1_000_000`, numbers `1e-4`, booleans "
          "`true/false/yes/no/on/off`. On the command line lists are written as in YAML: "
          "`'data.train=[a.txt, b.txt]'`.\n\n"
          "`shoal config new` prints a commented file to start from, `shoal config check` checks "
          "one, `shoal config show` prints every value and where it came from.\n",
          out);
    for (size_t s = 0; s < n_sections; s++) {
        bool top = sections[s].name[0] == '\0';

        fprintf(out, "\n## %s\n\n%s\n\n", top ? "top level" : sections[s].name, sections[s].help);
        fputs("| key | value | default | unit | meaning |\n|---|---|---|---|---|\n", out);
        for (size_t i = 0; i < n_keys; i++)
            if (key_in_section(&keys[i], sections[s].name))
                print_reference_row(&keys[i], out);
    }
}

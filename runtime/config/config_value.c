/* One value: from what was written into its field, and back. */
#include "runtime/config/config_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *kind_text(const struct yaml_node *node)
{
    switch (node->kind) {
    case YAML_NULL:
        return "nothing";
    case YAML_LIST:
        return "a list";
    case YAML_MAP:
        return "a mapping";
    case YAML_SCALAR:
        break;
    }
    return node->quoted ? "the quoted text" : "";
}

static void bound_text(double bound, char out[32])
{
    if (bound >= 1e6 && bound == (double)(int64_t)bound)
        snprintf(out, 32, "%" PRId64, (int64_t)bound);
    else
        snprintf(out, 32, "%g", bound);
}

void config_expected_text(const struct config_key *key, char *out, size_t n_bytes)
{
    char min[32];
    char max[32];
    size_t n = 0;

    bound_text(key->min, min);
    bound_text(key->max, max);
    switch (key->type) {
    case CONFIG_STRING:
        snprintf(out, n_bytes, "text");
        return;
    case CONFIG_STRINGS:
        snprintf(out, n_bytes, "text or list of texts");
        return;
    case CONFIG_BOOL:
        snprintf(out, n_bytes, "true | false");
        return;
    case CONFIG_INT:
        snprintf(out, n_bytes, "integer in %s .. %s", min, max);
        return;
    case CONFIG_REAL:
        snprintf(out, n_bytes, "number in %s .. %s", min, max);
        return;
    case CONFIG_REALS:
        snprintf(out, n_bytes, "list of %zu numbers in %s .. %s", key->n_bytes / sizeof(double),
                 min, max);
        return;
    case CONFIG_CHOICE:
        for (const char *c = key->choices; *c != '\0' && n + 4 < n_bytes; c++) {
            if (*c == '|')
                out[n++] = ' ';
            out[n++] = *c;
            if (*c == '|')
                out[n++] = ' ';
        }
        out[n] = '\0';
        return;
    }
}

/* "run.yaml:3:7: parallel.zero: expected integer in 0 .. 3, found 7", with the key's meaning. */
static shoal_status refuse(const struct config_key *key, const struct yaml_node *node)
{
    char expected[160];
    const char *kind = kind_text(node);
    bool scalar = node->kind == YAML_SCALAR;

    config_expected_text(key, expected, sizeof expected);
    fail_at(&node->place, "%s: expected %s, found %s%s%s%.80s%s", key->path, expected, kind,
            scalar && kind[0] != '\0' ? " " : "", scalar ? "\"" : "", scalar ? node->text : "",
            scalar ? "\"" : "");
    fail_why(SHOAL_ERR_CONFIG, "%s: %s", key->path, key->help);
    return fail_hint(SHOAL_ERR_CONFIG, "the default is %s", key->fallback);
}

/* Remove the underscores of 1_000_000; false if one is not between two digits. */
static bool strip_underscores(const char *text, char *out, size_t n_bytes)
{
    size_t n = 0;

    for (size_t i = 0; text[i] != '\0'; i++) {
        bool digit_before = i > 0 && text[i - 1] >= '0' && text[i - 1] <= '9';
        bool digit_after = text[i + 1] >= '0' && text[i + 1] <= '9';

        if (text[i] == '_') {
            if (!digit_before || !digit_after)
                return false;
            continue;
        }
        if (n + 1 >= n_bytes)
            return false;
        out[n++] = text[i];
    }
    out[n] = '\0';
    return n > 0;
}

static bool parse_int(const char *text, int64_t *value_out)
{
    char digits[64];
    char *end;

    if (!strip_underscores(text, digits, sizeof digits))
        return false;
    const char *first = digits + (digits[0] == '-' || digits[0] == '+');
    if (first[0] == '\0' || first[strspn(first, "0123456789")] != '\0')
        return false;
    errno = 0;
    *value_out = strtoll(digits, &end, 10);
    return errno == 0;
}

/* Decimal numbers only: strtod alone would also take hexadecimal, inf and nan. */
static bool parse_real(const char *text, double *value_out)
{
    char digits[64];
    char *end;

    if (!strip_underscores(text, digits, sizeof digits))
        return false;
    if (digits[strspn(digits, "0123456789+-.eE")] != '\0')
        return false;
    errno = 0;
    *value_out = strtod(digits, &end);
    bool overflow = errno == ERANGE && (*value_out > 1 || *value_out < -1);
    return *end == '\0' && !overflow;
}

static bool parse_bool(const char *text, bool *value_out)
{
    static const char *const words[2][3] = {{"false", "no", "off"}, {"true", "yes", "on"}};

    for (int value = 0; value < 2; value++)
        for (int i = 0; i < 3; i++)
            if (strcmp(text, words[value][i]) == 0) {
                *value_out = value == 1;
                return true;
            }
    return false;
}

static shoal_status assign_text(const struct config_key *key, const struct yaml_node *node,
                                char *field, size_t n_bytes)
{
    if (node->kind != YAML_SCALAR) {
        refuse(key, node);
        return fail_hint(SHOAL_ERR_CONFIG, "write \"\" for an empty text, or leave the key out");
    }
    size_t n = strlen(node->text);
    if (n >= n_bytes)
        return fail_at(&node->place, "%s: expected at most %zu bytes, found %zu", key->path,
                       n_bytes - 1, n);
    memcpy(field, node->text, n + 1);
    return SHOAL_OK;
}

static shoal_status assign_choice(const struct config_key *key, const struct yaml_node *node,
                                  char *field)
{
    char words[128];
    char near[64];
    size_t n = strlen(key->choices);

    if (node->kind != YAML_SCALAR)
        return refuse(key, node);
    for (size_t i = 0; i <= n; i++) /* the rows are short; a test checks that they fit */
        words[i] = key->choices[i] == '|' ? ' ' : key->choices[i];
    for (const char *word = words; word < words + n; word += strcspn(word, " ") + 1) {
        size_t n_word = strcspn(word, " ");

        if (strlen(node->text) == n_word && strncmp(word, node->text, n_word) == 0) {
            memcpy(field, node->text, n_word + 1);
            return SHOAL_OK;
        }
    }
    refuse(key, node);
    if (nearest_word(node->text, words, near, sizeof near) != NULL)
        fail_hint(SHOAL_ERR_CONFIG, "did you mean %s?", near);
    return SHOAL_ERR_CONFIG;
}

static shoal_status assign_int(const struct config_key *key, const struct yaml_node *node,
                               void *field)
{
    int64_t value;

    if (node->kind != YAML_SCALAR || node->quoted || !parse_int(node->text, &value) ||
        (double)value < key->min || (double)value > key->max)
        return refuse(key, node);
    if (key->n_bytes == sizeof(int32_t))
        *(int32_t *)field = (int32_t)value;
    else
        *(int64_t *)field = value;
    return SHOAL_OK;
}

static shoal_status assign_real(const struct config_key *key, const struct yaml_node *node,
                                double *field)
{
    double value;

    if (node->kind != YAML_SCALAR || node->quoted || !parse_real(node->text, &value) ||
        value < key->min || value > key->max)
        return refuse(key, node);
    *field = value;
    return SHOAL_OK;
}

static shoal_status assign_reals(const struct config_key *key, const struct yaml_node *node,
                                 double *field)
{
    size_t n_wanted = key->n_bytes / sizeof *field;
    size_t n = 0;

    if (node->kind != YAML_LIST)
        return refuse(key, node);
    for (const struct yaml_node *item = node->first; item != NULL; item = item->next)
        n++;
    if (n != n_wanted) {
        fail_at(&node->place, "%s: expected %zu numbers, found %zu", key->path, n_wanted, n);
        return fail_hint(SHOAL_ERR_CONFIG, "the default is %s", key->fallback);
    }
    for (const struct yaml_node *item = node->first; item != NULL; item = item->next)
        SHOAL_TRY(assign_real(key, item, field++));
    return SHOAL_OK;
}

static shoal_status assign_texts(const struct config_key *key, const struct yaml_node *node,
                                 struct config_list *list)
{
    list->n = 0;
    if (node->kind != YAML_LIST) {
        SHOAL_TRY(assign_text(key, node, list->items[0], CONFIG_TEXT));
        list->n = 1;
        return SHOAL_OK;
    }
    for (const struct yaml_node *item = node->first; item != NULL; item = item->next) {
        if (list->n == CONFIG_LIST) {
            fail_at(&item->place, "%s: expected at most %d items", key->path, CONFIG_LIST);
            return fail_hint(SHOAL_ERR_CONFIG, "a glob such as \"data/*.txt\" names many files");
        }
        SHOAL_TRY(assign_text(key, item, list->items[list->n], CONFIG_TEXT));
        list->n++;
    }
    return SHOAL_OK;
}

shoal_status value_assign(const struct config_key *key, const struct yaml_node *node,
                          struct config *config)
{
    void *field = (char *)config + key->offset;

    switch (key->type) {
    case CONFIG_STRING:
        return assign_text(key, node, field, key->n_bytes);
    case CONFIG_CHOICE:
        return assign_choice(key, node, field);
    case CONFIG_INT:
        return assign_int(key, node, field);
    case CONFIG_REAL:
        return assign_real(key, node, field);
    case CONFIG_REALS:
        return assign_reals(key, node, field);
    case CONFIG_STRINGS:
        return assign_texts(key, node, field);
    case CONFIG_BOOL:
        if (node->kind != YAML_SCALAR || node->quoted || !parse_bool(node->text, field))
            return refuse(key, node);
        return SHOAL_OK;
    }
    return fail(SHOAL_ERR_INTERNAL, "config: key %s has no type", key->path);
}

/* A short decimal that reads back as the same double. */
static void print_real(double value, FILE *out)
{
    char text[40];

    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    fputs(text, out);
}

/* Can the text stand without quotes, as a text and nothing else, in a list and on a line? */
static bool is_plain(const char *text)
{
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                               "_-./+%@=";

    if (text[strspn(text, safe)] != '\0' || strchr("-.%@=+", text[0]) != NULL)
        return false;
    return strcasecmp(text, "null") != 0;
}

static void print_text(const char *text, FILE *out)
{
    if (text[0] != '\0' && is_plain(text)) {
        fputs(text, out);
        return;
    }
    putc('"', out);
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '\n')
            fputs("\\n", out);
        else if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            putc(c, out);
    }
    putc('"', out);
}

void value_print(const struct config *config, const struct config_key *key, FILE *out)
{
    const void *field = (const char *)config + key->offset;
    const struct config_list *list = field;
    const double *reals = field;

    switch (key->type) {
    case CONFIG_STRING:
    case CONFIG_CHOICE:
        print_text(field, out);
        return;
    case CONFIG_INT:
        fprintf(out, "%" PRId64,
                key->n_bytes == sizeof(int32_t) ? *(const int32_t *)field
                                                : *(const int64_t *)field);
        return;
    case CONFIG_REAL:
        print_real(*reals, out);
        return;
    case CONFIG_BOOL:
        fputs(*(const bool *)field ? "true" : "false", out);
        return;
    case CONFIG_REALS:
        for (size_t i = 0; i < key->n_bytes / sizeof *reals; i++) {
            fputs(i == 0 ? "[" : ", ", out);
            print_real(reals[i], out);
        }
        fputs("]", out);
        return;
    case CONFIG_STRINGS:
        fputs("[", out);
        for (int i = 0; i < list->n; i++) {
            fputs(i == 0 ? "" : ", ", out);
            print_text(list->items[i], out);
        }
        fputs("]", out);
        return;
    }
}

void config_value_text(const struct config *config, const struct config_key *key, char *out,
                       size_t n_bytes)
{
    char *text = NULL;
    size_t n = 0;
    FILE *stream = open_memstream(&text, &n);

    snprintf(out, n_bytes, "%s", "");
    if (stream == NULL)
        return;
    value_print(config, key, stream);
    if (fclose(stream) == 0)
        snprintf(out, n_bytes, "%s", text);
    free(text);
}

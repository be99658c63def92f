/*
 * YAML text to a tree of our own: the one file that knows libfyaml (0.7; its 1.0 API differs).
 *
 * libfyaml reads the end of its input into a bad UTF-8 sequence and says nothing, so characters
 * are checked before it sees them.  Its own check for duplicate keys is switched off because its
 * message does not name the key.
 */
#include "runtime/config/config_internal.h"

#include <libfyaml.h>

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 8 }; /* the key table needs three */

shoal_status fail_at(const struct place *place, const char *fmt, ...)
{
    char sentence[1024];
    va_list args;

    va_start(args, fmt);
    vsnprintf(sentence, sizeof sentence, fmt, args);
    va_end(args);
    if (place->line == 0)
        return fail(SHOAL_ERR_CONFIG, "%s: %s", place->name, sentence);
    return fail(SHOAL_ERR_CONFIG, "%s:%d:%d: %s", place->name, place->line, place->column,
                sentence);
}

/* Bytes of the valid UTF-8 sequence at s, of n bytes that are left; 0: not valid. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

    if (length == 1)
        return 1;
    if (length == 0 || length > n)
        return 0;
    uint32_t point = s[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        point = point << 6 | (s[i] & 0x3fu);
    }
    bool surrogate = point >= 0xd800 && point <= 0xdfff;
    return point >= smallest[length] && point <= 0x10ffff && !surrogate ? length : 0;
}

shoal_status yaml_check_characters(const char *name, const char *text, size_t n_bytes)
{
    struct place place = {name, 1, 1};

    for (size_t i = 0; i < n_bytes;) {
        unsigned char c = (unsigned char)text[i];
        size_t length = utf8_length((const unsigned char *)text + i, n_bytes - i);

        if (length == 0) {
            fail_at(&place, "byte 0x%02x is not valid UTF-8", c);
            fail_why(SHOAL_ERR_CONFIG, "a config file is UTF-8 text");
            return fail_hint(SHOAL_ERR_CONFIG, "convert it: iconv -f latin1 -t utf-8 OLD > NEW");
        }
        if ((c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7f) {
            fail_at(&place, "control character 0x%02x in the text", c);
            return fail_hint(SHOAL_ERR_CONFIG, "is this a text file?");
        }
        place.column++;
        if (c == '\n') {
            place.line++;
            place.column = 1;
        }
        i += length;
    }
    return SHOAL_OK;
}

void yaml_destroy(struct yaml_node *node)
{
    while (node != NULL) {
        struct yaml_node *next = node->next;

        yaml_destroy(node->first);
        free(node->key);
        free(node->text);
        free(node);
        node = next;
    }
}

/*
 * The place of a scalar; an empty one has none in libfyaml and takes `fallback`.  libfyaml counts
 * from 0 and starts quoted texts and aliases after their first character.
 */
static struct place place_of(struct fy_node *scalar, struct place fallback)
{
    struct fy_token *token = fy_node_get_scalar_token(scalar);
    const struct fy_mark *mark = token != NULL ? fy_token_start_mark(token) : NULL;

    if (mark == NULL)
        return fallback;
    enum fy_scalar_style style = fy_token_scalar_style(token);
    bool opened =
        fy_node_is_alias(scalar) || style == FYSS_SINGLE_QUOTED || style == FYSS_DOUBLE_QUOTED;
    return (struct place){fallback.name, mark->line + 1, mark->column + !opened};
}

/* Copy a scalar; a NUL can only come from the escape "\0". */
static shoal_status copy_scalar(const struct place *place, struct fy_node *from, char **text_out)
{
    size_t n = 0;
    const char *text = fy_node_get_scalar(from, &n);

    if (n > 0 && memchr(text, '\0', n) != NULL)
        return fail_at(place, "a text may not hold the character \\0");
    char *copy = malloc(n + 1);
    if (copy == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve %zu bytes", n + 1);
    if (n > 0)
        memcpy(copy, text, n);
    copy[n] = '\0';
    *text_out = copy;
    return SHOAL_OK;
}

static bool is_null_word(const char *text)
{
    return text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0 ||
           strcmp(text, "Null") == 0 || strcmp(text, "NULL") == 0;
}

static shoal_status convert(struct fy_node *from, struct place place, int depth,
                            struct yaml_node **node_out);

static shoal_status convert_scalar(struct fy_node *from, struct yaml_node *node)
{
    struct fy_token *token = fy_node_get_scalar_token(from);

    if (fy_node_is_alias(from)) {
        fail_at(&node->place, "aliases (*name) are not used in config files");
        return fail_hint(SHOAL_ERR_CONFIG, "write the value out");
    }
    SHOAL_TRY(copy_scalar(&node->place, from, &node->text));
    node->quoted = token != NULL && fy_token_scalar_style(token) != FYSS_PLAIN;
    node->kind = !node->quoted && is_null_word(node->text) ? YAML_NULL : YAML_SCALAR;
    return SHOAL_OK;
}

static shoal_status convert_list(struct fy_node *from, struct yaml_node *node, int depth)
{
    struct yaml_node **tail = &node->first;
    struct fy_node *item;
    void *position = NULL;

    node->kind = YAML_LIST;
    while ((item = fy_node_sequence_iterate(from, &position)) != NULL) {
        SHOAL_TRY(convert(item, node->place, depth + 1, tail));
        tail = &(*tail)->next;
    }
    return SHOAL_OK;
}

static shoal_status convert_map(struct fy_node *from, struct yaml_node *node, int depth)
{
    struct yaml_node **tail = &node->first;
    struct fy_node_pair *pair;
    void *position = NULL;

    node->kind = YAML_MAP;
    while ((pair = fy_node_mapping_iterate(from, &position)) != NULL) {
        struct fy_node *key = fy_node_pair_key(pair);

        if (key == NULL || !fy_node_is_scalar(key) || fy_node_is_alias(key))
            return fail_at(&node->place, "a key of this mapping is not a plain word");
        struct place place = place_of(key, node->place);
        SHOAL_TRY(convert(fy_node_pair_value(pair), place, depth + 1, tail));
        (*tail)->key_place = place;
        SHOAL_TRY(copy_scalar(&place, key, &(*tail)->key));
        tail = &(*tail)->next;
    }
    return SHOAL_OK;
}

/* On failure *node_out may hold a part of the tree, which belongs to the caller as a whole does. */
static shoal_status convert(struct fy_node *from, struct place place, int depth,
                            struct yaml_node **node_out)
{
    struct yaml_node *node = calloc(1, sizeof *node);

    if (node == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve %zu bytes", sizeof *node);
    *node_out = node;
    node->place = place;
    if (from == NULL)
        return SHOAL_OK;
    if (fy_node_is_scalar(from))
        node->place = place_of(from, place);
    if (depth > MAX_DEPTH)
        return fail_at(&node->place, "nested more than %d levels deep", MAX_DEPTH);
    if (fy_node_get_tag_token(from) != NULL || fy_node_get_anchor(from) != NULL) {
        fail_at(&node->place, "tags (!name) and anchors (&name) are not used in config files");
        return fail_hint(SHOAL_ERR_CONFIG, "write the plain value");
    }
    if (fy_node_is_mapping(from))
        return convert_map(from, node, depth);
    if (fy_node_is_sequence(from))
        return convert_list(from, node, depth);
    return convert_scalar(from, node);
}

/* The parser's first complaint, or SHOAL_OK when it has none. */
static shoal_status first_complaint(const char *name, struct fy_diag *diag)
{
    struct fy_diag_error *error;
    void *position = NULL;

    while ((error = fy_diag_errors_iterate(diag, &position)) != NULL) {
        struct place place = {name, error->line, error->column};

        if (error->type < FYET_ERROR)
            continue;
        fail_at(&place, "not valid YAML: %s", error->msg);
        return fail_hint(SHOAL_ERR_CONFIG, "indent with spaces, write `key: value`, quote texts "
                                           "that hold ': ' or ' #'");
    }
    return SHOAL_OK;
}

static shoal_status parse_document(const char *name, struct fy_parser *parser, struct fy_diag *diag,
                                   struct yaml_node **root_out)
{
    struct place start = {name, 1, 1};
    struct fy_document *document = fy_parse_load_document(parser);
    struct fy_node *top = document != NULL ? fy_document_root(document) : NULL;
    shoal_status status = convert(top, start, 0, root_out);

    if (document != NULL && status == SHOAL_OK) {
        /* What follows the first document is read too, or errors in it would go unseen. */
        struct fy_document *second = fy_parse_load_document(parser);

        if (second != NULL) {
            status = fail(SHOAL_ERR_CONFIG, "%s: holds more than one YAML document", name);
            fail_hint(status, "remove the lines `---` between them");
            fy_parse_document_destroy(parser, second);
        }
    }
    if (status == SHOAL_OK || status == SHOAL_ERR_CONFIG) {
        shoal_status complaint = first_complaint(name, diag);

        if (complaint != SHOAL_OK)
            status = complaint;
        else if (status == SHOAL_OK && fy_parser_get_stream_error(parser))
            status = fail(SHOAL_ERR_CONFIG, "%s: not valid YAML", name);
    }
    if (document != NULL)
        fy_parse_document_destroy(parser, document);
    return status;
}

shoal_status yaml_parse(const char *name, const char *text, size_t n_bytes,
                        struct yaml_node **root_out)
{
    struct fy_diag_cfg diag_params;
    struct yaml_node *root = NULL;
    shoal_status status;

    SHOAL_TRY(yaml_check_characters(name, text, n_bytes));

    fy_diag_cfg_default(&diag_params);
    diag_params.fp = NULL;
    struct fy_diag *diag = fy_diag_create(&diag_params);
    if (diag == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot create the YAML parser");
    fy_diag_set_collect_errors(diag, true);

    const struct fy_parse_cfg params = {
        .flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_JSON_NONE | FYPCF_ALLOW_DUPLICATE_KEYS,
        .diag = diag,
    };
    struct fy_parser *parser = fy_parser_create(&params);
    if (parser == NULL || fy_parser_set_string(parser, text, n_bytes) != 0) {
        status = fail(SHOAL_ERR_NOMEM, "config: cannot create the YAML parser");
        goto destroy_parser;
    }
    status = parse_document(name, parser, diag, &root);
    if (status != SHOAL_OK) {
        yaml_destroy(root);
        goto destroy_parser;
    }
    *root_out = root;

destroy_parser:
    fy_parser_destroy(parser);
    fy_diag_destroy(diag);
    return status;
}

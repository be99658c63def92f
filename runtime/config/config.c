/* Loading: defaults, then the file, then the overrides, all through the key table. */
#include "runtime/config/config_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { MAX_FILE_BYTES = 1 << 20 };

/* What is being filled, and where the present layer has set each key. */
struct loader {
    struct config *config;
    struct place seen[CONFIG_MAX_KEYS];
    bool is_file; /* lines of this layer are origins */
};

/* ---- a tree of YAML into the config ---- */

static bool is_section(const char *name)
{
    size_t n;
    const struct config_section *sections = config_sections(&n);

    for (size_t i = 0; i < n; i++)
        if (sections[i].name[0] != '\0' && strcmp(sections[i].name, name) == 0)
            return true;
    return false;
}

/* The members of a section ("" for all sections) as a space-separated list. */
static void list_members(const char *section, char *out, size_t n_bytes)
{
    size_t n_keys;
    size_t n_sections;
    const struct config_key *keys = config_keys(&n_keys);
    const struct config_section *sections = config_sections(&n_sections);
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; section[0] == '\0' && i < n_sections && used < n_bytes; i++)
        if (sections[i].name[0] != '\0')
            used += (size_t)snprintf(out + used, n_bytes - used, "%s ", sections[i].name);
    for (size_t i = 0; i < n_keys && used < n_bytes; i++)
        if (key_in_section(&keys[i], section)) {
            const char *dot = strrchr(keys[i].path, '.');

            used += (size_t)snprintf(out + used, n_bytes - used, "%s ",
                                     dot != NULL ? dot + 1 : keys[i].path);
        }
    size_t n = strlen(out);
    if (n > 0 && out[n - 1] == ' ')
        out[n - 1] = '\0';
}

static shoal_status refuse_unknown(const struct place *place, const char *path)
{
    char members[640];
    char section[64];
    char near_section[64];
    size_t n_section = strcspn(path, ".");
    const char *near = config_nearest(path);

    snprintf(section, sizeof section, "%.*s",
             path[n_section] == '.' && n_section < sizeof section ? (int)n_section : 0, path);
    fail_at(place, "unknown key \"%.200s\"", path);
    list_members(is_section(section) ? section : "", members, sizeof members);
    if (is_section(section))
        fail_why(SHOAL_ERR_CONFIG, "the keys of %s are: %s", section, members);
    else
        fail_why(SHOAL_ERR_CONFIG, "the top level holds: %s", members);

    list_members("", members, sizeof members);
    const char *word = section[0] != '\0' ? section : path;
    if (near != NULL)
        return fail_hint(SHOAL_ERR_CONFIG, "did you mean %s?", near);
    if (!is_section(word) && nearest_word(word, members, near_section, sizeof near_section))
        return fail_hint(SHOAL_ERR_CONFIG, "did you mean %s?", near_section);
    return fail_hint(SHOAL_ERR_CONFIG, "`shoal config keys` lists all keys");
}

static shoal_status assign(struct loader *loader, const struct config_key *key,
                           const struct yaml_node *node, const struct place *place)
{
    size_t n_keys;
    size_t row = (size_t)(key - config_keys(&n_keys));
    struct place *seen = &loader->seen[row];

    if (seen->name != NULL) {
        fail_at(place, "duplicate key \"%s\"", key->path);
        fail_why(SHOAL_ERR_CONFIG, "it was set before, at %s:%d:%d", seen->name, seen->line,
                 seen->column);
        return fail_hint(SHOAL_ERR_CONFIG, "remove one of them");
    }
    *seen = *place;
    SHOAL_TRY(value_assign(key, node, loader->config));
    loader->config->origin[row] = loader->is_file ? place->line : CONFIG_ORIGIN_DEFAULT;
    return SHOAL_OK;
}

static shoal_status refuse_duplicate_section(const struct yaml_node *member,
                                             const struct yaml_node *first)
{
    for (; first != member; first = first->next)
        if (strcmp(first->key, member->key) == 0) {
            fail_at(&member->key_place, "duplicate section \"%s\"", member->key);
            fail_why(SHOAL_ERR_CONFIG, "it was opened before, at %s:%d:%d", first->key_place.name,
                     first->key_place.line, first->key_place.column);
            return fail_hint(SHOAL_ERR_CONFIG, "put all its keys into one section");
        }
    return SHOAL_OK;
}

static shoal_status assign_section(struct loader *loader, const struct yaml_node *section)
{
    for (const struct yaml_node *member = section->first; member != NULL; member = member->next) {
        char path[256];

        int n = snprintf(path, sizeof path, "%s.%s", section->key, member->key);
        const struct config_key *key = config_find(path);
        if (key == NULL || n >= (int)sizeof path)
            return refuse_unknown(&member->key_place, path);
        SHOAL_TRY(assign(loader, key, member, &member->key_place));
    }
    return SHOAL_OK;
}

/* Top-level members are sections, keys without a section, or keys written with dots. */
static shoal_status assign_document(struct loader *loader, const struct yaml_node *root)
{
    if (root->kind == YAML_NULL)
        return SHOAL_OK;
    if (root->kind != YAML_MAP) {
        fail_at(&root->place, "expected `key: value` lines, found %s",
                root->kind == YAML_LIST ? "a list" : "a text");
        return fail_hint(SHOAL_ERR_CONFIG, "`shoal config new` prints a config to start from");
    }
    for (const struct yaml_node *member = root->first; member != NULL; member = member->next) {
        const struct config_key *key = config_find(member->key);

        if (key != NULL) {
            SHOAL_TRY(assign(loader, key, member, &member->key_place));
            continue;
        }
        if (!is_section(member->key))
            return refuse_unknown(&member->key_place, member->key);
        SHOAL_TRY(refuse_duplicate_section(member, root->first));
        if (member->kind != YAML_MAP && member->kind != YAML_NULL) {
            fail_at(&member->place, "%s: expected a section, found %s", member->key,
                    member->kind == YAML_LIST ? "a list" : "a value");
            return fail_hint(SHOAL_ERR_CONFIG, "write its keys below it, indented by two spaces");
        }
        SHOAL_TRY(assign_section(loader, member));
    }
    return SHOAL_OK;
}

static shoal_status load_layer(const char *name, const char *text, size_t n_bytes, bool is_file,
                               struct config *config)
{
    struct loader loader = {.config = config, .is_file = is_file};
    struct yaml_node *root = NULL;

    SHOAL_TRY(yaml_parse(name, text, n_bytes, &root));
    shoal_status status = assign_document(&loader, root);
    yaml_destroy(root);
    return status;
}

/* ---- the three layers ---- */

/* The table's defaults go through the same parser as everything else. */
static shoal_status load_defaults(struct config *config)
{
    char *text = NULL;
    size_t n_bytes = 0;
    size_t n_keys;
    const struct config_key *keys = config_keys(&n_keys);
    FILE *stream = open_memstream(&text, &n_bytes);

    if (stream == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve memory for the defaults");
    for (size_t i = 0; i < n_keys; i++)
        fprintf(stream, "%s: %s\n", keys[i].path, keys[i].fallback);
    shoal_status status = SHOAL_OK;
    if (fclose(stream) != 0)
        status = fail(SHOAL_ERR_NOMEM, "config: cannot reserve memory for the defaults");
    else
        status = load_layer("defaults", text, n_bytes, false, config);
    free(text);
    return status;
}

/* A list is written as in YAML; everything else is the text after '=', without quotes. */
static shoal_status apply_override(const char *override, struct config *config)
{
    const char *equals = strchr(override, '=');
    struct place place = {"command line", 0, 0};
    struct yaml_node scalar = {.kind = YAML_SCALAR, .place = place};
    struct yaml_node *list = NULL;
    char path[256];
    size_t n_keys;

    if (equals == NULL) {
        fail(SHOAL_ERR_USAGE, "command line: expected KEY=VALUE, found \"%.200s\"", override);
        return fail_hint(SHOAL_ERR_USAGE, "for example optimizer.lr=1e-3");
    }
    SHOAL_TRY(yaml_check_characters("command line", override, strlen(override)));
    snprintf(path, sizeof path, "%.*s", (int)(equals - override), override);
    const struct config_key *key = config_find(path);
    if (key == NULL)
        return refuse_unknown(&place, path);

    shoal_status status;
    const char *value = equals + 1;
    bool takes_list = key->type == CONFIG_STRINGS || key->type == CONFIG_REALS;
    if (takes_list && value[0] == '[') {
        SHOAL_TRY(yaml_parse("command line", value, strlen(value), &list));
        for (struct yaml_node *item = list->first; item != NULL; item = item->next)
            item->place = place;
        list->place = place;
        status = value_assign(key, list, config);
        yaml_destroy(list);
    } else {
        scalar.text = strdup(value);
        if (scalar.text == NULL)
            return fail(SHOAL_ERR_NOMEM, "config: cannot reserve %zu bytes", strlen(value) + 1);
        status = value_assign(key, &scalar, config);
        free(scalar.text);
    }
    if (status == SHOAL_OK)
        config->origin[key - config_keys(&n_keys)] = CONFIG_ORIGIN_COMMAND_LINE;
    return status;
}

shoal_status config_load_text(const char *name, const char *text, const char *const *overrides,
                              size_t n, struct config *config_out)
{
    struct config *config = calloc(1, sizeof *config);
    shoal_status status;

    if (config == NULL)
        return fail(SHOAL_ERR_NOMEM, "config: cannot reserve %zu bytes", sizeof *config);
    SHOAL_TRY_GOTO(load_defaults(config), err_free_config);
    if (text != NULL) {
        snprintf(config->source, sizeof config->source, "%s", name);
        SHOAL_TRY_GOTO(load_layer(name, text, strlen(text), true, config), err_free_config);
    }
    for (size_t i = 0; i < n; i++)
        SHOAL_TRY_GOTO(apply_override(overrides[i], config), err_free_config);
    *config_out = *config;

err_free_config:
    free(config);
    return status;
}

/* ---- files ---- */

static shoal_status fail_read(const char *path, int error)
{
    fail(SHOAL_ERR_NOINPUT, "%s: cannot read the config file", path);
    fail_why(SHOAL_ERR_NOINPUT, "%s", strerror(error));
    return fail_hint(SHOAL_ERR_NOINPUT, "`shoal config new > %s` makes one to start from", path);
}

/* The whole file and a final zero into memory that the caller frees. */
static shoal_status read_file(const char *path, char **text_out)
{
    size_t used = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return fail_read(path, errno);
    char *text = malloc(MAX_FILE_BYTES + 1);
    shoal_status status = SHOAL_OK;
    if (text == NULL)
        status = fail(SHOAL_ERR_NOMEM, "%s: cannot reserve %d bytes", path, MAX_FILE_BYTES);
    while (status == SHOAL_OK) {
        ssize_t n = read(fd, text + used, MAX_FILE_BYTES + 1 - used);

        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            status = fail_read(path, errno);
        used += n > 0 ? (size_t)n : 0;
        if (used > MAX_FILE_BYTES)
            status = fail(SHOAL_ERR_CONFIG, "%s: expected a config of at most %d bytes, found more",
                          path, MAX_FILE_BYTES);
    }
    close(fd);
    if (status != SHOAL_OK) {
        free(text);
        return status;
    }
    text[used] = '\0';
    if (strlen(text) != used) {
        free(text);
        fail(SHOAL_ERR_CONFIG, "%s: holds a zero byte", path);
        return fail_hint(SHOAL_ERR_CONFIG, "is this a text file?");
    }
    *text_out = text;
    return SHOAL_OK;
}

shoal_status config_load(const char *path, const char *const *overrides, size_t n,
                         struct config *config_out)
{
    char *text = NULL;

    if (path != NULL)
        SHOAL_TRY(read_file(path, &text));
    shoal_status status = config_load_text(path, text, overrides, n, config_out);
    free(text);
    return status;
}

uint64_t config_hash(const struct config *config)
{
    char *text = NULL;
    size_t n_bytes = 0;
    size_t n_keys;
    const struct config_key *keys = config_keys(&n_keys);
    uint64_t hash = 0;
    FILE *stream = open_memstream(&text, &n_bytes);

    if (stream == NULL)
        return 0;
    for (size_t i = 0; i < n_keys; i++)
        if (!keys[i].rank_local) {
            fprintf(stream, "%s: ", keys[i].path);
            value_print(config, &keys[i], stream);
            putc('\n', stream);
        }
    if (fclose(stream) == 0)
        hash = XXH3_64bits(text, n_bytes);
    free(text);
    return hash;
}

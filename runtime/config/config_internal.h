#pragma once

#include "runtime/config/config.h"

/* Private to runtime/config/. */

/* Where a value or key was written; line 0: the whole of `name` ("command line"). */
struct place {
    const char *name;
    int line, column; /* 1-based; columns count characters */
};

/* ---- config_yaml.c: the one file that knows libfyaml ---- */

enum yaml_kind { YAML_NULL, YAML_SCALAR, YAML_LIST, YAML_MAP };

/* A parsed value.  Members of a mapping carry their key. */
struct yaml_node {
    enum yaml_kind kind;
    struct place place;
    char *key;
    struct place key_place;
    char *text;  /* scalars */
    bool quoted; /* scalars: written with quotes or as a block, so never a number */
    struct yaml_node *first, *next;
};

/*
 * Parse one YAML 1.2 (or JSON) document; an empty one gives YAML_NULL.  `name` must outlive the
 * tree.  Refuses tabs as indentation, bad UTF-8, control characters, tags, anchors, aliases and
 * further documents, each with its place.  Duplicate keys are kept: the caller names both.
 */
shoal_status yaml_parse(const char *name, const char *text, size_t n_bytes,
                        struct yaml_node **root_out);
void yaml_destroy(struct yaml_node *node);

/* Refuse a text that is not UTF-8 or holds control characters other than tab and line ends. */
shoal_status yaml_check_characters(const char *name, const char *text, size_t n_bytes);

/* Record "<name>:<line>:<column>: " and the sentence as line 1; returns SHOAL_ERR_CONFIG. */
shoal_status fail_at(const struct place *place, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- config_table.c ---- */

struct config_section {
    const char *name; /* "" for keys at the top level */
    const char *help;
};
const struct config_section *config_sections(size_t *n_out);

/* Does `key` lie in `section`? */
bool key_in_section(const struct config_key *key, const char *section);

/* Overrides that suit a preset, NULL-terminated; names are matched by their longest prefix. */
const char *const *config_profile(const char *preset);

/* ---- config_value.c ---- */

/* Set the key's field from what was written; checks type, range, choice and length. */
shoal_status value_assign(const struct config_key *key, const struct yaml_node *node,
                          struct config *config);

/* Print the field as it would be written in a file. */
void value_print(const struct config *config, const struct config_key *key, FILE *out);

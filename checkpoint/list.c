#include "checkpoint/checkpoint_internal.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What lies in a checkpoint and under a root, for people: whole steps, broken ones, leftovers. */

/* A state with its kind's name, so that a comparison needs nothing else. */
struct named_state {
    const char *kind;
    const struct state *state;
};

static int by_kind_and_type(const void *pa, const void *pb)
{
    const struct named_state *a = pa;
    const struct named_state *b = pb;
    int kind = strcmp(a->kind, b->kind);

    if (kind != 0)
        return kind;
    if (a->state->type != b->state->type)
        return a->state->type < b->state->type ? -1 : 1;
    return strcmp(a->state->codec, b->state->codec);
}

shoal_status ckpt_groups(const struct ckpt *ckpt, struct ckpt_group **groups_out, size_t *n_out)
{
    struct named_state *named = calloc(ckpt->n_states, sizeof *named);
    struct ckpt_group *groups = calloc(ckpt->n_states, sizeof *groups);
    size_t n = 0;

    if (named == NULL || groups == NULL) {
        free(named);
        free(groups);
        return fail(SHOAL_ERR_NOMEM, "checkpoint %s: no memory to sum up %zu states", ckpt->path,
                    ckpt->n_states);
    }
    for (size_t i = 0; i < ckpt->n_states; i++)
        named[i] = (struct named_state){.kind = ckpt->kinds[ckpt->states[i].kind],
                                        .state = &ckpt->states[i]};
    qsort(named, ckpt->n_states, sizeof *named, by_kind_and_type);
    for (size_t i = 0; i < ckpt->n_states; i++) {
        const struct state *s = named[i].state;

        if (i == 0 || by_kind_and_type(&named[i - 1], &named[i]) != 0) {
            struct ckpt_group *fresh = &groups[n++];

            fresh->type = s->type;
            memcpy(fresh->kind, named[i].kind, sizeof fresh->kind);
            memcpy(fresh->codec, s->codec, sizeof fresh->codec);
        }
        groups[n - 1].n_tensors++;
        groups[n - 1].n_items += s->n_items;
        groups[n - 1].n_bytes += (uint64_t)s->n_items * ckpt_type_bytes(s->type);
    }
    free(named);
    *groups_out = groups;
    *n_out = n;
    return SHOAL_OK;
}

/* "zero_stage" of the topology text, or -1: informational, so anything odd is "unknown". */
static int zero_stage_of(const struct ckpt_meta *meta)
{
    json_t *root = meta->topology_json != NULL ? json_loads(meta->topology_json, 0, NULL) : NULL;
    json_t *stage = json_object_get(root, "zero_stage");
    int value = json_is_integer(stage) ? (int)json_integer_value(stage) : -1;

    json_decref(root);
    return value;
}

static void describe_step(const char *path, struct ckpt_entry *entry)
{
    struct ckpt *ckpt = NULL;
    struct ckpt_group *groups = NULL;
    shoal_status status = ckpt_open_step(NULL, path, &ckpt);

    if (status == SHOAL_OK)
        status = ckpt_groups(ckpt, &groups, &entry->n_groups);
    entry->groups = groups;
    if (status != SHOAL_OK) {
        const char *why = shoal_last_error();

        entry->state = status == SHOAL_ERR_DATA ? CKPT_BROKEN : CKPT_UNREADABLE;
        snprintf(entry->why, sizeof entry->why, "%.*s", (int)strcspn(why, "\n"), why);
        ckpt_close(ckpt);
        return;
    }
    entry->state = CKPT_COMPLETE;
    entry->world_size = (int)ckpt->world_size;
    entry->zero_stage = zero_stage_of(&ckpt->meta);
    entry->loss = ckpt->meta.loss;
    entry->created_unix_ns = ckpt->created_unix_ns;
    ckpt_close(ckpt);
}

static shoal_status describe(const char *root, const char *name, struct ckpt_entry *entry)
{
    char path[CKPT_PATH_BYTES];
    enum step_suffix suffix = ckpt_step_name_parse(name, &entry->step);

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, root, name));
    memcpy(entry->name, name, strnlen(name, sizeof entry->name - 1)); /* of zeroed memory */
    entry->n_bytes = ckpt_fs_dir_bytes(path);
    entry->zero_stage = -1;
    if (suffix == STEP_FINAL)
        describe_step(path, entry);
    else
        entry->state = suffix == STEP_TEMPORARY ? CKPT_TEMPORARY : CKPT_DELETED;
    return SHOAL_OK;
}

static int newest_first(const void *pa, const void *pb)
{
    const struct ckpt_entry *a = pa;
    const struct ckpt_entry *b = pb;

    if (a->step != b->step)
        return a->step > b->step ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int is_step(const struct dirent *entry)
{
    int64_t step;

    return ckpt_step_name_parse(entry->d_name, &step) != STEP_NOT_A_STEP;
}

/* Into one allocation, so that the caller frees one: the entries, then their groups. */
static struct ckpt_entry *pack(const struct ckpt_entry *entries, size_t n)
{
    size_t n_groups = 0;

    for (size_t i = 0; i < n; i++)
        n_groups += entries[i].n_groups;

    struct ckpt_entry *packed =
        calloc(1, (n + 1) * sizeof *packed + n_groups * sizeof *packed->groups);
    struct ckpt_group *groups = (struct ckpt_group *)(void *)(packed + n + 1);

    for (size_t i = 0; packed != NULL && i < n; i++) {
        packed[i] = entries[i];
        packed[i].groups = entries[i].n_groups > 0 ? groups : NULL;
        for (size_t g = 0; g < entries[i].n_groups; g++)
            *groups++ = entries[i].groups[g];
    }
    return packed;
}

static void free_entries(struct ckpt_entry *entries, size_t n)
{
    for (size_t i = 0; entries != NULL && i < n; i++)
        free((void *)(uintptr_t)entries[i].groups);
    free(entries);
}

shoal_status ckpt_list(const char *path, struct ckpt_entry **entries_out, size_t *n_out)
{
    char root[CKPT_PATH_BYTES];
    struct dirent **names = NULL;

    ckpt_h5_quiet();
    SHOAL_TRY(ckpt_root_of(path, root));

    int n = scandir(root, &names, is_step, NULL);

    if (n < 0)
        return ckpt_fs_refused(root, "cannot list");

    struct ckpt_entry *entries = calloc((size_t)n + 1, sizeof *entries);
    shoal_status status =
        entries == NULL ? fail(SHOAL_ERR_NOMEM, "%s: no memory to list it", root) : SHOAL_OK;

    for (int i = 0; i < n; i++) {
        if (status == SHOAL_OK)
            status = describe(root, names[i]->d_name, &entries[i]);
        free(names[i]);
    }
    free(names);

    struct ckpt_entry *packed = status == SHOAL_OK ? pack(entries, (size_t)n) : NULL;

    if (status == SHOAL_OK && packed == NULL)
        status = fail(SHOAL_ERR_NOMEM, "%s: no memory to list it", root);
    free_entries(entries, (size_t)n);
    SHOAL_TRY(status);
    qsort(packed, (size_t)n, sizeof *packed, newest_first);
    *entries_out = packed;
    *n_out = (size_t)n;
    return SHOAL_OK;
}

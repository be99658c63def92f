#include "checkpoint/checkpoint_internal.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What lies under a root, for people: whole steps, broken ones and leftovers. */

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

    if (ckpt_open_step(path, &ckpt) != SHOAL_OK) {
        const char *why = shoal_last_error();

        entry->state = CKPT_BROKEN;
        snprintf(entry->why, sizeof entry->why, "%.*s", (int)strcspn(why, "\n"), why);
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

shoal_status ckpt_list(const char *path, struct ckpt_entry **entries_out, size_t *n_out)
{
    char root[CKPT_PATH_BYTES];
    struct dirent **names = NULL;

    ckpt_h5_quiet();
    SHOAL_TRY(ckpt_root_of(path, root));

    int n = scandir(root, &names, is_step, NULL);

    if (n < 0)
        return ckpt_fs_fail(SHOAL_ERR_NOINPUT, root, "cannot list");

    struct ckpt_entry *entries = calloc((size_t)n + 1, sizeof *entries);
    shoal_status status =
        entries == NULL ? fail(SHOAL_ERR_NOMEM, "%s: no memory to list it", root) : SHOAL_OK;

    for (int i = 0; i < n; i++) {
        if (status == SHOAL_OK)
            status = describe(root, names[i]->d_name, &entries[i]);
        free(names[i]);
    }
    free(names);
    if (status != SHOAL_OK) {
        free(entries);
        return status;
    }
    qsort(entries, (size_t)n, sizeof *entries, newest_first);
    *entries_out = entries;
    *n_out = (size_t)n;
    return SHOAL_OK;
}

#include "checkpoint/checkpoint_internal.h"
#include "runtime/base/log.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Removing things under a root.  Only rank 0 of the run that holds LOCK does this.  A directory
 * is first renamed to .del- and that is made durable, so that half a directory never has a
 * checkpoint's name.
 */

shoal_status ckpt_store_delete(const struct ckpt_store *store, const char *name, int64_t step,
                               int rank, int nth_save)
{
    const char *root = store->root;
    char uuid[CKPT_UUID_BYTES];
    char deleted[CKPT_NAME_BYTES];
    char from[CKPT_PATH_BYTES];
    char to[CKPT_PATH_BYTES];

    SHOAL_TRY(ckpt_fs_uuid(uuid));
    ckpt_step_name_deleted(deleted, step, uuid);
    SHOAL_TRY(ckpt_fs_join(from, sizeof from, root, name));
    SHOAL_TRY(ckpt_fs_join(to, sizeof to, root, deleted));
    if (rename(from, to) != 0)
        return ckpt_fs_fail(SHOAL_ERR_IO, from, "cannot rename for deletion");
    SHOAL_TRY(ckpt_fs_sync_dir(root));
    ckpt_fault("delete", rank, nth_save);
    return ckpt_fs_remove_dir(store->comm, step, to);
}

/* Leftovers of a killed process: ".tmp-" of LATEST, and our probe directories. */
static bool is_stray(const char *name)
{
    return strncmp(name, CKPT_LATEST_FILE ".tmp-", sizeof CKPT_LATEST_FILE ".tmp-" - 1) == 0;
}

static bool is_probe(const char *name)
{
    return strncmp(name, ".probe-", 7) == 0;
}

static shoal_status collect_one(const struct ckpt_store *store, const char *name)
{
    char path[CKPT_PATH_BYTES];
    int64_t step;

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, store->root, name));
    if (is_stray(name))
        return unlink(path) == 0 || errno == ENOENT
                   ? SHOAL_OK
                   : ckpt_fs_fail(SHOAL_ERR_IO, path, "cannot remove");
    if (is_probe(name))
        return ckpt_fs_remove_dir(store->comm, 0, path);
    switch (ckpt_step_name_parse(name, &step)) {
    case STEP_TEMPORARY:
        log_line("ckpt", "removing %s, left by an unfinished save", path);
        return ckpt_store_delete(store, name, step, -1, 0);
    case STEP_DELETED:
        return ckpt_fs_remove_dir(store->comm, step, path);
    case STEP_FINAL:
    case STEP_NOT_A_STEP:
        return SHOAL_OK;
    }
    return SHOAL_OK;
}

shoal_status ckpt_store_collect(const struct ckpt_store *store)
{
    const char *root = store->root;
    struct dirent **entries = NULL;
    int n = scandir(root, &entries, NULL, alphasort);

    if (n < 0)
        return ckpt_fs_fail(SHOAL_ERR_CANTCREATE, root, "cannot list");
    for (int i = 0; i < n; i++) {
        /* It costs space, and the next run tries again: no reason not to train. */
        if (collect_one(store, entries[i]->d_name) != SHOAL_OK) {
            const char *why = shoal_last_error();

            log_line("ckpt", "%s/%s: is left behind: %.*s", root, entries[i]->d_name,
                     (int)strcspn(why, "\n"), why);
        }
        free(entries[i]);
    }
    free(entries);
    return SHOAL_OK;
}

int ckpt_store_prune(struct ckpt_store *store, int64_t saved_step)
{
    int64_t *steps = NULL;
    size_t n = 0;
    int kept = 1; /* the one just saved, even if an abandoned future lies above it */
    int removed = 0;

    if (store->keep <= 0 || ckpt_steps(store->root, &steps, &n) != SHOAL_OK)
        return 0;
    for (size_t i = 0; i < n; i++) {
        char name[CKPT_NAME_BYTES];
        char path[CKPT_PATH_BYTES];
        struct commit commit;

        ckpt_step_name(name, steps[i]);
        if (steps[i] == saved_step ||
            ckpt_fs_join(path, sizeof path, store->root, name) != SHOAL_OK)
            continue;
        comm_note(store->comm, saved_step, "checkpoint: looking at older ones");
        /* A broken step counts for nothing and stays for whoever wants to look at it. */
        if (ckpt_commit_check(path, &commit, NULL) != SHOAL_OK || kept++ < store->keep)
            continue;
        if (ckpt_store_delete(store, name, steps[i], comm_rank(store->comm), store->n_saves) ==
            SHOAL_OK)
            removed++;
        else
            log_line("ckpt", "%s: could not be removed", path);
    }
    free(steps);
    return removed;
}

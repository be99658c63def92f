#include "checkpoint/save_internal.h"
#include "runtime/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Rank 0's part of the protocol: from the votes and rows of all ranks to a directory with a final
 * name.
 */

static int by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The union of the ranks' kinds, sorted; rows are renumbered to it. */
static shoal_status unite_kinds(struct save *s, char kinds[][CKPT_KIND_BYTES], size_t *n_out)
{
    size_t n = 0;

    for (int r = 0; r < s->world; r++)
        for (size_t k = 0; k < s->votes[r].n_kinds; k++) {
            size_t i = 0;

            while (i < n && strcmp(kinds[i], s->votes[r].kinds[k]) != 0)
                i++;
            if (i == n && n == CKPT_MAX_KINDS)
                return fail(SHOAL_ERR_INTERNAL, "checkpoint: more than %d state kinds",
                            CKPT_MAX_KINDS);
            if (i == n)
                memcpy(kinds[n++], s->votes[r].kinds[k], CKPT_KIND_BYTES);
        }
    qsort(kinds, n, CKPT_KIND_BYTES, by_text);
    for (size_t i = 0; i < s->n_rows; i++) {
        struct extent_row *row = &s->rows[i];
        const char *kind = s->votes[row->shard.rank].kinds[row->shard.kind];

        for (uint32_t k = 0; k < n; k++)
            if (strcmp(kinds[k], kind) == 0)
                row->shard.kind = row->state.kind = k;
    }
    *n_out = n;
    return SHOAL_OK;
}

/* The tables of the manifest, on rank 0. */
struct tables {
    char kinds[CKPT_MAX_KINDS][CKPT_KIND_BYTES];
    struct file_row *files;
    struct shard_row *shards;
    struct state *states;
    struct shard_space space;
};

static void tables_fini(struct tables *t)
{
    free(t->files);
    free(t->shards);
    free(t->states);
}

static shoal_status tables_init(struct save *s, const char *path, struct tables *t)
{
    t->files = calloc((size_t)s->world, sizeof *t->files);
    t->shards = calloc(s->n_rows + 1, sizeof *t->shards);
    t->states = calloc(s->n_rows + 1, sizeof *t->states);
    if (t->files == NULL || t->shards == NULL || t->states == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint: no memory for the tables of %d ranks", s->world);
    t->space = (struct shard_space){.tensors = s->layout->tensors,
                                    .n_tensors = (size_t)s->layout->n_tensors,
                                    .kinds = (const char(*)[CKPT_KIND_BYTES])t->kinds,
                                    .states = t->states,
                                    .n_states = s->n_rows,
                                    .files = t->files,
                                    .n_files = (size_t)s->world};
    SHOAL_TRY(unite_kinds(s, t->kinds, &t->space.n_kinds));
    for (int r = 0; r < s->world; r++)
        t->files[r] = s->votes[r].file;
    for (size_t i = 0; i < s->n_rows; i++) {
        t->shards[i] = s->rows[i].shard;
        t->states[i] = s->rows[i].state;
    }
    SHOAL_TRY(
        ckpt_states_unite(SHOAL_ERR_INTERNAL, path, &t->space, t->states, &t->space.n_states));
    return ckpt_shards_check(SHOAL_ERR_INTERNAL, path, &t->space, t->shards, s->n_rows);
}

/* Nothing is published that a reader would refuse: it would count as broken for ever. */
static shoal_status check_readable(const struct save *s, const struct commit *commit,
                                   const char *image, size_t n_bytes)
{
    struct ckpt *ckpt = calloc(1, sizeof *ckpt);

    if (ckpt == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint: no memory to read the manifest back");
    memcpy(ckpt->path, s->tmp, sizeof ckpt->path);
    ckpt->commit = *commit;

    shoal_status status = ckpt_manifest_parse(ckpt, image, n_bytes);

    ckpt_close(ckpt);
    return status == SHOAL_ERR_DATA
               ? fail_context(SHOAL_ERR_INTERNAL, "checkpoint: cannot be read back")
               : status;
}

static shoal_status write_manifest(struct save *s, struct tables *t, struct commit *commit)
{
    char path[CKPT_PATH_BYTES];
    struct manifest manifest = {.layout = s->layout,
                                .meta = s->meta,
                                .attempt = s->attempt,
                                .space = &t->space,
                                .n_shards = s->n_rows};
    char *image = NULL;
    size_t n_bytes = 0;

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, s->tmp, CKPT_MANIFEST_FILE));
    SHOAL_TRY(tables_init(s, path, t));
    manifest.shards = t->shards;
    SHOAL_TRY(ckpt_manifest_create(&manifest, path));
    SHOAL_TRY(ckpt_fs_sync_file(path));
    SHOAL_TRY(ckpt_fs_read_file(path, CKPT_MANIFEST_MAX_BYTES, &image, &n_bytes));
    *commit = (struct commit){.version = CKPT_VERSION_MAJOR,
                              .step = s->meta->step,
                              .manifest_bytes = n_bytes,
                              .manifest_crc = ckpt_crc32c(0, image, n_bytes)};
    memcpy(commit->attempt, s->attempt, sizeof commit->attempt);
    s->total_bytes += n_bytes;

    shoal_status status = check_readable(s, commit, image, n_bytes);

    free(image);
    return status;
}

/*
 * Give the directory its final name.  When the step exists already (a run that resumed and saved
 * the same step again) the two directories change names in one system call, so that at no time
 * neither exists; the old one then is the temporary.
 */
static shoal_status publish(const struct save *s, const char *final)
{
    if (renameat2(AT_FDCWD, s->tmp, AT_FDCWD, final, RENAME_NOREPLACE) == 0)
        return SHOAL_OK;
    if (errno == EEXIST && renameat2(AT_FDCWD, s->tmp, AT_FDCWD, final, RENAME_EXCHANGE) == 0)
        return SHOAL_OK;
    /* File systems without these flags (NFS): plain rename, which refuses a full directory. */
    if (errno == EINVAL && rename(s->tmp, final) == 0)
        return SHOAL_OK;
    return ckpt_fs_fail(SHOAL_ERR_IO, final, "cannot rename the finished checkpoint");
}

/* LATEST is a hint for people and scripts; no reader relies on it, so failing costs a log line. */
static void write_latest(const struct save *s, const char *name, const struct commit *commit)
{
    char text[CKPT_NAME_BYTES + 16];
    char tmp_name[CKPT_NAME_BYTES];
    char from[CKPT_PATH_BYTES];
    char to[CKPT_PATH_BYTES];
    const char *root = s->store->root;
    int n = snprintf(text, sizeof text, "%s %08" PRIx32 "\n", name, commit->manifest_crc);

    snprintf(tmp_name, sizeof tmp_name, CKPT_LATEST_FILE ".tmp-%.36s", s->attempt);
    if (ckpt_fs_join(from, sizeof from, root, tmp_name) != SHOAL_OK ||
        ckpt_fs_join(to, sizeof to, root, CKPT_LATEST_FILE) != SHOAL_OK)
        return;
    if (ckpt_fs_write_file(root, tmp_name, text, (size_t)n) != SHOAL_OK || rename(from, to) != 0 ||
        ckpt_fs_sync_dir(root) != SHOAL_OK) {
        unlink(from);
        log_line("ckpt", "%s is complete, but %s/" CKPT_LATEST_FILE " could not be updated", name,
                 root);
    }
}

shoal_status ckpt_commit(struct save *s, const char *final)
{
    struct ckpt_store *store = s->store;
    struct commit record;
    char text[512];
    struct tables tables = {0};

    ckpt_fault("manifest", s->rank, store->n_saves);

    shoal_status status = write_manifest(s, &tables, &record);

    tables_fini(&tables);
    SHOAL_TRY(status);
    ckpt_fault("commit", s->rank, store->n_saves);
    /* COMMIT must never be durable before the entries of the files it vouches for. */
    SHOAL_TRY(ckpt_fs_sync_dir(s->tmp));
    SHOAL_TRY(ckpt_fs_write_file(s->tmp, CKPT_COMMIT_FILE, text,
                                 ckpt_commit_format(text, sizeof text, &record)));
    SHOAL_TRY(ckpt_fs_sync_dir(s->tmp));
    ckpt_fault("rename", s->rank, store->n_saves);
    SHOAL_TRY(publish(s, final));
    s->published = true;
    ckpt_fault("renamed", s->rank, store->n_saves);
    SHOAL_TRY(ckpt_fs_sync_dir(store->root));
    write_latest(s, strrchr(final, '/') + 1, &record);
    return SHOAL_OK;
}

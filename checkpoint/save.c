#include "checkpoint/checkpoint_internal.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * The commit protocol.  docs/checkpoint-format.md argues why a crash at any point leaves the
 * previous step or the new one.
 *
 *   rank 0      attempt uuid, mkdir step-N.tmp-<uuid>                        agree
 *   all ranks   skeleton, reserve, payload, checksum table, fdatasync        agree
 *   all ranks   exchange votes (sizes, checksums) and shard rows
 *   rank 0      check coverage; manifest.h5, COMMIT, fsync, rename, fsync    agree
 *   rank 0      LATEST (a hint), then retention
 */

/* What a rank tells the others about its file; rows follow separately. */
struct vote {
    struct file_row file;
    int64_t step, n_parameters;
    uint64_t n_extents, n_kinds;
    char kinds[CKPT_MAX_KINDS][CKPT_KIND_BYTES];
};

struct save {
    struct ckpt_store *store;
    const struct layout *layout;
    const struct ckpt_meta *meta;
    struct save_plan plan;
    struct file_row row;
    char attempt[CKPT_UUID_BYTES];
    char tmp_name[CKPT_NAME_BYTES];
    char tmp[CKPT_PATH_BYTES];
    int rank, world;

    struct vote *votes;       /* of all ranks */
    struct shard_row *shards; /* of all ranks, with the ranks' own kind indexes at first */
    size_t n_shards;
    uint64_t total_bytes;
};

static shoal_status begin_local(struct save *s, const struct ckpt_piece *pieces, size_t n_pieces)
{
    if (s->meta->step < 0)
        return fail(SHOAL_ERR_INTERNAL, "checkpoint: step %" PRId64 " is negative", s->meta->step);
    SHOAL_TRY(ckpt_save_plan_create(s->layout, pieces, n_pieces, &s->plan));
    return s->rank == 0 ? ckpt_fs_uuid(s->attempt) : SHOAL_OK;
}

static shoal_status make_temporary(struct save *s)
{
    if (s->rank != 0)
        return SHOAL_OK;
    if (mkdir(s->tmp, 0777) != 0)
        return ckpt_fs_fail(SHOAL_ERR_IO, s->tmp, "cannot create directory");
    return ckpt_fs_sync_dir(s->store->root);
}

/* Collective. */
static shoal_status begin(struct save *s, const struct ckpt_piece *pieces, size_t n_pieces)
{
    struct comm *comm = s->store->comm;

    SHOAL_TRY(comm_agree(comm, begin_local(s, pieces, n_pieces)));
    SHOAL_TRY(comm_broadcast(comm, 0, s->attempt, sizeof s->attempt));
    ckpt_step_name_temporary(s->tmp_name, s->meta->step, s->attempt);
    /* The root was checked at open to leave room for this. */
    SHOAL_TRY(ckpt_fs_join(s->tmp, sizeof s->tmp, s->store->root, s->tmp_name));
    return comm_agree(comm, make_temporary(s));
}

static shoal_status write_table(struct save *s, struct io_file *file)
{
    size_t n_bytes = (s->plan.n_blocks > 0 ? s->plan.n_blocks : 1) * sizeof(uint32_t);

    shoal_status status = io_write(file, s->plan.crcs, n_bytes, s->row.table_off);
    shoal_status waited = io_wait(s->store->engine); /* also after a failure: it forgets it */

    SHOAL_TRY(status);
    SHOAL_TRY(waited);
    s->row.table_crc = ckpt_crc32c(0, s->plan.crcs, s->plan.n_blocks * sizeof(uint32_t));
    return SHOAL_OK;
}

static shoal_status write_contents(struct save *s, struct io_file *file)
{
    struct ckpt_store *store = s->store;
    uint32_t crc = 0;

    SHOAL_TRY(io_file_reserve(file, s->row.size));
    SHOAL_TRY(ckpt_payload_write(store, file, &s->plan, s->meta->step));
    SHOAL_TRY(write_table(s, file));
    comm_note(store->comm, s->meta->step, "checkpoint: waiting for the disk");
    SHOAL_TRY(io_file_sync(file));
    /* Read back from the file, so that the checksum is of what HDF5 really left there. */
    SHOAL_TRY(ckpt_crc_range(store->engine, file, store->staging, store->staging_bytes, 0,
                             s->row.header_bytes, &crc));
    SHOAL_TRY(ckpt_crc_range(store->engine, file, store->staging, store->staging_bytes,
                             s->row.payload_end, s->row.size, &crc));
    s->row.frame_crc = crc;
    return SHOAL_OK;
}

static shoal_status write_rank_file(struct save *s)
{
    char name[CKPT_NAME_BYTES];
    char path[CKPT_PATH_BYTES];
    struct io_file *file = NULL;

    ckpt_rank_file_name(name, (uint32_t)s->rank);
    SHOAL_TRY(ckpt_fs_join(path, sizeof path, s->tmp, name));

    struct skeleton_params params = {.path = path,
                                     .layout = s->layout,
                                     .meta = s->meta,
                                     .attempt = s->attempt,
                                     .rank = s->rank,
                                     .world_size = s->world};

    SHOAL_TRY(ckpt_skeleton_create(&params, &s->plan, &s->row));
    ckpt_fault("skeleton", s->rank, s->store->n_saves);
    SHOAL_TRY(io_file_open(s->store->engine, path, true, &file));

    shoal_status status = write_contents(s, file);

    io_file_close(file);
    return status;
}

/* ---- votes ---- */

static shoal_status check_votes(struct save *s)
{
    for (int r = 0; r < s->world; r++) {
        const struct vote *v = &s->votes[r];

        if (v->step != s->meta->step || v->n_parameters != s->layout->n_parameters)
            return fail(SHOAL_ERR_INTERNAL,
                        "checkpoint: rank %d saves step %" PRId64 " of %" PRId64
                        " parameters, rank %d step %" PRId64 " of %" PRId64,
                        r, v->step, v->n_parameters, s->rank, s->meta->step,
                        s->layout->n_parameters);
        s->n_shards += v->n_extents;
        s->total_bytes += v->file.size;
    }
    return SHOAL_OK;
}

static void own_rows(const struct save *s, size_t first, size_t n, struct shard_row *rows)
{
    for (size_t i = 0; i < n && first + i < s->plan.n_extents; i++) {
        const struct extent *e = &s->plan.extents[first + i];

        rows[i] = (struct shard_row){.tensor = (uint32_t)e->tensor,
                                     .kind = (uint32_t)e->kind,
                                     .rank = (uint32_t)s->rank,
                                     .first_block = e->first_block,
                                     .begin = e->begin,
                                     .end = e->end,
                                     .byte_off = e->byte_off};
    }
}

/* Rank 0 needs all rows.  They travel in rounds of bounded size.  Collective. */
static shoal_status gather_rows(struct save *s)
{
    enum { ROWS = 256 };
    size_t most = 0;
    size_t have = 0;
    struct shard_row *own = calloc(ROWS, sizeof *own);
    struct shard_row *round = calloc((size_t)s->world * ROWS, sizeof *round);
    shoal_status status = SHOAL_OK;

    s->shards = calloc(s->n_shards + 1, sizeof *s->shards);
    if (own == NULL || round == NULL || s->shards == NULL)
        status = fail(SHOAL_ERR_NOMEM, "checkpoint: no memory for %zu shard rows", s->n_shards);
    SHOAL_TRY_GOTO(comm_agree(s->store->comm, status), done);

    for (int r = 0; r < s->world; r++)
        if (s->votes[r].n_extents > most)
            most = s->votes[r].n_extents;
    for (size_t first = 0; first < most; first += ROWS) {
        own_rows(s, first, ROWS, own);
        SHOAL_TRY_GOTO(comm_all_gather_bytes(s->store->comm, own, ROWS * sizeof *own, round), done);
        for (int r = 0; r < s->world; r++)
            for (size_t i = 0; i < ROWS && first + i < s->votes[r].n_extents; i++)
                s->shards[have++] = round[(size_t)r * ROWS + i];
    }

done:
    free(round);
    free(own);
    return status;
}

/* Collective. */
static shoal_status exchange(struct save *s)
{
    struct comm *comm = s->store->comm;
    struct vote vote = {.file = s->row,
                        .step = s->meta->step,
                        .n_parameters = s->layout->n_parameters,
                        .n_extents = s->plan.n_extents,
                        .n_kinds = s->plan.n_kinds};

    memcpy(vote.kinds, s->plan.kinds, sizeof vote.kinds);
    s->votes = calloc((size_t)s->world, sizeof *s->votes);

    shoal_status status =
        s->votes == NULL ? fail(SHOAL_ERR_NOMEM, "checkpoint: no memory to vote") : SHOAL_OK;

    SHOAL_TRY(comm_agree(comm, status));
    SHOAL_TRY(comm_all_gather_bytes(comm, &vote, sizeof vote, s->votes));
    SHOAL_TRY(comm_agree(comm, check_votes(s)));
    return gather_rows(s);
}

/* ---- rank 0 ---- */

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
    for (size_t i = 0; i < s->n_shards; i++) {
        struct shard_row *row = &s->shards[i];
        const char *kind = s->votes[row->rank].kinds[row->kind];

        for (uint32_t k = 0; k < n; k++)
            if (strcmp(kinds[k], kind) == 0)
                row->kind = k;
    }
    *n_out = n;
    return SHOAL_OK;
}

static shoal_status write_manifest(struct save *s, struct file_row *files, struct commit *commit)
{
    char kinds[CKPT_MAX_KINDS][CKPT_KIND_BYTES] = {{0}};
    char path[CKPT_PATH_BYTES];
    struct shard_space space = {.tensors = s->layout->tensors,
                                .n_tensors = (size_t)s->layout->n_tensors,
                                .kinds = (const char(*)[CKPT_KIND_BYTES])kinds,
                                .files = files,
                                .n_files = (size_t)s->world};
    struct manifest manifest = {.layout = s->layout,
                                .meta = s->meta,
                                .attempt = s->attempt,
                                .space = &space,
                                .shards = s->shards,
                                .n_shards = s->n_shards};
    char *image = NULL;
    size_t n_bytes = 0;

    for (int r = 0; r < s->world; r++)
        files[r] = s->votes[r].file;
    SHOAL_TRY(unite_kinds(s, kinds, &space.n_kinds));
    SHOAL_TRY(ckpt_fs_join(path, sizeof path, s->tmp, CKPT_MANIFEST_FILE));
    SHOAL_TRY(ckpt_shards_check(SHOAL_ERR_INTERNAL, path, &space, s->shards, s->n_shards));
    SHOAL_TRY(ckpt_manifest_create(&manifest, path));
    SHOAL_TRY(ckpt_fs_sync_file(path));
    SHOAL_TRY(ckpt_fs_read_file(path, CKPT_MANIFEST_MAX_BYTES, &image, &n_bytes));
    *commit = (struct commit){.step = s->meta->step,
                              .manifest_bytes = n_bytes,
                              .manifest_crc = ckpt_crc32c(0, image, n_bytes)};
    memcpy(commit->attempt, s->attempt, sizeof commit->attempt);
    s->total_bytes += n_bytes;
    free(image);
    return SHOAL_OK;
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
    if (ckpt_fs_write_file(root, tmp_name, text, (size_t)n) != SHOAL_OK ||
        ckpt_fs_join(from, sizeof from, root, tmp_name) != SHOAL_OK ||
        ckpt_fs_join(to, sizeof to, root, CKPT_LATEST_FILE) != SHOAL_OK || rename(from, to) != 0 ||
        ckpt_fs_sync_dir(root) != SHOAL_OK)
        log_line("ckpt", "%s is complete, but %s/" CKPT_LATEST_FILE " could not be updated", name,
                 root);
}

static shoal_status commit(struct save *s, const char *final)
{
    struct ckpt_store *store = s->store;
    struct commit record;
    char text[512];
    struct file_row *files = calloc((size_t)s->world, sizeof *files);

    if (files == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint: no memory for %d file rows", s->world);
    ckpt_fault("manifest", s->rank, store->n_saves);

    shoal_status status = write_manifest(s, files, &record);

    free(files);
    SHOAL_TRY(status);
    ckpt_fault("commit", s->rank, store->n_saves);
    /* COMMIT must never be durable before the entries of the files it vouches for. */
    SHOAL_TRY(ckpt_fs_sync_dir(s->tmp));
    SHOAL_TRY(ckpt_fs_write_file(s->tmp, CKPT_COMMIT_FILE, text,
                                 ckpt_commit_format(text, sizeof text, &record)));
    SHOAL_TRY(ckpt_fs_sync_dir(s->tmp));
    ckpt_fault("rename", s->rank, store->n_saves);
    SHOAL_TRY(publish(s, final));
    ckpt_fault("renamed", s->rank, store->n_saves);
    SHOAL_TRY(ckpt_fs_sync_dir(store->root));
    write_latest(s, strrchr(final, '/') + 1, &record);
    return SHOAL_OK;
}

/* Everything up to the commit's verdict.  Collective. */
static shoal_status save_all(struct save *s, const struct ckpt_piece *pieces, size_t n_pieces,
                             const char *final)
{
    struct comm *comm = s->store->comm;

    SHOAL_TRY(begin(s, pieces, n_pieces));
    SHOAL_TRY(comm_agree(comm, write_rank_file(s)));
    SHOAL_TRY(exchange(s));
    comm_note(comm, s->meta->step, "checkpoint: committing");
    return comm_agree(comm, s->rank == 0 ? commit(s, final) : SHOAL_OK);
}

/* After a failure the space is wanted back; after an exchange of names this is the old step. */
static void discard_temporary(const struct save *s)
{
    char why[1024];

    if (s->rank != 0 || s->tmp[0] == '\0')
        return;
    snprintf(why, sizeof why, "%s", shoal_last_error());
    if (ckpt_fs_is_dir(s->tmp) &&
        ckpt_store_delete(s->store->root, s->tmp_name, s->meta->step, -1, 0) != 0)
        log_line("ckpt", "%s: left behind, the next run removes it", s->tmp);
    fail_adopt(SHOAL_ERR_IO, why);
}

shoal_status ckpt_save(struct ckpt_store *store, const struct layout *layout,
                       const struct ckpt_piece *pieces, size_t n_pieces,
                       const struct ckpt_meta *meta, struct ckpt_result *result_out)
{
    struct save s = {.store = store,
                     .layout = layout,
                     .meta = meta,
                     .rank = comm_rank(store->comm),
                     .world = comm_size(store->comm)};
    struct ckpt_result result = {0};
    char name[CKPT_NAME_BYTES];
    double start = clock_seconds();
    int64_t facts[2]; /* from rank 0: bytes, removed */

    ckpt_h5_quiet();
    store->n_saves++;
    ckpt_step_name(name, meta->step);

    shoal_status status = ckpt_fs_join(result.path, sizeof result.path, store->root, name);

    if (status == SHOAL_OK)
        status = save_all(&s, pieces, n_pieces, result.path);
    discard_temporary(&s);
    if (status == SHOAL_OK) {
        facts[0] = (int64_t)s.total_bytes;
        facts[1] = s.rank == 0 ? ckpt_store_prune(store, meta->step) : 0;
        status = comm_broadcast(store->comm, 0, facts, sizeof facts);
    }
    free(s.votes);
    free(s.shards);
    ckpt_save_plan_destroy(&s.plan);
    if (status != SHOAL_OK)
        return status;
    result.n_bytes = (uint64_t)facts[0];
    result.n_removed = (int)facts[1];
    result.seconds = clock_seconds() - start;
    if (result_out != NULL)
        *result_out = result;
    return SHOAL_OK;
}

#include "checkpoint/save_internal.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/*
 * The commit protocol.  docs/checkpoint-format.md argues why a crash at any point leaves the
 * previous step or the new one.
 *
 *   rank 0      attempt uuid, mkdir step-N.tmp-<uuid>                        agree
 *   all ranks   reserve all the space there will be need of                  agree
 *   all ranks   skeleton (which gives the space back)                        agree
 *   all ranks   reserve, payload, checksum table, fdatasync                  agree
 *   all ranks   exchange votes (sizes, checksums) and shard rows
 *   rank 0      check coverage; manifest.h5, COMMIT, fsync, rename, fsync    agree
 *   rank 0      LATEST (a hint), then retention
 */

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

static shoal_status fill_rank_file(struct save *s, const char *path)
{
    struct io_file *file = NULL;

    SHOAL_TRY(io_file_open(s->store->engine, path, true, &file));

    shoal_status status = write_contents(s, file);

    io_file_close(file);
    return status;
}

/* Collective. */
static shoal_status write_rank_file(struct save *s)
{
    struct comm *comm = s->store->comm;
    char name[CKPT_NAME_BYTES];
    char path[CKPT_PATH_BYTES];
    const struct skeleton_params params = {.path = path,
                                           .layout = s->layout,
                                           .meta = s->meta,
                                           .attempt = s->attempt,
                                           .rank = s->rank,
                                           .world_size = s->world};

    ckpt_rank_file_name(name, (uint32_t)s->rank);
    SHOAL_TRY(ckpt_fs_join(path, sizeof path, s->tmp, name)); /* on all ranks alike */
    SHOAL_TRY(comm_agree(comm, ckpt_skeleton_reserve(&params, &s->plan)));
    SHOAL_TRY(comm_agree(comm, ckpt_skeleton_create(&params, &s->plan, &s->row)));
    ckpt_fault("skeleton", s->rank, s->store->n_saves);
    return comm_agree(comm, fill_rank_file(s, path));
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
        s->n_rows += v->n_extents;
        s->total_bytes += v->file.size;
    }
    return SHOAL_OK;
}

static void own_rows(const struct save *s, size_t first, size_t n, struct extent_row *rows)
{
    for (size_t i = 0; i < n && first + i < s->plan.n_extents; i++) {
        const struct extent *e = &s->plan.extents[first + i];

        rows[i].state = e->state;
        rows[i].shard = (struct shard_row){.tensor = e->state.tensor,
                                           .kind = e->state.kind,
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
    struct extent_row *own = calloc(ROWS, sizeof *own);
    struct extent_row *round = calloc((size_t)s->world * ROWS, sizeof *round);
    shoal_status status = SHOAL_OK;

    s->rows = calloc(s->n_rows + 1, sizeof *s->rows);
    if (own == NULL || round == NULL || s->rows == NULL)
        status = fail(SHOAL_ERR_NOMEM, "checkpoint: no memory for %zu shard rows", s->n_rows);
    SHOAL_TRY_GOTO(comm_agree(s->store->comm, status), done);

    for (int r = 0; r < s->world; r++)
        if (s->votes[r].n_extents > most)
            most = s->votes[r].n_extents;
    for (size_t first = 0; first < most; first += ROWS) {
        own_rows(s, first, ROWS, own);
        SHOAL_TRY_GOTO(comm_all_gather_bytes(s->store->comm, own, ROWS * sizeof *own, round), done);
        for (int r = 0; r < s->world; r++)
            for (size_t i = 0; i < ROWS && first + i < s->votes[r].n_extents; i++)
                s->rows[have++] = round[(size_t)r * ROWS + i];
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

/* Everything up to the commit's verdict.  Collective. */
static shoal_status save_all(struct save *s, const struct ckpt_piece *pieces, size_t n_pieces,
                             const char *final)
{
    struct comm *comm = s->store->comm;

    SHOAL_TRY(begin(s, pieces, n_pieces));
    SHOAL_TRY(write_rank_file(s));
    SHOAL_TRY(exchange(s));
    comm_note(comm, s->meta->step, "checkpoint: committing");
    return comm_agree(comm, s->rank == 0 ? ckpt_commit(s, final) : SHOAL_OK);
}

/*
 * After a failure the space is wanted back; after an exchange of names this is the old step, which
 * stays for the next run to remove when the exchange may not be durable.
 */
static void discard_temporary(const struct save *s, bool failed)
{
    char why[1024];

    if (s->rank != 0 || s->tmp[0] == '\0' || (failed && s->published))
        return;
    snprintf(why, sizeof why, "%s", shoal_last_error());
    if (ckpt_fs_is_dir(s->tmp) &&
        ckpt_store_delete(s->store, s->tmp_name, s->meta->step, -1, 0) != 0)
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
    discard_temporary(&s, status != SHOAL_OK);
    if (status == SHOAL_OK) {
        facts[0] = (int64_t)s.total_bytes;
        facts[1] = s.rank == 0 ? ckpt_store_prune(store, meta->step) : 0;
        status = comm_broadcast(store->comm, 0, facts, sizeof facts);
    }
    free(s.votes);
    free(s.rows);
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

#include "checkpoint/checkpoint_internal.h"
#include "runtime/base/pages.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Opening: COMMIT, the manifest against it, every rank file's size, frame and checksum table
 * against the manifest.  No payload is read; that is checked block by block when it is used.
 */

enum { READ_DEPTH = 16 };

shoal_status ckpt_crc_range(struct io_engine *engine, struct io_file *file, char *buffer,
                            size_t buffer_bytes, uint64_t from, uint64_t to, uint32_t *crc)
{
    while (from < to) {
        size_t n = to - from < buffer_bytes ? (size_t)(to - from) : buffer_bytes;

        shoal_status status = io_read(file, buffer, n, from);
        shoal_status waited = io_wait(engine); /* also after a failure: the engine goes on */

        SHOAL_TRY(status);
        SHOAL_TRY(waited);
        *crc = ckpt_crc32c(*crc, buffer, n);
        from += n;
    }
    return SHOAL_OK;
}

void ckpt_note(const struct ckpt *ckpt, const char *what)
{
    if (ckpt->comm != NULL)
        comm_note(ckpt->comm, ckpt->meta.step, what);
}

/* The frame does not match: say whose file it is, if it can say so itself. */
static shoal_status explain_frame(const struct ckpt *ckpt, const char *path, uint32_t rank)
{
    char attempt[CKPT_UUID_BYTES];
    uint32_t own_rank;
    hid_t fapl = ckpt_h5_access(0);
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, fapl);

    H5Pclose(fapl);
    H5Eclear2(H5E_DEFAULT);
    if (file < 0)
        return fail(SHOAL_ERR_DATA, "%s: its header does not match the manifest's checksum", path);

    bool named =
        ckpt_h5_get_text_attr(path, file, "attempt_uuid", attempt, sizeof attempt) == SHOAL_OK &&
        ckpt_h5_get_attr(path, file, "rank", H5T_STD_U32LE, 1, &own_rank) == SHOAL_OK;

    H5Fclose(file);
    if (named && strcmp(attempt, ckpt->commit.attempt) != 0)
        return fail(SHOAL_ERR_DATA,
                    "%s: belongs to another save (attempt %s, the manifest's is %s)", path, attempt,
                    ckpt->commit.attempt);
    if (named && own_rank != rank)
        return fail(SHOAL_ERR_DATA, "%s: is the file of rank %" PRIu32, path, own_rank);
    return fail(SHOAL_ERR_DATA, "%s: its header does not match the manifest's checksum", path);
}

static shoal_status check_frame(struct ckpt *ckpt, const char *path, struct io_file *file,
                                const struct file_row *row)
{
    size_t room = (size_t)READ_SLOTS * CKPT_BLOCK_BYTES;
    uint64_t size;
    uint32_t crc = 0;

    SHOAL_TRY(io_file_size(file, &size));
    if (size != row->size)
        return fail(SHOAL_ERR_DATA, "%s: holds %" PRIu64 " bytes, the manifest says %" PRIu64, path,
                    size, row->size);
    SHOAL_TRY(ckpt_crc_range(ckpt->engine, file, ckpt->buffer, room, 0, row->header_bytes, &crc));
    SHOAL_TRY(
        ckpt_crc_range(ckpt->engine, file, ckpt->buffer, room, row->payload_end, row->size, &crc));
    return crc == row->frame_crc ? SHOAL_OK : explain_frame(ckpt, path, row->rank);
}

static shoal_status load_table(struct ckpt *ckpt, const char *path, struct io_file *file,
                               const struct file_row *row)
{
    size_t n_bytes = row->n_blocks * sizeof(uint32_t);
    uint32_t *crcs = calloc((size_t)row->n_blocks + 1, sizeof *crcs);

    if (crcs == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %u checksums", path, row->n_blocks);
    ckpt->crcs[row->rank] = crcs;

    shoal_status status = io_read(file, crcs, n_bytes, row->table_off);
    shoal_status waited = io_wait(ckpt->engine);

    SHOAL_TRY(status);
    SHOAL_TRY(waited);
    if (ckpt_crc32c(0, crcs, n_bytes) != row->table_crc)
        return fail(SHOAL_ERR_DATA, "%s: its checksum table does not match the manifest's checksum",
                    path);
    return SHOAL_OK;
}

static shoal_status check_file(struct ckpt *ckpt, const struct file_row *row)
{
    char name[CKPT_NAME_BYTES];
    char path[CKPT_PATH_BYTES];
    struct io_file *file = NULL;

    ckpt_rank_file_name(name, row->rank);
    SHOAL_TRY(ckpt_fs_join(path, sizeof path, ckpt->path, name));
    ckpt_note(ckpt, "checkpoint: opening");
    SHOAL_TRY(ckpt_fs_need_file(path));
    SHOAL_TRY(io_file_open(ckpt->engine, path, false, &file));

    shoal_status status = check_frame(ckpt, path, file, row);

    if (status == SHOAL_OK)
        status = load_table(ckpt, path, file, row);
    io_file_close(file);
    return status;
}

static shoal_status open_checked(struct ckpt *ckpt, const char *dir)
{
    const char *base = strrchr(dir, '/') != NULL ? strrchr(dir, '/') + 1 : dir;
    char *image = NULL;
    void *buffer = NULL;
    int64_t step;
    enum step_suffix suffix = ckpt_step_name_parse(base, &step);

    if (suffix == STEP_TEMPORARY || suffix == STEP_DELETED)
        return fail(SHOAL_ERR_DATA, "%s: is %s, not a checkpoint", dir,
                    suffix == STEP_TEMPORARY ? "an unfinished save" : "being deleted");
    if (strlen(dir) >= sizeof ckpt->path)
        return fail(SHOAL_ERR_NOINPUT, "%s: path is too long", dir);
    memcpy(ckpt->path, dir, strlen(dir) + 1);
    ckpt_note(ckpt, "checkpoint: opening");
    SHOAL_TRY(ckpt_commit_check(dir, &ckpt->commit, &image));
    ckpt_note(ckpt, "checkpoint: opening");

    shoal_status status = ckpt_manifest_parse(ckpt, image, (size_t)ckpt->commit.manifest_bytes);

    free(image);
    SHOAL_TRY(status);
    if (suffix == STEP_FINAL && step != ckpt->meta.step)
        return fail(SHOAL_ERR_DATA, "%s: holds step %" PRId64, dir, ckpt->meta.step);
    SHOAL_TRY(io_engine_create(READ_DEPTH, false, &ckpt->engine));
    SHOAL_TRY(pages_alloc("checkpoint reader", (size_t)READ_SLOTS * CKPT_BLOCK_BYTES, &buffer));
    ckpt->buffer = buffer;
    ckpt->crcs = calloc(ckpt->n_files, sizeof *ckpt->crcs);
    if (ckpt->crcs == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %zu files", dir, ckpt->n_files);
    for (size_t i = 0; i < ckpt->n_files; i++)
        SHOAL_TRY(check_file(ckpt, &ckpt->files[i]));
    return SHOAL_OK;
}

shoal_status ckpt_open_step(struct comm *comm, const char *dir, struct ckpt **ckpt_out)
{
    struct ckpt *ckpt = calloc(1, sizeof *ckpt);

    if (ckpt == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory", dir);
    ckpt->comm = comm;

    shoal_status status = open_checked(ckpt, dir);

    if (status != SHOAL_OK) {
        ckpt_close(ckpt);
        return status;
    }
    *ckpt_out = ckpt;
    return SHOAL_OK;
}

void ckpt_close(struct ckpt *ckpt)
{
    if (ckpt == NULL)
        return;
    io_file_close(ckpt->file);
    if (ckpt->buffer != NULL)
        pages_free(ckpt->buffer, (size_t)READ_SLOTS * CKPT_BLOCK_BYTES);
    io_engine_destroy(ckpt->engine);
    for (size_t i = 0; ckpt->crcs != NULL && i < ckpt->n_files; i++)
        free(ckpt->crcs[i]);
    free(ckpt->crcs);
    free(ckpt->files);
    free(ckpt->shards);
    free(ckpt->states);
    free(ckpt->kinds);
    free(ckpt->by_name);
    free(ckpt->tensors);
    for (int i = 0; i < 4; i++)
        free(ckpt->texts[i]);
    free(ckpt);
}

/* ---- what is in it ---- */

const struct ckpt_meta *ckpt_meta(const struct ckpt *ckpt)
{
    return &ckpt->meta;
}

const char *ckpt_path(const struct ckpt *ckpt)
{
    return ckpt->path;
}

int ckpt_tensor_count(const struct ckpt *ckpt)
{
    return (int)ckpt->n_tensors;
}

const struct tensor *ckpt_tensor(const struct ckpt *ckpt, int index)
{
    return &ckpt->tensors[index];
}

int ckpt_kind_count(const struct ckpt *ckpt)
{
    return (int)ckpt->n_kinds;
}

const char *ckpt_kind(const struct ckpt *ckpt, int index)
{
    return ckpt->kinds[index];
}

int ckpt_find_kind(const struct ckpt *ckpt, const char *kind)
{
    for (size_t i = 0; i < ckpt->n_kinds; i++)
        if (strcmp(ckpt->kinds[i], kind) == 0)
            return (int)i;
    return -1;
}

int ckpt_find_tensor(const struct ckpt *ckpt, const char *name)
{
    size_t low = 0;
    size_t high = ckpt->n_tensors;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = strcmp(ckpt->tensors[ckpt->by_name[mid]].name, name);

        if (order == 0)
            return ckpt->by_name[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return -1;
}

bool ckpt_find_items(const struct ckpt *ckpt, const char *tensor, const char *kind,
                     struct ckpt_items *items_out)
{
    int t = ckpt_find_tensor(ckpt, tensor);
    int k = ckpt_find_kind(ckpt, kind);
    const struct state *state =
        t >= 0 && k >= 0 ? ckpt_states_find(&ckpt->space, (uint32_t)t, (uint32_t)k) : NULL;

    if (state == NULL)
        return false;
    if (items_out != NULL) {
        *items_out = (struct ckpt_items){.type = state->type, .n_items = state->n_items};
        memcpy(items_out->codec, state->codec, sizeof items_out->codec);
    }
    return true;
}

#include "checkpoint/checkpoint_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The manifest comes from anywhere: every number in it is checked before it is used.  HDF5 parses
 * the very bytes whose checksum was compared (a file image), not the file a second time.
 */

enum { MAX_ROWS = 1 << 24 };

static shoal_status read_version(const struct ckpt *ckpt, const char *path, hid_t file)
{
    char format[64];
    uint32_t version[2];
    uint32_t block;

    SHOAL_TRY(ckpt_h5_get_text_attr(path, file, "format", format, sizeof format));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "format_version", H5T_STD_U32LE, 2, version));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "block_bytes", H5T_STD_U32LE, 1, &block));
    if (strcmp(format, CKPT_FORMAT) != 0)
        return fail(SHOAL_ERR_DATA, "%s: format is \"%s\", expected \"" CKPT_FORMAT "\"", path,
                    format);
    if (version[0] < 1 || version[0] > CKPT_VERSION_MAJOR ||
        version[0] != (uint32_t)ckpt->commit.version)
        return fail(SHOAL_ERR_DATA,
                    "%s: format version %u.%u, " CKPT_COMMIT_FILE
                    " says %d; this program reads 1 to %d",
                    path, version[0], version[1], ckpt->commit.version, CKPT_VERSION_MAJOR);
    if (block != CKPT_BLOCK_BYTES)
        return fail(SHOAL_ERR_DATA, "%s: checksum blocks of %u bytes, expected %d", path, block,
                    CKPT_BLOCK_BYTES);
    return SHOAL_OK;
}

static shoal_status read_meta(struct ckpt *ckpt, const char *path, hid_t file)
{
    struct ckpt_meta *m = &ckpt->meta;
    char attempt[CKPT_UUID_BYTES];

    SHOAL_TRY(ckpt_h5_get_text_attr(path, file, "run_uuid", m->run_uuid, sizeof m->run_uuid));
    SHOAL_TRY(ckpt_h5_get_text_attr(path, file, "attempt_uuid", attempt, sizeof attempt));
    SHOAL_TRY(ckpt_h5_get_text_attr(path, file, "optimizer", m->optimizer, sizeof m->optimizer));
    SHOAL_TRY(
        ckpt_h5_get_text_attr(path, file, "conventions", m->conventions, sizeof m->conventions));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "step", H5T_STD_I64LE, 1, &m->step));
    SHOAL_TRY(
        ckpt_h5_get_attr(path, file, "created_unix_ns", H5T_STD_I64LE, 1, &ckpt->created_unix_ns));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "world_size", H5T_STD_U32LE, 1, &ckpt->world_size));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "consumed_sequences", H5T_STD_U64LE, 1,
                               &m->consumed_sequences));
    SHOAL_TRY(
        ckpt_h5_get_attr(path, file, "consumed_tokens", H5T_STD_U64LE, 1, &m->consumed_tokens));
    SHOAL_TRY(
        ckpt_h5_get_attr(path, file, "data_fingerprint", H5T_STD_U64LE, 1, &m->data_fingerprint));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "seed", H5T_STD_U64LE, 1, &m->seed));
    SHOAL_TRY(ckpt_h5_get_attr(path, file, "loss", H5T_IEEE_F64LE, 1, &m->loss));
    if (m->step != ckpt->commit.step || strcmp(attempt, ckpt->commit.attempt) != 0)
        return fail(SHOAL_ERR_DATA,
                    "%s: is of step %" PRId64 ", attempt %s; " CKPT_COMMIT_FILE
                    " says step %" PRId64 ", attempt %s",
                    path, m->step, attempt, ckpt->commit.step, ckpt->commit.attempt);
    return SHOAL_OK;
}

static shoal_status read_texts(struct ckpt *ckpt, const char *path, hid_t file)
{
    static const char *const names[4] = {"/config/yaml", "/config/model_json",
                                         "/config/optimizer_json", "/config/topology_json"};
    struct ckpt_meta *m = &ckpt->meta;
    bool has_any = false;

    SHOAL_TRY(ckpt_h5_has(path, file, "/config", &has_any));
    for (int i = 0; has_any && i < 4; i++)
        SHOAL_TRY(ckpt_h5_get_text(path, file, names[i], &ckpt->texts[i]));
    m->config_yaml = ckpt->texts[0];
    m->model_json = ckpt->texts[1];
    m->optimizer_json = ckpt->texts[2];
    m->topology_json = ckpt->texts[3];
    return SHOAL_OK;
}

static enum tensor_role role_of(const char *name)
{
    for (int r = 0; r < ROLE_COUNT; r++)
        if (strcmp(role_name((enum tensor_role)r), name) == 0)
            return (enum tensor_role)r;
    /* A role of a newer version: the bytes are as readable as ever. */
    return ROLE_COUNT;
}

static shoal_status take_tensor(const char *path, const struct tensor_row *row, struct tensor *t)
{
    char role[CKPT_ROLE_BYTES + 1] = {0};
    int64_t n = 1;

    if (!ckpt_name_is_valid(row->name, sizeof row->name))
        return fail(SHOAL_ERR_DATA, "%s: a tensor's name is empty or not printable", path);
    if (row->ndim < 0 || row->ndim > TENSOR_MAX_DIMS)
        return fail(SHOAL_ERR_DATA, "%s: tensor %s has %" PRId64 " dimensions", path, row->name,
                    row->ndim);
    memcpy(t->name, row->name, sizeof t->name);
    memcpy(role, row->role, sizeof row->role);
    t->role = role_of(role);
    t->ndim = (int)row->ndim;
    for (int d = 0; d < t->ndim; d++) {
        if (row->shape[d] < 1 || row->shape[d] > CKPT_MAX_ITEMS / n)
            return fail(SHOAL_ERR_DATA, "%s: tensor %s: dimension %d is %" PRId64, path, row->name,
                        d, row->shape[d]);
        t->shape[d] = row->shape[d];
        n *= row->shape[d];
    }
    if (n != row->n_elements)
        return fail(SHOAL_ERR_DATA,
                    "%s: tensor %s: shape has %" PRId64 " elements, the table says %" PRId64, path,
                    row->name, n, row->n_elements);
    t->n_elements = n;
    return SHOAL_OK;
}

static int by_tensor_name(const void *a, const void *b, void *arg)
{
    const struct tensor *tensors = arg;

    return strcmp(tensors[*(const int *)a].name, tensors[*(const int *)b].name);
}

static shoal_status take_tensors(struct ckpt *ckpt, const char *path, const struct tensor_row *rows,
                                 size_t n)
{
    ckpt->tensors = calloc(n, sizeof *ckpt->tensors);
    ckpt->by_name = calloc(n, sizeof *ckpt->by_name);
    if (ckpt->tensors == NULL || ckpt->by_name == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %zu tensors", path, n);
    ckpt->n_tensors = n;
    for (size_t i = 0; i < n; i++) {
        SHOAL_TRY(take_tensor(path, &rows[i], &ckpt->tensors[i]));
        ckpt->by_name[i] = (int)i;
    }
    qsort_r(ckpt->by_name, n, sizeof *ckpt->by_name, by_tensor_name, ckpt->tensors);
    for (size_t i = 1; i < n; i++)
        if (by_tensor_name(&ckpt->by_name[i - 1], &ckpt->by_name[i], ckpt->tensors) == 0)
            return fail(SHOAL_ERR_DATA, "%s: tensor %s is listed twice", path,
                        ckpt->tensors[ckpt->by_name[i]].name);
    return SHOAL_OK;
}

static shoal_status check_kinds(const struct ckpt *ckpt, const char *path)
{
    for (size_t i = 0; i < ckpt->n_kinds; i++) {
        if (!ckpt_name_is_valid(ckpt->kinds[i], CKPT_KIND_BYTES))
            return fail(SHOAL_ERR_DATA, "%s: a state's name is empty or not printable", path);
        for (size_t k = 0; k < i; k++)
            if (strcmp(ckpt->kinds[k], ckpt->kinds[i]) == 0)
                return fail(SHOAL_ERR_DATA, "%s: state %s is listed twice", path, ckpt->kinds[i]);
    }
    return SHOAL_OK;
}

static shoal_status check_files(const struct ckpt *ckpt, const char *path)
{
    if (ckpt->n_files != ckpt->world_size)
        return fail(SHOAL_ERR_DATA, "%s: lists %zu files for a world of %u", path, ckpt->n_files,
                    ckpt->world_size);
    for (size_t i = 0; i < ckpt->n_files; i++) {
        const struct file_row *f = &ckpt->files[i];
        uint64_t table = (uint64_t)f->n_blocks * sizeof(uint32_t);

        if (f->rank != i)
            return fail(SHOAL_ERR_DATA, "%s: file %zu is of rank %u", path, i, f->rank);
        if (f->size > INT64_MAX || f->header_bytes > f->payload_end || f->payload_end > f->size ||
            f->table_off > f->header_bytes || table > f->header_bytes - f->table_off)
            return fail(SHOAL_ERR_DATA, "%s: the extents of rank %zu's file do not fit in it", path,
                        i);
    }
    return SHOAL_OK;
}

static shoal_status read_tables(struct ckpt *ckpt, const char *path, hid_t file)
{
    hid_t types[4] = {ckpt_h5_tensor_type(), ckpt_h5_kind_type(), ckpt_h5_shard_type(),
                      ckpt_h5_file_type()};
    void *rows[4] = {NULL};
    size_t n[4] = {0};
    shoal_status status;

    SHOAL_TRY_GOTO(ckpt_h5_get_table(path, file, "/tensors", types[0], sizeof(struct tensor_row),
                                     MAX_ROWS, &rows[0], &n[0]),
                   done);
    SHOAL_TRY_GOTO(take_tensors(ckpt, path, rows[0], n[0]), done);
    SHOAL_TRY_GOTO(ckpt_h5_get_table(path, file, "/kinds", types[1], CKPT_KIND_BYTES,
                                     CKPT_MAX_KINDS, &rows[1], &n[1]),
                   done);
    SHOAL_TRY_GOTO(ckpt_h5_get_table(path, file, "/shards", types[2], sizeof(struct shard_row),
                                     MAX_ROWS, &rows[2], &n[2]),
                   done);
    SHOAL_TRY_GOTO(ckpt_h5_get_table(path, file, "/files", types[3], sizeof(struct file_row),
                                     MAX_ROWS, &rows[3], &n[3]),
                   done);
done:
    for (int i = 0; i < 4; i++)
        H5Tclose(types[i]);
    free(rows[0]);
    ckpt->kinds = rows[1];
    ckpt->n_kinds = n[1];
    ckpt->shards = rows[2];
    ckpt->n_shards = n[2];
    ckpt->files = rows[3];
    ckpt->n_files = n[3];
    return status;
}

/* What each (tensor, kind) is; the other tables are read and the kinds checked. */
static shoal_status read_states(struct ckpt *ckpt, const char *path, hid_t file)
{
    const struct shard_space *space = &ckpt->space;
    void *rows = NULL;
    size_t n = 0;

    if (ckpt->commit.version == 1) {
        ckpt_shards_sort(ckpt->shards, ckpt->n_shards);
        return ckpt_states_of_version_1(path, space, ckpt->shards, ckpt->n_shards, &ckpt->states,
                                        &ckpt->n_states);
    }

    hid_t type = ckpt_h5_state_type();
    shoal_status status = ckpt_h5_get_table(path, file, "/states", type, sizeof(struct state_row),
                                            MAX_ROWS, &rows, &n);

    H5Tclose(type);
    SHOAL_TRY(status);
    status = ckpt_states_take(path, space, rows, n, &ckpt->states);
    free(rows);
    SHOAL_TRY(status);
    ckpt->n_states = n;
    return SHOAL_OK;
}

static shoal_status read_all(struct ckpt *ckpt, const char *path, hid_t file)
{
    SHOAL_TRY(read_version(ckpt, path, file));
    SHOAL_TRY(read_meta(ckpt, path, file));
    SHOAL_TRY(read_texts(ckpt, path, file));
    SHOAL_TRY(read_tables(ckpt, path, file));
    SHOAL_TRY(check_kinds(ckpt, path));
    SHOAL_TRY(check_files(ckpt, path));
    ckpt->space = (struct shard_space){.tensors = ckpt->tensors,
                                       .n_tensors = ckpt->n_tensors,
                                       .kinds = (const char(*)[CKPT_KIND_BYTES])ckpt->kinds,
                                       .n_kinds = ckpt->n_kinds,
                                       .files = ckpt->files,
                                       .n_files = ckpt->n_files};
    SHOAL_TRY(read_states(ckpt, path, file));
    ckpt->space.states = ckpt->states;
    ckpt->space.n_states = ckpt->n_states;
    return ckpt_shards_check(SHOAL_ERR_DATA, path, &ckpt->space, ckpt->shards, ckpt->n_shards);
}

static shoal_status parse(struct ckpt *ckpt, const char *path, const char *image, size_t n_bytes)
{
    hid_t fapl = ckpt_h5_access(0);

    /* HDF5 copies the image. */
    if (H5Pset_fapl_core(fapl, 1 << 20, false) < 0 ||
        H5Pset_file_image(fapl, (void *)(uintptr_t)image, n_bytes) < 0) {
        H5Pclose(fapl);
        return ckpt_h5_fail(SHOAL_ERR_NOMEM, path, "cannot be given to HDF5");
    }

    /*
     * With an image HDF5 insists on a name that cannot be opened: below a file there is none.  Each
     * has its own, or HDF5 takes what another thread has open under it for the same file.
     */
    static _Atomic unsigned long n_images;
    char name[64];

    snprintf(name, sizeof name, "/dev/null/manifest-%lu", n_images++);

    hid_t file = H5Fopen(name, H5F_ACC_RDONLY, fapl);

    H5Pclose(fapl);
    if (file < 0)
        /* Not damage: these are the bytes that were committed.  Memory, or another HDF5's format. */
        return ckpt_h5_fail(SHOAL_ERR_IO, path, "HDF5 cannot open what was saved there");

    shoal_status status = read_all(ckpt, path, file);

    H5Fclose(file);
    return status;
}

shoal_status ckpt_manifest_parse(struct ckpt *ckpt, const char *image, size_t n_bytes)
{
    char path[CKPT_PATH_BYTES];

    SHOAL_TRY(ckpt_fs_join(path, sizeof path, ckpt->path, CKPT_MANIFEST_FILE));
    errno = 0;

    shoal_status status = parse(ckpt, path, image, n_bytes);

    /* Of an allocation that failed HDF5 only says that something failed. */
    if (status == SHOAL_ERR_DATA && errno == ENOMEM)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for HDF5 to read it", path);
    return status;
}

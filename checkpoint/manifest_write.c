#include "checkpoint/checkpoint_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * The manifest: tables of tensors, states, shards and files, and everything small that a run needs
 * to go on.
 */

static herr_t put_meta(hid_t root, const struct manifest *m)
{
    const struct ckpt_meta *meta = m->meta;
    uint32_t version[2] = {CKPT_VERSION_MAJOR, CKPT_VERSION_MINOR};
    uint32_t world = (uint32_t)m->space->n_files;
    uint32_t block = CKPT_BLOCK_BYTES;
    struct timespec now;
    herr_t rc = 0;

    clock_gettime(CLOCK_REALTIME, &now);
    int64_t created = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;

    rc |= ckpt_h5_put_text_attr(root, "format", CKPT_FORMAT);
    rc |= ckpt_h5_put_attr(root, "format_version", H5T_STD_U32LE, 2, version);
    rc |= ckpt_h5_put_text_attr(root, "writer", "shoal " SHOAL_VERSION);
    rc |= ckpt_h5_put_text_attr(root, "run_uuid", meta->run_uuid);
    rc |= ckpt_h5_put_text_attr(root, "attempt_uuid", m->attempt);
    rc |= ckpt_h5_put_attr(root, "step", H5T_STD_I64LE, 1, &meta->step);
    rc |= ckpt_h5_put_attr(root, "created_unix_ns", H5T_STD_I64LE, 1, &created);
    rc |= ckpt_h5_put_attr(root, "world_size", H5T_STD_U32LE, 1, &world);
    rc |= ckpt_h5_put_attr(root, "block_bytes", H5T_STD_U32LE, 1, &block);
    rc |= ckpt_h5_put_attr(root, "consumed_sequences", H5T_STD_U64LE, 1, &meta->consumed_sequences);
    rc |= ckpt_h5_put_attr(root, "consumed_tokens", H5T_STD_U64LE, 1, &meta->consumed_tokens);
    rc |= ckpt_h5_put_attr(root, "data_fingerprint", H5T_STD_U64LE, 1, &meta->data_fingerprint);
    rc |= ckpt_h5_put_attr(root, "seed", H5T_STD_U64LE, 1, &meta->seed);
    rc |= ckpt_h5_put_attr(root, "loss", H5T_IEEE_F64LE, 1, &meta->loss);
    rc |= ckpt_h5_put_text_attr(root, "optimizer", meta->optimizer);
    rc |= ckpt_h5_put_text_attr(root, "conventions", meta->conventions);
    return rc;
}

/* Tables and texts are small: here HDF5 writes the data too. */
static herr_t put_dataset(hid_t file, const char *name, hid_t type, size_t n, const void *data)
{
    hid_t dataset = ckpt_h5_new_dataset(file, name, type, n);

    if (dataset < 0)
        return -1;

    herr_t rc = H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);

    rc |= H5Dclose(dataset);
    return rc;
}

static herr_t put_text(hid_t file, const char *name, const char *text)
{
    if (text == NULL || text[0] == '\0')
        return 0;

    hid_t type = H5Tcopy(H5T_C_S1);

    H5Tset_size(type, strlen(text));
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    H5Tset_cset(type, H5T_CSET_UTF8);

    herr_t rc = put_dataset(file, name, type, 1, text);

    H5Tclose(type);
    return rc;
}

static struct tensor_row *tensor_rows(const struct layout *layout)
{
    struct tensor_row *rows = calloc((size_t)layout->n_tensors, sizeof *rows);

    for (int i = 0; rows != NULL && i < layout->n_tensors; i++) {
        const struct tensor *t = &layout->tensors[i];

        memcpy(rows[i].name, t->name, strnlen(t->name, sizeof t->name));
        snprintf(rows[i].role, sizeof rows[i].role, "%s", role_name(t->role));
        for (int d = 0; d < t->ndim; d++)
            rows[i].shape[d] = t->shape[d];
        rows[i].n_elements = t->n_elements;
        rows[i].ndim = t->ndim;
    }
    return rows;
}

static struct state_row *state_rows(const struct shard_space *space)
{
    struct state_row *rows = calloc(space->n_states, sizeof *rows);

    for (size_t i = 0; rows != NULL && i < space->n_states; i++)
        rows[i] = ckpt_state_row(&space->states[i]);
    return rows;
}

static herr_t put_tables(hid_t file, const struct manifest *m)
{
    struct tensor_row *tensors = tensor_rows(m->layout);
    struct state_row *states = state_rows(m->space);
    hid_t types[5] = {ckpt_h5_tensor_type(), ckpt_h5_kind_type(), ckpt_h5_shard_type(),
                      ckpt_h5_file_type(), ckpt_h5_state_type()};
    herr_t rc = tensors == NULL || states == NULL ? -1 : 0;

    if (rc == 0) {
        rc |= put_dataset(file, "/tensors", types[0], (size_t)m->layout->n_tensors, tensors);
        rc |= put_dataset(file, "/kinds", types[1], m->space->n_kinds, m->space->kinds);
        rc |= put_dataset(file, "/states", types[4], m->space->n_states, states);
        rc |= put_dataset(file, "/shards", types[2], m->n_shards, m->shards);
        rc |= put_dataset(file, "/files", types[3], m->space->n_files, m->space->files);
    }
    for (int i = 0; i < 5; i++)
        H5Tclose(types[i]);
    free(states);
    free(tensors);
    return rc;
}

static herr_t put_all(hid_t file, const struct manifest *m)
{
    herr_t rc = put_meta(file, m);

    rc |= put_tables(file, m);
    rc |= put_text(file, "/config/yaml", m->meta->config_yaml);
    rc |= put_text(file, "/config/model_json", m->meta->model_json);
    rc |= put_text(file, "/config/optimizer_json", m->meta->optimizer_json);
    rc |= put_text(file, "/config/topology_json", m->meta->topology_json);
    return rc;
}

/* Generous: what the tables and texts take, and HDF5's own. */
static uint64_t estimate(const struct manifest *m)
{
    const char *texts[] = {m->meta->config_yaml, m->meta->model_json, m->meta->optimizer_json,
                           m->meta->topology_json};
    uint64_t bytes = 65536 + (uint64_t)m->layout->n_tensors * sizeof(struct tensor_row) +
                     m->space->n_states * sizeof(struct state_row) +
                     m->n_shards * sizeof(struct shard_row) +
                     m->space->n_files * sizeof(struct file_row);

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        bytes += texts[i] != NULL ? strlen(texts[i]) + IO_ALIGN : 0;
    return bytes;
}

shoal_status ckpt_manifest_create(const struct manifest *m, const char *path)
{
    SHOAL_TRY(ckpt_fs_probe_space(path, estimate(m)));

    hid_t fapl = ckpt_h5_access(0);
    hid_t fcpl = ckpt_h5_creation();
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    herr_t rc = file < 0 ? -1 : put_all(file, m);

    H5Pclose(fcpl);
    H5Pclose(fapl);
    if (file >= 0)
        rc |= H5Fclose(file);
    return rc < 0 ? ckpt_h5_fail(SHOAL_ERR_IO, path, "cannot write the manifest") : SHOAL_OK;
}

#include "checkpoint/save_internal.h"

#include <stdio.h>
#include <sys/stat.h>

/*
 * A rank file's skeleton: HDF5 creates every dataset with its space allocated and nothing in it,
 * tells us where each lies, and closes the file.  From then on the file is only bytes to us.  A
 * process killed later leaves a file that HDF5 can open.
 */

/*
 * What HDF5 needs per dataset (two object headers, links and up to six attributes) measures about
 * 1.2 KiB in the head; an estimate that is too low only moves the rest behind the payload.
 */
static size_t metadata_estimate(const struct save_plan *plan)
{
    return 8192 + 1536 * plan->n_extents;
}

static uint64_t file_estimate(const struct save_plan *plan)
{
    return metadata_estimate(plan) + plan->payload_bytes +
           (plan->n_extents + 2) * (uint64_t)IO_ALIGN + plan->n_blocks * sizeof(uint32_t);
}

static herr_t put_file_attrs(hid_t root, const struct skeleton_params *params,
                             const struct save_plan *plan)
{
    uint32_t version[2] = {CKPT_VERSION_MAJOR, CKPT_VERSION_MINOR};
    uint32_t rank = (uint32_t)params->rank;
    uint32_t world = (uint32_t)params->world_size;
    uint32_t block = CKPT_BLOCK_BYTES;
    herr_t rc = 0;

    rc |= ckpt_h5_put_text_attr(root, "format", CKPT_FORMAT);
    rc |= ckpt_h5_put_attr(root, "format_version", H5T_STD_U32LE, 2, version);
    rc |= ckpt_h5_put_text_attr(root, "writer", "shoal " SHOAL_VERSION);
    rc |= ckpt_h5_put_text_attr(root, "run_uuid", params->meta->run_uuid);
    rc |= ckpt_h5_put_text_attr(root, "attempt_uuid", params->attempt);
    rc |= ckpt_h5_put_attr(root, "step", H5T_STD_I64LE, 1, &params->meta->step);
    rc |= ckpt_h5_put_attr(root, "rank", H5T_STD_U32LE, 1, &rank);
    rc |= ckpt_h5_put_attr(root, "world_size", H5T_STD_U32LE, 1, &world);
    rc |= ckpt_h5_put_attr(root, "block_bytes", H5T_STD_U32LE, 1, &block);
    rc |= ckpt_h5_put_attr(root, "n_blocks", H5T_STD_U32LE, 1, &plan->n_blocks);
    return rc;
}

/* The shape of items that are not one per element of the tensor is their number. */
static herr_t put_dataset_attrs(hid_t dataset, const struct tensor *t, const struct extent *e)
{
    const struct state *state = &e->state;
    herr_t rc = 0;

    if (state->n_items == t->n_elements)
        rc |= ckpt_h5_put_attr(dataset, "shape", H5T_STD_I64LE, (size_t)t->ndim, t->shape);
    else
        rc |= ckpt_h5_put_attr(dataset, "shape", H5T_STD_I64LE, 1, &state->n_items);
    if (state->type != CKPT_F32 || state->codec[0] != '\0') {
        rc |= ckpt_h5_put_text_attr(dataset, "type", ckpt_type_name(state->type));
        rc |= ckpt_h5_put_text_attr(dataset, "codec", state->codec);
    }
    rc |= ckpt_h5_put_attr(dataset, "begin", H5T_STD_I64LE, 1, &e->begin);
    rc |= ckpt_h5_put_attr(dataset, "end", H5T_STD_I64LE, 1, &e->end);
    rc |= ckpt_h5_put_attr(dataset, "first_block", H5T_STD_U32LE, 1, &e->first_block);
    return rc;
}

/*
 * /tensors/<tensor>/<kind>, or <kind>@<begin> for a second run of the same tensor and kind.
 * Extents are sorted, so only a predecessor can have taken the plain name.
 */
static shoal_status new_extent(hid_t file, const struct skeleton_params *params,
                               const struct save_plan *plan, size_t index)
{
    char path[2 * CKPT_NAME_BYTES];
    struct extent *e = &plan->extents[index];
    const struct state *state = &e->state;
    const struct tensor *t = &params->layout->tensors[state->tensor];
    bool again =
        index > 0 && e[-1].state.tensor == state->tensor && e[-1].state.kind == state->kind;
    int n = snprintf(path, sizeof path, "/tensors/%s/%s", t->name, plan->kinds[state->kind]);

    if (again)
        snprintf(path + n, sizeof path - (size_t)n, "@%lld", (long long)e->begin);

    hid_t dataset = ckpt_h5_new_dataset(file, path, ckpt_h5_item_type(state->type),
                                        (size_t)(e->end - e->begin));

    if (dataset < 0)
        return ckpt_h5_fail(SHOAL_ERR_IO, params->path, path);

    haddr_t offset = H5Dget_offset(dataset);
    herr_t rc = put_dataset_attrs(dataset, t, e);

    rc |= H5Dclose(dataset);
    if (rc < 0 || offset == HADDR_UNDEF)
        return ckpt_h5_fail(SHOAL_ERR_IO, params->path, path);
    e->byte_off = offset;
    return SHOAL_OK;
}

static shoal_status fill_skeleton(hid_t file, const struct skeleton_params *params,
                                  struct save_plan *plan, struct file_row *row)
{
    size_t table_rows = plan->n_blocks > 0 ? plan->n_blocks : 1;
    hid_t table = ckpt_h5_new_dataset(file, "/integrity/crc32c", H5T_STD_U32LE, table_rows);
    haddr_t offset = table < 0 ? HADDR_UNDEF : H5Dget_offset(table);
    herr_t rc = offset == HADDR_UNDEF ? -1 : put_file_attrs(file, params, plan);

    if (table >= 0)
        rc |= H5Dclose(table);
    if (rc < 0)
        return ckpt_h5_fail(SHOAL_ERR_IO, params->path, "cannot create the checkpoint's tables");

    row->table_off = offset;
    row->header_bytes = offset + table_rows * sizeof(uint32_t);
    row->payload_end = row->header_bytes;
    for (size_t i = 0; i < plan->n_extents; i++) {
        const struct extent *e = &plan->extents[i];

        SHOAL_TRY(new_extent(file, params, plan, i));
        uint64_t end = e->byte_off + extent_bytes(e);

        if (e->byte_off < row->header_bytes)
            return fail(SHOAL_ERR_INTERNAL, "%s: HDF5 placed payload before the checksum table",
                        params->path);
        if (end > row->payload_end)
            row->payload_end = end;
    }
    if (plan->n_extents > 0) {
        uint64_t first = UINT64_MAX;

        for (size_t i = 0; i < plan->n_extents; i++)
            if (plan->extents[i].byte_off < first)
                first = plan->extents[i].byte_off;
        row->header_bytes = first;
    }
    return SHOAL_OK;
}

shoal_status ckpt_skeleton_reserve(const struct skeleton_params *params,
                                   const struct save_plan *plan)
{
    return ckpt_fs_probe_space(params->path, file_estimate(plan));
}

shoal_status ckpt_skeleton_create(const struct skeleton_params *params, struct save_plan *plan,
                                  struct file_row *row_out)
{
    struct file_row row = {.rank = (uint32_t)params->rank, .n_blocks = plan->n_blocks};
    struct stat st;

    hid_t fapl = ckpt_h5_access(metadata_estimate(plan));
    hid_t fcpl = ckpt_h5_creation();
    hid_t file = H5Fcreate(params->path, H5F_ACC_TRUNC, fcpl, fapl);

    H5Pclose(fcpl);
    H5Pclose(fapl);
    if (file < 0)
        return ckpt_h5_fail(SHOAL_ERR_IO, params->path, "cannot create");

    shoal_status status = fill_skeleton(file, params, plan, &row);

    if (H5Fclose(file) < 0 && status == SHOAL_OK)
        status = ckpt_h5_fail(SHOAL_ERR_IO, params->path, "cannot close the skeleton");
    if (status != SHOAL_OK)
        return status;
    if (stat(params->path, &st) != 0)
        return ckpt_fs_fail(SHOAL_ERR_IO, params->path, "cannot stat");
    row.size = (uint64_t)st.st_size;
    if (row.size < row.payload_end)
        return fail(SHOAL_ERR_INTERNAL, "%s: the skeleton ends inside its payload", params->path);
    *row_out = row;
    return SHOAL_OK;
}

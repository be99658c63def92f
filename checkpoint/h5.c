#include "checkpoint/checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>

/*
 * HDF5 is used for metadata only: it lays out files, we move the payload.  All files have
 * checksummed metadata (library bounds V110) and are opened without HDF5's own locks, which some
 * network file systems refuse.
 */

enum { TEXT_MAX_BYTES = 16 << 20 };

void ckpt_h5_quiet(void)
{
    /* The setting is per thread in the thread-safe library. */
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static herr_t innermost(unsigned n, const H5E_error2_t *error, void *arg)
{
    const char **text = arg;

    (void)n;
    if (*text == NULL && error->desc != NULL)
        *text = error->desc;
    return 0;
}

shoal_status ckpt_h5_fail(shoal_status code, const char *path, const char *what)
{
    const char *why = NULL;

    fail(code, "%s: %s", path, what);
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, &why);
    if (why != NULL)
        fail_why(code, "HDF5: %s", why);
    H5Eclear2(H5E_DEFAULT);
    return code;
}

/* ---- types ---- */

static hid_t text_type(size_t n_bytes)
{
    hid_t type = H5Tcopy(H5T_C_S1);

    H5Tset_size(type, n_bytes);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    return type;
}

static void insert_text(hid_t type, const char *name, size_t offset, size_t n_bytes)
{
    hid_t field = text_type(n_bytes);

    H5Tinsert(type, name, offset, field);
    H5Tclose(field);
}

hid_t ckpt_h5_tensor_type(void)
{
    hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(struct tensor_row));
    hsize_t dims = TENSOR_MAX_DIMS;
    hid_t shape = H5Tarray_create2(H5T_STD_I64LE, 1, &dims);

    insert_text(type, "name", HOFFSET(struct tensor_row, name), TENSOR_NAME_BYTES);
    insert_text(type, "role", HOFFSET(struct tensor_row, role), CKPT_ROLE_BYTES);
    H5Tinsert(type, "shape", HOFFSET(struct tensor_row, shape), shape);
    H5Tinsert(type, "n_elements", HOFFSET(struct tensor_row, n_elements), H5T_STD_I64LE);
    H5Tinsert(type, "ndim", HOFFSET(struct tensor_row, ndim), H5T_STD_I64LE);
    H5Tclose(shape);
    return type;
}

hid_t ckpt_h5_state_type(void)
{
    hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(struct state_row));

    H5Tinsert(type, "tensor", HOFFSET(struct state_row, tensor), H5T_STD_U32LE);
    H5Tinsert(type, "kind", HOFFSET(struct state_row, kind), H5T_STD_U32LE);
    H5Tinsert(type, "n_items", HOFFSET(struct state_row, n_items), H5T_STD_I64LE);
    insert_text(type, "type", HOFFSET(struct state_row, type), CKPT_TYPE_NAME_BYTES);
    insert_text(type, "codec", HOFFSET(struct state_row, codec), CKPT_CODEC_BYTES);
    return type;
}

hid_t ckpt_h5_shard_type(void)
{
    hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(struct shard_row));

    H5Tinsert(type, "tensor", HOFFSET(struct shard_row, tensor), H5T_STD_U32LE);
    H5Tinsert(type, "kind", HOFFSET(struct shard_row, kind), H5T_STD_U32LE);
    H5Tinsert(type, "rank", HOFFSET(struct shard_row, rank), H5T_STD_U32LE);
    H5Tinsert(type, "first_block", HOFFSET(struct shard_row, first_block), H5T_STD_U32LE);
    H5Tinsert(type, "begin", HOFFSET(struct shard_row, begin), H5T_STD_I64LE);
    H5Tinsert(type, "end", HOFFSET(struct shard_row, end), H5T_STD_I64LE);
    H5Tinsert(type, "byte_off", HOFFSET(struct shard_row, byte_off), H5T_STD_U64LE);
    return type;
}

hid_t ckpt_h5_file_type(void)
{
    hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(struct file_row));

    H5Tinsert(type, "size", HOFFSET(struct file_row, size), H5T_STD_U64LE);
    H5Tinsert(type, "header_bytes", HOFFSET(struct file_row, header_bytes), H5T_STD_U64LE);
    H5Tinsert(type, "payload_end", HOFFSET(struct file_row, payload_end), H5T_STD_U64LE);
    H5Tinsert(type, "table_off", HOFFSET(struct file_row, table_off), H5T_STD_U64LE);
    H5Tinsert(type, "rank", HOFFSET(struct file_row, rank), H5T_STD_U32LE);
    H5Tinsert(type, "n_blocks", HOFFSET(struct file_row, n_blocks), H5T_STD_U32LE);
    H5Tinsert(type, "frame_crc", HOFFSET(struct file_row, frame_crc), H5T_STD_U32LE);
    H5Tinsert(type, "table_crc", HOFFSET(struct file_row, table_crc), H5T_STD_U32LE);
    return type;
}

hid_t ckpt_h5_kind_type(void)
{
    return text_type(CKPT_KIND_BYTES);
}

hid_t ckpt_h5_item_type(enum ckpt_type type)
{
    switch (type) {
    case CKPT_U8:
        return H5T_STD_U8LE;
    case CKPT_I8:
        return H5T_STD_I8LE;
    case CKPT_BF16: /* a float type of our own would be converted by HDF5, slowly */
    case CKPT_U16:
        return H5T_STD_U16LE;
    case CKPT_I16:
        return H5T_STD_I16LE;
    case CKPT_F32:
    case CKPT_TYPE_COUNT:
        break;
    }
    return H5T_IEEE_F32LE;
}

/* ---- writing ---- */

hid_t ckpt_h5_access(size_t metadata_bytes)
{
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);

    H5Pset_libver_bounds(fapl, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_file_locking(fapl, false, true);
    /* Payload starts on a page, so that it can be written past the page cache. */
    H5Pset_alignment(fapl, IO_ALIGN, IO_ALIGN);
    if (metadata_bytes > 0)
        H5Pset_meta_block_size(fapl, metadata_bytes);
    return fapl;
}

hid_t ckpt_h5_creation(void)
{
    hid_t fcpl = H5Pcreate(H5P_FILE_CREATE);

    /* Aggregation keeps the metadata together at the head of the file. */
    H5Pset_file_space_strategy(fcpl, H5F_FSPACE_STRATEGY_AGGR, false, 1);
    return fcpl;
}

static hid_t space_of(size_t n)
{
    hsize_t dims = n;

    return n == 1 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &dims, NULL);
}

herr_t ckpt_h5_put_attr(hid_t object, const char *name, hid_t type, size_t n, const void *data)
{
    hid_t space = space_of(n);
    hid_t attr = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t rc = attr < 0 ? -1 : H5Awrite(attr, type, data);

    if (attr >= 0)
        H5Aclose(attr);
    H5Sclose(space);
    return rc;
}

herr_t ckpt_h5_put_text_attr(hid_t object, const char *name, const char *text)
{
    size_t n = strlen(text);
    hid_t type = text_type(n > 0 ? n : 1);
    herr_t rc = ckpt_h5_put_attr(object, name, type, 1, n > 0 ? text : "\0");

    H5Tclose(type);
    return rc;
}

hid_t ckpt_h5_new_dataset(hid_t file, const char *path, hid_t type, size_t n)
{
    hsize_t dims = n;
    hid_t space = H5Screate_simple(1, &dims, NULL);
    hid_t lcpl = H5Pcreate(H5P_LINK_CREATE);
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);

    H5Pset_create_intermediate_group(lcpl, 1);
    H5Pset_layout(dcpl, H5D_CONTIGUOUS);
    H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(dcpl, false);

    hid_t dataset = H5Dcreate2(file, path, type, space, lcpl, dcpl, H5P_DEFAULT);

    H5Pclose(dcpl);
    H5Pclose(lcpl);
    H5Sclose(space);
    return dataset;
}

/* ---- reading ---- */

shoal_status ckpt_h5_get_attr(const char *path, hid_t object, const char *name, hid_t type,
                              size_t n, void *out)
{
    hid_t attr = H5Aopen(object, name, H5P_DEFAULT);

    if (attr < 0)
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);

    hid_t space = H5Aget_space(attr);
    hid_t stored = H5Aget_type(attr);
    bool fits = H5Tequal(stored, type) > 0 && H5Sget_simple_extent_npoints(space) == (hssize_t)n;
    herr_t rc = fits ? H5Aread(attr, type, out) : 0;

    H5Tclose(stored);
    H5Sclose(space);
    H5Aclose(attr);
    if (!fits)
        return fail(SHOAL_ERR_DATA, "%s: attribute %s has another type or size than expected", path,
                    name);
    return rc < 0 ? ckpt_h5_fail(SHOAL_ERR_DATA, path, name) : SHOAL_OK;
}

/* A fixed-length text type of at most max_bytes; variable-length text would need HDF5's heap. */
static bool is_plain_text(hid_t type, size_t max_bytes)
{
    return H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 &&
           H5Tget_size(type) <= max_bytes;
}

shoal_status ckpt_h5_get_text_attr(const char *path, hid_t object, const char *name, char *out,
                                   size_t out_bytes)
{
    hid_t attr = H5Aopen(object, name, H5P_DEFAULT);

    if (attr < 0)
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);

    hid_t space = H5Aget_space(attr);
    hid_t type = H5Aget_type(attr);
    bool fits = is_plain_text(type, out_bytes - 1) && H5Sget_simple_extent_npoints(space) == 1;
    herr_t rc = 0;

    if (fits) {
        memset(out, 0, out_bytes);
        rc = H5Aread(attr, type, out);
    }
    H5Tclose(type);
    H5Sclose(space);
    H5Aclose(attr);
    if (!fits)
        return fail(SHOAL_ERR_DATA, "%s: attribute %s is not a text of at most %zu bytes", path,
                    name, out_bytes - 1);
    if (rc < 0)
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);
    /* They are shown to people, whose terminals obey. */
    for (const char *c = out; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return fail(SHOAL_ERR_DATA, "%s: attribute %s is not printable", path, name);
    return SHOAL_OK;
}

/* Contiguous data only: filters and chunks are code we do not want to run on foreign files. */
static bool is_contiguous(hid_t dataset)
{
    hid_t dcpl = H5Dget_create_plist(dataset);
    bool yes = dcpl >= 0 && H5Pget_layout(dcpl) == H5D_CONTIGUOUS && H5Pget_nfilters(dcpl) == 0 &&
               H5Pget_external_count(dcpl) == 0;

    H5Pclose(dcpl);
    return yes;
}

static shoal_status read_rows(const char *path, hid_t dataset, const char *name, hid_t type,
                              size_t row_bytes, size_t max_rows, void **rows_out, size_t *n_out)
{
    hid_t space = H5Dget_space(dataset);
    hid_t stored = H5Dget_type(dataset);
    hssize_t n = H5Sget_simple_extent_npoints(space);
    bool same = H5Tequal(stored, type) > 0 && is_contiguous(dataset);
    /* Of what was never written HDF5 would make up as many rows as are claimed. */
    bool is_there = n > 0 && H5Dget_storage_size(dataset) == (hsize_t)n * H5Tget_size(type);

    H5Tclose(stored);
    H5Sclose(space);
    if (!same || !is_there || (uint64_t)n > max_rows)
        return fail(SHOAL_ERR_DATA, "%s: table %s has another type, layout or size than expected",
                    path, name);

    void *rows = calloc((size_t)n, row_bytes);

    if (rows == NULL)
        return fail(SHOAL_ERR_NOMEM, "%s: no memory for %lld rows of %s", path, (long long)n, name);
    if (H5Dread(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows) < 0) {
        free(rows);
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);
    }
    *rows_out = rows;
    *n_out = (size_t)n;
    return SHOAL_OK;
}

shoal_status ckpt_h5_has(const char *path, hid_t file, const char *name, bool *has_out)
{
    htri_t exists = H5Lexists(file, name, H5P_DEFAULT);
    H5L_info_t info;

    if (exists < 0 || (exists > 0 && H5Lget_info(file, name, &info, H5P_DEFAULT) < 0))
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);
    if (exists > 0 && info.type != H5L_TYPE_HARD)
        return fail(SHOAL_ERR_DATA, "%s: %s is a link to somewhere else", path, name);
    *has_out = exists > 0;
    return SHOAL_OK;
}

shoal_status ckpt_h5_get_table(const char *path, hid_t file, const char *name, hid_t type,
                               size_t row_bytes, size_t max_rows, void **rows_out, size_t *n_out)
{
    bool has = false;

    SHOAL_TRY(ckpt_h5_has(path, file, name, &has));
    if (!has)
        return fail(SHOAL_ERR_DATA, "%s: has no table %s", path, name);

    hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);

    if (dataset < 0)
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);

    shoal_status status =
        read_rows(path, dataset, name, type, row_bytes, max_rows, rows_out, n_out);

    H5Dclose(dataset);
    return status;
}

shoal_status ckpt_h5_get_text(const char *path, hid_t file, const char *name, char **text_out)
{
    void *text = NULL;
    size_t n = 0;

    bool has = false;

    SHOAL_TRY(ckpt_h5_has(path, file, name, &has));
    if (!has) {
        *text_out = NULL;
        return SHOAL_OK;
    }

    hid_t dataset = H5Dopen2(file, name, H5P_DEFAULT);

    if (dataset < 0)
        return ckpt_h5_fail(SHOAL_ERR_DATA, path, name);

    hid_t type = H5Dget_type(dataset);
    shoal_status status =
        is_plain_text(type, TEXT_MAX_BYTES)
            /* One row of size + 1 bytes: the terminator is calloc's. */
            ? read_rows(path, dataset, name, type, H5Tget_size(type) + 1, 1, &text, &n)
            : fail(SHOAL_ERR_DATA, "%s: %s is not a text of at most %d bytes", path, name,
                   TEXT_MAX_BYTES);

    H5Tclose(type);
    H5Dclose(dataset);
    if (status == SHOAL_OK)
        *text_out = text;
    return status;
}

shoal_status ckpt_h5_write_probe(const char *path)
{
    SHOAL_TRY(ckpt_fs_probe_space(path, 1 << 16));

    hid_t fapl = ckpt_h5_access(4096);
    hid_t fcpl = ckpt_h5_creation();
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    herr_t rc = file < 0 ? -1 : ckpt_h5_put_text_attr(file, "probe", "probe");

    H5Pclose(fcpl);
    H5Pclose(fapl);
    if (file >= 0 && H5Fclose(file) < 0)
        rc = -1;
    return rc < 0 ? ckpt_h5_fail(SHOAL_ERR_CANTCREATE, path, "cannot write a file") : SHOAL_OK;
}

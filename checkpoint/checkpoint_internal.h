#pragma once

#include "checkpoint/checkpoint.h"
#include "offload/offload.h"

#include <hdf5.h>

/*
 * Private to checkpoint/.  docs/checkpoint-format.md explains what the bytes mean; the structs
 * named ..._row below are those bytes.
 *
 * Files, from the ground up:
 *   fs.c              durable small files, directories, identifiers
 *   h5.c              the only place where HDF5's ids, types and error stack are handled
 *   format.c          names of directories and files, COMMIT, crc32c
 *   states.c          types of items; the table of what each (tensor, kind) is
 *   shards.c          the table of shards: order, coverage, extents
 *   plan.c skeleton.c payload.c manifest_write.c save.c commit.c  saving (save_internal.h)
 *   store.c prune.c                                       the root: lock, clean-up, keep
 *   choose.c manifest_read.c open.c read.c hash.c list.c api.c     reading
 */

enum {
    CKPT_VERSION_MAJOR = 2, /* written; 1 is read too */
    CKPT_VERSION_MINOR = 0,
    CKPT_BLOCK_BYTES = 4 << 20, /* granule of the payload's checksums */
    CKPT_MAX_KINDS = 64,
    CKPT_TYPE_NAME_BYTES = 8,
    CKPT_ROLE_BYTES = 16,
    CKPT_UUID_BYTES = 40, /* 36 characters, zero padded */
    CKPT_MANIFEST_MAX_BYTES = 1 << 30,
    CKPT_PATH_BYTES = 512,
    CKPT_NAME_BYTES = 96
};

/* More items than any file holds, few enough that bytes never wrap. */
#define CKPT_MAX_ITEMS ((int64_t)1 << 56)

#define CKPT_FORMAT        "shoal-checkpoint"
#define CKPT_COMMIT_FILE   "COMMIT"
#define CKPT_MANIFEST_FILE "manifest.h5"
#define CKPT_LATEST_FILE   "LATEST"
#define CKPT_LOCK_FILE     "LOCK"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rows are written as they lie in memory");

/* ---- rows of manifest.h5, little-endian, no padding ---- */

struct tensor_row {
    char name[TENSOR_NAME_BYTES];
    char role[CKPT_ROLE_BYTES];
    int64_t shape[TENSOR_MAX_DIMS]; /* unused dimensions are 0 */
    int64_t n_elements;
    int64_t ndim;
};

struct state_row {
    uint32_t tensor, kind; /* rows of /tensors and /kinds */
    int64_t n_items;
    char type[CKPT_TYPE_NAME_BYTES]; /* ckpt_type_name */
    char codec[CKPT_CODEC_BYTES];
};

struct shard_row {
    uint32_t tensor, kind; /* rows of /tensors and /kinds */
    uint32_t rank;         /* row of /files */
    uint32_t first_block;  /* of the extent, in the rank file's /integrity/crc32c */
    int64_t begin, end;    /* items of the (tensor, kind) */
    uint64_t byte_off;     /* of the extent in the rank file */
};

struct file_row {
    uint64_t size;         /* bytes of the rank file */
    uint64_t header_bytes; /* everything before the first payload byte */
    uint64_t payload_end;  /* everything from here on is HDF5's again */
    uint64_t table_off;    /* of /integrity/crc32c */
    uint32_t rank, n_blocks;
    uint32_t frame_crc; /* crc32c of [0, header_bytes) and [payload_end, size), as one stream */
    uint32_t table_crc; /* crc32c of the table's n_blocks entries */
};

_Static_assert(sizeof(struct tensor_row) == 160, "tensor_row is 160 bytes on disk");
_Static_assert(sizeof(struct state_row) == 40, "state_row is 40 bytes on disk");
_Static_assert(sizeof(struct shard_row) == 40, "shard_row is 40 bytes on disk");
_Static_assert(sizeof(struct file_row) == 48, "file_row is 48 bytes on disk");

/* ---- fs.c ---- */

/* Record "<path>: <what>: <text of errno>"; ENOSPC gets a hint. */
shoal_status ckpt_fs_fail(shoal_status code, const char *path, const char *what);

/*
 * Reading was refused (errno): SHOAL_ERR_NOMEM, SHOAL_ERR_NOINPUT without permission, else
 * SHOAL_ERR_IO.  Never SHOAL_ERR_DATA, which is a verdict on what was read.
 */
shoal_status ckpt_fs_refused(const char *path, const char *what);

/* What a name stands for, links followed; anything that hides it is ckpt_fs_refused. */
enum fs_kind { FS_ABSENT, FS_DIRECTORY, FS_FILE, FS_OTHER };
shoal_status ckpt_fs_look(const char *path, enum fs_kind *kind_out);

/* A checkpoint's file: SHOAL_ERR_DATA where there is none, or something that open could wait for. */
shoal_status ckpt_fs_need_file(const char *path);

/* a/b into out; too long is SHOAL_ERR_CANTCREATE. */
shoal_status ckpt_fs_join(char *out, size_t out_bytes, const char *a, const char *b);

/* Create `path` and its parents, durably.  An existing directory is fine. */
shoal_status ckpt_fs_make_dirs(const char *path);
shoal_status ckpt_fs_sync_dir(const char *path);

/* Create dir/name with these bytes and fsync it; an existing file is replaced in place. */
shoal_status ckpt_fs_write_file(const char *dir, const char *name, const void *data,
                                size_t n_bytes);

/*
 * Create an empty file and see whether n_bytes could be reserved for it.  HDF5 1.10 cannot unwind
 * when the disk fills up while it closes a file, so space is asked for before HDF5 is; HDF5 then
 * creates the file anew, which gives it back.
 */
shoal_status ckpt_fs_probe_space(const char *path, uint64_t n_bytes);
shoal_status ckpt_fs_sync_file(const char *path);

/*
 * The whole of a file of at most max_bytes, more is SHOAL_ERR_DATA; not to be read is
 * ckpt_fs_refused; *data_out is freed by the caller, NUL-terminated.
 */
shoal_status ckpt_fs_read_file(const char *path, size_t max_bytes, char **data_out, size_t *n_out);

/*
 * Remove a flat directory, or a link to one.  Missing is fine.  Each file is noted as progress: large
 * ones take their time, and the other ranks wait.
 */
shoal_status ckpt_fs_remove_dir(struct comm *comm, int64_t step, const char *path);

/* Sum of the sizes of a directory's files; 0 if it cannot be read. */
uint64_t ckpt_fs_dir_bytes(const char *path);
bool ckpt_fs_is_dir(const char *path);

shoal_status ckpt_fs_uuid(char out[CKPT_UUID_BYTES]);

/* ---- format.c ---- */

uint32_t ckpt_crc32c(uint32_t crc, const void *data, size_t n_bytes); /* start with 0; chains */

/*
 * What follows the step in a directory's name; a name that ckpt_step_name would spell otherwise
 * is not a step's.
 */
enum step_suffix { STEP_NOT_A_STEP, STEP_FINAL, STEP_TEMPORARY, STEP_DELETED };
enum step_suffix ckpt_step_name_parse(const char *name, int64_t *step_out);

void ckpt_step_name(char out[CKPT_NAME_BYTES], int64_t step);
void ckpt_step_name_temporary(char out[CKPT_NAME_BYTES], int64_t step, const char *uuid);
void ckpt_step_name_deleted(char out[CKPT_NAME_BYTES], int64_t step, const char *uuid);
void ckpt_rank_file_name(char out[CKPT_NAME_BYTES], uint32_t rank);

struct commit {
    int version; /* major */
    int64_t step;
    uint64_t manifest_bytes;
    uint32_t manifest_crc;
    char attempt[CKPT_UUID_BYTES];
};

size_t ckpt_commit_format(char *out, size_t out_bytes, const struct commit *commit);

/*
 * Read and check <dir>/COMMIT; anything wrong with it is SHOAL_ERR_DATA, but an intact one of a
 * newer version is SHOAL_ERR_CONFIG: the checkpoint is not to blame.
 */
shoal_status ckpt_commit_read(const char *dir, struct commit *commit_out);

/* COMMIT, then the manifest's bytes against it.  *image_out (or NULL) is freed by the caller. */
shoal_status ckpt_commit_check(const char *dir, struct commit *commit_out, char **image_out);

/* A usable state kind or tensor name: not empty, terminated, no slash, no control characters. */
bool ckpt_name_is_valid(const char *name, size_t field_bytes);

/* SIGKILL this process if SHOAL_CKPT_FAULT=point:rank[:nth save] says so.  A test hook. */
void ckpt_fault(const char *point, int rank, int nth_save);

/* ---- h5.c ---- */

/* Silence HDF5's own error printing in this thread; every public function begins with it. */
void ckpt_h5_quiet(void);

/* Record "<path>: <what>" with HDF5's innermost complaint as the reason. */
shoal_status ckpt_h5_fail(shoal_status code, const char *path, const char *what);

/* Types of the rows; closed by the caller with H5Tclose. */
hid_t ckpt_h5_tensor_type(void);
hid_t ckpt_h5_state_type(void);
hid_t ckpt_h5_shard_type(void);
hid_t ckpt_h5_file_type(void);
hid_t ckpt_h5_kind_type(void);

/* The predefined type of a dataset of such items, not to be closed; bf16 is stored as u16. */
hid_t ckpt_h5_item_type(enum ckpt_type type);

/* Property lists that all files of a checkpoint share; `metadata_bytes` is the head's estimate. */
hid_t ckpt_h5_access(size_t metadata_bytes);
hid_t ckpt_h5_creation(void);

/* Create and close a small file: does HDF5 work here? */
shoal_status ckpt_h5_write_probe(const char *path);

/* Write attributes; negative on failure. */
herr_t ckpt_h5_put_attr(hid_t object, const char *name, hid_t type, size_t n, const void *data);
herr_t ckpt_h5_put_text_attr(hid_t object, const char *name, const char *text);

/* Contiguous, early allocated, never filled, one dimension.  Returns the open dataset. */
hid_t ckpt_h5_new_dataset(hid_t file, const char *path, hid_t type, size_t n);

/*
 * Read exactly `n` elements of exactly `type`: another type or size is SHOAL_ERR_DATA, HDF5 is
 * never asked to convert.  `path` names the file in messages.
 */
shoal_status ckpt_h5_get_attr(const char *path, hid_t object, const char *name, hid_t type,
                              size_t n, void *out);
shoal_status ckpt_h5_get_text_attr(const char *path, hid_t object, const char *name, char *out,
                                   size_t out_bytes);

/*
 * Is there a thing of that name in the file?  A link that leads elsewhere, which may be another file
 * and one that open waits for, is SHOAL_ERR_DATA.  What is above it in `name` must have been asked for.
 */
shoal_status ckpt_h5_has(const char *path, hid_t file, const char *name, bool *has_out);

/* A whole table of at most max_rows; *rows_out is freed by the caller. */
shoal_status ckpt_h5_get_table(const char *path, hid_t file, const char *name, hid_t type,
                               size_t row_bytes, size_t max_rows, void **rows_out, size_t *n_out);

/* A text dataset; absent is NULL.  Freed by the caller. */
shoal_status ckpt_h5_get_text(const char *path, hid_t file, const char *name, char **text_out);

/* ---- states.c ---- */

/* What a (tensor, kind) is. */
struct state {
    uint32_t tensor, kind;
    enum ckpt_type type;
    int64_t n_items;
    char codec[CKPT_CODEC_BYTES]; /* zero-filled */
};

enum { STATE_TEXT_BYTES = 96 };

/* Type, number of items and codec, for messages. */
void ckpt_state_text(const struct state *state, char out[STATE_TEXT_BYTES]);

/* The same type, number of items and codec? */
bool ckpt_state_is_same(const struct state *a, const struct state *b);

/*
 * Everything about a piece that can be wrong by itself; *state_out says what it is part of, with
 * `kind` left 0.
 */
shoal_status ckpt_piece_check(const struct layout *layout, const struct ckpt_piece *piece,
                              struct state *state_out);

/* What a set of shard rows must agree with. */
struct shard_space {
    const struct tensor *tensors;
    size_t n_tensors;
    const char (*kinds)[CKPT_KIND_BYTES];
    size_t n_kinds;
    const struct state *states; /* sorted by tensor and kind */
    size_t n_states;
    const struct file_row *files;
    size_t n_files;
};

/*
 * Sort states by tensor and kind and drop those that are listed more than once, *n of them;
 * listed with different facts is a failure with `code`.  Tensor and kind are in range.
 */
shoal_status ckpt_states_unite(shoal_status code, const char *where,
                               const struct shard_space *space, struct state *states, size_t *n);

/* Rows of a file: everything in them is checked.  *states_out is freed by the caller. */
shoal_status ckpt_states_take(const char *where, const struct shard_space *space,
                              const struct state_row *rows, size_t n, struct state **states_out);

/* Version 1 had no table of states: each (tensor, kind) that occurs in sorted rows is fp32. */
shoal_status ckpt_states_of_version_1(const char *where, const struct shard_space *space,
                                      const struct shard_row *rows, size_t n_rows,
                                      struct state **states_out, size_t *n_out);

struct state_row ckpt_state_row(const struct state *state);

/* NULL: there is no such state of this tensor. */
const struct state *ckpt_states_find(const struct shard_space *space, uint32_t tensor,
                                     uint32_t kind);

/* ---- shards.c ---- */

/* Bytes of a row whose state is listed. */
uint64_t ckpt_shard_bytes(const struct shard_space *space, const struct shard_row *row);

static inline uint32_t shard_blocks(uint64_t n_bytes)
{
    return (uint32_t)((n_bytes + CKPT_BLOCK_BYTES - 1) / CKPT_BLOCK_BYTES);
}

/*
 * Sort rows by tensor, kind, begin and check everything that reading relies on: indexes, ranges,
 * extents inside their file's payload without overlap, blocks inside the table, and that each state
 * is covered exactly once and each tensor has one.  `where` opens the message.
 */
shoal_status ckpt_shards_check(shoal_status code, const char *where,
                               const struct shard_space *space, struct shard_row *rows,
                               size_t n_rows);

void ckpt_shards_sort(struct shard_row *rows, size_t n_rows);

/* First row of (tensor, kind) in sorted rows and how many follow; 0 rows if there are none. */
size_t ckpt_shards_find(const struct shard_row *rows, size_t n_rows, uint32_t tensor, uint32_t kind,
                        size_t *n_out);

/* ---- manifest_write.c, manifest_read.c ---- */

struct manifest {
    const struct layout *layout;
    const struct ckpt_meta *meta;
    const char *attempt;
    const struct shard_space *space;
    const struct shard_row *shards;
    size_t n_shards;
};

/* Create manifest.h5; on return it is closed, not yet synced. */
shoal_status ckpt_manifest_create(const struct manifest *manifest, const char *path);

struct ckpt {
    struct comm *comm; /* told of progress; NULL: nobody */
    char path[CKPT_PATH_BYTES];
    struct commit commit;
    struct ckpt_meta meta; /* its texts are `texts` */
    char *texts[4];
    int64_t created_unix_ns;
    uint32_t world_size;

    struct tensor *tensors;
    int *by_name; /* tensor indexes sorted by name */
    size_t n_tensors;
    char (*kinds)[CKPT_KIND_BYTES];
    size_t n_kinds;
    struct state *states; /* sorted */
    size_t n_states;
    struct shard_row *shards; /* sorted */
    size_t n_shards;
    struct file_row *files;
    size_t n_files;
    struct shard_space space; /* the tables above, once they are checked */

    uint32_t **crcs; /* per file, loaded at open */
    struct io_engine *engine;
    char *buffer;         /* READ_SLOTS blocks */
    struct io_file *file; /* the one rank file that is open, of rank `file_rank` */
    uint32_t file_rank;
};

/* Parse and check manifest.h5 (n_bytes at image, already checked against COMMIT) into ckpt. */
shoal_status ckpt_manifest_parse(struct ckpt *ckpt, const char *image, size_t n_bytes);

/* ---- choose.c ---- */

/* The directory that holds the steps: path/checkpoints if there is one, else path. */
shoal_status ckpt_root_of(const char *path, char out[CKPT_PATH_BYTES]);

/* Steps with final names under root, newest first; freed by the caller. */
shoal_status ckpt_steps(const char *root, int64_t **steps_out, size_t *n_out);

/* ---- open.c ---- */

enum { READ_SLOTS = 4 };

/*
 * Open one step directory; everything but the payload is checked.  SHOAL_ERR_DATA: damaged or
 * incomplete; any other failure says nothing against it.  `comm` (NULL: nobody waits) is told of
 * progress with every file.
 */
shoal_status ckpt_open_step(struct comm *comm, const char *dir, struct ckpt **ckpt_out);

/* Note progress: with many files and blocks this takes its time, and the other ranks wait. */
void ckpt_note(const struct ckpt *ckpt, const char *what);

/* Indexes, or -1. */
int ckpt_find_kind(const struct ckpt *ckpt, const char *kind);
int ckpt_find_tensor(const struct ckpt *ckpt, const char *name);

/* crc32c of bytes [from, to) of a file, continued from *crc. */
shoal_status ckpt_crc_range(struct io_engine *engine, struct io_file *file, char *buffer,
                            size_t buffer_bytes, uint64_t from, uint64_t to, uint32_t *crc);

/* ---- read.c ---- */

/* One checksum block to load. */
struct block {
    uint32_t shard; /* row of ckpt->shards */
    uint32_t index; /* of the block within the extent */
};

/* Load n <= READ_SLOTS blocks of one rank file into the buffer's slots and check them. */
shoal_status ckpt_blocks_load(struct ckpt *ckpt, const struct block *blocks, size_t n);
size_t ckpt_block_bytes(const struct ckpt *ckpt, const struct block *block);

/* Fill [begin, end) of the checkpoint's own tensor and kind. */
shoal_status ckpt_read_range(struct ckpt *ckpt, int tensor, int kind, int64_t begin, int64_t end,
                             void *out);

/* ---- store.c, prune.c ---- */

struct ckpt_store {
    struct comm *comm;
    char root[CKPT_PATH_BYTES];
    char run_uuid[CKPT_UUID_BYTES];
    int keep;
    int lock_fd; /* rank 0 */
    int n_saves; /* counted for ckpt_fault */
    struct io_engine *engine;
    char *staging;
    size_t staging_bytes;
};

/*
 * Remove dead temporaries and finish deletions; what cannot be removed is logged and stays.  The
 * root must be locked.
 */
shoal_status ckpt_store_collect(const struct ckpt_store *store);

/* Move root/name out of sight (.del-), then remove it.  Local; rank 0. */
shoal_status ckpt_store_delete(const struct ckpt_store *store, const char *name, int64_t step,
                               int rank, int nth_save);

/* Keep the step just saved and the newest others, `keep` in all; returns how many went. */
int ckpt_store_prune(struct ckpt_store *store, int64_t saved_step);

#pragma once

#include "comm/comm.h"
#include "runtime/base/status.h"
#include "runtime/layout/layout.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Checkpoints: a directory per step, one HDF5 file per rank and a manifest; complete or
 * absent; opened by any world size and stage.  docs/checkpoint-format.md is the format.
 *
 * HDF5 writes the metadata of a skeleton that is closed before the first payload byte; the
 * payload goes to H5Dget_offset by offload's I/O engine, with a crc32c per 4 MiB.  The
 * commit is: all ranks' votes, manifest, COMMIT, fsync, rename, fsync.
 */

enum { CKPT_KIND_BYTES = 24, CKPT_CODEC_BYTES = 16 };

/* What an item is, in memory and on disk; nothing is ever converted. */
enum ckpt_type {
    CKPT_F32, /* the default */
    CKPT_BF16,
    CKPT_U8, /* codes: one each, or packed bytes */
    CKPT_I8,
    CKPT_U16,
    CKPT_I16,
    CKPT_TYPE_COUNT
};

size_t ckpt_type_bytes(enum ckpt_type type);
const char *ckpt_type_name(enum ckpt_type type); /* "f32", "bf16", "u8", ... */

/*
 * Move n_bytes between host memory and the memory that a piece's `data` is an address of.
 * `to_memory`: dst is in the piece's memory and src in the host's (loading); else src is in the
 * piece's and dst in the host's (saving).  Done on return.  A call moves whole items of one piece;
 * the host's address has any alignment.  A failure ends the save or read with its status.
 */
typedef shoal_status ckpt_copy_fn(void *arg, void *dst, const void *src, size_t n_bytes,
                                  bool to_memory);

/*
 * A run of items of one tensor and one state kind, in memory.  All pieces of a (tensor, kind), on
 * all ranks, must agree on type, n_items and codec; a load that asks for others than were saved is
 * SHOAL_ERR_CONFIG.  What all ranks hold alike is given by one of them when saving.
 */
struct ckpt_piece {
    int tensor;                   /* index in the layout */
    char kind[CKPT_KIND_BYTES];   /* "master", or the optimizer's state name; no '/' or '@' */
    enum ckpt_type type;          /* of the items */
    int64_t n_items;              /* of the whole (tensor, kind); 0: the tensor's n_elements */
    int64_t begin, end;           /* items of the (tensor, kind); any cut is allowed */
    char codec[CKPT_CODEC_BYTES]; /* what the items mean, block size included; "": plain values */
    void *data;                   /* end - begin items; read by save, written by load */
    ckpt_copy_fn *copy;           /* NULL: `data` is host memory */
    void *copy_arg;
};

/* Everything small that a run needs to go on; JSON texts are stored as they are. */
struct ckpt_meta {
    int64_t step; /* optimizer steps done */
    uint64_t consumed_sequences, consumed_tokens;
    uint64_t data_fingerprint, seed;
    double loss; /* of the last step; informational */
    char run_uuid[40];
    char optimizer[32];      /* rule name */
    char conventions[64];    /* e.g. "pytorch": AdamW's decay before the update */
    const char *config_yaml; /* the resolved config */
    const char *model_json;  /* model_config_to_json */
    const char *optimizer_json;
    const char *topology_json; /* informational, never needed to load */
};

/* ---- saving ---- */

struct ckpt_store;

/*
 * Open (create) a checkpoint root for writing: takes LOCK, removes dead temporaries, finishes
 * interrupted deletions, tests that it can write and rename.  `keep` complete steps stay
 * (0: all).  `staging_bytes` of bounce buffer are allocated now, not when saving.  Collective.
 */
struct ckpt_store_params {
    const char *root;
    int keep;
    size_t staging_bytes; /* 0: 8 MiB */
};
shoal_status ckpt_store_open(struct comm *comm, const struct ckpt_store_params *params,
                             struct ckpt_store **store_out);

/* Gives LOCK back; NULL is allowed.  Local. */
void ckpt_store_close(struct ckpt_store *store);

struct ckpt_result {
    char path[512];
    uint64_t n_bytes; /* all ranks */
    double seconds;
    int n_removed; /* older steps deleted by keep */
};

/*
 * Save `pieces` (this rank's part; together the ranks' pieces cover every (tensor, kind) once).  On
 * failure on any rank all return the same status, the temporary directory is removed and earlier
 * checkpoints are intact.  A step that exists already is replaced.  Not every kind needs to exist
 * for every tensor, but one that does must be whole, and every tensor needs one.  Pieces with
 * `copy` pass through the staging buffer.  Collective.
 */
shoal_status ckpt_save(struct ckpt_store *store, const struct layout *layout,
                       const struct ckpt_piece *pieces, size_t n_pieces,
                       const struct ckpt_meta *meta, struct ckpt_result *result_out);

/* ---- reading ---- */

/* One thread at a time. */
struct ckpt;

/*
 * Open a checkpoint read-only: `path` is a step directory, a root, or a run directory with
 * checkpoints/.  With a root the newest step that passes the cheap check (COMMIT, manifest,
 * sizes, headers) is taken; one that fails it is damaged or incomplete, and is logged and skipped.
 * A step that cannot be checked (the system refuses to read it, memory is short, a newer program
 * wrote it) may be whole: it ends the search with that failure, which is never SHOAL_ERR_DATA,
 * instead of giving way to an older one.
 * No checkpoint at all: SHOAL_ERR_NOINPUT.  No step is whole: SHOAL_ERR_DATA.  Local.
 */
shoal_status ckpt_open(const char *path, struct ckpt **ckpt_out);

/*
 * The same for a world: rank 0 chooses, all open what it chose, and all return the same.  Where
 * there is no checkpoint at all (nothing at `path`, or a root without steps) and `is_optional`,
 * that is success with *ckpt_out NULL.  Opening, and reading from what was opened, note progress
 * with `comm`, which outlives it.  Collective.
 */
shoal_status ckpt_open_all(struct comm *comm, const char *path, bool is_optional,
                           struct ckpt **ckpt_out);
void ckpt_close(struct ckpt *ckpt); /* NULL is allowed */

/* Valid while open. */
const struct ckpt_meta *ckpt_meta(const struct ckpt *ckpt);
const char *ckpt_path(const struct ckpt *ckpt);

int ckpt_tensor_count(const struct ckpt *ckpt);
const struct tensor *ckpt_tensor(const struct ckpt *ckpt,
                                 int index); /* name, shape, role, n_elements */
int ckpt_kind_count(const struct ckpt *ckpt);
const char *ckpt_kind(const struct ckpt *ckpt, int index);

/* How the items of one (tensor, kind) are stored. */
struct ckpt_items {
    enum ckpt_type type;
    int64_t n_items;
    char codec[CKPT_CODEC_BYTES];
};

/* Is there such a state of such a tensor, and of what?  items_out may be NULL. */
bool ckpt_find_items(const struct ckpt *ckpt, const char *tensor, const char *kind,
                     struct ckpt_items *items_out);

/* All (tensor, kind) that have kind, type and codec in common. */
struct ckpt_group {
    char kind[CKPT_KIND_BYTES];
    enum ckpt_type type;
    char codec[CKPT_CODEC_BYTES];
    int n_tensors;
    int64_t n_items;
    uint64_t n_bytes;
};

/* The groups by kind, type and codec; *groups_out is freed by the caller.  Local. */
shoal_status ckpt_groups(const struct ckpt *ckpt, struct ckpt_group **groups_out, size_t *n_out);

/*
 * Fill pieces: `tensor` is an index in `layout`; tensors are matched by name and must have the
 * same shape (SHOAL_ERR_DATA otherwise, naming both).  Another type, codec or number of items than
 * the checkpoint's is SHOAL_ERR_CONFIG with tensor, kind, found and expected, before anything is
 * read.  Every block that is used is checked; a bad one is named with file, tensor and byte range.
 * Local.
 */
shoal_status ckpt_read(struct ckpt *ckpt, const struct layout *layout, struct ckpt_piece *pieces,
                       size_t n_pieces);

/*
 * XXH3-128 over the items' bytes, kind after kind (sorted), tensor after tensor (by name), 32 hex
 * digits: the same for every world size and stage that wrote it.  only_kind NULL: all; one that
 * the checkpoint does not hold is SHOAL_ERR_DATA.  Every block is checked as in ckpt_read.  Local.
 */
shoal_status ckpt_hash(struct ckpt *ckpt, const char *only_kind, char hex_out[33]);

/* ---- looking at a root ---- */

enum ckpt_state {
    CKPT_COMPLETE,
    CKPT_TEMPORARY,
    CKPT_DELETED,
    CKPT_BROKEN,    /* damaged or incomplete */
    CKPT_UNREADABLE /* could not be looked at now: perhaps whole */
};

struct ckpt_entry {
    char name[96];
    enum ckpt_state state;
    int64_t step;
    uint64_t n_bytes;
    int world_size;
    int zero_stage; /* "zero_stage" of the saved topology_json; -1: not said */
    double loss;
    int64_t created_unix_ns;
    char why[256];                   /* broken, unreadable: the reason */
    const struct ckpt_group *groups; /* complete: what it holds */
    size_t n_groups;
};

/*
 * The highest step that was finished under a root or run directory, -1: none.  Reads no more than
 * a line of it, so it may be damaged.  Local.
 */
shoal_status ckpt_newest_step(const char *root, int64_t *step_out);

/*
 * List a root or run directory, newest first; *entries_out, groups included, is freed by the caller
 * with one free().  Local.
 */
shoal_status ckpt_list(const char *root, struct ckpt_entry **entries_out, size_t *n_out);

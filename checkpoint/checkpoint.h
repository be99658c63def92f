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

/* A run of elements of one tensor and one state kind, in memory. */
struct ckpt_piece {
    int tensor;         /* index in the layout */
    char kind[24];      /* "master", or the optimizer's state name */
    int64_t begin, end; /* elements of the tensor */
    float *data;        /* fp32; read by save, written by load */
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
void ckpt_store_close(struct ckpt_store *store);

struct ckpt_result {
    char path[512];
    uint64_t n_bytes; /* all ranks */
    double seconds;
    int n_removed; /* older steps deleted by keep */
};

/*
 * Save `pieces` (this rank's part; together the ranks' pieces cover every tensor once).  On
 * failure on any rank all return the same status, the temporary directory is removed and earlier
 * checkpoints are intact.  A step that exists already is replaced.  Not every kind needs to exist
 * for every tensor, but one that does must be whole.  Collective.
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
 * sizes, headers) is taken; broken ones are logged and skipped.  Local.
 * No checkpoint at all: SHOAL_ERR_NOINPUT.
 */
shoal_status ckpt_open(const char *path, struct ckpt **ckpt_out);
void ckpt_close(struct ckpt *ckpt);

/* Valid while open. */
const struct ckpt_meta *ckpt_meta(const struct ckpt *ckpt);
const char *ckpt_path(const struct ckpt *ckpt);

int ckpt_tensor_count(const struct ckpt *ckpt);
const struct tensor *ckpt_tensor(const struct ckpt *ckpt,
                                 int index); /* name, shape, role, n_elements */
int ckpt_kind_count(const struct ckpt *ckpt);
const char *ckpt_kind(const struct ckpt *ckpt, int index);

/*
 * Fill pieces: `tensor` is an index in `layout`; tensors are matched by name and must have the
 * same shape (SHOAL_ERR_DATA otherwise, naming both).  Every block that is used is checked; a bad
 * one is named with
 * file, tensor and byte range.  Local.
 */
shoal_status ckpt_read(struct ckpt *ckpt, const struct layout *layout, struct ckpt_piece *pieces,
                       size_t n_pieces);

/* XXH3-128 over kind after kind (sorted), tensor after tensor (by name), 32 hex digits: the same
 * for every world size and stage that wrote it.  kinds NULL: all. */
shoal_status ckpt_hash(struct ckpt *ckpt, const char *only_kind, char hex_out[33]);

/* ---- looking at a root ---- */

enum ckpt_state { CKPT_COMPLETE, CKPT_TEMPORARY, CKPT_DELETED, CKPT_BROKEN };

struct ckpt_entry {
    char name[96];
    enum ckpt_state state;
    int64_t step;
    uint64_t n_bytes;
    int world_size;
    int zero_stage; /* "zero_stage" of the saved topology_json; -1: not said */
    double loss;
    int64_t created_unix_ns;
    char why[256]; /* broken: the reason */
};

/* List a root or run directory, newest first; *entries_out is freed by the caller.  Local. */
shoal_status ckpt_list(const char *root, struct ckpt_entry **entries_out, size_t *n_out);

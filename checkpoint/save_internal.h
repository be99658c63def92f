#pragma once

#include "checkpoint/checkpoint_internal.h"

/*
 * What saving shares: the plan of a rank's file and the steps that write it, then one save in
 * flight as save.c (what every rank does) and commit.c (what rank 0 does when all files are
 * written) see it.
 */

/* ---- plan.c ---- */

/* A dataset of this rank's file: one run of items, gathered from one or more pieces. */
struct extent {
    struct state state; /* `kind` in save_plan.kinds */
    int64_t begin, end;
    size_t first_piece, n_pieces; /* in save_plan.pieces */
    uint32_t first_block, n_blocks;
    uint64_t byte_off; /* set by ckpt_skeleton_create */
};

static inline uint64_t extent_bytes(const struct extent *e)
{
    return (uint64_t)(e->end - e->begin) * ckpt_type_bytes(e->state.type);
}

struct save_plan {
    const struct ckpt_piece **pieces; /* sorted by tensor, kind, begin */
    size_t n_pieces;
    struct extent *extents;
    size_t n_extents;
    char kinds[CKPT_MAX_KINDS][CKPT_KIND_BYTES]; /* of this rank, sorted */
    size_t n_kinds;
    uint32_t n_blocks;
    uint64_t payload_bytes;
    uint32_t *crcs; /* n_blocks, at least one entry */
};

shoal_status ckpt_save_plan_create(const struct layout *layout, const struct ckpt_piece *pieces,
                                   size_t n_pieces, struct save_plan *plan_out);
void ckpt_save_plan_destroy(struct save_plan *plan);

/* ---- skeleton.c ---- */

struct skeleton_params {
    const char *path;
    const struct layout *layout;
    const struct ckpt_meta *meta;
    const char *attempt;
    int rank, world_size;
};

/*
 * Create the rank file empty, with space reserved for all that will be in it.  All ranks must have
 * done so before one goes on: HDF5 gives the space back when it begins, and it must not be another
 * rank's reservation that takes it.
 */
shoal_status ckpt_skeleton_reserve(const struct skeleton_params *params,
                                   const struct save_plan *plan);

/* Make it the closed rank file; sets the extents' byte_off and the row's offsets and size. */
shoal_status ckpt_skeleton_create(const struct skeleton_params *params, struct save_plan *plan,
                                  struct file_row *row_out);

/* ---- payload.c ---- */

/*
 * Write the extents' bytes and fill plan->crcs.  Returns when nothing is in flight, also after a
 * failure.
 */
shoal_status ckpt_payload_write(struct ckpt_store *store, struct io_file *file,
                                struct save_plan *plan, int64_t step);

/* ---- save.c, commit.c ---- */

/* What a rank tells the others about its file; rows follow separately. */
struct vote {
    struct file_row file;
    int64_t step, n_parameters;
    uint64_t n_extents, n_kinds;
    char kinds[CKPT_MAX_KINDS][CKPT_KIND_BYTES];
};

/* An extent on its way to rank 0. */
struct extent_row {
    struct shard_row shard;
    struct state state;
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
    bool published; /* rank 0: the directory has its final name */

    struct vote *votes;      /* of all ranks */
    struct extent_row *rows; /* of all ranks, with the ranks' own kind indexes */
    size_t n_rows;
    uint64_t total_bytes;
};

/*
 * All votes and rows are here: check coverage, write the manifest and COMMIT, give the directory
 * the name `final`.  Local; rank 0.
 */
shoal_status ckpt_commit(struct save *s, const char *final);

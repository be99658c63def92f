#pragma once

#include "checkpoint/checkpoint.h"

/*
 * A state of every type of item: codes, scales, remainders and vectors whose length is not the
 * tensor's.  Every byte is a function of (tensor, kind, byte, step).
 */

struct item_kind {
    const char *name;
    enum ckpt_type type;
    const char *codec;
    int64_t per;       /* one item for so many elements, rounded up; 0: `fixed` items */
    int64_t fixed;     /* ... which rank 0 holds alone */
    int only_tensor;   /* 1 + its index; 0: all tensors have it */
    bool spell_length; /* give n_items although it is the tensor's own */
};

enum { ITEM_KINDS = 9 };
extern const struct item_kind item_kinds[ITEM_KINDS]; /* not sorted */

/* Odd lengths, one element, and a tensor whose codes are more than one checksum block. */
struct layout *items_layout(bool big);

bool items_have(int tensor, int kind);
int64_t items_count(const struct layout *layout, int tensor, int kind);
unsigned char item_byte(int tensor, int kind, int64_t byte, int64_t step);

/*
 * Memory that only far_copy reaches: addresses are of pages without access, the bytes lie
 * elsewhere and inverted.  A copy must stay within one piece and consist of whole items.
 */
struct far_memory {
    char *address;
    unsigned char *store;
    size_t n_bytes;
    const struct ckpt_piece *pieces;
    size_t n_pieces;
    int n_copies;  /* done so far */
    int fail_copy; /* the copy that fails, from 1; 0: none */
};

void far_create(struct far_memory *device, size_t n_bytes);
void far_destroy(struct far_memory *device);
ckpt_copy_fn far_copy;

/* A rank's pieces and their memory. */
struct items {
    const struct layout *layout;
    struct ckpt_piece *pieces;
    size_t n;
    size_t n_bytes;
    char *data;               /* host memory, or ... */
    struct far_memory device; /* ... if it has a store */
};

struct items_cut {
    int rank, n_ranks;
    int64_t chunk; /* pieces of so many items; 0: uncut */
    bool device;
};

void items_create(struct items *items, const struct layout *layout, const struct items_cut *cut);
void items_destroy(struct items *items);
void items_fill(struct items *items, int64_t step);
int64_t items_wrong(const struct items *items, int64_t step); /* bytes */

struct items_job {
    const char *root;
    const struct layout *layout;
    int64_t step;
    size_t staging_bytes;
    int64_t chunk;
    bool device;
    int fail_copy; /* of every rank's device */
};

/* Open the store, save job->step, close.  A world_fn. */
shoal_status items_save(struct comm *comm, void *job);

/* Save step 1 of pieces that the test made: n_of_rank[r] of them for rank r, in order.  A world_fn. */
struct given {
    const char *root;
    const struct layout *layout;
    const struct ckpt_piece *pieces;
    size_t n_of_rank[4];
};

shoal_status given_save(struct comm *comm, void *given);

/* Read as n ranks would, in pieces cut at odd items; *n_wrong_out: bytes. */
shoal_status items_read_back(const char *path, const struct layout *layout, int n_ranks,
                             bool device, int64_t *step_out, int64_t *n_wrong_out);

#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Layout: what the parameters are and how they are cut.  Pure arithmetic, no memory
 * of its own beyond the tables.
 *
 * A model is a list of units (`embed`, `block.0`, ..., `head`).  A unit is a flat
 * index space; each tensor of it starts at a multiple of the quantum.  Rank r of R
 * owns the elements [r*S, (r+1)*S) of each unit, S a multiple of the quantum: so no
 * block of a quantized state straddles two ranks, and checkpoints can be cut again
 * for any R.  The last shards may reach past the unit's end: padding, always zero,
 * never stored.
 *
 * Read-only after creation, hence thread-safe.
 */

enum { QUANTUM = 256, TENSOR_NAME_BYTES = 96, UNIT_NAME_BYTES = 32, TENSOR_MAX_DIMS = 4 };

/* What a tensor does; optimizers and decay rules go by role, never by name. */
enum tensor_role {
    ROLE_EMBEDDING, /* token embedding [V, C] */
    ROLE_POSITION,  /* learned positions [T, C] */
    ROLE_QKV,       /* fused query, key, value [(H + 2K) * D, C] */
    ROLE_O,         /* attention output [C, H * D] */
    ROLE_GATE_UP,   /* fused gate and up projection [2F, C] */
    ROLE_UP,        /* feed-forward in [F, C] */
    ROLE_DOWN,      /* feed-forward out [C, F] */
    ROLE_NORM,      /* norm scale or shift [C] */
    ROLE_BIAS,      /* bias of a projection */
    ROLE_HEAD,      /* output projection [V, C] */
    ROLE_COUNT
};

enum tensor_init { INIT_NORMAL, INIT_ONES, INIT_ZEROS };

struct tensor {
    char name[TENSOR_NAME_BYTES]; /* the Hugging Face name where one exists */
    int unit;
    enum tensor_role role;
    int ndim;
    int64_t shape[TENSOR_MAX_DIMS]; /* row-major, [out, in] for projections */
    int64_t n_elements;
    int64_t offset; /* of the first element, in the unit's index space */
    bool decay;     /* weight decay applies */
    enum tensor_init init;
    float init_std;

    /* Attention metadata, zero where it does not apply. */
    int head_size, heads, kv_heads;

    /* Rows of a fused tensor: its parts one after the other, e.g. {H*D, K*D, K*D}. */
    int n_splits;
    int64_t splits[3];
};

struct unit {
    char name[UNIT_NAME_BYTES];
    int first_tensor, n_tensors;
    int64_t n_elements; /* end of the last tensor, rounded up to the quantum */
};

struct layout {
    int n_units, n_tensors;
    struct unit *units;
    struct tensor *tensors;
    int64_t n_parameters; /* without padding */
};

/* A slice of a unit's index space. */
struct shard {
    int64_t begin, end;
};

/* Grow a layout: begin a unit, then add its tensors in order. */
shoal_status layout_create(struct layout **layout_out);
void layout_destroy(struct layout *layout);
shoal_status layout_add_unit(struct layout *layout, const char *name);

/* Copies *tensor; fills unit, n_elements and offset itself. */
shoal_status layout_add_tensor(struct layout *layout, const struct tensor *tensor);

/* Elements per rank of a unit: ceil(quanta / R) quanta.  R * this = the padded unit. */
int64_t layout_shard_elements(const struct layout *layout, int unit, int n_ranks);

/* The padded slice that `rank` owns (may reach past the unit's end). */
struct shard layout_shard(const struct layout *layout, int unit, int rank, int n_ranks);

/* The part of a tensor inside `shard`, as a range of the tensor's own elements; may be empty. */
struct shard layout_tensor_part(const struct tensor *tensor, struct shard shard);

/* Index of the tensor called `name`, or -1. */
int layout_find(const struct layout *layout, const char *name);

const char *role_name(enum tensor_role role);

static inline int64_t quantum_round_up(int64_t n)
{
    return (n + QUANTUM - 1) / QUANTUM * QUANTUM;
}

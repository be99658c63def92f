#pragma once

#include "optim/stats.h"
#include "optim/tiles.h"

/*
 * The optimizer of the installed header: a layout of one unit with one tensor, its setup, and the
 * tiles of it.  Everything that lives from step to step is the caller's.
 */

enum { API_MAX_STATES = OPTIM_MAX_KINDS + STATS_MAX_VECTORS };

struct shoal_threads {
    struct pool *pool;
};

/* A buffer of the caller: a kind of the setup, or a saved vector of the tensor. */
struct api_state {
    const char *name;
    size_t n_bytes;
    int kind, vector; /* -1: it is the other */
};

struct shoal_optim {
    struct layout *layout;
    struct optim_setup *setup;
    struct pool *pool; /* borrowed; NULL: none */
    uint64_t key;
    size_t n_tiles;
    struct tile *tiles;
    int n_states;
    struct api_state states[API_MAX_STATES];

    /* Scratch: limbs of every thread, then vectors that are not saved. */
    size_t scratch_bytes;
    size_t vectors_at[STATS_MAX_VECTORS];
};

/*
 * Copy a struct that the caller filled, `given` bytes, into ours of `known` bytes; the first version
 * had `first` bytes without padding.
 */
shoal_status api_copy(const char *what, const void *from, size_t given, size_t first, void *to,
                      size_t known);

/* SHOAL_ERR_USAGE unless the buffer is there, aligned, and is needed at all. */
shoal_status api_check_buffer(const char *name, const void *buffer, size_t n_bytes, size_t align);

/* Sum of squares of n elements, floats or bf16; NaN if one is not finite. */
double api_grad_squares(struct pool *pool, const void *grad, bool is_bf16, size_t n);

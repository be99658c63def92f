#pragma once

#include <stddef.h>

/*
 * The scratch of a tree sum, in elements: first what the other ranks of the host sent, then the
 * partial sums of the host, one for each host, then what the other hosts sent.  A shard is summed
 * in chunks; all zero for one rank.
 */
struct tree_layout {
    size_t chunk;
    size_t partial, remote; /* where these begin */
    size_t n;
};

struct tree_layout comm_nccl_tree_layout(int ranks, int ranks_per_host, size_t own_bytes);

/* For tests: another bound of the scratch than the built-in one. */
void comm_nccl_set_scratch(size_t n_bytes);

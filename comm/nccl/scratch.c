#include "comm/nccl/tree_layout.h"
#include "comm/transport_internal.h"

/* What a tree sum over NCCL needs beside the gradients. */

enum {
    LEAST_MESSAGE = 64 * 1024, /* elements: below that latency rules */
    CHUNK_MULTIPLE = 256
};

static size_t scratch_bytes = (size_t)64 << 20;

void comm_nccl_set_scratch(size_t n_bytes)
{
    scratch_bytes = n_bytes;
}

struct tree_layout comm_nccl_tree_layout(int ranks, int ranks_per_host, size_t own_bytes)
{
    size_t L = (size_t)ranks_per_host, H = (size_t)ranks / L;
    size_t most = own_bytes / sizeof(float) / (size_t)ranks;
    struct tree_layout layout = {0};

    /* Blocks of a chunk: from the other ranks of the host, partial sums, from the other hosts. */
    size_t received = (L - 1) * H, partial = L > 1 && H > 1 ? H : 0, remote = H - 1;
    size_t blocks = received + partial + remote;

    if (blocks == 0)
        return layout;
    size_t chunk = scratch_bytes / sizeof(float) / blocks;

    if (chunk < LEAST_MESSAGE)
        chunk = LEAST_MESSAGE;
    if (chunk > most)
        chunk = most;
    chunk = (chunk + CHUNK_MULTIPLE - 1) / CHUNK_MULTIPLE * CHUNK_MULTIPLE;
    layout.chunk = chunk;
    layout.partial = received * chunk;
    layout.remote = layout.partial + partial * chunk;
    layout.n = layout.remote + remote * chunk;
    return layout;
}

size_t comm_nccl_scratch(int ranks, int ranks_per_host, size_t own_bytes)
{
    return comm_nccl_tree_layout(ranks, ranks_per_host, own_bytes).n * sizeof(float);
}

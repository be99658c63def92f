#pragma once

#include "runtime/device/cuda.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * What a tree sum adds, in the order of the ranks or hosts: input number `own_index` is `own`, the
 * other count - 1 lie in `blocks`, `stride` elements apart, without a gap for the own one.
 */
struct tree_inputs {
    const float *blocks, *own;
    size_t stride;
    int own_index, count;
};

/*
 * Launch out[i] = tree sum over k < count of input k's element i, i < n, in fp32: the tree splits
 * `count` at the largest power of two below it, as comm_tree_sum on the host does, and gives the
 * same bits.  `out` overlaps no input.  n may be 0; count is 1 to 65536.
 */
shoal_status comm_tree_sum_launch(cudaStream_t stream, const struct tree_inputs *in, size_t n,
                                  float *out);

#ifdef __cplusplus
}
#endif

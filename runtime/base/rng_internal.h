#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * Philox4x32-10 itself, and the kernels behind rng_fill_normal.  `key` is made by rng.c from
 * (seed, stream); the counter is {index low, index high, sub low, sub high}.
 */

struct philox_key {
    uint32_t k[2];
};

void philox_block(struct philox_key key, const uint32_t counter[4], uint32_t out[4]);

/*
 * out[4*i + j] = std * (normal j of block first_block + i), for n_blocks blocks.
 *
 * Block b gives four words x0..x3 and from them two Box-Muller pairs:
 * normals 0, 1 = r(x0) * cos, sin (2 pi x1 / 2^32); normals 2, 3 likewise from x2, x3.
 */
typedef void rng_normal_blocks_fn(struct philox_key key, uint64_t sub, uint64_t first_block,
                                  size_t n_blocks, float std, float *out);

rng_normal_blocks_fn rng_normal_blocks_scalar;
rng_normal_blocks_fn rng_normal_blocks_avx2;
rng_normal_blocks_fn rng_normal_blocks_avx512;

#pragma once

#include <stddef.h>
#include <stdint.h>

/*
 * Randomness as a pure function: Philox4x32-10 (Salmon et al., "Parallel random
 * numbers: as easy as 1, 2, 3", SC'11) keyed by (seed, stream) and counted by the
 * element index.  No state, hence nothing that depends on rank, thread or order.
 */

/* Streams keep unrelated uses of one seed apart; the tensor index or so is added below. */
enum rng_stream {
    RNG_STREAM_INIT = 1,    /* parameter initialization; sub = tensor */
    RNG_STREAM_DATA = 2,    /* order of windows; sub = epoch */
    RNG_STREAM_SHIFT = 5,   /* cut of windows; sub = epoch */
    RNG_STREAM_SAMPLE = 3,  /* sampling of text; sub = step */
    RNG_STREAM_ROUNDING = 4 /* stochastic rounding; sub = step */
};

/* 128 random bits for counter `index` of (seed, stream, sub). */
void rng_block(uint64_t seed, uint32_t stream, uint64_t sub, uint64_t index, uint32_t out[4]);

/* The key behind rng_block, for code that makes blocks itself: kernels of a GPU. */
void rng_key(uint64_t seed, uint32_t stream, uint32_t key_out[2]);

/* Uniform in [0, 1) with 53 bits. */
double rng_uniform(uint64_t seed, uint32_t stream, uint64_t sub, uint64_t index);

/*
 * out[i] = std * N(0, 1) for element indexes begin + i, fp32.  Box-Muller on fixed
 * polynomials with explicit operations only (no libm), so the bits are the same on every CPU and for
 * every cut of the index range.
 */
void rng_fill_normal(uint64_t seed, uint32_t stream, uint64_t sub, uint64_t begin, size_t n,
                     float std, float *out);

#pragma once

#include "runtime/base/dtype.h"
#include "runtime/base/isa.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Codecs: how optimizer states and master weights are kept between steps.  Rules work on fp32; the
 * update decodes a tile of a tensor, runs the rule on it and encodes it again.
 *
 * Blocks of elements that share a scale are anchored at the start of a tensor and divide its
 * quantum, so codes and scales of a tensor depend on neither shards nor tiles.  Codes and scales
 * are two arrays, "planes".  All functions are pure, run on the calling thread and work on extents
 * that start at a quantum of a tensor; where a tensor ends, so does its last block, and bytes
 * behind the last element are neither read nor written.  Planes of zero bytes decode to zeros:
 * the state of step 0.
 *
 * The state codecs, with the bits of a code and the elements that share an fp32 scale.  The format
 * of each stands at the top of its kernels' file.
 *
 *     fp32   32        as is
 *     bf16   16        rounded to nearest even; an average whose steps are below 2^-9 of it stands
 *                      still, as second moments with beta2 = 0.999 do
 *     int8    8   32   softsign of the signed, root of the unsigned (FlashOptim's companding)
 *     int4    4  128   dynamic map with the scale's sign, steps of 1/16 without zero for the unsigned
 *     fp8     8  256   e4m3
 *
 * and those of other libraries, to go on with their states code by code:
 *
 *     bnb8    8  256   bitsandbytes' dynamic maps, as its CUDA kernels
 *     ao8     8  256   torchao's 8-bit states, the same maps
 *     ao4     4  128   torchao's 4-bit states
 *     lpmm4   4  128   Li et al.'s 4-bit states, their kernels' scales
 *     lpmm4_rank1      the same codes, for second moments of matrices with their paper's scales:
 *                      the smaller of the largest of the row and the largest of the column
 *
 * Those of 4 bits are coarse: an average with decay 0.999 changes by less than half the way to the
 * next code in a step and stands still, or is thrown too far.
 *
 * The leading element of a block keeps its value in fp32, int8, int4 and fp8 (but for a rounding);
 * the others shrink it at every step if it is negative, so that its average is too small.
 */

/* CODEC_UNSIGNED: second moments, not below zero (int8 and int4 take what is for zero). */
enum codec_sign { CODEC_SIGNED, CODEC_UNSIGNED };

/*
 * `codes`, `scales`: the planes from a quantum's boundary on, aligned as their elements.
 *
 * NaNs come back as they are from fp32 and bf16, and as a block of 0x7fc00000 from int8, int4, fp8,
 * ao8 and ao4; infinities likewise from int8, int4 and fp8.  bnb8 and lpmm4 take NaN for their least
 * value, as those libraries do: non-finite gradients must not reach them.
 */
typedef void codec_decode_fn(const void *codes, const void *scales, size_t n, float *x);
typedef void codec_encode_fn(const float *x, size_t n, void *codes, void *scales);

/* `scales`: one for each element, which it does not exceed. */
typedef void codec_encode_scaled_fn(const float *x, const float *scales, size_t n, void *codes);

struct optim_codec {
    const char *name;
    int bits;                   /* of an element's code */
    int block;                  /* elements per scale, a divisor of QUANTUM; 0: no scales */
    int scale_bytes;            /* of one scale */
    bool coarse;                /* codes lie so far apart that slow averages stall between them */
    codec_decode_fn *decode[2]; /* by enum codec_sign; the fastest for this CPU */
    codec_encode_fn *encode[2];
    codec_decode_fn *decode_scaled; /* with a scale for each element; NULL: not in this codec */
    codec_encode_scaled_fn *encode_scaled;
};

/* The codec called `name`, or SHOAL_ERR_CONFIG with the nearest match. */
shoal_status codec_find(const char *name, const struct optim_codec **codec_out);

/* The name of codec `i` of the table, in the order above; NULL behind the last. */
const char *codec_name(int i);

/* Bytes that the codes and the scales of n elements take; a short last block has a scale too. */
size_t codec_code_bytes(const struct optim_codec *codec, size_t n);
size_t codec_scale_bytes(const struct optim_codec *codec, size_t n);

/* The form for an instruction set, all of the same bytes; NULL if this CPU does not have it. */
codec_decode_fn *codec_decode_for(const struct optim_codec *codec, enum codec_sign sign,
                                  enum isa isa);
codec_encode_fn *codec_encode_for(const struct optim_codec *codec, enum codec_sign sign,
                                  enum isa isa);
codec_decode_fn *codec_decode_scaled_for(const struct optim_codec *codec, enum isa isa);
codec_encode_scaled_fn *codec_encode_scaled_for(const struct optim_codec *codec, enum isa isa);

/*
 * Rank-1 scales (Li et al. 2023, arXiv 2309.01507, sec. 4.1) of elements [first, first + n) of a
 * matrix of `cols` columns, row after row: min(row[i / cols], col[i % cols]).
 */
void codec_rank1_scales(const float *row, const float *col, int64_t cols, int64_t first, size_t n,
                        float *scales);

/* Raise row and col to the magnitudes of elements [first, first + n); NaNs aside. */
void codec_rank1_maxima(const float *x, int64_t cols, int64_t first, size_t n, float *row,
                        float *col);

/*
 * Master weights: `hi` is the bf16 weight that compute reads, `low` what the master has beyond it.
 *
 *     fp32     32   low is the weight itself, hi is it rounded to nearest even
 *     split16  16   lossless: the fp32 weight cut in two
 *     ecc8      8   24 bits in all: the weight rounded to 16 bits of significand
 *     bf16sr    0   the weight rounded stochastically, nothing else is kept
 *
 * Extents may start at any element.
 */
typedef void master_decode_fn(const bf16_t *hi, const void *low, size_t n, float *x);

/* `key` from master_key, `first_element` the index of x[0] in its tensor: for bf16sr only. */
typedef void master_encode_fn(const float *x, size_t n, uint64_t key, uint64_t first_element,
                              bf16_t *hi, void *low);

struct master_codec {
    const char *name;
    int bits; /* of `low` per element; 0: none, low may be NULL */
    master_decode_fn *decode;
    master_encode_fn *encode;
};

/* The codec of master weights called `name`, or SHOAL_ERR_CONFIG with the nearest match. */
shoal_status master_codec_find(const char *name, const struct master_codec **codec_out);

/* The name of master codec `i`, in the order above; NULL behind the last. */
const char *master_codec_name(int i);

/* Words 0 and (the high half) 1 of rng_block(seed, RNG_STREAM_ROUNDING, step, tensor). */
uint64_t master_key(uint64_t seed, int64_t step, uint64_t tensor);

master_decode_fn *master_decode_for(const struct master_codec *codec, enum isa isa);
master_encode_fn *master_encode_for(const struct master_codec *codec, enum isa isa);

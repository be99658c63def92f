#pragma once

/*
 * Codecs of states and master weights in kernels whose block of threads is a quantum and whose
 * thread is an element; formats stand at the top of optim/codec_<name>_kernels.c.
 */
#include "optim/element_codecs.h"
#include "optim/update_work.h"
#include "runtime/device/launch.cuh"

extern "C" {
#include "optim/codec_map.h"
}

enum { QUANTUM_THREADS = 256, WARP = 32 };

static __device__ struct codec_map device_maps[N_MAP_KINDS][2];

/* ---- blocks that share a scale ---- */

/* The largest key of the block of `block` elements around the thread; all threads must call it. */
static __device__ __forceinline__ uint32_t block_max(uint32_t key, int block)
{
    __shared__ uint32_t largest[QUANTUM_THREADS / WARP];
    const int warp = (int)threadIdx.x / WARP;
    const int warps = block / WARP;
    const int first = warp / warps * warps;

    for (int distance = WARP / 2; distance > 0; distance /= 2)
        key = max_bits(key, __shfl_xor_sync(0xffffffffu, key, distance));
    __syncthreads(); /* the last search has been read */
    if (threadIdx.x % WARP == 0)
        largest[warp] = key;
    __syncthreads();
    for (int i = first; i < first + warps; i++)
        key = max_bits(key, largest[i]);
    return key;
}

/* Tensors of 2^32 elements are rare, and the long division is slow. */
static __device__ __forceinline__ uint64_t divide(uint64_t x, uint32_t by)
{
    return x >> 32 == 0 ? (uint32_t)x / by : x / by;
}

/* Where a thread's element is, and what one of its states rests in. */
struct place {
    size_t i; /* in the part */
    bool live;
    uint8_t *codes;
    float *scales;
    int codec;
    bool is_unsigned;
    bool scaled; /* by the largest of its row and column, instead of blocks */
    float scale;
};

static __device__ __forceinline__ float rank1_scale(const update_part &part, size_t i,
                                                    const float *of_row, const float *of_col)
{
    const uint64_t element = part.begin + i;
    const uint64_t row = divide(element, part.cols);
    const float r = of_row[row], c = of_col[element - row * part.cols];

    return c < r ? c : r;
}

/* State k of element i with the scales that its codes were written with. */
static __device__ __forceinline__ place place_of(const update_part &part, int k, size_t i,
                                                 bool live)
{
    const bool scaled = k == part.rank1;

    return {i,
            live,
            (uint8_t *)part.codes[k],
            part.scales[k],
            part.codec[k],
            part.is_unsigned[k] != 0,
            scaled,
            scaled && live ? rank1_scale(part, i, part.row, part.col) : 0.0f};
}

/* The same with those that they are written with. */
static __device__ __forceinline__ place new_place_of(const update_part &part, int k, size_t i,
                                                     bool live)
{
    place at = place_of(part, k, i, live);

    if (at.scaled && live)
        at.scale = rank1_scale(part, i, part.new_row, part.new_col);
    return at;
}

static __device__ __forceinline__ void put_scale(const place &at, int block, float scale)
{
    if (at.live && at.i % (size_t)block == 0)
        at.scales[at.i / (size_t)block] = scale;
}

static __device__ __forceinline__ void put_byte(const place &at, uint32_t code)
{
    if (at.live)
        at.codes[at.i] = (uint8_t)code;
}

/* The thread of the first of two elements writes both; all threads must call it. */
static __device__ __forceinline__ void put_nibble(const place &at, bool first_high, uint32_t code)
{
    const uint32_t mine = at.live ? code & 15u : 0u;
    const uint32_t next = __shfl_xor_sync(0xffffffffu, mine, 1);

    if (at.live && at.i % 2 == 0)
        at.codes[at.i / 2] = (uint8_t)(first_high ? mine << 4 | next : mine | next << 4);
}

static __device__ __forceinline__ uint32_t key_of(const place &at, float x)
{
    return at.is_unsigned ? (uint32_t)max_signed(moment_key(x), 0) : magnitude_key(x);
}

/* ---- encoders ---- */

static __device__ __forceinline__ void encode_int8(const place &at, float x)
{
    const uint32_t largest = block_max(key_of(at, x), 32);
    const bool good = largest >= LEAST_NORMAL_BITS && largest < INFINITY_BITS;
    const uint32_t bad = largest < LEAST_NORMAL_BITS ? 0u : (uint32_t)NAN_BITS;
    const float inverse = 1.0f / float_of(good ? largest : (uint32_t)INFINITY_BITS);
    const uint32_t code =
        at.is_unsigned ? int8_unsigned_code(x, inverse) : int8_signed_code(x, inverse);

    put_scale(at, 32, float_of(good ? largest : bad));
    put_byte(at, good ? code : 0u);
}

static __device__ __forceinline__ void encode_int4(const place &at, float x)
{
    const uint32_t largest = block_max(key_of(at, x), 128);
    const bool good = largest >= LEAST_NORMAL_BITS && largest < INFINITY_BITS;
    uint32_t scale = good ? largest : largest < LEAST_NORMAL_BITS ? 0u : (uint32_t)NAN_BITS;
    uint32_t code = 0;

    if (!at.is_unsigned) {
        const uint32_t above = block_max((uint32_t)max_signed((int32_t)bits_of(x), 0), 128);

        scale = good && above != largest ? largest | 0x80000000u : scale;
    }
    if (good) {
        const float inverse = 1.0f / float_of(scale);

        code = at.is_unsigned ? int4_unsigned_code(x, inverse) : int4_signed_code(x, inverse);
    }
    put_scale(at, 128, float_of(scale));
    put_nibble(at, false, code);
}

static __device__ __forceinline__ void encode_fp8(const place &at, float x)
{
    const uint32_t largest = block_max(magnitude_key(x), 256);
    const float scale = float_of(largest) / 448.0f;
    const bool good = bits_of(scale) >= LEAST_NORMAL_BITS && largest < INFINITY_BITS;
    const uint32_t bad = largest >= INFINITY_BITS ? (uint32_t)NAN_BITS : 0u;

    put_scale(at, 256, good ? scale : float_of(bad));
    put_byte(at, good ? e4m3_of(x / scale) : 0u);
}

static __device__ __forceinline__ void encode_map(const place &at, float x)
{
    const int kind = at.codec - CODE_BNB8;
    const bool ao = kind == MAP_AO8 || kind == MAP_AO4;
    const bool bytes = kind == MAP_BNB8 || kind == MAP_AO8;
    const int block = bytes ? 256 : 128;
    const float scale = at.scaled ? at.scale : map_scale(ao, block_max(map_key(ao, x), block));
    const map_steps *steps = &device_maps[kind][at.is_unsigned].steps;
    const map_search search = {steps->least, (uint32_t)steps->shift, steps->cells, steps->cell,
                               kind == MAP_BNB8 && !at.is_unsigned};
    const uint32_t code = map_code(search, x, scale);

    if (!at.scaled)
        put_scale(at, block, scale);
    if (bytes)
        put_byte(at, code);
    else
        put_nibble(at, kind == MAP_AO4, code);
}

/* All threads of a block must call it: those without an element with x = 0. */
static __device__ __forceinline__ void encode(const place &at, float x)
{
    switch (at.codec) {
    case CODE_FP32:
        if (at.live)
            ((float *)at.codes)[at.i] = x;
        break;
    case CODE_BF16:
        if (at.live)
            ((uint16_t *)at.codes)[at.i] = bf16_of(x);
        break;
    case CODE_INT8:
        encode_int8(at, x);
        break;
    case CODE_INT4:
        encode_int4(at, x);
        break;
    case CODE_FP8:
        encode_fp8(at, x);
        break;
    default:
        encode_map(at, x);
        break;
    }
}

/* ---- decoders ---- */

/*
 * What memory holds of a state of an element.  Loading stands apart from decoding: a thread waits for
 * memory where a value is first used, so all that it needs is loaded before.
 */
struct coded {
    uint32_t code; /* bits; where two elements share a byte, both */
    float scale;
};

static __device__ __forceinline__ bool is_nibbles(int codec)
{
    return codec == CODE_INT4 || codec == CODE_AO4 || codec == CODE_LPMM4;
}

/* Elements that share a scale. */
static __device__ __forceinline__ size_t block_of_codec(int codec)
{
    return codec == CODE_INT8 ? 32 : is_nibbles(codec) ? 128 : 256;
}

static __device__ __forceinline__ coded load(const place &at)
{
    if (at.codec == CODE_FP32)
        return {((const uint32_t *)at.codes)[at.i], 1.0f};
    if (at.codec == CODE_BF16)
        return {((const uint16_t *)at.codes)[at.i], 1.0f};
    return {at.codes[is_nibbles(at.codec) ? at.i / 2 : at.i],
            at.scaled ? at.scale : at.scales[at.i / block_of_codec(at.codec)]};
}

static __device__ __forceinline__ uint32_t nibble_of(const place &at, uint32_t byte,
                                                     bool first_high)
{
    return byte >> ((at.i % 2 == 1) != first_high ? 4 : 0) & 15u;
}

static __device__ __forceinline__ float decode_map(const place &at, coded x)
{
    const int kind = at.codec - CODE_BNB8;
    const uint32_t code = is_nibbles(at.codec) ? nibble_of(at, x.code, kind == MAP_AO4) : x.code;

    return one_nan(device_maps[kind][at.is_unsigned].values[code] * x.scale);
}

static __device__ __forceinline__ float decode(const place &at, coded x)
{
    switch (at.codec) {
    case CODE_FP32:
        return float_of(x.code);
    case CODE_BF16:
        return of_bf16((uint16_t)x.code);
    case CODE_INT8:
        return at.is_unsigned ? int8_unsigned_value(x.code, x.scale)
                              : int8_signed_value((int8_t)x.code, x.scale);
    case CODE_INT4: {
        const uint32_t code = nibble_of(at, x.code, false);

        return at.is_unsigned ? int4_unsigned_value(code, x.scale)
                              : INT4_SIGNED_VALUES[code] * x.scale;
    }
    case CODE_FP8:
        return one_nan(of_e4m3(x.code) * x.scale);
    default:
        return decode_map(at, x);
    }
}

/* ---- master weights ---- */

/* What memory holds of a weight.  A whole register each: half of one is put in when it is there. */
struct coded_master {
    uint32_t low, hi;
};

static __device__ __forceinline__ coded_master load_master(const update_part &part, size_t i)
{
    switch (part.master) {
    case MASTER_FP32:
        return {((const uint32_t *)part.low)[i], 0};
    case MASTER_SPLIT16:
        return {((const uint16_t *)part.low)[i], part.param[i]};
    case MASTER_ECC8:
        return {((const uint8_t *)part.low)[i], part.param[i]};
    default:
        return {0, part.param[i]};
    }
}

static __device__ __forceinline__ float decode_master(const update_part &part, coded_master x)
{
    switch (part.master) {
    case MASTER_FP32:
        return float_of(x.low);
    case MASTER_SPLIT16:
        return split16_value((uint16_t)x.hi, (uint16_t)x.low);
    case MASTER_ECC8:
        return ecc8_value((uint16_t)x.hi, (int8_t)x.low);
    default:
        return of_bf16((uint16_t)x.hi);
    }
}

/* The noise of the thread's element; all threads must call it. */
static __device__ __forceinline__ uint32_t noise_of(uint64_t key, uint64_t quantum)
{
    __shared__ uint32_t words[4][WARP];
    const uint32_t t = threadIdx.x;

    __syncthreads(); /* the last words have been read */
    if (t < WARP)
        bf16sr_words(key, quantum * WARP + t, &words[0][t], &words[1][t], &words[2][t],
                     &words[3][t]);
    __syncthreads();
    return words[t / 64][t % WARP] >> (t / WARP % 2 == 1 ? 16 : 0) & 0xffffu;
}

static __device__ __forceinline__ void encode_master(const update_part &part, size_t i, bool live,
                                                     float p)
{
    const uint32_t noise =
        part.master == MASTER_BF16SR ? noise_of(part.key, (part.begin + i) / QUANTUM_THREADS) : 0u;

    if (!live)
        return;
    switch (part.master) {
    case MASTER_FP32:
        ((float *)part.low)[i] = p;
        if (part.param != NULL)
            part.param[i] = bf16_of(p);
        break;
    case MASTER_SPLIT16:
        ((uint16_t *)part.low)[i] = (uint16_t)bits_of(p);
        part.param[i] = split16_hi(bits_of(p));
        break;
    case MASTER_ECC8:
        ((uint8_t *)part.low)[i] = (uint8_t)ecc8_rounded(p);
        part.param[i] = ecc8_hi(ecc8_rounded(p));
        break;
    default:
        part.param[i] = bf16sr_hi(p, noise);
        break;
    }
}

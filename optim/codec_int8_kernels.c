#include "optim/codec_kernel.h"

/*
 * Format "int8": one byte per element, one fp32 scale per 32, which is the block's largest
 * magnitude A itself.  It is not shortened: an average that shrinks by less per step than a scale
 * of few bits can show would stay for ever (with bf16 rounded up and beta2 = 0.999 the second
 * moment stands still when gradients become ten times smaller).
 *
 * Signed, two's complement q in -127 ... 127 (softsign companding: FlashOptim, arXiv 2602.23349,
 * whose scale is fp16):
 *
 *     x = value * [1 / A]        q = nearest(x * 254 / (1 + |x|)), ties to even
 *     value = q / (254 - |q|) * A
 *
 * Unsigned, 0 ... 255 (root companding, as above):
 *
 *     x = value * [1 / A]        q = nearest(sqrt(x) * 255), at least 1 if value > 0
 *     value = (q * q) * [1 / 65025] * A
 *
 * [y] is rounded to fp32, and so is each operation in the order written.  So zeros stay zeros and
 * the largest element is kept exactly; and a positive second moment never becomes zero, which
 * would leave m / eps.  A block whose A is below 2^-126 becomes zeros, scale included; one with a
 * NaN or infinity becomes NaN: codes 0, scale 0x7fc00000.
 */

enum { BLOCK = 32, CHUNK_BLOCKS = 8, CHUNK = BLOCK * CHUNK_BLOCKS, MAX_CHUNKS = 4 };

/* What the codes of a block are made with: [1 / A] and all ones, or zeros where codes are zero. */
struct factors {
    float inverse[CHUNK_BLOCKS];
    uint32_t mask[CHUNK_BLOCKS];
};

OPTIM_INLINE void find_scales(const uint32_t *largest, size_t n_blocks, float *restrict scales,
                              struct factors *restrict factors)
{
    for (size_t b = 0; b < n_blocks; b++) {
        const bool live = largest[b] >= LEAST_NORMAL_BITS && largest[b] < INFINITY_BITS;
        const uint32_t dead = largest[b] < LEAST_NORMAL_BITS ? 0u : NAN_BITS;

        scales[b] = float_of(live ? largest[b] : dead);
        factors->inverse[b] = 1.0f / float_of(live ? largest[b] : INFINITY_BITS);
        factors->mask[b] = live ? 0xffu : 0u;
    }
}

OPTIM_INLINE void encode_signed(const float *restrict x, size_t n, float inverse, uint32_t mask,
                                uint8_t *restrict codes)
{
    uint32_t q[BLOCK];

    for (size_t i = 0; i < n; i++)
        q[i] = int8_signed_code(x[i], inverse) & mask;
    narrow(q, n, codes);
}

OPTIM_INLINE void encode_unsigned(const float *restrict x, size_t n, float inverse, uint32_t mask,
                                  uint8_t *restrict codes)
{
    uint32_t q[BLOCK];

    for (size_t i = 0; i < n; i++)
        q[i] = int8_unsigned_code(x[i], inverse) & mask;
    narrow(q, n, codes);
}

#if defined(__AVX512BW__)
/*
 * Whole chunks without a division or a root per element.  An estimate of 14 bits and one Newton
 * step give two bounds of the number that the specification rounds to the code, one below and one
 * above.  Rounding keeps their order, so if both become one integer, that is the code.  Elsewhere,
 * within some 2^-12 of a tie, bits of `doubt` are set and the block is encoded as specified.
 *
 * The bounds, in u = 2^-24, the share by which one operation is off.  Signed: the specification is
 * off by 5 u from 254 x / (A + |x|) = x / D.  D = |x| / 254 + A / 254 is off by 3 u, its reciprocal
 * r by 2^-14, hence x r (2 - D r) by 2^-28 < u / 8 and by 2 u of its operations: 10.2 u, and the
 * bounds are 16 u away.  Unsigned: the specification is off by 2 u from 255 sqrt(s), s its own x.
 * With r near 1 / sqrt(s) and w = s r, 127.5 w (3 - w r) is off by 1.5 * 2^-28 and by 2.5 u of its
 * operations: 4.7 u, and the bounds are 8 u away.
 */
OPTIM_INLINE __m512i signed_codes_16(__m512 x, __m512 scale_by_254, __m512i *doubt)
{
    const __m512 nearest = _mm512_set1_ps(0x1.8p23f);
    const __m512 divisor =
        _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(1.0f / 254.0f), scale_by_254);
    const __m512 r = _mm512_rcp14_ps(divisor);
    const __m512 quotient = _mm512_mul_ps(x, r);
    const __m512 below = _mm512_fnmadd_ps(divisor, r, _mm512_set1_ps(2.0f - 0x1p-20f));
    const __m512 above = _mm512_fnmadd_ps(divisor, r, _mm512_set1_ps(2.0f + 0x1p-20f));
    const __m512i code = _mm512_castps_si512(_mm512_fmadd_ps(quotient, below, nearest));
    const __m512i same = _mm512_castps_si512(_mm512_fmadd_ps(quotient, above, nearest));

    *doubt = _mm512_or_si512(*doubt, _mm512_xor_si512(code, same));
    return code;
}

/* What is above zero has a share that gives at least 1; the mask of the narrowing does the rest. */
OPTIM_INLINE __m512i unsigned_codes_16(__m512 x, __m512 inverse, __m512i *doubt)
{
    const __m512 nearest = _mm512_set1_ps(0x1.8p23f);
    const __m512 share = _mm512_max_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(1.0f / 65025.0f));
    const __m512 r = _mm512_rsqrt14_ps(share);
    const __m512 root = _mm512_mul_ps(share, r);
    const __m512 scaled = _mm512_mul_ps(root, _mm512_set1_ps(127.5f));
    const __m512 below = _mm512_fnmadd_ps(root, r, _mm512_set1_ps(3.0f - 0x1p-20f));
    const __m512 above = _mm512_fnmadd_ps(root, r, _mm512_set1_ps(3.0f + 0x1p-20f));
    const __m512i code = _mm512_castps_si512(_mm512_fmadd_ps(scaled, below, nearest));
    const __m512i same = _mm512_castps_si512(_mm512_fmadd_ps(scaled, above, nearest));

    *doubt = _mm512_or_si512(*doubt, _mm512_xor_si512(code, same));
    return code;
}

/* The largest of each of 8 vectors, in halves of fewer and fewer vectors. */
OPTIM_INLINE __m256i largest_of_8(const __m512i *v)
{
    __m512i pairs[4];
    __m512i fours[2];

    for (int i = 0; i < 4; i++)
        pairs[i] = _mm512_max_epu32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                    _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        fours[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                    _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
    const __m512i eight = _mm512_max_epu32(_mm512_shuffle_i32x4(fours[0], fours[1], 0x44),
                                           _mm512_shuffle_i32x4(fours[0], fours[1], 0xee));
    return _mm512_castsi512_si256(_mm512_max_epu32(_mm512_shuffle_i32x4(eight, eight, 0x88),
                                                   _mm512_shuffle_i32x4(eight, eight, 0xdd)));
}

/*
 * Scales of a chunk, and of each block A / 254 if signed, 1 / A if not.  False if a block has no
 * number from 2^-100 to 2^100 for its largest, between which nothing above overflows or loses bits;
 * a negative second moment counts as larger.
 */
OPTIM_INLINE bool find_ordinary_scales(enum codec_sign sign, const float *restrict x,
                                       float *restrict scales, float *restrict factors)
{
    const uint32_t least = (127 - 100) << 23, beyond = (127 + 100) << 23;
    const __m512i counted = _mm512_set1_epi32(sign == CODEC_SIGNED ? 0x7fffffff : -1);
    __m512i lanes[CHUNK_BLOCKS];

    for (int b = 0; b < CHUNK_BLOCKS; b++)
        lanes[b] = _mm512_max_epu32(
            _mm512_and_si512(_mm512_loadu_si512(x + b * BLOCK), counted),
            _mm512_and_si512(_mm512_loadu_si512(x + b * BLOCK + BLOCK / 2), counted));

    const __m256i largest = largest_of_8(lanes);
    const __m256 scale = _mm256_castsi256_ps(largest);
    const __m256i from_least = _mm256_sub_epi32(largest, _mm256_set1_epi32((int)least));
    _mm256_storeu_ps(scales, scale);
    _mm256_storeu_ps(factors, sign == CODEC_SIGNED
                                  ? _mm256_mul_ps(scale, _mm256_set1_ps(1.0f / 254.0f))
                                  : _mm256_div_ps(_mm256_set1_ps(1.0f), scale));
    return _mm256_cmp_epu32_mask(from_least, _mm256_set1_epi32((int)(beyond - least)),
                                 _MM_CMPINT_NLT) == 0;
}

/* False if some bounds of the block leave a choice. */
OPTIM_INLINE bool encode_block(enum codec_sign sign, const float *restrict x, float factor,
                               uint8_t *restrict codes)
{
    const __m512 factors = _mm512_set1_ps(factor);
    __m512i doubt = _mm512_setzero_si512();

    for (size_t i = 0; i < BLOCK; i += 16) {
        const __m512 value = _mm512_loadu_ps(x + i);
        const __m512i bits = _mm512_castps_si512(value);
        const __m512i code = sign == CODEC_SIGNED ? signed_codes_16(value, factors, &doubt)
                                                  : unsigned_codes_16(value, factors, &doubt);
        const __mmask16 keep = sign == CODEC_SIGNED ? 0xffff : _mm512_test_epi32_mask(bits, bits);

        _mm_storeu_si128((__m128i *)(codes + i), _mm512_maskz_cvtepi32_epi8(keep, code));
    }
    return _mm512_test_epi32_mask(doubt, doubt) == 0;
}

/* All scales come first: the codes of one chunk then do not wait for the search of the next. */
OPTIM_INLINE bool encode_chunks(enum codec_sign sign, const float *restrict x, size_t n_chunks,
                                uint8_t *restrict codes, float *restrict scales)
{
    float factors[MAX_CHUNKS * CHUNK_BLOCKS];
    bool ordinary = true;

    for (size_t c = 0; c < n_chunks; c++)
        ordinary = find_ordinary_scales(sign, x + c * CHUNK, scales + c * CHUNK_BLOCKS,
                                        factors + c * CHUNK_BLOCKS) &&
                   ordinary;
    if (!ordinary)
        return false;
    for (size_t b = 0; b < n_chunks * CHUNK_BLOCKS; b++, x += BLOCK, codes += BLOCK) {
        if (encode_block(sign, x, factors[b], codes))
            continue;
        if (sign == CODEC_SIGNED)
            encode_signed(x, BLOCK, 1.0f / scales[b], 0xff, codes);
        else
            encode_unsigned(x, BLOCK, 1.0f / scales[b], 0xff, codes);
    }
    return true;
}

/*
 * q / d, 16 integers d up to 254, by two corrections of an estimate: the second is exact to 2^-38 of
 * it before its rounding, and no quotient is nearer than 2^-33 to where rounding changes.
 */
OPTIM_INLINE __m512 quotients_16(__m512 q, __m512 d)
{
    const __m512 r = _mm512_rcp14_ps(d);
    const __m512 first = _mm512_mul_ps(q, r);
    const __m512 second = _mm512_fmadd_ps(_mm512_fnmadd_ps(first, d, q), r, first);

    return _mm512_fmadd_ps(_mm512_fnmadd_ps(second, d, q), r, second);
}

OPTIM_INLINE size_t decode_signed_16(const int8_t *restrict codes, float scale, size_t n,
                                     float *restrict x)
{
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        const __m512 q =
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(codes + i))));
        const __m512 d = _mm512_sub_ps(_mm512_set1_ps(254.0f), _mm512_abs_ps(q));

        _mm512_storeu_ps(x + i, _mm512_mul_ps(quotients_16(q, d), _mm512_set1_ps(scale)));
    }
    return i;
}
#else
OPTIM_INLINE bool encode_chunks(enum codec_sign sign, const float *x, size_t n_chunks,
                                uint8_t *codes, float *scales)
{
    (void)sign;
    (void)x;
    (void)n_chunks;
    (void)codes;
    (void)scales;
    return false;
}

OPTIM_INLINE size_t decode_signed_16(const int8_t *codes, float scale, size_t n, float *x)
{
    (void)codes;
    (void)scale;
    (void)n;
    (void)x;
    return 0;
}
#endif

/* One chunk of at most CHUNK elements; inlined once with n = CHUNK, which unrolls. */
OPTIM_INLINE void encode_chunk(enum codec_sign sign, const float *restrict x, size_t n,
                               uint8_t *restrict codes, float *restrict scales)
{
    const size_t n_blocks = (n + BLOCK - 1) / BLOCK;
    uint32_t largest[CHUNK_BLOCKS];
    struct factors factors;

    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * BLOCK;
        const size_t count = n - at < BLOCK ? n - at : BLOCK;

        largest[b] =
            sign == CODEC_SIGNED ? largest_magnitude(x + at, count) : largest_moment(x + at, count);
    }
    find_scales(largest, n_blocks, scales, &factors);
    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * BLOCK;
        const size_t count = n - at < BLOCK ? n - at : BLOCK;

        if (sign == CODEC_SIGNED)
            encode_signed(x + at, count, factors.inverse[b], factors.mask[b], codes + at);
        else
            encode_unsigned(x + at, count, factors.inverse[b], factors.mask[b], codes + at);
    }
}

OPTIM_INLINE void encode_all(enum codec_sign sign, const float *x, size_t n, uint8_t *codes,
                             float *scales)
{
    size_t at = 0;

    while (n - at >= CHUNK) {
        const size_t whole = (n - at) / CHUNK;
        const size_t n_chunks = whole < MAX_CHUNKS ? whole : MAX_CHUNKS;
        const size_t end = at + n_chunks * CHUNK;
        const bool done = encode_chunks(sign, x + at, n_chunks, codes + at, scales + at / BLOCK);

        for (; !done && at < end; at += CHUNK)
            encode_chunk(sign, x + at, CHUNK, codes + at, scales + at / BLOCK);
        at = end;
    }
    if (at < n)
        encode_chunk(sign, x + at, n - at, codes + at, scales + at / BLOCK);
}

void ISA_NAME(codec_int8_encode_signed)(const float *x, size_t n, void *codes, void *scales)
{
    encode_all(CODEC_SIGNED, x, n, codes, scales);
}

void ISA_NAME(codec_int8_encode_unsigned)(const float *x, size_t n, void *codes, void *scales)
{
    encode_all(CODEC_UNSIGNED, x, n, codes, scales);
}

OPTIM_INLINE void decode_signed(const int8_t *restrict codes, float scale, size_t n,
                                float *restrict x)
{
    for (size_t i = decode_signed_16(codes, scale, n, x); i < n; i++)
        x[i] = int8_signed_value(codes[i], scale);
}

OPTIM_INLINE void decode_unsigned(const uint8_t *restrict codes, float scale, size_t n,
                                  float *restrict x)
{
    uint32_t words[BLOCK];

    widen(codes, n, words);
    for (size_t i = 0; i < n; i++)
        x[i] = int8_unsigned_value(words[i], scale);
}

void ISA_NAME(codec_int8_decode_signed)(const void *codes, const void *scales, size_t n, float *x)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        if (n - at >= BLOCK)
            decode_signed((const int8_t *)codes + at, ((const float *)scales)[at / BLOCK], BLOCK,
                          x + at);
        else
            decode_signed((const int8_t *)codes + at, ((const float *)scales)[at / BLOCK], n - at,
                          x + at);
    }
}

void ISA_NAME(codec_int8_decode_unsigned)(const void *codes, const void *scales, size_t n, float *x)
{
    for (size_t at = 0; at < n; at += BLOCK) {
        if (n - at >= BLOCK)
            decode_unsigned((const uint8_t *)codes + at, ((const float *)scales)[at / BLOCK], BLOCK,
                            x + at);
        else
            decode_unsigned((const uint8_t *)codes + at, ((const float *)scales)[at / BLOCK],
                            n - at, x + at);
    }
}

#include "runtime/base/rng.h"

#include "runtime/base/isa.h"
#include "runtime/base/rng_internal.h"

#include <string.h>

void philox_block(struct philox_key key, const uint32_t counter[4], uint32_t out[4])
{
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]};

    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c[0];
        const uint64_t product1 = (uint64_t)0xCD9E8D57u * c[2];
        const uint32_t next[4] = {
            (uint32_t)(product1 >> 32) ^ c[1] ^ key.k[0],
            (uint32_t)product1,
            (uint32_t)(product0 >> 32) ^ c[3] ^ key.k[1],
            (uint32_t)product0,
        };

        memcpy(c, next, sizeof c);
        key.k[0] += 0x9E3779B9u;
        key.k[1] += 0xBB67AE85u;
    }
    memcpy(out, c, sizeof c);
}

/*
 * The 64 bits of the key from 96 bits of (seed, stream): SplitMix64's step and finalizer, a
 * bijection of the seed for each stream, so that two seeds never share a key within a stream.
 */
static struct philox_key key_of(uint64_t seed, uint32_t stream)
{
    uint64_t z = seed + stream * UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    z = z ^ (z >> 31);
    return (struct philox_key){.k = {(uint32_t)z, (uint32_t)(z >> 32)}};
}

void rng_block(uint64_t seed, uint32_t stream, uint64_t sub, uint64_t index, uint32_t out[4])
{
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)sub,
                                 (uint32_t)(sub >> 32)};

    philox_block(key_of(seed, stream), counter, out);
}

void rng_key(uint64_t seed, uint32_t stream, uint32_t key_out[2])
{
    const struct philox_key key = key_of(seed, stream);

    memcpy(key_out, key.k, sizeof key.k);
}

double rng_uniform(uint64_t seed, uint32_t stream, uint64_t sub, uint64_t index)
{
    uint32_t x[4];

    rng_block(seed, stream, sub, index, x);
    return (double)(((uint64_t)x[1] << 32 | x[0]) >> 11) * 0x1p-53;
}

static rng_normal_blocks_fn *normal_blocks_kernel(void)
{
    static rng_normal_blocks_fn *const kernels[] = {
        [ISA_SCALAR] = rng_normal_blocks_scalar,
        [ISA_AVX2] = rng_normal_blocks_avx2,
        [ISA_AVX512] = rng_normal_blocks_avx512,
    };

    return kernels[isa_best()];
}

void rng_fill_normal(uint64_t seed, uint32_t stream, uint64_t sub, uint64_t begin, size_t n,
                     float std, float *out)
{
    rng_normal_blocks_fn *const normal_blocks = normal_blocks_kernel();
    const struct philox_key key = key_of(seed, stream);
    uint64_t block = begin / 4;
    float partial[4];

    /* Element i is normal i % 4 of block i / 4: the ends of a range may cut a block. */
    const size_t skip = (size_t)(begin % 4);
    if (skip > 0 && n > 0) {
        const size_t head = n < 4 - skip ? n : 4 - skip;

        normal_blocks(key, sub, block++, 1, std, partial);
        memcpy(out, partial + skip, head * sizeof *out);
        out += head;
        n -= head;
    }

    normal_blocks(key, sub, block, n / 4, std, out);

    if (n % 4 > 0) {
        normal_blocks(key, sub, block + n / 4, 1, std, partial);
        memcpy(out + n / 4 * 4, partial, n % 4 * sizeof *out);
    }
}

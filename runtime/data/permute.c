#include "runtime/data/data.h"

#include "runtime/base/rng.h"

#include <assert.h>

/*
 * A random-access permutation of [0, n): a balanced Feistel network on the next even number of
 * bits, with Philox as round function, walked until it lands below n again (Black and Rogaway,
 * "Ciphers with arbitrary finite domains", CT-RSA 2002).  The domain is less than 4 n, so fewer
 * than 4 passes are expected.  Six rounds rather than four: halves of one or two bits mix slowly.
 */
enum { N_ROUNDS = 6 };

uint64_t data_permute(uint64_t seed, uint64_t epoch, uint64_t index, uint64_t n)
{
    assert(index < n);
    if (n == 1)
        return 0;

    int half_bits = (64 - __builtin_clzll(n - 1) + 1) / 2;
    uint64_t mask = (UINT64_C(1) << half_bits) - 1;
    uint64_t x = index;

    do {
        uint64_t left = x >> half_bits;
        uint64_t right = x & mask;

        for (uint64_t round = 0; round < N_ROUNDS; round++) {
            uint32_t bits[4];

            rng_block(seed, RNG_STREAM_DATA, epoch, round << 32 | right, bits);
            uint64_t mixed = left ^ (bits[0] & mask);
            left = right;
            right = mixed;
        }
        x = left << half_bits | right;
    } while (x >= n);
    return x;
}

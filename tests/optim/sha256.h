#pragma once

/* SHA-256 (FIPS 180-4) of short messages, for published hashes of tables. */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* The first 32 bits of the fractional parts of the n-th primes' roots: degree 2 or 3. */
static inline uint32_t sha256_root(int n, int degree)
{
    uint64_t prime = 2;
    uint64_t root = 0; /* of prime * 2^(32 * degree), by bits */

    for (int found = 0;; prime++) {
        int is_prime = 1;

        for (uint64_t d = 2; d * d <= prime; d++)
            is_prime = is_prime && prime % d != 0;
        if (is_prime && found++ == n)
            break;
    }
    for (int bit = 35; bit >= 0; bit--) {
        const unsigned __int128 next = root | UINT64_C(1) << bit;
        const unsigned __int128 want = (unsigned __int128)prime << 32 * degree;

        if ((degree == 2 ? next * next : next * next * next) <= want)
            root = (uint64_t)next;
    }
    return (uint32_t)root;
}

static inline uint32_t sha256_rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static inline void sha256_block(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64];
    uint32_t s[8];

    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
               (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        const uint32_t a = w[i - 15];
        const uint32_t b = w[i - 2];

        w[i] = w[i - 16] + (sha256_rotate(a, 7) ^ sha256_rotate(a, 18) ^ a >> 3) + w[i - 7] +
               (sha256_rotate(b, 17) ^ sha256_rotate(b, 19) ^ b >> 10);
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        const uint32_t sum1 =
            sha256_rotate(s[4], 6) ^ sha256_rotate(s[4], 11) ^ sha256_rotate(s[4], 25);
        const uint32_t sum0 =
            sha256_rotate(s[0], 2) ^ sha256_rotate(s[0], 13) ^ sha256_rotate(s[0], 22);
        const uint32_t one =
            s[7] + sum1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha256_root(i, 3) + w[i];
        const uint32_t two = sum0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += one;
        s[0] = one + two;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

/* The hash of n_bytes, a multiple of 64, in lower-case hexadecimal. */
static inline void sha256_of(const uint8_t *bytes, size_t n_bytes, char hex[65])
{
    uint32_t state[8];
    uint8_t last[64] = {0x80};

    for (int i = 0; i < 8; i++)
        state[i] = sha256_root(i, 2);
    for (size_t at = 0; at < n_bytes; at += 64)
        sha256_block(state, bytes + at);
    for (int i = 0; i < 8; i++)
        last[63 - i] = (uint8_t)((uint64_t)n_bytes * 8 >> 8 * i);
    sha256_block(state, last);
    for (int i = 0; i < 8; i++)
        snprintf(hex + 8 * i, 9, "%08x", state[i]);
}

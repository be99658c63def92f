#pragma once

#include <stddef.h>
#include <stdint.h>

/* Numbers for tests of collectives, and what a single process makes of them. */

/* Gradients of all signs over 12 octaves: their sum depends on the order. */
static inline float element(int rank, size_t i, size_t n)
{
    uint64_t x = ((uint64_t)rank << 40) + i * 0x9e3779b97f4a7c15u + n;

    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 32;
    float mantissa = 1.0f + (float)(x & 0xffffff) * 0x1p-24f;
    float scale = (float)(1 << ((x >> 24) % 12));

    return ((x >> 40) & 1) != 0 ? mantissa * scale : -mantissa * scale;
}

/* The balanced tree over ranks begin .. begin + count - 1. */
static inline float reference_sum(int begin, int count, size_t i, size_t n)
{
    int half = 1;

    if (count == 1)
        return element(begin, i, n);
    while (half * 2 < count)
        half *= 2;
    return reference_sum(begin, half, i, n) + reference_sum(begin + half, count - half, i, n);
}

static inline uint8_t pattern(int rank, size_t i, int round)
{
    return (uint8_t)((size_t)rank * 31 + i * 7 + (i >> 8) + (size_t)round);
}

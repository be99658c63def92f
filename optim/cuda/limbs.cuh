#pragma once

/*
 * Exact sums (struct exact_sum) that blocks of threads add to: a block gathers its terms in limbs of
 * its own, in shared memory, as every limb is one address for all blocks.
 */
#include "optim/element_sums.h"

extern "C" {
#include "runtime/base/exact_sum.h"
}

static __device__ __forceinline__ void add_to(int64_t *limb, int64_t x)
{
    atomicAdd((unsigned long long *)limb, (unsigned long long)x);
}

/* A term's first limb is where its exponent says: threads share limbs. */
static __device__ __forceinline__ void add_exactly(int64_t *limbs, const exact_term &term)
{
    if (term.first < 0)
        add_to(&limbs[EXACT_SUM_LIMBS], 1);
    for (int k = 0; term.first >= 0 && k < 3; k++)
        add_to(&limbs[term.first + k], term.limbs[k]);
}

/* All threads, at least EXACT_LIMBS, must call both. */
static __device__ __forceinline__ void clear_limbs(int64_t *limbs)
{
    if (threadIdx.x < EXACT_LIMBS)
        limbs[threadIdx.x] = 0;
    __syncthreads();
}

static __device__ __forceinline__ void give_limbs(const int64_t *limbs, int64_t *to)
{
    __syncthreads();
    if (threadIdx.x < EXACT_LIMBS && limbs[threadIdx.x] != 0)
        add_to(&to[threadIdx.x], limbs[threadIdx.x]);
}

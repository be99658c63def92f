#pragma once

/*
 * What kernels need of the machine beyond CUDA C++ and launches: dynamic shared memory and the
 * instructions of tensor cores.  tests/gpu/emulate has a file of this name that gives the same on
 * the CPU, by which every kernel is tested without a GPU.
 */
#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "runtime/device/launch.cuh"

extern "C" {
#include "models/ops/cuda/kernels.h"
}

/* The block's dynamic shared memory, 16-byte aligned. */
static __device__ __forceinline__ void *dynamic_shared()
{
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];

    return dynamic_shared_bytes;
}

/* Two fp32 rounded to nearest even, `low` in the low half. */
static __device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    uint32_t packed;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/*
 * d += a b for a 16 x 16 matrix a and a 16 x 8 matrix b of bf16, by the lanes of a warp.  Lane l
 * with g = l / 4 and t = l % 4 holds (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
 *   a[0..3]: columns {2t, 2t+1} of rows g and g+8, then columns {2t+8, 2t+9} of rows g and g+8;
 *   b[0..1]: rows {2t, 2t+1} and {2t+8, 2t+9} of column g;
 *   d[0..3]: columns 2t and 2t+1 of row g, then of row g+8.
 */
static __device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4], uint32_t b0,
                                                uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/*
 * Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8
 * of matrix l / 8 (16-byte aligned) and receives, of each matrix, elements 2t and 2t+1 of row g.
 */
static __device__ __forceinline__ void load_matrices(uint32_t r[4], const bf16_t *row)
{
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same with each matrix transposed: elements 2t and 2t+1 of column g. */
static __device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], const bf16_t *row)
{
    const uint32_t address = (uint32_t)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

#pragma once

/*
 * models/ops/cuda/machine.cuh on the CPU.  Fragments and matrices are laid out as the PTX ISA says
 * ("Matrix Fragments for mma.m16n8k16 with floating point types", "ldmatrix"), written here element
 * by element from those tables, independently of the kernels' use of them.
 */
#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

extern "C" {
#include "models/ops/cuda/kernels.h"
}

#include "runtime/device/launch.cuh"

static inline void *dynamic_shared()
{
    return emulate_shared;
}

/* "cvt": a NaN becomes 0x7fff. */
static inline uint32_t emulate_rounded(float x)
{
    return x != x ? 0x7fffu : bf16_from_f32(x);
}

static inline uint32_t pack_bf16(float low, float high)
{
    return emulate_rounded(low) | emulate_rounded(high) << 16;
}

/* Half 0 or 1 of a register as a number. */
static inline float emulate_half(uint32_t r, int half)
{
    return bf16_to_f32((bf16_t)(r >> 16 * half));
}

struct emulate_mma {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};

static inline void mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    emulate_mma mine = {d, a, {b0, b1}};

    emulate_warp(
        [](void *const *lanes) {
            float a[16][16];
            float b[16][8];
            for (int l = 0; l < EMULATE_WARP; l++) {
                const emulate_mma *m = (const emulate_mma *)lanes[l];
                for (int i = 0; i < 8; i++)
                    a[l / 4 + (i / 2 % 2) * 8][l % 4 * 2 + i % 2 + i / 4 * 8] =
                        emulate_half(m->a[i / 2], i % 2);
                for (int i = 0; i < 4; i++)
                    b[l % 4 * 2 + i % 2 + i / 2 * 8][l / 4] = emulate_half(m->b[i / 2], i % 2);
            }
            for (int l = 0; l < EMULATE_WARP; l++) {
                const emulate_mma *m = (const emulate_mma *)lanes[l];
                for (int i = 0; i < 4; i++)
                    for (int k = 0; k < 16; k++)
                        m->d[i] += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
            }
        },
        &mine);
}

struct emulate_matrices {
    uint32_t *r;
    bf16_t row[8];
};

static inline void emulate_load_matrices(uint32_t r[4], const bf16_t *row,
                                         void (*act)(void *const *lanes))
{
    emulate_matrices mine = {r, {}};

    emulate_expect((uintptr_t)row % 16 == 0, "a row of a matrix is not 16-byte aligned");
    memcpy(mine.row, row, sizeof mine.row);
    emulate_warp(act, &mine);
}

static inline const bf16_t *emulate_row(void *const *lanes, int matrix, int row)
{
    return ((const emulate_matrices *)lanes[8 * matrix + row])->row;
}

static inline void load_matrices(uint32_t r[4], const bf16_t *row)
{
    emulate_load_matrices(r, row, [](void *const *lanes) {
        for (int l = 0; l < EMULATE_WARP; l++)
            for (int m = 0; m < 4; m++) {
                const bf16_t *from = emulate_row(lanes, m, l / 4) + l % 4 * 2;
                ((emulate_matrices *)lanes[l])->r[m] = (uint32_t)from[0] | (uint32_t)from[1] << 16;
            }
    });
}

static inline void load_matrices_transposed(uint32_t r[4], const bf16_t *row)
{
    emulate_load_matrices(r, row, [](void *const *lanes) {
        for (int l = 0; l < EMULATE_WARP; l++)
            for (int m = 0; m < 4; m++) {
                const uint32_t low = emulate_row(lanes, m, l % 4 * 2)[l / 4];
                const uint32_t high = emulate_row(lanes, m, l % 4 * 2 + 1)[l / 4];
                ((emulate_matrices *)lanes[l])->r[m] = low | high << 16;
            }
    });
}

#pragma once

#include "models/ops/cpu/cpu.h"

#include <stdatomic.h>

/*
 * Shared by the forward and the backward pass of attention.
 *
 * A tile of work is one (sequence, head): blocks of queries against all keys up to the block's
 * end, so memory is block x T.  There are two forms.  bf16 runs on AMX tiles where the CPU has them
 * (attention_amx*.c).  Else the small products run in fp32: bf16 inputs are widened into the
 * thread's scratch first, fp32 inputs are read where they lie in qkv.
 */

/* Rows of fp32 numbers, somewhere. */
struct matrix {
    const float *p;
    int64_t ld;
};

/* Where the heads lie in a row of qkv, in elements. */
static inline int64_t attention_row_width(const struct attention_shape *s)
{
    return (int64_t)(s->H + 2 * s->K) * s->D;
}

static inline int64_t attention_key_offset(const struct attention_shape *s, int kv_head)
{
    return (int64_t)(s->H + kv_head) * s->D;
}

static inline int64_t attention_value_offset(const struct attention_shape *s, int kv_head)
{
    return (int64_t)(s->H + s->K + kv_head) * s->D;
}

enum { ATTENTION_BLOCK_MAX = 128 };

/* Longer blocks make better products but waste more of the causal corner. */
static inline int64_t attention_block(const struct attention_shape *s)
{
    return min_i64(s->T, s->T > 512 ? ATTENTION_BLOCK_MAX : 64);
}

static inline float attention_scale(const struct attention_shape *s)
{
    return (float)(1.0 / __builtin_sqrt((double)s->D));
}

/* The arrays of a pass, as in ops.h. */
struct attention_forward {
    const void *qkv;
    void *y;
    float *lse;
};

struct attention_backward {
    const void *dy;
    const void *qkv;
    const void *y;
    const float *lse;
    void *dqkv;
};

/* Of a thread's scratch, for either pass; a multiple of 64. */
int64_t attention_thread_bytes(const struct cpu_ops *cpu, const struct attention_shape *s);

/* ---- in fp32 ---- */

/* A [rows, D] part of an array of `dtype` with leading dimension ld, as fp32. */
struct matrix attention_view(const struct op_kernels *kernels, enum dtype dtype, const void *src,
                             int64_t ld, int64_t rows, int64_t D, float *scratch);

/* Elements of a thread's scratch, a multiple of 16. */
int64_t attention_forward_floats(const struct attention_shape *s);
int64_t attention_backward_floats(const struct attention_shape *s);

/* ---- bf16 on AMX tiles ---- */

static inline bool attention_uses_tiles(const struct cpu_ops *cpu, const struct attention_shape *s)
{
    return matmul_uses_tiles(cpu->matmul, &(struct matmul_shape){.in = s->dtype});
}

/* A tile of work; `scratch` holds the bytes asked for, a multiple of 64, and is 64-byte aligned. */
int64_t attention_amx_forward_bytes(const struct attention_shape *s);
int64_t attention_amx_backward_bytes(const struct attention_shape *s);
void attention_amx_forward(const struct attention_shape *s, const struct attention_forward *data,
                           int64_t b, int h, void *scratch);
void attention_amx_backward(const struct attention_shape *s, const struct attention_backward *data,
                            int64_t b, int kv_head, void *scratch);

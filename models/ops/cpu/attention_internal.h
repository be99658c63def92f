#pragma once

#include "models/ops/cpu/cpu.h"

#include <stdatomic.h>

/*
 * Shared by the forward and the backward pass of attention.
 *
 * A tile of work is one (sequence, head): blocks of queries against all keys up to the block's
 * end, so memory is block x T.  The small products run in fp32; bf16 inputs are widened into the
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

/* A [rows, D] part of an array of `dtype` with leading dimension ld, as fp32. */
struct matrix attention_view(const struct op_kernels *kernels, enum dtype dtype, const void *src,
                             int64_t ld, int64_t rows, int64_t D, float *scratch);

/* Elements of a thread's scratch, a multiple of 16. */
int64_t attention_forward_floats(const struct attention_shape *s);
int64_t attention_backward_floats(const struct attention_shape *s);

#pragma once

#include "models/ops/cpu/matmul.h"

/*
 * Products of bf16 matrices on AMX tiles (Intel SDM vol. 1, ch. 18), on one thread: C[m, n] = A B
 * with fp32 sums over k in order.  B is packed into tile order in `scratch`, A too unless it lies so;
 * whatever is to be added to C is added when a tile leaves.
 *
 * Call only where amx_is_usable.  Subnormal inputs count as zero.
 */

/* Compiled in, and the CPU and the kernel let this process use tiles. */
bool amx_is_usable(void);

/* The largest m and n of one call. */
void amx_cut(const struct matmul_shape *shape, int64_t *m_out, int64_t *n_out);

size_t amx_scratch_bytes(void);

/* `scratch` is the calling thread's own, 64-byte aligned. */
void amx_product(const struct matmul_shape *shape, const struct matmul_data *data, void *scratch);

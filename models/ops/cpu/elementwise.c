#include "models/ops/cpu/cpu.h"

#include <string.h>

enum { BLOCK_ELEMENTS = 65536 };

struct elementwise_task {
    const struct op_kernels *kernels;
    enum dtype dtype;
    const float *src;
    void *dst;
};

static void cast_range(void *arg, int64_t begin, int64_t end)
{
    const struct elementwise_task *t = arg;

    t->kernels->convert(end - begin, 1.0f, DTYPE_F32, t->src + begin, t->dtype,
                        element_mut(t->dtype, t->dst, begin));
}

shoal_status cpu_cast(struct ops *ops, int64_t n, enum dtype dtype, const float *x, void *y)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct elementwise_task task = {cpu->kernels, dtype, x, y};

    cpu_for_blocks(cpu, n, BLOCK_ELEMENTS, cast_range, &task);
    return SHOAL_OK;
}

static void accumulate_range(void *arg, int64_t begin, int64_t end)
{
    const struct elementwise_task *t = arg;

    t->kernels->accumulate(end - begin, t->src + begin, (float *)t->dst + begin);
}

shoal_status cpu_accumulate(struct ops *ops, int64_t n, const float *src, float *dst)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct elementwise_task task = {cpu->kernels, DTYPE_F32, src, dst};

    cpu_for_blocks(cpu, n, BLOCK_ELEMENTS, accumulate_range, &task);
    return SHOAL_OK;
}

static void zero_range(void *arg, int64_t begin, int64_t end)
{
    memset((char *)arg + begin, 0, (size_t)(end - begin));
}

shoal_status cpu_zero(struct ops *ops, size_t n_bytes, void *dst)
{
    cpu_for_blocks(cpu_of(ops), (int64_t)n_bytes, (int64_t)BLOCK_ELEMENTS * 4, zero_range, dst);
    return SHOAL_OK;
}

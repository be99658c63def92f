#include "models/ops/cpu/cpu.h"

#include "runtime/base/isa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void cpu_destroy(struct ops *ops)
{
    struct cpu_ops *cpu = cpu_of(ops);

    cpu_rope_table_fini(&cpu->rope);
    matmul_library_destroy(cpu->matmul);
    free(cpu);
}

static int cpu_threads(const struct ops *ops)
{
    return pool_size(cpu_of_const(ops)->pool);
}

static const char *cpu_describe(const struct ops *ops)
{
    return cpu_of_const(ops)->description;
}

static const struct ops_vtable cpu_table = {
    .destroy = cpu_destroy,
    .threads = cpu_threads,
    .describe = cpu_describe,
    .warm_up = cpu_warm_up,
    .library_linear_seconds = cpu_library_linear_seconds,
    .linear_prepare = cpu_linear_prepare,
    .linear_scratch_bytes = cpu_linear_scratch_bytes,
    .linear = cpu_linear,
    .linear_add = cpu_linear_add,
    .linear_backward_input = cpu_linear_backward_input,
    .linear_backward_weight = cpu_linear_backward_weight,
    .norm = cpu_norm,
    .norm_backward_scratch_bytes = cpu_norm_backward_scratch_bytes,
    .norm_backward = cpu_norm_backward,
    .rope_prepare = cpu_rope_prepare,
    .rope = cpu_rope,
    .attention_scratch_bytes = cpu_attention_scratch_bytes,
    .attention = cpu_attention,
    .attention_backward = cpu_attention_backward,
    .attention_decode = cpu_attention_decode,
    .gelu = cpu_gelu,
    .gelu_backward = cpu_gelu_backward,
    .gelu_again = cpu_gelu_again,
    .swiglu = cpu_swiglu,
    .swiglu_backward = cpu_swiglu_backward,
    .embedding = cpu_embedding,
    .embedding_backward = cpu_embedding_backward,
    .head_prepare = cpu_head_prepare,
    .head_scratch_bytes = cpu_head_scratch_bytes,
    .head_loss = cpu_head_loss,
    .head_loss_backward = cpu_head_loss_backward,
    .cast = cpu_cast,
    .accumulate = cpu_accumulate,
    .zero = cpu_zero,
};

static const struct op_kernels *best_kernels(void)
{
    switch (isa_best()) {
    case ISA_AVX512:
        return &op_kernels_avx512;
    case ISA_AVX2:
        return &op_kernels_avx2;
    case ISA_SCALAR:
        break;
    }
    return &op_kernels_scalar;
}

shoal_status ops_create_cpu(struct pool *pool, struct ops **ops_out)
{
    char matmul_name[64];
    struct cpu_ops *cpu = calloc(1, sizeof *cpu);

    if (cpu == NULL)
        return fail(SHOAL_ERR_NOMEM, "ops: cannot reserve %zu bytes", sizeof *cpu);
    cpu->base.table = &cpu_table;
    cpu->pool = pool;
    cpu->kernels = best_kernels();
    shoal_status status = matmul_library_create(pool_size(pool), &cpu->matmul);
    if (status != SHOAL_OK) {
        free(cpu);
        return status;
    }
    matmul_library_describe(matmul_name, sizeof matmul_name);
    snprintf(cpu->description, sizeof cpu->description, "%s, kernels %s", matmul_name,
             cpu->kernels->isa);
    *ops_out = &cpu->base;
    return SHOAL_OK;
}

struct range_task {
    int64_t n, block;
    cpu_range_fn *fn;
    void *arg;
};

static void range_tile(void *arg, size_t tile, int thread)
{
    const struct range_task *task = arg;
    int64_t begin = (int64_t)tile * task->block;

    (void)thread;
    task->fn(task->arg, begin, min_i64(begin + task->block, task->n));
}

void cpu_for_blocks(struct cpu_ops *cpu, int64_t n, int64_t block, cpu_range_fn *fn, void *arg)
{
    struct range_task task = {n, block, fn, arg};

    pool_run(cpu->pool, (size_t)ceil_div(n, block), range_tile, &task);
}

struct column_task {
    const struct op_kernels *kernels;
    int64_t rows, n;
    enum dtype dtype;
    const void *x;
    float *sums;
};

static void column_range(void *arg, int64_t begin, int64_t end)
{
    const struct column_task *t = arg;

    t->kernels->column_sums(t->rows, end - begin, t->n, t->dtype, element(t->dtype, t->x, begin),
                            t->sums + begin);
}

void cpu_column_sums(struct cpu_ops *cpu, int64_t rows, int64_t n, enum dtype dtype, const void *x,
                     float *sums)
{
    enum { BLOCK_COLUMNS = 128 };
    struct column_task task = {cpu->kernels, rows, n, dtype, x, sums};

    cpu_for_blocks(cpu, n, BLOCK_COLUMNS, column_range, &task);
}

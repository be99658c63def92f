#include "models/ops/cpu/cpu.h"

enum { BLOCK_ELEMENTS = 16384 };

struct gelu_task {
    const struct op_kernels *kernels;
    enum dtype dtype;
    const void *x;
    const void *dy; /* backward only */
    void *out;
    void *dx; /* both at once only: out is y */
};

static void gelu_range(void *arg, int64_t begin, int64_t end)
{
    const struct gelu_task *t = arg;

    t->kernels->gelu(end - begin, t->dtype, element(t->dtype, t->x, begin),
                     element_mut(t->dtype, t->out, begin));
}

shoal_status cpu_gelu(struct ops *ops, int64_t n, enum dtype dtype, const void *x, void *y)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct gelu_task task = {.kernels = cpu->kernels, .dtype = dtype, .x = x, .out = y};

    cpu_for_blocks(cpu, n, BLOCK_ELEMENTS, gelu_range, &task);
    return SHOAL_OK;
}

static void gelu_backward_range(void *arg, int64_t begin, int64_t end)
{
    const struct gelu_task *t = arg;

    t->kernels->gelu_backward(end - begin, t->dtype, element(t->dtype, t->x, begin),
                              element(t->dtype, t->dy, begin),
                              element_mut(t->dtype, t->out, begin));
}

shoal_status cpu_gelu_backward(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                               const void *dy, void *dx)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct gelu_task task = {.kernels = cpu->kernels, .dtype = dtype, .x = x, .dy = dy, .out = dx};

    cpu_for_blocks(cpu, n, BLOCK_ELEMENTS, gelu_backward_range, &task);
    return SHOAL_OK;
}

static void gelu_again_range(void *arg, int64_t begin, int64_t end)
{
    const struct gelu_task *t = arg;

    t->kernels->gelu_again(end - begin, t->dtype, element(t->dtype, t->x, begin),
                           element(t->dtype, t->dy, begin), element_mut(t->dtype, t->out, begin),
                           element_mut(t->dtype, t->dx, begin));
}

shoal_status cpu_gelu_again(struct ops *ops, int64_t n, enum dtype dtype, const void *x,
                            const void *dy, void *y, void *dx)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct gelu_task task = {
        .kernels = cpu->kernels, .dtype = dtype, .x = x, .dy = dy, .out = y, .dx = dx};

    cpu_for_blocks(cpu, n, BLOCK_ELEMENTS, gelu_again_range, &task);
    return SHOAL_OK;
}

struct swiglu_task {
    const struct op_kernels *kernels;
    int64_t F;
    enum dtype dtype;
    const void *gate_up;
    const void *dy; /* backward only */
    void *out;
};

static int64_t swiglu_block_rows(int64_t F)
{
    return ceil_div(BLOCK_ELEMENTS, F);
}

static void swiglu_range(void *arg, int64_t begin, int64_t end)
{
    const struct swiglu_task *t = arg;

    for (int64_t row = begin; row < end; row++)
        t->kernels->swiglu(t->F, t->dtype, element(t->dtype, t->gate_up, row * 2 * t->F),
                           element(t->dtype, t->gate_up, row * 2 * t->F + t->F),
                           element_mut(t->dtype, t->out, row * t->F));
}

shoal_status cpu_swiglu(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                        const void *gate_up, void *y)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct swiglu_task task = {
        .kernels = cpu->kernels, .F = F, .dtype = dtype, .gate_up = gate_up, .out = y};

    cpu_for_blocks(cpu, N, swiglu_block_rows(F), swiglu_range, &task);
    return SHOAL_OK;
}

static void swiglu_backward_range(void *arg, int64_t begin, int64_t end)
{
    const struct swiglu_task *t = arg;

    for (int64_t row = begin; row < end; row++)
        t->kernels->swiglu_backward(t->F, t->dtype, element(t->dtype, t->gate_up, row * 2 * t->F),
                                    element(t->dtype, t->gate_up, row * 2 * t->F + t->F),
                                    element(t->dtype, t->dy, row * t->F),
                                    element_mut(t->dtype, t->out, row * 2 * t->F),
                                    element_mut(t->dtype, t->out, row * 2 * t->F + t->F));
}

shoal_status cpu_swiglu_backward(struct ops *ops, int64_t N, int64_t F, enum dtype dtype,
                                 const void *gate_up, const void *dy, void *dgate_up)
{
    struct cpu_ops *cpu = cpu_of(ops);
    struct swiglu_task task = {cpu->kernels, F, dtype, gate_up, dy, dgate_up};

    cpu_for_blocks(cpu, N, swiglu_block_rows(F), swiglu_backward_range, &task);
    return SHOAL_OK;
}

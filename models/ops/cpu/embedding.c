#include "models/ops/cpu/cpu.h"

#include <string.h>

struct embedding_task {
    const struct op_kernels *kernels;
    int64_t T, C;
    enum dtype dtype;
    const int32_t *tokens;
    const void *wte;
    const void *wpe;
    int64_t first_position;
    float *x;
};

static void embedding_range(void *arg, int64_t begin, int64_t end)
{
    const struct embedding_task *t = arg;

    for (int64_t row = begin; row < end; row++) {
        const int64_t position = t->first_position + row % t->T;
        t->kernels->add_embeddings(
            t->C, t->dtype, element(t->dtype, t->wte, t->tokens[row] * t->C),
            t->wpe == NULL ? NULL : element(t->dtype, t->wpe, position * t->C), t->x + row * t->C);
    }
}

shoal_status cpu_embedding(struct ops *ops, int64_t B, int64_t T, int64_t C, enum dtype dtype,
                           const int32_t *tokens, const void *wte, const void *wpe,
                           int64_t first_position, float *x)
{
    enum { BLOCK_ROWS = 16 };
    struct cpu_ops *cpu = cpu_of(ops);
    struct embedding_task task = {cpu->kernels, T, C, dtype, tokens, wte, wpe, first_position, x};

    cpu_for_blocks(cpu, B * T, BLOCK_ROWS, embedding_range, &task);
    return SHOAL_OK;
}

struct embedding_backward_task {
    const struct op_kernels *kernels;
    int64_t B, T, C;
    const int32_t *tokens;
    const float *dx;
    float *dwte;
    float *dwpe;
};

/*
 * A tile owns a range of the vocabulary: it zeroes the range and adds the rows whose token lies
 * in it, in their order.  Each tile looks through all tokens, which is cheap beside the rows.
 */
static void token_range(void *arg, int64_t begin, int64_t end)
{
    const struct embedding_backward_task *t = arg;

    t->kernels->clear((end - begin) * t->C, t->dwte + begin * t->C);
    for (int64_t row = 0; row < t->B * t->T; row++)
        if (t->tokens[row] >= begin && t->tokens[row] < end)
            t->kernels->accumulate(t->C, t->dx + row * t->C, t->dwte + t->tokens[row] * t->C);
}

/* Positions [begin, end) of dwpe, summed over the sequences in order; zero behind T. */
static void position_range(void *arg, int64_t begin, int64_t end)
{
    const struct embedding_backward_task *t = arg;

    memset(t->dwpe + begin * t->C, 0, (size_t)((end - begin) * t->C) * sizeof *t->dwpe);
    for (int64_t position = begin; position < min_i64(end, t->T); position++)
        for (int64_t b = 0; b < t->B; b++)
            t->kernels->accumulate(t->C, t->dx + (b * t->T + position) * t->C,
                                   t->dwpe + position * t->C);
}

shoal_status cpu_embedding_backward(struct ops *ops, int64_t B, int64_t T, int64_t C, int64_t V,
                                    int64_t T_max, const int32_t *tokens, const float *dx,
                                    float *dwte, float *dwpe)
{
    enum { VOCABULARY_TILES = 64, BLOCK_POSITIONS = 16 };
    struct cpu_ops *cpu = cpu_of(ops);
    struct embedding_backward_task task = {cpu->kernels, B, T, C, tokens, dx, dwte, dwpe};

    cpu_for_blocks(cpu, V, ceil_div(V, VOCABULARY_TILES), token_range, &task);
    if (dwpe != NULL)
        cpu_for_blocks(cpu, T_max, BLOCK_POSITIONS, position_range, &task);
    return SHOAL_OK;
}

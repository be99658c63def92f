/* Rotary positions: the table of angles and its use on packed qkv. */
#include "models/ops/cpu/cpu.h"

#include <math.h>
#include <stdlib.h>

void cpu_rope_table_fini(struct rope_table *table)
{
    free(table->cosines);
    free(table->sines);
    *table = (struct rope_table){0};
}

/*
 * Angles in double, rounded once to fp32.  libm's sin and cos may differ in the last bit of a
 * double between CPUs; rounding to fp32 hides that but for about one value in 2^28.
 */
static void rope_table_fill(struct rope_table *table)
{
    const int half = table->D / 2;

    for (int i = 0; i < half; i++) {
        const double frequency = pow(table->theta, -2.0 * i / table->D);
        for (int64_t position = 0; position < table->positions; position++) {
            const double angle = (double)position * frequency;
            table->cosines[position * half + i] = (float)cos(angle);
            table->sines[position * half + i] = (float)sin(angle);
        }
    }
}

shoal_status cpu_rope_prepare(struct ops *ops, int64_t T_max, int D, double theta)
{
    struct rope_table *table = &cpu_of(ops)->rope;
    const size_t n = (size_t)T_max * (size_t)(D / 2);

    if (table->D == D && table->theta == theta && table->positions >= T_max)
        return SHOAL_OK;
    cpu_rope_table_fini(table);
    table->cosines = malloc(n * sizeof *table->cosines);
    table->sines = malloc(n * sizeof *table->sines);
    if (table->cosines == NULL || table->sines == NULL) {
        cpu_rope_table_fini(table);
        return fail(SHOAL_ERR_NOMEM, "rope table: cannot reserve %zu bytes", 2 * n * sizeof(float));
    }
    table->positions = T_max;
    table->D = D;
    table->theta = theta;
    rope_table_fill(table);
    return SHOAL_OK;
}

struct rope_task {
    const struct cpu_ops *cpu;
    struct attention_shape s;
    int64_t first_position;
    float direction;
    void *qkv;
};

static void rope_range(void *arg, int64_t begin, int64_t end)
{
    const struct rope_task *t = arg;
    const struct rope_table *table = &t->cpu->rope;
    const int64_t D = t->s.D;
    const int64_t row_width = (t->s.H + 2 * t->s.K) * D;

    for (int64_t row = begin; row < end; row++) {
        const int64_t angle = (t->first_position + row % t->s.T) * (D / 2);
        for (int head = 0; head < t->s.H + t->s.K; head++)
            t->cpu->kernels->rotate(D / 2, t->s.dtype, table->cosines + angle, table->sines + angle,
                                    t->direction,
                                    element_mut(t->s.dtype, t->qkv, row * row_width + head * D));
    }
}

shoal_status cpu_rope(struct ops *ops, struct attention_shape s, double theta,
                      int64_t first_position, bool inverse, void *qkv)
{
    enum { BLOCK_ROWS = 16 };
    struct cpu_ops *cpu = cpu_of(ops);
    const struct rope_table *table = &cpu->rope;

    if (table->D != s.D || table->theta != theta || table->positions < first_position + s.T)
        return fail(SHOAL_ERR_INTERNAL,
                    "rope: %lld positions of size %d, theta %g, wanted; the table has %lld of size "
                    "%d, theta %g",
                    (long long)(first_position + s.T), s.D, theta, (long long)table->positions,
                    table->D, table->theta);
    struct rope_task task = {cpu, s, first_position, inverse ? -1.0f : 1.0f, qkv};
    cpu_for_blocks(cpu, s.B * s.T, BLOCK_ROWS, rope_range, &task);
    return SHOAL_OK;
}

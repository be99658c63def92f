#include "runtime/layout/layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

shoal_status layout_create(struct layout **layout_out)
{
    struct layout *layout = calloc(1, sizeof *layout);

    if (layout == NULL)
        return fail(SHOAL_ERR_NOMEM, "layout: cannot allocate its record");
    *layout_out = layout;
    return SHOAL_OK;
}

void layout_destroy(struct layout *layout)
{
    if (layout == NULL)
        return;
    free(layout->units);
    free(layout->tensors);
    free(layout);
}

/* Tables grow to the next power of two: called only when a count reaches one. */
static shoal_status grow(void **table, int count, size_t row_bytes)
{
    if (count > 0 && (count & (count - 1)) != 0)
        return SHOAL_OK;
    size_t rows = count == 0 ? 1 : 2 * (size_t)count;
    void *bigger = realloc(*table, rows * row_bytes);
    if (bigger == NULL)
        return fail(SHOAL_ERR_NOMEM, "layout: cannot grow to %zu rows", rows);
    *table = bigger;
    return SHOAL_OK;
}

shoal_status layout_add_unit(struct layout *layout, const char *name)
{
    void *table = layout->units;

    SHOAL_TRY(grow(&table, layout->n_units, sizeof *layout->units));
    layout->units = table;
    struct unit *unit = &layout->units[layout->n_units++];
    *unit = (struct unit){.first_tensor = layout->n_tensors};
    snprintf(unit->name, sizeof unit->name, "%s", name);
    return SHOAL_OK;
}

shoal_status layout_add_tensor(struct layout *layout, const struct tensor *tensor)
{
    if (layout->n_units == 0)
        return fail(SHOAL_ERR_INTERNAL, "layout: tensor %s before any unit", tensor->name);
    if (layout_find(layout, tensor->name) >= 0)
        return fail(SHOAL_ERR_INTERNAL, "layout: tensor %s added twice", tensor->name);
    void *table = layout->tensors;
    SHOAL_TRY(grow(&table, layout->n_tensors, sizeof *layout->tensors));
    layout->tensors = table;

    struct unit *unit = &layout->units[layout->n_units - 1];
    struct tensor *copy = &layout->tensors[layout->n_tensors];
    *copy = *tensor;
    copy->unit = layout->n_units - 1;
    copy->offset = unit->n_elements;
    copy->n_elements = 1;
    for (int i = 0; i < copy->ndim; i++) {
        if (copy->shape[i] < 1 || copy->shape[i] > INT64_MAX / copy->n_elements)
            return fail(SHOAL_ERR_INTERNAL, "tensor %s: dimension %d is %lld", copy->name, i,
                        (long long)copy->shape[i]);
        copy->n_elements *= copy->shape[i];
    }
    unit->n_elements += quantum_round_up(copy->n_elements);
    unit->n_tensors++;
    layout->n_tensors++;
    layout->n_parameters += copy->n_elements;
    return SHOAL_OK;
}

int64_t layout_shard_elements(const struct layout *layout, int unit, int n_ranks)
{
    int64_t quanta = layout->units[unit].n_elements / QUANTUM;

    return (quanta + n_ranks - 1) / n_ranks * QUANTUM;
}

struct shard layout_shard(const struct layout *layout, int unit, int rank, int n_ranks)
{
    int64_t n = layout_shard_elements(layout, unit, n_ranks);

    return (struct shard){.begin = rank * n, .end = (rank + 1) * n};
}

struct shard layout_tensor_part(const struct tensor *tensor, struct shard shard)
{
    int64_t begin = shard.begin - tensor->offset;
    int64_t end = shard.end - tensor->offset;

    if (begin < 0)
        begin = 0;
    if (end > tensor->n_elements)
        end = tensor->n_elements;
    if (end < begin)
        end = begin;
    return (struct shard){.begin = begin, .end = end};
}

int layout_find(const struct layout *layout, const char *name)
{
    for (int i = 0; i < layout->n_tensors; i++)
        if (strcmp(layout->tensors[i].name, name) == 0)
            return i;
    return -1;
}

const char *role_name(enum tensor_role role)
{
    static const char *const names[ROLE_COUNT] = {[ROLE_EMBEDDING] = "embedding",
                                                  [ROLE_POSITION] = "position",
                                                  [ROLE_QKV] = "qkv",
                                                  [ROLE_O] = "o",
                                                  [ROLE_GATE_UP] = "gate_up",
                                                  [ROLE_UP] = "up",
                                                  [ROLE_DOWN] = "down",
                                                  [ROLE_NORM] = "norm",
                                                  [ROLE_BIAS] = "bias",
                                                  [ROLE_HEAD] = "head"};

    return names[role];
}

#include "runtime/schedule/schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOT_ALIGN = 4096, SLOT_NAME_BYTES = 48 };

/* More than any address space, and far from where sums of sizes wrap around. */
static const size_t SPACE_MAX_BYTES = (size_t)1 << 56;

struct slot {
    char name[SLOT_NAME_BYTES];
    enum plan_row row;
    enum space space;
    size_t offset, n_bytes;
};

struct plan {
    struct slot *slots;
    int n_slots, cap_slots;
    size_t used[SPACE_COUNT];
    char *base[SPACE_COUNT];
};

shoal_status plan_create(struct plan **plan_out)
{
    struct plan *plan = calloc(1, sizeof *plan);

    if (plan == NULL)
        return fail(SHOAL_ERR_NOMEM, "plan: cannot allocate its record");
    *plan_out = plan;
    return SHOAL_OK;
}

void plan_destroy(struct plan *plan)
{
    if (plan == NULL)
        return;
    free(plan->slots);
    free(plan);
}

shoal_status plan_slot(struct plan *plan, const char *name, enum plan_row row, enum space space,
                       size_t n_bytes, int *slot_out)
{
    if (n_bytes > SPACE_MAX_BYTES || plan->used[space] > SPACE_MAX_BYTES - n_bytes)
        return fail(SHOAL_ERR_NOMEM, "plan: slot %s of %zu bytes is beyond the address space", name,
                    n_bytes);
    if (plan->n_slots == plan->cap_slots) {
        int cap = plan->cap_slots == 0 ? 64 : 2 * plan->cap_slots;
        struct slot *slots = realloc(plan->slots, (size_t)cap * sizeof *slots);
        if (slots == NULL)
            return fail(SHOAL_ERR_NOMEM, "plan: cannot grow to %d slots", cap);
        plan->slots = slots;
        plan->cap_slots = cap;
    }
    size_t rounded = (n_bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    struct slot *slot = &plan->slots[plan->n_slots];
    *slot =
        (struct slot){.row = row, .space = space, .offset = plan->used[space], .n_bytes = rounded};
    snprintf(slot->name, sizeof slot->name, "%s", name);
    plan->used[space] += rounded;
    *slot_out = plan->n_slots++;
    return SHOAL_OK;
}

size_t plan_space_bytes(const struct plan *plan, enum space space)
{
    return plan->used[space];
}

size_t plan_row_bytes(const struct plan *plan, enum plan_row row, enum space space)
{
    size_t sum = 0;

    for (int i = 0; i < plan->n_slots; i++)
        if (plan->slots[i].row == row && plan->slots[i].space == space)
            sum += plan->slots[i].n_bytes;
    return sum;
}

size_t plan_slot_bytes(const struct plan *plan, int slot)
{
    return plan->slots[slot].n_bytes;
}

enum space plan_slot_space(const struct plan *plan, int slot)
{
    return plan->slots[slot].space;
}

const char *plan_slot_name(const struct plan *plan, int slot)
{
    return plan->slots[slot].name;
}

int plan_slot_count(const struct plan *plan)
{
    return plan->n_slots;
}

const char *plan_row_name(enum plan_row row)
{
    static const char *const names[PLAN_ROW_COUNT] = {
        [PLAN_PARAM] = "weights",   [PLAN_MASTER] = "master weights",
        [PLAN_OPTIM] = "optimizer", [PLAN_GRAD] = "gradients",
        [PLAN_GATHER] = "gathered", [PLAN_ACTIVATION] = "activations",
        [PLAN_SCRATCH] = "scratch", [PLAN_DATA] = "tokens",
        [PLAN_CACHE] = "k/v cache"};

    return names[row];
}

void plan_bind(struct plan *plan, enum space space, void *base)
{
    plan->base[space] = base;
}

void *plan_base(const struct plan *plan, enum space space)
{
    return plan->base[space];
}

void *plan_ptr(const struct plan *plan, int slot, size_t offset_bytes)
{
    const struct slot *s = &plan->slots[slot];

    return plan->base[s->space] + s->offset + offset_bytes;
}

void *plan_ref(const struct plan *plan, struct slot_ref ref)
{
    return ref.slot < 0 ? NULL : plan_ptr(plan, ref.slot, ref.offset_bytes);
}

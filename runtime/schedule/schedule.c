#include "runtime/schedule/schedule.h"

#include "runtime/schedule/schedule_internal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ARG_BLOCK_BYTES = 64 << 10 };

shoal_status sched_create(const char *name, const struct plan *plan, struct schedule **sched_out)
{
    struct schedule *sched = calloc(1, sizeof *sched);

    if (sched == NULL)
        return fail(SHOAL_ERR_NOMEM, "schedule %s: cannot allocate its record", name);
    snprintf(sched->name, sizeof sched->name, "%s", name);
    sched->plan = plan;
    *sched_out = sched;
    return SHOAL_OK;
}

void sched_destroy(struct schedule *sched)
{
    if (sched == NULL)
        return;
    queues_release(sched);
    while (sched->args != NULL) {
        struct arg_block *next = sched->args->next;
        free(sched->args);
        sched->args = next;
    }
    free(sched->ops);
    free(sched->deps);
    free(sched->slot_states);
    free(sched->readers);
    free(sched->begin);
    free(sched->end);
    free(sched);
}

shoal_status sched_alloc(struct schedule *sched, size_t n_bytes, void **ptr_out)
{
    size_t rounded = (n_bytes + 63) / 64 * 64;

    if (sched->args == NULL || sched->args->capacity - sched->args->used < rounded) {
        size_t capacity = rounded > ARG_BLOCK_BYTES ? rounded : ARG_BLOCK_BYTES;
        struct arg_block *block = NULL;
        size_t total = (sizeof *block + capacity + 63) / 64 * 64;

        block = aligned_alloc(64, total);
        if (block == NULL)
            return fail(SHOAL_ERR_NOMEM, "schedule %s: cannot allocate %zu bytes", sched->name,
                        total);
        memset(block, 0, total);
        block->capacity = capacity;
        block->next = sched->args;
        sched->args = block;
    }
    *ptr_out = sched->args->bytes + sched->args->used;
    sched->args->used += rounded;
    return SHOAL_OK;
}

/* Make room for one more row in a table that doubles. */
static shoal_status reserve(void **table, int count, int *capacity, size_t row_bytes)
{
    if (count < *capacity)
        return SHOAL_OK;
    if (*capacity > INT_MAX / 2)
        return fail(SHOAL_ERR_NOMEM, "schedule: a table of %d rows cannot grow", *capacity);
    int bigger = *capacity == 0 ? 256 : 2 * *capacity;
    void *rows = realloc(*table, (size_t)bigger * row_bytes);
    if (rows == NULL)
        return fail(SHOAL_ERR_NOMEM, "schedule: cannot grow a table to %d rows", bigger);
    *table = rows;
    *capacity = bigger;
    return SHOAL_OK;
}

void op_uses(struct op *op, struct slot_ref ref, enum access access)
{
    if (ref.slot < 0)
        return;
    for (int i = 0; i < op->n_slots && i < OP_MAX_SLOTS; i++)
        if (op->slots[i].slot == ref.slot) {
            if (access == ACCESS_WRITE)
                op->slots[i].access = ACCESS_WRITE;
            return;
        }
    if (op->n_slots < OP_MAX_SLOTS) {
        op->slots[op->n_slots].slot = ref.slot;
        op->slots[op->n_slots].access = access;
    }
    op->n_slots++; /* past the limit: sched_append refuses */
}

static shoal_status add_dep(struct schedule *sched, struct op *op, int on)
{
    for (int i = op->first_dep; i < sched->n_deps; i++)
        if (sched->deps[i] == on)
            return SHOAL_OK;
    void *table = sched->deps;
    SHOAL_TRY(reserve(&table, sched->n_deps, &sched->cap_deps, sizeof *sched->deps));
    sched->deps = table;
    sched->deps[sched->n_deps++] = on;
    op->n_deps++;
    return SHOAL_OK;
}

static shoal_status track_slots(struct schedule *sched)
{
    int n = plan_slot_count(sched->plan);

    if (n <= sched->n_slot_states)
        return SHOAL_OK;
    struct slot_state *states = realloc(sched->slot_states, (size_t)n * sizeof *states);
    if (states == NULL)
        return fail(SHOAL_ERR_NOMEM, "schedule %s: cannot track %d slots", sched->name, n);
    for (int i = sched->n_slot_states; i < n; i++)
        states[i] = (struct slot_state){.last_writer = -1, .first_reader = -1};
    sched->slot_states = states;
    sched->n_slot_states = n;
    return SHOAL_OK;
}

/* A reader waits for the last writer; a writer also for all readers since. */
static shoal_status depend_through(struct schedule *sched, struct op *op, int index, int slot,
                                   enum access access)
{
    struct slot_state *state = &sched->slot_states[slot];

    if (state->last_writer >= 0)
        SHOAL_TRY(add_dep(sched, op, state->last_writer));
    if (access == ACCESS_READ) {
        void *table = sched->readers;
        SHOAL_TRY(reserve(&table, sched->n_readers, &sched->cap_readers, sizeof *sched->readers));
        sched->readers = table;
        sched->readers[sched->n_readers] =
            (struct reader){.op = index, .next = state->first_reader};
        state->first_reader = sched->n_readers++;
        return SHOAL_OK;
    }
    for (int i = state->first_reader; i >= 0; i = sched->readers[i].next)
        SHOAL_TRY(add_dep(sched, op, sched->readers[i].op));
    state->last_writer = index;
    state->first_reader = -1;
    return SHOAL_OK;
}

shoal_status sched_append(struct schedule *sched, const struct op *op)
{
    if (op->run == NULL || op->n_slots > OP_MAX_SLOTS)
        return fail(SHOAL_ERR_INTERNAL, "schedule %s: operation %d (%s) uses %d slots, at most %d",
                    sched->name, sched->n_ops, op_kind_name(op->kind), op->n_slots, OP_MAX_SLOTS);
    SHOAL_TRY(track_slots(sched));
    void *table = sched->ops;
    SHOAL_TRY(reserve(&table, sched->n_ops, &sched->cap_ops, sizeof *sched->ops));
    sched->ops = table;

    int index = sched->n_ops;
    struct op *copy = &sched->ops[index];
    *copy = *op;
    copy->n_deps = 0;
    copy->first_dep = sched->n_deps;
    for (int i = 0; i < copy->n_slots; i++)
        SHOAL_TRY(depend_through(sched, copy, index, copy->slots[i].slot, copy->slots[i].access));
    sched->n_ops++;
    return SHOAL_OK;
}

int sched_count(const struct schedule *sched)
{
    return sched->n_ops;
}

const struct op *sched_op(const struct schedule *sched, int index)
{
    return &sched->ops[index];
}

const int *sched_deps(const struct schedule *sched, const struct op *op)
{
    return sched->deps + op->first_dep;
}

const struct plan *sched_plan(const struct schedule *sched)
{
    return sched->plan;
}

void sched_name_units(struct schedule *sched, const char *const *names, int n)
{
    sched->unit_names = names;
    sched->n_unit_names = n;
}

const char *op_kind_name(enum op_kind kind)
{
    static const char *const names[OP_KIND_COUNT] = {
        [OP_DATA] = "data",         [OP_FETCH] = "fetch",       [OP_GATHER] = "gather",
        [OP_FORWARD] = "forward",   [OP_RELEASE] = "release",   [OP_STASH] = "stash",
        [OP_RESTORE] = "restore",   [OP_BACKWARD] = "backward", [OP_ACCUMULATE] = "accumulate",
        [OP_REDUCE] = "reduce",     [OP_NORM] = "norm",         [OP_LOAD] = "load",
        [OP_SNAPSHOT] = "snapshot", [OP_UPDATE] = "update",     [OP_STORE] = "store",
        [OP_PUBLISH] = "publish",   [OP_DECODE] = "decode"};

    return names[kind];
}

const char *lane_name(enum lane lane)
{
    static const char *const names[LANE_COUNT] = {[LANE_COMPUTE] = "compute",
                                                  [LANE_COMM] = "comm",
                                                  [LANE_H2D] = "host to device",
                                                  [LANE_D2H] = "device to host",
                                                  [LANE_DISK_READ] = "disk read",
                                                  [LANE_DISK_WRITE] = "disk write",
                                                  [LANE_HOST] = "host"};

    return names[lane];
}

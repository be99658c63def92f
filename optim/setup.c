#include "optim/optim_internal.h"
#include "optim/stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Which tensor gets what, and how many bytes that takes. */

enum { SMALLEST_CODED = 4096 };

static int64_t quanta(int64_t n)
{
    return (n + QUANTUM - 1) / QUANTUM;
}

static bool keeps_fp32(const struct tensor *tensor)
{
    return tensor->ndim < 2 || tensor->n_elements < SMALLEST_CODED ||
           tensor->role == ROLE_EMBEDDING || tensor->role == ROLE_HEAD ||
           tensor->role == ROLE_POSITION;
}

/* The kind's index; a new one is entered. */
static shoal_status enter_kind(struct optim_setup *setup, const char *state, const char *suffix,
                               int *kind_out)
{
    char name[OPTIM_KIND_BYTES];

    snprintf(name, sizeof name, "%s%s", state, suffix);
    for (int k = 0; k < setup->n_kinds; k++) {
        if (strcmp(setup->kinds[k], name) == 0) {
            *kind_out = k;
            return SHOAL_OK;
        }
    }
    if (setup->n_kinds == OPTIM_MAX_KINDS)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer.groups: the rules and codecs together keep more than %d kinds of "
                    "state",
                    (int)OPTIM_MAX_KINDS);
    *kind_out = setup->n_kinds;
    strcpy(setup->kinds[setup->n_kinds++], name);
    return SHOAL_OK;
}

/* Tensors of one group and rule share their scalars. */
static shoal_status enter_scalars(struct optim_setup *setup, struct optim_tensor *tensor)
{
    for (int i = 0; i < setup->n_scalars; i++) {
        if (setup->scalars[i].rule == tensor->rule && setup->scalars[i].group == tensor->group) {
            tensor->scalars = i;
            return SHOAL_OK;
        }
    }
    if (setup->n_scalars == OPTIM_MAX_GROUPS)
        return fail(SHOAL_ERR_CONFIG, "optimizer.groups: more than %d groups and rules",
                    (int)OPTIM_MAX_GROUPS);
    tensor->scalars = setup->n_scalars;
    setup->scalars[setup->n_scalars].rule = tensor->rule;
    setup->scalars[setup->n_scalars].group = tensor->group;
    setup->n_scalars++;
    return SHOAL_OK;
}

static bool has_rank1_scales(const struct optim_tensor *state, int k, const struct tensor *tensor)
{
    return state->codecs[k]->encode_scaled != NULL && state->rule->state_unsigned[k] &&
           tensor->ndim == 2;
}

static shoal_status resolve(struct optim_setup *setup, int index)
{
    const struct tensor *tensor = &setup->layout->tensors[index];
    struct optim_tensor *out = &setup->tensors[index];
    const struct optim_codec *fp32 = NULL, *int8 = NULL;
    int g = 0;

    while (!optim_group_matches(&setup->groups[g], tensor))
        if (++g == setup->n_groups)
            return fail(SHOAL_ERR_INTERNAL, "optimizer: no group matches tensor %s", tensor->name);

    const struct optim_group *group = &setup->groups[g];
    if (group->rule->n_states == 0 && group->state->bits != 32)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer.state: %s has nothing to hold: %s keeps no state per element",
                    group->state->name, group->rule->name);
    if (group->rule->average != NULL && !(group->hyper.beta1 > 0))
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer.betas: the first is %g, %s needs one above 0: its gradients are "
                    "taken between a fast point and the average",
                    group->hyper.beta1, group->rule->name);
    *out = (struct optim_tensor){.rule = group->rule, .group = g};
    out->decay = group->decay_forced || tensor->decay;
    SHOAL_TRY(enter_scalars(setup, out));
    SHOAL_TRY(codec_find("fp32", &fp32));
    SHOAL_TRY(codec_find("int8", &int8));
    out->rank1 = -1;
    for (int k = 0; k < OPTIM_MAX_STATES; k++) {
        out->codes[k] = out->scales[k] = -1;
        if (k >= out->rule->n_states)
            continue;
        out->codecs[k] = keeps_fp32(tensor) && !group->state_forced ? fp32 : group->state;
        if (out->rule->state_slow[k] && out->codecs[k]->coarse)
            out->codecs[k] = int8;
        SHOAL_TRY(enter_kind(setup, out->rule->state_names[k], "", &out->codes[k]));
        if (has_rank1_scales(out, k, tensor))
            out->rank1 = k;
        else if (out->codecs[k]->block > 0)
            SHOAL_TRY(enter_kind(setup, out->rule->state_names[k], ".scale", &out->scales[k]));
    }
    return SHOAL_OK;
}

/* Room for what a rule sums over this tensor. */
static shoal_status resolve_stats(struct optim_setup *setup, int index)
{
    struct optim_tensor *tensor = &setup->tensors[index];
    const struct optim_group *group = &setup->groups[tensor->group];

    if (optim_stats_of(tensor->rule, &group->hyper, tensor->rank1) == NULL)
        return SHOAL_OK;
    tensor->stats = calloc(1, sizeof *tensor->stats);
    if (tensor->stats == NULL)
        return fail(SHOAL_ERR_NOMEM, "optimizer: cannot allocate statistics");
    SHOAL_TRY(optim_stats_init(tensor->rule, &group->hyper, &setup->layout->tensors[index],
                               tensor->rank1, tensor->stats));
    for (int pass = 0; pass < STATS_MAX_PASSES; pass++) {
        if (tensor->stats->n_limbs[pass] > 0 && pass >= setup->n_passes)
            setup->n_passes = pass + 1;
    }
    tensor->limbs_at = setup->n_limbs;
    setup->n_limbs += (size_t)optim_stats_limbs(tensor->stats);
    return SHOAL_OK;
}

bool optim_pass_is_used(const struct optim_setup *setup, int pass)
{
    for (int t = 0; t < setup->layout->n_tensors; t++)
        if (setup->tensors[t].stats != NULL && setup->tensors[t].stats->n_limbs[pass] > 0)
            return true;
    return false;
}

static size_t tensor_vectors_bytes(const struct optim_tensor *tensor, int n_vectors)
{
    size_t n = 0;

    if (tensor->stats == NULL)
        return 0;
    for (int v = 0; v < n_vectors; v++)
        n += (size_t)tensor->stats->vector_elements[v] * sizeof(float);
    return n;
}

size_t optim_vectors_bytes(const struct optim_setup *setup, int unit)
{
    const struct unit *u = &setup->layout->units[unit];
    size_t n = 0;

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++)
        n += tensor_vectors_bytes(&setup->tensors[t], STATS_MAX_VECTORS);
    return n;
}

size_t optim_vector_offset(const struct optim_setup *setup, int tensor, int vector)
{
    return setup->tensors[tensor].vectors_at +
           tensor_vectors_bytes(&setup->tensors[tensor], vector);
}

void optim_rank1_vectors(const struct optim_setup *setup, int tensor, void *unit_vectors,
                         float **row_out, float **col_out)
{
    char *vectors = unit_vectors;

    *row_out = (float *)(void *)(vectors + optim_vector_offset(setup, tensor, ELEMENTS_ROW));
    *col_out = (float *)(void *)(vectors + optim_vector_offset(setup, tensor, ELEMENTS_COL));
}

static void place_vectors(struct optim_setup *setup)
{
    for (int unit = 0; unit < setup->layout->n_units; unit++) {
        const struct unit *u = &setup->layout->units[unit];
        size_t at = 0;

        for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++) {
            setup->tensors[t].vectors_at = at;
            at += tensor_vectors_bytes(&setup->tensors[t], STATS_MAX_VECTORS);
        }
    }
}

/* A group that the user wrote and that changes nothing is a mistake of theirs. */
static shoal_status check_groups(const struct optim_setup *setup)
{
    for (int g = 0; g < setup->n_groups - 1; g++) {
        bool used = false;

        for (int t = 0; t < setup->layout->n_tensors; t++)
            used = used || setup->tensors[t].group == g;
        if (!used) {
            fail(SHOAL_ERR_CONFIG, "optimizer.groups: \"%s\" matches no tensor of the model",
                 setup->groups[g].match);
            return fail_hint(SHOAL_ERR_CONFIG, "name a role (embedding, position, qkv, o, gate_up, "
                                               "up, down, norm, bias, head) or a pattern such as "
                                               "*.mlp.*; an earlier group may take them all");
        }
    }
    return SHOAL_OK;
}

shoal_status optim_setup_create(const struct layout *layout, const struct optim_group *groups,
                                int n_groups, const struct master_codec *master,
                                struct optim_setup **setup_out)
{
    shoal_status status = SHOAL_OK;

    if (n_groups > OPTIM_MAX_GROUPS)
        return fail(SHOAL_ERR_CONFIG, "optimizer.groups: %d groups, at most %d", n_groups - 1,
                    (int)OPTIM_MAX_GROUPS - 1);

    struct optim_setup *setup = calloc(1, sizeof *setup);
    if (setup == NULL)
        return fail(SHOAL_ERR_NOMEM, "optimizer: cannot allocate its setup");
    setup->layout = layout;
    setup->master = master;
    setup->n_groups = n_groups;
    memcpy(setup->groups, groups, (size_t)n_groups * sizeof *groups);
    setup->tensors = calloc((size_t)layout->n_tensors, sizeof *setup->tensors);
    if (setup->tensors == NULL) {
        status = fail(SHOAL_ERR_NOMEM, "optimizer: cannot allocate %d tensors", layout->n_tensors);
        goto err;
    }
    for (int t = 0; t < layout->n_tensors; t++) {
        SHOAL_TRY_GOTO(resolve(setup, t), err);
        SHOAL_TRY_GOTO(resolve_stats(setup, t), err);
    }
    place_vectors(setup);
    SHOAL_TRY_GOTO(check_groups(setup), err);
    *setup_out = setup;
    return SHOAL_OK;

err:
    optim_setup_destroy(setup);
    return status;
}

void optim_setup_destroy(struct optim_setup *setup)
{
    if (setup == NULL)
        return;
    for (int t = 0; setup->tensors != NULL && t < setup->layout->n_tensors; t++)
        free(setup->tensors[t].stats);
    free(setup->tensors);
    free(setup);
}

/* Bytes of a kind per quantum of a tensor. */
static size_t quantum_bytes(const struct optim_tensor *tensor, int kind)
{
    for (int k = 0; k < tensor->rule->n_states; k++) {
        const struct optim_codec *codec = tensor->codecs[k];

        if (tensor->codes[k] == kind)
            return codec_code_bytes(codec, QUANTUM);
        if (tensor->scales[k] == kind)
            return codec_scale_bytes(codec, QUANTUM);
    }
    return 0;
}

size_t optim_kind_offset(const struct optim_setup *setup, int tensor, int kind, struct shard range)
{
    const struct layout *layout = setup->layout;
    const struct unit *unit = &layout->units[layout->tensors[tensor].unit];
    size_t at = 0;

    for (int t = unit->first_tensor; t < tensor; t++) {
        const struct shard part = layout_tensor_part(&layout->tensors[t], range);

        at += (size_t)quanta(part.end - part.begin) * quantum_bytes(&setup->tensors[t], kind);
    }
    return at;
}

size_t optim_kind_bytes(const struct optim_setup *setup, int unit, int kind, struct shard range)
{
    const struct unit *u = &setup->layout->units[unit];
    const int last = u->first_tensor + u->n_tensors - 1;
    const struct shard part = layout_tensor_part(&setup->layout->tensors[last], range);

    return optim_kind_offset(setup, last, kind, range) +
           (size_t)quanta(part.end - part.begin) * quantum_bytes(&setup->tensors[last], kind);
}

size_t optim_kind_tensor_bytes(const struct optim_setup *setup, int tensor, int kind, int64_t n)
{
    const struct optim_tensor *t = &setup->tensors[tensor];

    for (int k = 0; k < t->rule->n_states; k++) {
        const struct optim_codec *codec = t->codecs[k];

        if (t->codes[k] == kind)
            return codec_code_bytes(codec, (size_t)n);
        if (t->scales[k] == kind)
            return codec_scale_bytes(codec, (size_t)n);
    }
    return 0;
}

double optim_state_bytes_per_parameter(const struct optim_setup *setup)
{
    double bytes = 0;

    for (int unit = 0; unit < setup->layout->n_units; unit++)
        bytes += (double)optim_vectors_bytes(setup, unit);
    for (int t = 0; t < setup->layout->n_tensors; t++)
        for (int kind = 0; kind < setup->n_kinds; kind++)
            bytes += (double)optim_kind_tensor_bytes(setup, t, kind,
                                                     setup->layout->tensors[t].n_elements);
    return bytes / (double)setup->layout->n_parameters;
}

void optim_step_begin(const struct optim_setup *setup, double lr, double share, uint64_t seed,
                      int64_t update, struct optim_step *step)
{
    for (int i = 0; i < setup->n_scalars; i++) {
        const struct optim_group *group = &setup->groups[setup->scalars[i].group];
        struct optim_hyper hyper = group->hyper;

        hyper.lr = lr * group->lr_scale;
        hyper.average_share = share;
        step->scalars[i] = setup->scalars[i].rule->scalars(&hyper, update);
    }
    step->seed = seed;
    step->update = update;
}

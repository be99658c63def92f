#include "optim/update_parts.h"

#include "optim/optim_internal.h"

#include <assert.h>
#include <string.h>

/* UPDATE for devices that are told addresses and numbers: see update_work.h. */

static_assert(sizeof(struct update_work) <= 4096, "what kernels take by value");
static_assert(sizeof(((struct update_part *)NULL)->f) == sizeof(struct optim_scalars), "scalars");

/* The rules, and what f[SCALAR_DECAY] is for a tensor that does not decay. */
static const struct {
    const struct optim_rule_forms *forms;
    float no_decay;
} RULES[RULE_COUNT] = {
    [RULE_ADAMW] = {&optim_adamw, 1},
    [RULE_ADAM] = {&optim_adam, 0},
    [RULE_ADAM_ATAN2] = {&optim_adam_atan2, 1},
    [RULE_ADEMAMIX] = {&optim_ademamix, 1},
    [RULE_ADOPT] = {&optim_adopt, 1},
    [RULE_LION] = {&optim_lion, 1},
    [RULE_MARS] = {&optim_mars, 1},
    [RULE_SGD] = {&optim_sgd, 0},
    [RULE_SCHEDULE_FREE] = {&optim_schedule_free, 0},
    [RULE_ADAMW_APEX] = {&optim_adamw_apex, 0},
    [RULE_ADAMW_BNB] = {&optim_adamw_bnb, 1},
    [RULE_ADAMW_DEEPSPEED] = {&optim_adamw_deepspeed, 0},
    [RULE_ADAMW_TORCH_FUSED] = {&optim_adamw_torch_fused, 0},
};

static const char *const CODECS[CODE_COUNT] = {
    [CODE_FP32] = "fp32", [CODE_BF16] = "bf16", [CODE_INT8] = "int8",
    [CODE_INT4] = "int4", [CODE_FP8] = "fp8",   [CODE_BNB8] = "bnb8",
    [CODE_AO8] = "ao8",   [CODE_AO4] = "ao4",   [CODE_LPMM4] = "lpmm4",
};

static const char *const MASTERS[MASTER_COUNT] = {
    [MASTER_FP32] = "fp32",
    [MASTER_SPLIT16] = "split16",
    [MASTER_ECC8] = "ecc8",
    [MASTER_BF16SR] = "bf16sr",
};

/* -1: none. */
static int rule_number(const struct optim_rule *rule)
{
    for (int i = 0; i < RULE_COUNT; i++)
        if (&RULES[i].forms->rule == rule)
            return i;
    return -1;
}

/* -1, which launchers refuse: not among the names. */
static int number_of(const char *name, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

shoal_status optim_check_device(const char *device, const struct optim_rule *rule,
                                const struct optim_hyper *hyper)
{
    if (strcmp(device, "cuda") != 0)
        return SHOAL_OK;
    if (rule_number(rule) >= 0 && optim_stats_of(rule, hyper) == NULL)
        return SHOAL_OK;
    fail(SHOAL_ERR_UNAVAILABLE, "optimizer.name: %s%s: not on cuda yet", rule->name,
         rule_number(rule) < 0 ? ""
         : hyper->cautious     ? " with optimizer.cautious"
                               : " with optimizer.tensor_clip");
    return fail_hint(SHOAL_ERR_UNAVAILABLE, "set run.device=cpu");
}

bool update_uses_maps(const struct optim_setup *setup, int unit)
{
    const struct unit *u = &setup->layout->units[unit];

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++)
        for (int k = 0; k < setup->tensors[t].rule->n_states; k++)
            if (number_of(setup->tensors[t].codecs[k]->name, CODECS, CODE_COUNT) >= CODE_BNB8)
                return true;
    return false;
}

static void fill_states(const struct tile_buffers *buffers, const struct tile *tile,
                        struct update_part *part)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];

    part->n_states = tensor->rule->n_states;
    for (int k = 0; k < part->n_states && k < WORK_STATES; k++) {
        part->codec[k] = number_of(tensor->codecs[k]->name, CODECS, CODE_COUNT);
        part->is_unsigned[k] = tensor->rule->state_unsigned[k];
        part->codes[k] = buffers->kinds[tensor->codes[k]] + tile->codes[k];
        if (tensor->scales[k] >= 0)
            part->scales[k] =
                (float *)(void *)(buffers->kinds[tensor->scales[k]] + tile->scales[k]);
    }
}

static void fill_part(const struct tile_buffers *buffers, const struct optim_step *step,
                      const struct tile *tile, struct update_part *part)
{
    const struct optim_tensor *tensor = &buffers->setup->tensors[tile->tensor];
    const struct master_codec *master = buffers->setup->master;
    const struct optim_scalars *scalars = &step->scalars[tensor->scalars];
    const int rule = rule_number(tensor->rule);

    assert(rule >= 0); /* optim_check_device */
    *part = (struct update_part){
        .grad = buffers->grad + tile->grad_at,
        .param = buffers->param == NULL ? NULL : buffers->param + tile->at,
        .key = master_key(step->seed, step->update, (uint64_t)tile->tensor),
        .begin = (uint64_t)tile->begin,
        .n = (uint32_t)tile->n,
        .rule = rule,
        .master = number_of(master->name, MASTERS, MASTER_COUNT),
        .decay = tensor->decay ? scalars->f[SCALAR_DECAY] : RULES[rule].no_decay,
    };
    if (master->bits > 0)
        part->low = buffers->master + (size_t)tile->at * (size_t)master->bits / 8;
    memcpy(part->f, scalars->f, sizeof part->f);
    fill_states(buffers, tile, part);
}

void update_work_fill(const struct tile_buffers *buffers, const struct optim_step *step,
                      const struct tile *tiles, size_t n, struct update_work *work)
{
    *work = (struct update_work){.n_parts = (int32_t)n, .grad_scale = step->grad_scale};
    for (size_t i = 0; i < n; i++) {
        fill_part(buffers, step, &tiles[i], &work->parts[i]);
        work->parts[i].first_block = work->n_blocks;
        work->n_blocks += (work->parts[i].n + QUANTUM - 1) / QUANTUM;
    }
}

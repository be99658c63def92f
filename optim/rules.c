#include "optim/codec_internal.h"
#include "optim/optim_internal.h"

#include "runtime/base/isa.h"

#include <pthread.h>
#include <string.h>

static struct optim_rule_forms *const RULES[] = {
    &optim_adamw,
    &optim_adam,
    &optim_adam_atan2,
    &optim_ademamix,
    &optim_adopt,
    &optim_lion,
    &optim_mars,
    &optim_schedule_free,
    &optim_sgd,
    &optim_adam_mini,
    &optim_adafactor,
    &optim_came,
    &optim_adamw_apex,
    &optim_adamw_bnb,
    &optim_adamw_deepspeed,
    &optim_adamw_torch_fused,
};

enum { N_RULES = sizeof RULES / sizeof RULES[0] };

static void choose_kernels(void)
{
    for (int i = 0; i < N_RULES; i++)
        RULES[i]->rule.kernel = RULES[i]->kernels[isa_best()];
}

static const char *rule_name(int i)
{
    return i < N_RULES ? RULES[i]->rule.name : NULL;
}

shoal_status optim_find(const char *name, const struct optim_rule **rule_out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, choose_kernels);
    for (int i = 0; i < N_RULES; i++) {
        const struct optim_rule *rule = &RULES[i]->rule;

        if (strcmp(rule->name, name) == 0) {
            *rule_out = rule;
            return SHOAL_OK;
        }
    }
    return optim_fail_unknown("optimizer", name, rule_name);
}

optim_kernel_fn *optim_kernel_for(const struct optim_rule *rule, const char *isa)
{
    for (int i = 0; i < N_RULES; i++) {
        for (enum isa form = ISA_SCALAR; &RULES[i]->rule == rule && form <= isa_best(); form++) {
            if (strcmp(isa_name(form), isa) == 0)
                return RULES[i]->kernels[form];
        }
    }
    return NULL;
}

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
    &optim_sgd,
    &optim_adam_mini,
    &optim_adafactor,
    &optim_came,
    &optim_adamw_apex,
    &optim_adamw_bnb,
    &optim_adamw_deepspeed,
    &optim_adamw_torch_fused,
};

enum { N_RULES = sizeof RULES / sizeof RULES[0], NAME_BYTES = 32 };

static void choose_kernels(void)
{
    for (int i = 0; i < N_RULES; i++)
        RULES[i]->rule.kernel = RULES[i]->kernels[isa_best()];
}

static size_t min3(size_t a, size_t b, size_t c)
{
    const size_t ab = a < b ? a : b;

    return ab < c ? ab : c;
}

/* Levenshtein distance; of a long name only the first NAME_BYTES count. */
static size_t edit_distance(const char *a, const char *b)
{
    const size_t a_bytes = strnlen(a, NAME_BYTES);
    const size_t b_bytes = strnlen(b, NAME_BYTES);
    size_t row[NAME_BYTES + 1];

    for (size_t j = 0; j <= b_bytes; j++)
        row[j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            const size_t above = row[j];

            row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[b_bytes];
}

shoal_status optim_find(const char *name, const struct optim_rule **rule_out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const struct optim_rule *nearest = &RULES[0]->rule;

    pthread_once(&once, choose_kernels);
    for (int i = 0; i < N_RULES; i++) {
        const struct optim_rule *rule = &RULES[i]->rule;

        if (strcmp(rule->name, name) == 0) {
            *rule_out = rule;
            return SHOAL_OK;
        }
        if (edit_distance(rule->name, name) < edit_distance(nearest->name, name))
            nearest = rule;
    }
    fail(SHOAL_ERR_CONFIG, "optimizer \"%s\": expected the name of a rule", name);
    return fail_hint(SHOAL_ERR_CONFIG, "did you mean \"%s\"?", nearest->name);
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

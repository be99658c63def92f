#include "optim/optim_internal.h"

#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Parameter groups: "norm,bias: weight_decay=0.1 lr_scale=0.5". */

enum { TEXT_BYTES = 256 };

static shoal_status read_number(const char *key, const char *text, double least, double most,
                                double *out)
{
    char *end = NULL;

    errno = 0;
    const double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(value >= least && value <= most))
        return fail(SHOAL_ERR_CONFIG, "optimizer.groups: %s=%s: expected a number from %g to %g",
                    key, text, least, most);
    *out = value;
    return SHOAL_OK;
}

static shoal_status read_betas(char *text, struct optim_hyper *hyper)
{
    char *comma = strchr(text, ',');

    if (comma == NULL)
        return fail(SHOAL_ERR_CONFIG, "optimizer.groups: betas=%s: expected two numbers, b1,b2",
                    text);
    *comma = '\0';
    SHOAL_TRY(read_number("betas", text, 0, 0.999999, &hyper->beta1));
    return read_number("betas", comma + 1, 0, 0.999999, &hyper->beta2);
}

static shoal_status read_word(char *word, struct optim_group *group)
{
    char *value = strchr(word, '=');

    if (value == NULL)
        return fail(SHOAL_ERR_CONFIG, "optimizer.groups: \"%s\": expected KEY=VALUE", word);
    *value++ = '\0';
    if (strcmp(word, "rule") == 0)
        return optim_find(value, &group->rule);
    if (strcmp(word, "state") == 0) {
        group->state_forced = true;
        return codec_find(value, &group->state);
    }
    if (strcmp(word, "weight_decay") == 0) {
        group->decay_forced = true;
        return read_number(word, value, 0, 100, &group->hyper.weight_decay);
    }
    if (strcmp(word, "lr_scale") == 0)
        return read_number(word, value, 0, 1000, &group->lr_scale);
    if (strcmp(word, "eps") == 0)
        return read_number(word, value, 1e-30, 1, &group->hyper.eps);
    if (strcmp(word, "momentum") == 0)
        return read_number(word, value, 0, 0.999999, &group->hyper.momentum);
    if (strcmp(word, "betas") == 0)
        return read_betas(value, &group->hyper);
    fail(SHOAL_ERR_CONFIG, "optimizer.groups: unknown word \"%s\"", word);
    return fail_hint(SHOAL_ERR_CONFIG,
                     "the words are rule, state, weight_decay, lr_scale, eps, momentum and betas");
}

shoal_status optim_group_parse(const char *text, const struct optim_group *base,
                               struct optim_group *group_out)
{
    struct optim_group group = *base;
    char copy[TEXT_BYTES];
    char *save = NULL;

    if (strlen(text) >= sizeof copy)
        return fail(SHOAL_ERR_CONFIG, "optimizer.groups: \"%.40s...\" is longer than %d characters",
                    text, TEXT_BYTES - 1);
    strcpy(copy, text);

    char *colon = strchr(copy, ':');
    if (colon == NULL || colon == copy || (size_t)(colon - copy) >= sizeof group.match) {
        fail(SHOAL_ERR_CONFIG, "optimizer.groups: \"%s\": expected MATCH: KEY=VALUE ...", text);
        return fail_hint(SHOAL_ERR_CONFIG, "for example \"embedding,head: rule=adamw state=fp32\"");
    }
    *colon = '\0';
    strcpy(group.match, copy);
    for (char *word = strtok_r(colon + 1, " ", &save); word != NULL;
         word = strtok_r(NULL, " ", &save))
        SHOAL_TRY(read_word(word, &group));
    *group_out = group;
    return SHOAL_OK;
}

bool optim_group_matches(const struct optim_group *group, const struct tensor *tensor)
{
    char copy[sizeof group->match];
    char *save = NULL;

    strcpy(copy, group->match);
    for (char *item = strtok_r(copy, ", ", &save); item != NULL; item = strtok_r(NULL, ", ", &save))
        if (strcmp(item, role_name(tensor->role)) == 0 || fnmatch(item, tensor->name, 0) == 0)
            return true;
    return false;
}

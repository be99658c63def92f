#include "models/model_internal.h"

/*
 * Checks of a config.  Upper limits keep every size of a model inside int64 and every width
 * inside int; they lie far above any model that exists.
 */

static shoal_status check_range(const char *key, int value, int max)
{
    if (value >= 1 && value <= max)
        return SHOAL_OK;
    fail(SHOAL_ERR_CONFIG, "%s: expected 1 to %d, found %d", key, max, value);
    return fail_hint(SHOAL_ERR_CONFIG, "set %s in that range, or take the sizes of a model.preset",
                     key);
}

static shoal_status check_sizes(const struct model_config *c)
{
    SHOAL_TRY(check_range("model.layers", c->layers, 1 << 14));
    SHOAL_TRY(check_range("model.hidden", c->hidden, 1 << 18));
    SHOAL_TRY(check_range("model.heads", c->heads, 1 << 12));
    SHOAL_TRY(check_range("model.kv_heads", c->kv_heads, 1 << 12));
    SHOAL_TRY(check_range("model.ffn", c->ffn, 1 << 20));
    SHOAL_TRY(check_range("model.vocab", c->vocab, 1 << 24));
    return check_range("model.max_seq", c->max_seq, 1 << 24);
}

static shoal_status check_heads(const struct model_config *c)
{
    if (c->hidden % c->heads != 0) {
        fail(SHOAL_ERR_CONFIG, "model.heads: %d heads do not divide model.hidden %d", c->heads,
             c->hidden);
        return fail_hint(SHOAL_ERR_CONFIG, "choose model.heads so that hidden / heads is whole, "
                                           "64 or 128 if possible");
    }
    if (c->heads % c->kv_heads != 0) {
        fail(SHOAL_ERR_CONFIG, "model.kv_heads: %d key/value heads do not divide model.heads %d",
             c->kv_heads, c->heads);
        return fail_hint(SHOAL_ERR_CONFIG, "every key/value head serves heads / kv_heads queries");
    }
    if (c->head_size < 2 || c->head_size > ATTENTION_HEAD_MAX || c->head_size % 2 != 0) {
        fail(SHOAL_ERR_CONFIG, "model.head_size: expected an even size up to %d, found %d",
             ATTENTION_HEAD_MAX, c->head_size);
        return fail_hint(SHOAL_ERR_CONFIG,
                         "change model.heads: a head has hidden / heads channels");
    }
    return SHOAL_OK;
}

static shoal_status check_choices(const struct model_config *c)
{
    if (c->norm != NORM_LAYER && c->norm != NORM_RMS)
        return fail(SHOAL_ERR_CONFIG, "model.norm: %d is no kind of norm", (int)c->norm);
    if (c->position != POSITION_LEARNED && c->position != POSITION_ROPE)
        return fail(SHOAL_ERR_CONFIG, "model.position: %d is no kind of position",
                    (int)c->position);
    if (c->mlp != MLP_GELU && c->mlp != MLP_SWIGLU)
        return fail(SHOAL_ERR_CONFIG, "model.mlp: %d is no kind of feed-forward", (int)c->mlp);
    /* Negated comparisons, so that NaN fails too. */
    if (!(c->norm_eps > 0.0f && c->norm_eps < 1.0f))
        return fail(SHOAL_ERR_CONFIG, "model.norm_eps: expected between 0 and 1, found %g",
                    (double)c->norm_eps);
    if (c->position == POSITION_ROPE && !(c->rope_theta > 1.0 && c->rope_theta < 1e15))
        return fail(SHOAL_ERR_CONFIG, "model.rope_theta: expected between 1 and 1e15, found %g",
                    c->rope_theta);
    return SHOAL_OK;
}

shoal_status model_config_check(const struct model_config *config)
{
    SHOAL_TRY(check_sizes(config));
    SHOAL_TRY(check_choices(config));
    return check_heads(config);
}

enum model_family model_family(const struct model_config *c)
{
    if (c->norm == NORM_LAYER && c->position == POSITION_LEARNED && c->mlp == MLP_GELU && c->bias &&
        c->kv_heads == c->heads && c->heads * c->head_size == c->hidden)
        return FAMILY_GPT2;
    if (c->norm == NORM_RMS && c->position == POSITION_ROPE && c->mlp == MLP_SWIGLU)
        return FAMILY_LLAMA;
    return FAMILY_OTHER;
}

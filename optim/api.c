#include "optim/api_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The installed header's optimizers: creating them, and what they need of the caller. */

enum { MAX_THREADS = 1024, UNIT = 0, TENSOR = 0 };

shoal_status shoal_threads_create(int n_threads, struct shoal_threads **threads_out)
{
    if (threads_out == NULL || n_threads < 1 || n_threads > MAX_THREADS)
        return fail(SHOAL_ERR_USAGE,
                    "shoal_threads_create: %d threads, expected 1 to %d, and a result", n_threads,
                    (int)MAX_THREADS);

    struct shoal_threads *threads = calloc(1, sizeof *threads);
    if (threads == NULL)
        return fail(SHOAL_ERR_NOMEM, "shoal_threads_create: no memory");

    const shoal_status status = pool_create(n_threads, -1, &threads->pool);
    if (status != SHOAL_OK) {
        free(threads);
        return status;
    }
    *threads_out = threads;
    return SHOAL_OK;
}

void shoal_threads_destroy(struct shoal_threads *threads)
{
    if (threads == NULL)
        return;
    pool_destroy(threads->pool);
    free(threads);
}

shoal_status api_copy(const char *what, const void *from, size_t given, size_t first, void *to,
                      size_t known)
{
    const unsigned char *bytes = from;

    if (given < first)
        return fail(SHOAL_ERR_USAGE, "%s: size is %zu, expected at least %zu", what, given, first);
    for (size_t i = known; i < given; i++)
        if (bytes[i] != 0)
            return fail(SHOAL_ERR_USAGE,
                        "%s: byte %zu of %zu is set, this library knows the first %zu alone", what,
                        i, given, known);
    memset(to, 0, known);
    memcpy(to, from, given < known ? given : known);
    return SHOAL_OK;
}

shoal_status api_check_buffer(const char *name, const void *buffer, size_t n_bytes, size_t align)
{
    if (n_bytes > 0 && buffer == NULL)
        return fail(SHOAL_ERR_USAGE, "optimizer buffer %s: it is NULL, expected %zu bytes", name,
                    n_bytes);
    if (n_bytes > 0 && (uintptr_t)buffer % align != 0)
        return fail(SHOAL_ERR_USAGE, "optimizer buffer %s: %p is not aligned to %zu bytes", name,
                    buffer, align);
    return SHOAL_OK;
}

static shoal_status check_number(const char *name, double value, double least, double most)
{
    if (!(value >= least && value <= most))
        return fail(SHOAL_ERR_CONFIG, "optimizer %s: %g, expected a number from %g to %g", name,
                    value, least, most);
    return SHOAL_OK;
}

/* The limits of the config's table of keys. */
static shoal_status check_numbers(const struct shoal_optim_params *params)
{
    SHOAL_TRY(check_number("beta1", params->beta1, 0, 0.999999));
    SHOAL_TRY(check_number("beta2", params->beta2, 0, 0.999999));
    SHOAL_TRY(check_number("eps", params->eps, 0, 1));
    SHOAL_TRY(check_number("weight_decay", params->weight_decay, 0, 100));
    SHOAL_TRY(check_number("momentum", params->momentum, 0, 0.999999));
    SHOAL_TRY(check_number("beta3", params->beta3, 0, 0.999999));
    SHOAL_TRY(check_number("alpha", params->alpha, 0, 1000));
    SHOAL_TRY(check_number("slow_warmup_steps", (double)params->slow_warmup_steps, 0, 0x1p53));
    SHOAL_TRY(check_number("gamma", params->gamma, 0, 100));
    return check_number("clip_threshold", params->clip_threshold, 0, 1e9);
}

static shoal_status fill_group(const struct shoal_optim_params *params, struct optim_group *group)
{
    *group = (struct optim_group){
        .match = "*", .lr_scale = 1, .state_forced = true, .decay_forced = true};
    group->hyper = (struct optim_hyper){.beta1 = params->beta1,
                                        .beta2 = params->beta2,
                                        .eps = params->eps,
                                        .weight_decay = params->weight_decay,
                                        .momentum = params->momentum,
                                        .nesterov = params->nesterov != 0,
                                        .beta3 = params->beta3,
                                        .alpha = params->alpha,
                                        .slow_warmup_steps = params->slow_warmup_steps,
                                        .gamma = params->gamma,
                                        .clip_threshold = params->clip_threshold,
                                        .scale_parameter = params->scale_parameter != 0,
                                        .relative_step = params->relative_step != 0,
                                        .cautious = params->cautious != 0,
                                        .tensor_clip = params->tensor_clip != 0};
    SHOAL_TRY(optim_find(params->rule != NULL ? params->rule : "adamw", &group->rule));
    return codec_find(params->state != NULL ? params->state : "fp32", &group->state);
}

static shoal_status find_role(const struct shoal_optim_params *params, enum tensor_role *role_out)
{
    if (params->role == NULL) {
        if (params->rule != NULL && strcmp(params->rule, "adam_mini") == 0)
            return fail(SHOAL_ERR_CONFIG,
                        "optimizer adam_mini: its blocks follow from the tensor's role; expected "
                        "one, such as \"qkv\", \"up\", \"norm\" or \"bias\"");
        *role_out = params->cols > 0 ? ROLE_O : ROLE_BIAS;
        return SHOAL_OK;
    }
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (strcmp(params->role, role_name((enum tensor_role)role)) == 0) {
            *role_out = (enum tensor_role)role;
            return SHOAL_OK;
        }
    }
    fail(SHOAL_ERR_CONFIG, "optimizer: \"%s\" is no role of a tensor", params->role);
    return fail_hint(SHOAL_ERR_CONFIG, "the roles are embedding, position, qkv, o, gate_up, up, "
                                       "down, norm, bias and head");
}

static shoal_status fill_tensor(const struct shoal_optim_params *params, struct tensor *tensor)
{
    const int64_t n = params->n_elements, rows = params->rows, cols = params->cols;
    const bool matrix = rows > 0 && cols > 0 && n / rows == cols && n % rows == 0;

    if (n < 1 || (!matrix && (rows != 0 || cols != 0)))
        return fail(SHOAL_ERR_USAGE,
                    "shoal_optim_create: %lld elements in %lld rows of %lld columns; expected the "
                    "product, or 0 rows and columns for one dimension",
                    (long long)n, (long long)rows, (long long)cols);
    *tensor = (struct tensor){.name = "tensor",
                              .ndim = matrix ? 2 : 1,
                              .shape = {matrix ? rows : n, cols},
                              .decay = true};
    SHOAL_TRY(find_role(params, &tensor->role));
    if (tensor->role != ROLE_QKV || params->heads == 0)
        return SHOAL_OK;

    tensor->heads = params->heads;
    tensor->kv_heads = params->kv_heads;
    tensor->head_size = params->head_size;
    tensor->n_splits = 3;
    tensor->splits[0] = (int64_t)params->heads * params->head_size;
    tensor->splits[1] = tensor->splits[2] = (int64_t)params->kv_heads * params->head_size;
    if (tensor->splits[0] < 1 || tensor->splits[1] < 1 ||
        tensor->splits[0] + 2 * tensor->splits[1] != rows)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer: %d and 2 times %d heads of %d rows are not the %lld rows of qkv",
                    params->heads, params->kv_heads, params->head_size, (long long)rows);
    return SHOAL_OK;
}

static void list_states(struct shoal_optim *optim, int64_t n)
{
    const struct optim_tensor *tensor = &optim->setup->tensors[TENSOR];
    const struct optim_stats *stats = tensor->stats;

    for (int kind = 0; kind < optim->setup->n_kinds; kind++)
        optim->states[optim->n_states++] = (struct api_state){
            .name = optim->setup->kinds[kind],
            .n_bytes = optim_kind_tensor_bytes(optim->setup, TENSOR, kind, n),
            .kind = kind,
            .vector = -1,
        };
    for (int v = 0; stats != NULL && v < stats->how->n_vectors; v++)
        if (stats->how->vectors[v].saved && stats->vector_elements[v] > 0)
            optim->states[optim->n_states++] = (struct api_state){
                .name = stats->how->vectors[v].name,
                .n_bytes = (size_t)stats->vector_elements[v] * sizeof(float),
                .kind = -1,
                .vector = v,
            };
}

static void place_scratch(struct shoal_optim *optim)
{
    const struct optim_stats *stats = optim->setup->tensors[TENSOR].stats;
    const size_t n_threads = optim->pool == NULL ? 1 : (size_t)pool_size(optim->pool);

    optim->scratch_bytes = n_threads * optim->setup->n_limbs * sizeof(int64_t);
    for (int v = 0; stats != NULL && v < stats->how->n_vectors; v++) {
        optim->vectors_at[v] = optim->scratch_bytes;
        if (!stats->how->vectors[v].saved)
            optim->scratch_bytes += (size_t)stats->vector_elements[v] * sizeof(float);
    }
}

static shoal_status cut_tiles(struct shoal_optim *optim)
{
    const struct shard whole = {0, optim->layout->units[UNIT].n_elements};

    optim->n_tiles = tiles_cut(optim->setup, UNIT, whole, whole, whole, NULL);
    optim->tiles = calloc(optim->n_tiles, sizeof *optim->tiles);
    if (optim->tiles == NULL)
        return fail(SHOAL_ERR_NOMEM, "optimizer: cannot allocate %zu tiles", optim->n_tiles);
    tiles_cut(optim->setup, UNIT, whole, whole, whole, optim->tiles);
    return SHOAL_OK;
}

static shoal_status fill(struct shoal_optim *optim, const struct shoal_optim_params *params)
{
    const struct master_codec *master = NULL;
    struct optim_group group;
    struct tensor tensor;

    SHOAL_TRY(check_numbers(params));
    SHOAL_TRY(fill_group(params, &group));
    SHOAL_TRY(fill_tensor(params, &tensor));
    SHOAL_TRY(master_codec_find(params->master != NULL ? params->master : "fp32", &master));
    SHOAL_TRY(layout_create(&optim->layout));
    SHOAL_TRY(layout_add_unit(optim->layout, "tensor"));
    SHOAL_TRY(layout_add_tensor(optim->layout, &tensor));
    SHOAL_TRY(optim_setup_create(optim->layout, &group, 1, master, &optim->setup));
    optim->pool = params->threads != NULL ? params->threads->pool : NULL;
    optim->key = params->key;
    list_states(optim, params->n_elements);
    place_scratch(optim);
    return cut_tiles(optim);
}

shoal_status shoal_optim_create(const struct shoal_optim_params *params,
                                struct shoal_optim **optim_out)
{
    const size_t first = offsetof(struct shoal_optim_params, tensor_clip) + sizeof(int);
    struct shoal_optim_params known;

    if (params == NULL || optim_out == NULL)
        return fail(SHOAL_ERR_USAGE, "shoal_optim_create: params or result is NULL");
    SHOAL_TRY(api_copy("shoal_optim_params", params, params->size, first, &known, sizeof known));

    struct shoal_optim *optim = calloc(1, sizeof *optim);
    if (optim == NULL)
        return fail(SHOAL_ERR_NOMEM, "optimizer: no memory");

    const shoal_status status = fill(optim, &known);
    if (status != SHOAL_OK) {
        shoal_optim_destroy(optim);
        return status;
    }
    *optim_out = optim;
    return SHOAL_OK;
}

void shoal_optim_destroy(struct shoal_optim *optim)
{
    if (optim == NULL)
        return;
    free(optim->tiles);
    optim_setup_destroy(optim->setup);
    layout_destroy(optim->layout);
    free(optim);
}

int shoal_optim_state_count(const struct shoal_optim *optim)
{
    return optim->n_states;
}

const char *shoal_optim_state_name(const struct shoal_optim *optim, int index)
{
    return index >= 0 && index < optim->n_states ? optim->states[index].name : NULL;
}

size_t shoal_optim_state_bytes(const struct shoal_optim *optim, int index)
{
    return index >= 0 && index < optim->n_states ? optim->states[index].n_bytes : 0;
}

size_t shoal_optim_master_bytes(const struct shoal_optim *optim)
{
    const size_t n = (size_t)optim->layout->tensors[TENSOR].n_elements;

    return n * (size_t)optim->setup->master->bits / 8;
}

size_t shoal_optim_scratch_bytes(const struct shoal_optim *optim)
{
    return optim->scratch_bytes;
}

#include "optim/api_internal.h"

#include <math.h>
#include <string.h>

/* The installed header's optimizers: weights in and out, and the step. */

enum { TENSOR = 0, SQUARES_TILE = 64 * 1024 };

static size_t elements(const struct shoal_optim *optim)
{
    return (size_t)optim->layout->tensors[TENSOR].n_elements;
}

static shoal_status check_weights(const struct shoal_optim *optim, const void *master,
                                  const uint16_t *param)
{
    const int bits = optim->setup->master->bits;
    const bool need_param = bits < 32;

    SHOAL_TRY(api_check_buffer("master", master, shoal_optim_master_bytes(optim),
                               bits >= 16 ? (size_t)bits / 8 : 1));
    return api_check_buffer("param", param,
                            need_param || param != NULL ? elements(optim) * sizeof *param : 0,
                            sizeof *param);
}

shoal_status shoal_optim_set_weights(const struct shoal_optim *optim, const float *weights,
                                     void *master, uint16_t *param)
{
    const struct master_codec *codec = optim->setup->master;
    const size_t n = elements(optim);

    SHOAL_TRY(api_check_buffer("weights", weights, n * sizeof *weights, sizeof *weights));
    SHOAL_TRY(check_weights(optim, master, param));
    if (codec->bits == 32)
        memmove(master, weights, n * sizeof *weights);
    else if (codec->bits > 0)
        codec->encode(weights, n, 0, 0, param, master);
    for (size_t i = 0; param != NULL && (codec->bits == 32 || codec->bits == 0) && i < n; i++)
        param[i] = bf16_from_f32(weights[i]);
    return SHOAL_OK;
}

shoal_status shoal_optim_get_weights(const struct shoal_optim *optim, const void *master,
                                     const uint16_t *param, float *weights)
{
    const struct master_codec *codec = optim->setup->master;
    const size_t n = elements(optim);

    SHOAL_TRY(api_check_buffer("weights", weights, n * sizeof *weights, sizeof *weights));
    SHOAL_TRY(check_weights(optim, master, param));
    if (codec->bits == 32)
        memmove(weights, master, n * sizeof *weights);
    else
        codec->decode(param, master, n, weights);
    return SHOAL_OK;
}

static shoal_status check_states(const struct shoal_optim *optim, void *const *states)
{
    if (optim->n_states > 0 && states == NULL)
        return fail(SHOAL_ERR_USAGE, "shoal_optim: states is NULL, expected %d pointers",
                    optim->n_states);
    for (int i = 0; i < optim->n_states; i++)
        SHOAL_TRY(api_check_buffer(optim->states[i].name, states[i], optim->states[i].n_bytes,
                                   sizeof(float)));
    return SHOAL_OK;
}

/* The caller's buffer of a kind; NULL: none. */
static const char *kind_of(const struct shoal_optim *optim, void *const *states, int kind)
{
    for (int i = 0; i < optim->n_states; i++)
        if (kind >= 0 && optim->states[i].kind == kind)
            return states[i];
    return NULL;
}

shoal_status shoal_optim_get_average(const struct shoal_optim *optim, const void *master,
                                     const uint16_t *param, void *const *states, float *weights)
{
    const struct optim_tensor *tensor = &optim->setup->tensors[TENSOR];
    const struct optim_codec *codec = tensor->codecs[0];
    float state[OPTIM_PIECE];

    SHOAL_TRY(check_states(optim, states));
    SHOAL_TRY(shoal_optim_get_weights(optim, master, param, weights));
    if (tensor->rule->average == NULL)
        return SHOAL_OK;

    const char *codes = kind_of(optim, states, tensor->codes[0]);
    const char *scales = kind_of(optim, states, tensor->scales[0]);
    for (size_t at = 0; at < elements(optim); at += OPTIM_PIECE) {
        const size_t left = elements(optim) - at;
        const size_t n = left < OPTIM_PIECE ? left : OPTIM_PIECE;

        codec->decode[tensor->rule->state_unsigned[0]](
            codes + codec_code_bytes(codec, at),
            scales == NULL ? NULL : scales + codec_scale_bytes(codec, at), n, state);
        tensor->rule->average(&optim->setup->groups[0].hyper, n, state, weights + at);
    }
    return SHOAL_OK;
}

/* ---- the sum of squares, of any number of elements ---- */

struct squares_job {
    const float *grad;
    const bf16_t *grad_bf16;
    size_t n;
    struct exact_sum sum;
};

/* A tile starts at a quantum; zeros make its end one. */
static void square_tile(void *job_arg, size_t tile, int thread)
{
    struct squares_job *job = job_arg;
    const size_t begin = tile * SQUARES_TILE;
    const size_t end = job->n - begin < SQUARES_TILE ? job->n : begin + SQUARES_TILE;
    float piece[OPTIM_PIECE];

    (void)thread;
    for (size_t at = begin; at < end; at += OPTIM_PIECE) {
        const size_t count = end - at < OPTIM_PIECE ? end - at : OPTIM_PIECE;

        for (size_t i = 0; i < count; i++)
            piece[i] = job->grad != NULL ? job->grad[at + i] : bf16_to_f32(job->grad_bf16[at + i]);
        memset(piece + count, 0, (OPTIM_PIECE - count) * sizeof *piece);
        optim_sum_squares(NULL, piece, OPTIM_PIECE, &job->sum);
    }
}

double api_grad_squares(struct pool *pool, const void *grad, bool is_bf16, size_t n)
{
    struct squares_job job = {
        .grad = is_bf16 ? NULL : grad, .grad_bf16 = is_bf16 ? grad : NULL, .n = n};

    exact_sum_clear(&job.sum);
    pool_run(pool, (n + SQUARES_TILE - 1) / SQUARES_TILE, square_tile, &job);
    return exact_sum_value(&job.sum);
}

static shoal_status check_grad(const struct shoal_optim *optim, const void *grad, int is_bf16)
{
    const size_t width = is_bf16 != 0 ? sizeof(bf16_t) : sizeof(float);

    return api_check_buffer("grad", grad, elements(optim) * width, width);
}

shoal_status shoal_optim_grad_squares(const struct shoal_optim *optim, const void *grad,
                                      int grad_is_bf16, double *squares_out)
{
    SHOAL_TRY(check_grad(optim, grad, grad_is_bf16));
    if (squares_out == NULL)
        return fail(SHOAL_ERR_USAGE, "shoal_optim_grad_squares: result is NULL");
    *squares_out = api_grad_squares(optim->pool, grad, grad_is_bf16 != 0, elements(optim));
    return SHOAL_OK;
}

/* ---- the step ---- */

static shoal_status check_update(const struct shoal_optim *optim,
                                 const struct shoal_optim_update *update)
{
    if (update->step < 1)
        return fail(SHOAL_ERR_USAGE, "shoal_optim_step: step %lld, expected 1 or more",
                    (long long)update->step);
    if (!(update->lr >= 0 && update->lr <= 100))
        return fail(SHOAL_ERR_USAGE, "shoal_optim_step: lr %g, expected a number from 0 to 100",
                    update->lr);
    if (!(update->grad_scale >= 0 && isfinite(update->grad_scale)))
        return fail(SHOAL_ERR_USAGE, "shoal_optim_step: grad_scale %g, expected a positive number",
                    (double)update->grad_scale);
    if (!(update->average_share >= 0 && update->average_share <= 1))
        return fail(SHOAL_ERR_USAGE,
                    "shoal_optim_step: average_share %g, expected a number from 0 to 1",
                    update->average_share);
    SHOAL_TRY(check_grad(optim, update->grad, update->grad_is_bf16));
    SHOAL_TRY(check_weights(optim, update->master, update->param));
    SHOAL_TRY(check_states(optim, update->states));
    return api_check_buffer("scratch", update->scratch, optim->scratch_bytes, sizeof(int64_t));
}

static void bind_buffers(const struct shoal_optim *optim, const struct shoal_optim_update *update,
                         float *vectors[STATS_MAX_VECTORS], struct tile_buffers *buffers)
{
    *buffers = (struct tile_buffers){
        .setup = optim->setup,
        .grad = update->grad_is_bf16 != 0 ? NULL : update->grad,
        .grad_bf16 = update->grad_is_bf16 != 0 ? update->grad : NULL,
        .master = optim->setup->master->bits > 0 ? update->master : NULL,
        .param = update->param,
        .own_vectors = vectors,
    };
    for (int v = 0; v < STATS_MAX_VECTORS; v++)
        vectors[v] = optim->scratch_bytes == 0
                         ? NULL
                         : (float *)(void *)((char *)update->scratch + optim->vectors_at[v]);
    for (int i = 0; i < optim->n_states; i++) {
        const struct api_state *state = &optim->states[i];

        if (state->kind >= 0)
            buffers->kinds[state->kind] = update->states[i];
        else
            vectors[state->vector] = update->states[i];
    }
}

/* What the sums' bounds rest on; only rules over sums look at it. */
static shoal_status find_squares(const struct shoal_optim *optim,
                                 const struct shoal_optim_update *update, struct optim_step *step)
{
    if (optim->setup->n_passes == 0)
        return SHOAL_OK;

    const double own =
        api_grad_squares(optim->pool, update->grad, update->grad_is_bf16 != 0, elements(optim));
    step->grad_squares = update->grad_squares > own ? update->grad_squares : own;
    if (!isfinite(step->grad_squares))
        return fail(SHOAL_ERR_NONFINITE,
                    "optimizer %s: step %lld: the gradient or grad_squares is not finite",
                    optim->setup->groups[0].rule->name, (long long)update->step);
    return SHOAL_OK;
}

shoal_status shoal_optim_step(struct shoal_optim *optim, const struct shoal_optim_update *given)
{
    const size_t first = offsetof(struct shoal_optim_update, scratch) + sizeof(void *);
    struct shoal_optim_update update;
    float *vectors[STATS_MAX_VECTORS];

    if (optim == NULL || given == NULL)
        return fail(SHOAL_ERR_USAGE, "shoal_optim_step: optimizer or update is NULL");
    SHOAL_TRY(api_copy("shoal_optim_update", given, given->size, first, &update, sizeof update));
    SHOAL_TRY(check_update(optim, &update));

    struct optim_step step = {.grad_scale = update.grad_scale == 0 ? 1.0f : update.grad_scale};
    SHOAL_TRY(find_squares(optim, &update, &step));

    const double share =
        update.average_share > 0 ? update.average_share : 1.0 / (double)update.step;
    optim_step_begin(optim->setup, update.lr, share, update.seed, update.step, &step);

    struct tile_work work = {.step = &step,
                             .pool = optim->pool,
                             .tiles = optim->tiles,
                             .n_tiles = optim->n_tiles,
                             .first_tensor = optim->key};
    bind_buffers(optim, &update, vectors, &work.buffers);
    for (int pass = 0; pass < optim->setup->n_passes; pass++) {
        if (!optim_pass_is_used(optim->setup, pass))
            continue;
        tiles_sum(&work, pass, 0, optim->setup->n_limbs, update.scratch);
        tiles_sum_finish(&work, TENSOR, 1, pass, update.scratch);
    }
    tiles_update(&work);
    return SHOAL_OK;
}

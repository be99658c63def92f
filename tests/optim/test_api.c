#include "optim/stats.h"
#include "tests/optim/world.h"

#include "runtime/shoal.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The installed header's optimizers against UPDATE as a run does it: the world of world.h trains a
 * unit of tensors, and an optimizer per tensor must keep up with it byte for byte.
 */

enum { MAX_API_STATES = 16, N_UPDATES = 3, RUN_SEED = 11 };

static const double LR = 1e-2;

struct api {
    struct shoal_threads *threads;
    struct shoal_optim *optim;
    struct shoal_optim_update update;
    void *states[MAX_API_STATES];
};

/* As world.c has them; a tensor without decay has a weight decay of 0 here. */
static struct shoal_optim_params params_of(const struct world *world, int t,
                                           const struct world_params *as)
{
    const struct tensor *tensor = &world->layout->tensors[t];

    return (struct shoal_optim_params){
        .size = sizeof(struct shoal_optim_params),
        .rule = as->rule,
        .state = as->state,
        .master = as->master,
        .n_elements = tensor->n_elements,
        .rows = tensor->ndim == 2 ? tensor->shape[0] : 0,
        .cols = tensor->ndim == 2 ? tensor->shape[1] : 0,
        .role = role_name(tensor->role),
        .heads = tensor->heads,
        .kv_heads = tensor->kv_heads,
        .head_size = tensor->head_size,
        .key = (uint64_t)t,
        .beta1 = 0.9,
        .beta2 = 0.95,
        .eps = 1e-8,
        .weight_decay = tensor->decay ? 0.1 : 0,
        .momentum = 0.9,
        .beta3 = 0.999,
        .alpha = 5,
        .gamma = 0.025,
        .cautious = as->cautious,
        .tensor_clip = as->tensor_clip,
    };
}

/* Exactly as many bytes as asked for, so that a sanitizer sees what reaches further. */
static void *zeros(size_t n_bytes)
{
    void *p = n_bytes == 0 ? NULL : calloc(1, n_bytes);

    cr_assert(n_bytes == 0 || p != NULL);
    return p;
}

static void api_open(struct api *api, struct shoal_optim_params params, int n_threads)
{
    *api = (struct api){.update = {.size = sizeof(struct shoal_optim_update)}};
    if (n_threads > 1)
        cr_assert_eq(shoal_threads_create(n_threads, &api->threads), SHOAL_OK);
    params.threads = api->threads;
    cr_assert_eq(shoal_optim_create(&params, &api->optim), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_leq(shoal_optim_state_count(api->optim), MAX_API_STATES);
    for (int i = 0; i < shoal_optim_state_count(api->optim); i++)
        api->states[i] = zeros(shoal_optim_state_bytes(api->optim, i));
    api->update.states = api->states;
    api->update.master = zeros(shoal_optim_master_bytes(api->optim));
    api->update.param = zeros((size_t)params.n_elements * sizeof(uint16_t));
    api->update.scratch = zeros(shoal_optim_scratch_bytes(api->optim));
    api->update.lr = LR;
    api->update.seed = RUN_SEED;
}

static void api_close(struct api *api)
{
    for (int i = 0; i < MAX_API_STATES; i++)
        free(api->states[i]);
    free(api->update.master);
    free(api->update.param);
    free(api->update.scratch);
    shoal_optim_destroy(api->optim);
    shoal_threads_destroy(api->threads);
}

/* Where the world keeps the tensor's state called `name`. */
static const void *world_state(const struct world *world, int t, const char *name, size_t *n_out)
{
    const struct optim_setup *setup = world->setup;
    const struct optim_stats *stats = setup->tensors[t].stats;
    const struct shard whole = {0, (int64_t)world->shard};

    for (int kind = 0; kind < setup->n_kinds; kind++) {
        if (strcmp(setup->kinds[kind], name) == 0) {
            *n_out = optim_kind_tensor_bytes(setup, t, kind, world->layout->tensors[t].n_elements);
            return (const char *)plan_ref(world->plan, world->refs[0].kinds[kind]) +
                   optim_kind_offset(setup, t, kind, whole);
        }
    }
    for (int v = 0; stats != NULL && v < stats->how->n_vectors; v++) {
        if (strcmp(stats->how->vectors[v].name, name) == 0) {
            *n_out = (size_t)stats->vector_elements[v] * sizeof(float);
            return (const char *)plan_ref(world->plan, world->refs[0].vectors) +
                   optim_vector_offset(setup, t, v);
        }
    }
    cr_assert_fail("no state %s", name);
    return NULL;
}

static void *tensor_at(const struct world *world, struct slot_ref ref, int t, size_t bits)
{
    return (char *)plan_ref(world->plan, ref) + (size_t)world->layout->tensors[t].offset * bits / 8;
}

static void same_bytes(const void *got, const void *want, size_t n, const char *name,
                       const struct world_params *as, int t)
{
    cr_assert(n == 0 || memcmp(got, want, n) == 0, "%s %s %s, tensor %d: %s differs", as->rule,
              as->state, as->master, t, name);
}

static void compare(const struct api *api, const struct world *world, int t,
                    const struct world_params *as)
{
    const size_t bits = (size_t)world->setup->master->bits;
    const size_t n = (size_t)world->layout->tensors[t].n_elements;

    for (int i = 0; i < shoal_optim_state_count(api->optim); i++) {
        const char *name = shoal_optim_state_name(api->optim, i);
        size_t n_bytes = 0;
        const void *want = world_state(world, t, name, &n_bytes);

        cr_assert_eq(shoal_optim_state_bytes(api->optim, i), n_bytes, "%s", name);
        same_bytes(api->states[i], want, n_bytes, name, as, t);
    }
    cr_assert_eq(shoal_optim_master_bytes(api->optim), n * bits / 8);
    if (bits > 0)
        same_bytes(api->update.master, tensor_at(world, world->refs[0].master, t, bits),
                   n * bits / 8, "master", as, t);
    same_bytes(api->update.param, tensor_at(world, world->refs[0].param, t, 16), n * 2, "param", as,
               t);
}

/* Weights are those the world starts from, by way of fp32. */
static void start(const struct world *world, struct api *api, int t, const struct world_params *as)
{
    const size_t bits = (size_t)world->setup->master->bits;
    const size_t n = (size_t)world->layout->tensors[t].n_elements;
    const void *low = bits == 0 ? NULL : tensor_at(world, world->refs[0].master, t, bits);
    float *weights = zeros(n * sizeof *weights);

    cr_assert_eq(shoal_optim_get_weights(api->optim, low,
                                         tensor_at(world, world->refs[0].param, t, 16), weights),
                 SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(
        shoal_optim_set_weights(api->optim, weights, api->update.master, api->update.param),
        SHOAL_OK, "%s", shoal_last_error());
    if (bits < 32) /* the world has no copy of fp32 weights before its first update */
        compare(api, world, t, as);
    free(weights);
}

static void keeps_up(struct world_params as, int n_threads)
{
    enum { N_TENSORS = 7 };
    static struct api apis[N_TENSORS];
    struct world world;
    char group[32];

    snprintf(group, sizeof group, "*: state=%s", as.state);
    as.add_group = group;
    world_open(&world, &as);
    cr_assert_eq(world.layout->n_tensors, N_TENSORS);
    for (int t = 0; t < N_TENSORS; t++) {
        api_open(&apis[t], params_of(&world, t, &as), n_threads);
        start(&world, &apis[t], t, &as);
    }
    for (int64_t step = 1; step <= N_UPDATES; step++) {
        world_update(&world, step, LR);
        for (int t = 0; t < N_TENSORS; t++) {
            struct shoal_optim_update *update = &apis[t].update;

            update->step = step;
            update->grad = tensor_at(&world, world.refs[0].grad, t, 32);
            update->grad_scale = world.step.grad_scale;
            update->grad_squares = world.step.grad_squares;
            cr_assert_eq(shoal_optim_step(apis[t].optim, update), SHOAL_OK, "%s",
                         shoal_last_error());
            compare(&apis[t], &world, t, &as);
        }
    }
    for (int t = 0; t < N_TENSORS; t++)
        api_close(&apis[t]);
    world_close(&world);
}

Test(api, gives_the_bytes_of_update_for_every_rule)
{
    static const char *const rules[] = {
        "adamw",         "adam",       "adam_atan2", "ademamix",        "adopt",
        "lion",          "mars",       "sgd",        "adam_mini",       "adafactor",
        "came",          "adamw_apex", "adamw_bnb",  "adamw_deepspeed", "adamw_torch_fused",
        "schedule_free",
    };

    for (size_t r = 0; r < sizeof rules / sizeof rules[0]; r++) {
        keeps_up((struct world_params){.rule = rules[r], .state = "fp32", .master = "fp32"}, 1);
        if (strcmp(rules[r], "adafactor") != 0) /* it has no state per element */
            keeps_up((struct world_params){.rule = rules[r], .state = "int8", .master = "ecc8"}, 3);
    }
}

Test(api, gives_the_bytes_of_update_for_every_codec)
{
    for (int s = 0; codec_name(s) != NULL; s++)
        keeps_up((struct world_params){.rule = "adamw",
                                       .state = codec_name(s),
                                       .master = master_codec_name(s % 4)},
                 1 + s % 3);
    for (int m = 0; master_codec_name(m) != NULL; m++)
        keeps_up(
            (struct world_params){.rule = "came", .state = "bf16", .master = master_codec_name(m)},
            2);
}

Test(api, gives_the_bytes_of_update_with_options_that_look_at_whole_tensors)
{
    keeps_up(
        (struct world_params){
            .rule = "adamw", .state = "int8", .master = "split16", .cautious = true},
        3);
    keeps_up(
        (struct world_params){
            .rule = "mars", .state = "fp32", .master = "fp32", .tensor_clip = true},
        1);
}

/* ---- on its own ---- */

enum { N = 70 * 1000 + 3 };

static const struct shoal_optim_params plain = {.size = sizeof plain,
                                                .rule = "adamw",
                                                .n_elements = N,
                                                .beta1 = 0.9,
                                                .beta2 = 0.95,
                                                .eps = 1e-8,
                                                .weight_decay = 0.1};

static float grad_at(size_t i)
{
    return bf16_to_f32(bf16_from_f32(sinf((float)i)));
}

static void step_once(struct api *api, int64_t step, const void *grad, int is_bf16)
{
    api->update.step = step;
    api->update.grad = grad;
    api->update.grad_is_bf16 = is_bf16;
    cr_assert_eq(shoal_optim_step(api->optim, &api->update), SHOAL_OK, "%s", shoal_last_error());
}

Test(api, takes_gradients_in_bf16_as_the_numbers_they_are)
{
    static const char *const rules[] = {"adamw", "adafactor"};
    static float grad[N];
    static uint16_t half[N];

    for (size_t i = 0; i < N; i++)
        half[i] = bf16_from_f32(grad[i] = grad_at(i));
    for (int r = 0; r < 2; r++) {
        struct shoal_optim_params params = plain;
        struct api wide, narrow;

        params.rule = rules[r];
        api_open(&wide, params, 1);
        api_open(&narrow, params, 2);
        for (int64_t step = 1; step <= 3; step++) {
            step_once(&wide, step, grad, 0);
            step_once(&narrow, step, half, 1);
        }
        cr_assert_arr_eq(narrow.update.master, wide.update.master, N * sizeof(float));
        for (int i = 0; i < shoal_optim_state_count(wide.optim); i++)
            cr_assert_arr_eq(narrow.states[i], wide.states[i],
                             shoal_optim_state_bytes(wide.optim, i));
        api_close(&wide);
        api_close(&narrow);
    }
}

Test(api, sums_the_squares_of_any_number_of_elements)
{
    static float grad[N];
    static uint16_t half[N];
    struct api api;
    double want = 0, got = -1, got_half = -1;

    for (size_t i = 0; i < N; i++) {
        half[i] = bf16_from_f32(grad[i] = grad_at(i));
        want += (double)grad[i] * grad[i]; /* squares of bf16 numbers: exact but for the sum */
    }
    api_open(&api, plain, 2);
    cr_assert_eq(shoal_optim_grad_squares(api.optim, grad, 0, &got), SHOAL_OK);
    cr_assert_eq(shoal_optim_grad_squares(api.optim, half, 1, &got_half), SHOAL_OK);
    cr_assert_leq(fabs(got - want), N * 0x1p-53 * want);
    cr_assert_eq(got, got_half);
    grad[N - 1] = INFINITY;
    cr_assert_eq(shoal_optim_grad_squares(api.optim, grad, 0, &got), SHOAL_OK);
    cr_assert(!isfinite(got));
    cr_assert_eq(shoal_optim_grad_squares(api.optim, grad, 0, NULL), SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_optim_grad_squares(api.optim, NULL, 0, &got), SHOAL_ERR_USAGE);
    api_close(&api);
}

Test(api, changes_nothing_where_a_rule_over_sums_meets_a_nan)
{
    static float grad[N];
    static const uint16_t untouched[N];
    struct shoal_optim_params params = plain;
    struct api api;

    params.rule = "adafactor";
    api_open(&api, params, 1);
    grad[N - 1] = NAN;
    api.update.step = 1;
    api.update.grad = grad;
    cr_assert_eq(shoal_optim_step(api.optim, &api.update), SHOAL_ERR_NONFINITE);
    cr_assert_not_null(strstr(shoal_last_error(), "adafactor"));
    cr_assert_arr_eq(api.update.param, untouched, sizeof untouched);
    for (int i = 0; i < shoal_optim_state_count(api.optim); i++)
        for (size_t k = 0; k < shoal_optim_state_bytes(api.optim, i); k++)
            cr_assert_eq(((char *)api.states[i])[k], 0);

    grad[N - 1] = 1;
    api.update.grad_squares = INFINITY;
    cr_assert_eq(shoal_optim_step(api.optim, &api.update), SHOAL_ERR_NONFINITE);
    api.update.grad_squares = NAN; /* not more than the tensor's own */
    cr_assert_eq(shoal_optim_step(api.optim, &api.update), SHOAL_OK);
    api_close(&api);
}

Test(api, names_its_states_and_their_bytes)
{
    struct shoal_optim_params params = plain;
    struct api api;

    params.state = "int8";
    params.n_elements = 33;
    api_open(&api, params, 1);
    cr_assert_eq(shoal_optim_state_count(api.optim), 4);
    cr_assert_str_eq(shoal_optim_state_name(api.optim, 0), "exp_avg");
    cr_assert_str_eq(shoal_optim_state_name(api.optim, 1), "exp_avg.scale");
    cr_assert_eq(shoal_optim_state_bytes(api.optim, 0), 33);
    cr_assert_null(shoal_optim_state_name(api.optim, 4));
    cr_assert_null(shoal_optim_state_name(api.optim, -1));
    cr_assert_eq(shoal_optim_state_bytes(api.optim, 4), 0);
    cr_assert_eq(shoal_optim_scratch_bytes(api.optim), 0);
    api_close(&api);
    shoal_optim_destroy(NULL);
    shoal_threads_destroy(NULL);
}

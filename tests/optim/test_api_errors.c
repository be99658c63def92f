#include "runtime/shoal.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The installed header's optimizers: what they refuse, and memory that runs out. */

/* ---- an allocator that counts and can fail ---- */

#ifndef __SANITIZE_ADDRESS__
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

static atomic_long n_allocated;
static atomic_long until_failure = -1; /* allocations that still succeed; -1: all */

static bool refused(void)
{
    atomic_fetch_add(&n_allocated, 1);
    if (atomic_load(&until_failure) < 0)
        return false;
    return atomic_fetch_sub(&until_failure, 1) == 0;
}

void *malloc(size_t n)
{
    return refused() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return refused() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return refused() ? NULL : __libc_realloc(p, n);
}
#endif

enum { ROWS = 130, COLS = 31, N = ROWS * COLS, MAX_STATES = 16 };

static const struct shoal_optim_params good = {.size = sizeof good,
                                               .rule = "adamw",
                                               .n_elements = N,
                                               .rows = ROWS,
                                               .cols = COLS,
                                               .beta1 = 0.9,
                                               .beta2 = 0.95,
                                               .eps = 1e-8,
                                               .weight_decay = 0.1};

static void refuses(const struct shoal_optim_params *params, shoal_status status, const char *word)
{
    struct shoal_optim *optim = NULL;

    cr_assert_eq(shoal_optim_create(params, &optim), status, "%s", word);
    cr_assert_not_null(strstr(shoal_last_error(), word), "\"%s\" lacks \"%s\"", shoal_last_error(),
                       word);
    cr_assert_null(optim);
}

#define REFUSES(status, word, ...)                                                                 \
    do {                                                                                           \
        struct shoal_optim_params params = good;                                                   \
        struct shoal_optim_params *p = &params;                                                    \
        __VA_ARGS__;                                                                               \
        refuses(p, status, word);                                                                  \
    } while (0)

Test(api_errors, refuses_names_and_numbers_that_no_run_could_have)
{
    REFUSES(SHOAL_ERR_CONFIG, "adamv", p->rule = "adamv");
    REFUSES(SHOAL_ERR_CONFIG, "int7", p->state = "int7");
    REFUSES(SHOAL_ERR_CONFIG, "split15", p->master = "split15");
    REFUSES(SHOAL_ERR_CONFIG, "nose", p->role = "nose");
    REFUSES(SHOAL_ERR_CONFIG, "role", p->rule = "adam_mini");
    REFUSES(SHOAL_ERR_CONFIG, "beta1", p->beta1 = 1);
    REFUSES(SHOAL_ERR_CONFIG, "beta2", p->beta2 = -0.1);
    REFUSES(SHOAL_ERR_CONFIG, "beta3", p->beta3 = 1);
    REFUSES(SHOAL_ERR_CONFIG, "eps", p->eps = (double)NAN);
    REFUSES(SHOAL_ERR_CONFIG, "weight_decay", p->weight_decay = -1);
    REFUSES(SHOAL_ERR_CONFIG, "momentum", p->momentum = 1);
    REFUSES(SHOAL_ERR_CONFIG, "alpha", p->alpha = (double)INFINITY);
    REFUSES(SHOAL_ERR_CONFIG, "slow_warmup_steps", p->slow_warmup_steps = -1);
    REFUSES(SHOAL_ERR_CONFIG, "gamma", p->gamma = -1);
    REFUSES(SHOAL_ERR_CONFIG, "clip_threshold", p->clip_threshold = -1);
    REFUSES(SHOAL_ERR_CONFIG, "cautious", p->rule = "adamw_bnb", p->cautious = 1);
    REFUSES(SHOAL_ERR_CONFIG, "cautious", p->rule = "sgd", p->cautious = 1);
    REFUSES(SHOAL_ERR_CONFIG, "no state", p->rule = "adafactor", p->state = "int8");
    REFUSES(SHOAL_ERR_CONFIG, "qkv", p->role = "qkv", p->heads = 2, p->kv_heads = 1);
    REFUSES(SHOAL_ERR_CONFIG, "adam_mini", p->rule = "adam_mini", p->role = "qkv");
}

Test(api_errors, refuses_calls_that_are_wrong_in_themselves)
{
    struct shoal_optim *optim = NULL;
    struct shoal_threads *threads = NULL;
    struct {
        struct shoal_optim_params params;
        char more[8];
    } newer = {.params = good};

    REFUSES(SHOAL_ERR_USAGE, "NULL", p = NULL);
    cr_assert_eq(shoal_optim_create(&good, NULL), SHOAL_ERR_USAGE);
    REFUSES(SHOAL_ERR_USAGE, "size", p->size = 0);
    REFUSES(SHOAL_ERR_USAGE, "size", p->size -= 16);
    REFUSES(SHOAL_ERR_USAGE, "elements", p->n_elements = 0);
    REFUSES(SHOAL_ERR_USAGE, "elements", p->n_elements = N - 1);
    REFUSES(SHOAL_ERR_USAGE, "elements", p->rows = 0);
    REFUSES(SHOAL_ERR_USAGE, "elements", p->rows = -ROWS, p->cols = -COLS);
    REFUSES(SHOAL_ERR_USAGE, "elements", p->rows = INT64_MAX, p->cols = 2);

    newer.params.size = sizeof newer;
    newer.more[7] = 1;
    refuses(&newer.params, SHOAL_ERR_USAGE, "is set");
    newer.more[7] = 0;
    cr_assert_eq(shoal_optim_create(&newer.params, &optim), SHOAL_OK);
    shoal_optim_destroy(optim);

    cr_assert_eq(shoal_threads_create(0, &threads), SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_threads_create(1025, &threads), SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_threads_create(1, NULL), SHOAL_ERR_USAGE);
    cr_assert_null(threads);
}

struct run {
    struct shoal_optim *optim;
    struct shoal_optim_update update;
    void *states[MAX_STATES];
};

static void open_run(struct run *run, const struct shoal_optim_params *params)
{
    *run = (struct run){.update = {.size = sizeof run->update, .step = 1, .lr = 0.1}};
    cr_assert_eq(shoal_optim_create(params, &run->optim), SHOAL_OK, "%s", shoal_last_error());
    for (int i = 0; i < shoal_optim_state_count(run->optim); i++)
        run->states[i] = calloc(1, shoal_optim_state_bytes(run->optim, i));
    run->update.states = run->states;
    run->update.grad = calloc(N, sizeof(float));
    run->update.master = calloc(N, sizeof(float));
    run->update.param = calloc(N, sizeof(uint16_t));
    run->update.scratch = calloc(1, shoal_optim_scratch_bytes(run->optim) + 1);
}

static void close_run(struct run *run)
{
    for (int i = 0; i < MAX_STATES; i++)
        free(run->states[i]);
    free((void *)run->update.grad);
    free(run->update.master);
    free(run->update.param);
    free(run->update.scratch);
    shoal_optim_destroy(run->optim);
}

static void refuses_update(struct run *run, const struct shoal_optim_update *update,
                           const char *word)
{
    cr_assert_eq(shoal_optim_step(run->optim, update), SHOAL_ERR_USAGE, "%s", word);
    cr_assert_not_null(strstr(shoal_last_error(), word), "\"%s\" lacks \"%s\"", shoal_last_error(),
                       word);
}

#define REFUSES_UPDATE(word, ...)                                                                  \
    do {                                                                                           \
        struct shoal_optim_update update = run.update;                                             \
        struct shoal_optim_update *u = &update;                                                    \
        __VA_ARGS__;                                                                               \
        refuses_update(&run, u, word);                                                             \
    } while (0)

Test(api_errors, refuses_updates_that_are_wrong_and_takes_them_when_put_right)
{
    struct shoal_optim_params params = good;
    struct run run;
    void *less[MAX_STATES];

    params.rule = "came";
    params.master = "split16";
    open_run(&run, &params);
    memcpy(less, run.states, sizeof less);
    less[shoal_optim_state_count(run.optim) - 1] = NULL;

    REFUSES_UPDATE("NULL", u = NULL);
    REFUSES_UPDATE("size", u->size = 8);
    REFUSES_UPDATE("step", u->step = 0);
    REFUSES_UPDATE("lr", u->lr = -1);
    REFUSES_UPDATE("lr", u->lr = (double)NAN);
    REFUSES_UPDATE("grad_scale", u->grad_scale = -1);
    REFUSES_UPDATE("grad_scale", u->grad_scale = INFINITY);
    REFUSES_UPDATE("grad", u->grad = NULL);
    REFUSES_UPDATE("grad", u->grad = (const char *)u->grad + 2);
    REFUSES_UPDATE("grad", u->grad = (const char *)u->grad + 1, u->grad_is_bf16 = 1);
    REFUSES_UPDATE("master", u->master = NULL);
    REFUSES_UPDATE("master", u->master = (char *)u->master + 1);
    REFUSES_UPDATE("param", u->param = NULL);
    REFUSES_UPDATE("states", u->states = NULL);
    REFUSES_UPDATE("instability_col", u->states = less);
    REFUSES_UPDATE("scratch", u->scratch = NULL);
    REFUSES_UPDATE("scratch", u->scratch = (char *)u->scratch + 4);
    cr_assert_eq(shoal_optim_step(NULL, &run.update), SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_optim_step(run.optim, &run.update), SHOAL_OK, "%s", shoal_last_error());

    float weights[1];
    cr_assert_eq(shoal_optim_get_weights(run.optim, run.update.master, run.update.param, NULL),
                 SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_optim_get_weights(run.optim, NULL, run.update.param, weights),
                 SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_optim_set_weights(run.optim, NULL, run.update.master, run.update.param),
                 SHOAL_ERR_USAGE);
    cr_assert_eq(shoal_optim_set_weights(run.optim, weights, run.update.master, NULL),
                 SHOAL_ERR_USAGE);
    close_run(&run);
}

#ifndef __SANITIZE_ADDRESS__
Test(api_errors, allocates_nothing_in_a_step)
{
    static const char *const rules[] = {"adamw", "came", "adam_mini"};
    struct shoal_threads *threads = NULL;
    struct run run;

    cr_assert_eq(shoal_threads_create(3, &threads), SHOAL_OK);
    for (int r = 0; r < 3; r++) {
        struct shoal_optim_params params = good;

        params.rule = rules[r];
        params.state = "int8";
        params.role = "up";
        params.threads = threads;
        open_run(&run, &params);
        const long before = atomic_load(&n_allocated);
        const shoal_status status = shoal_optim_step(run.optim, &run.update);
        cr_assert_eq(atomic_load(&n_allocated), before, "%s", rules[r]);
        cr_assert_eq(status, SHOAL_OK);
        close_run(&run);
    }
    shoal_threads_destroy(threads);
}

Test(api_errors, reports_whichever_allocation_fails)
{
    struct shoal_optim_params params = good;
    struct shoal_optim *optim = NULL;
    shoal_status status = SHOAL_ERR_NOMEM;
    long n = 0;

    params.rule = "came";
    for (; n < 100 && status != SHOAL_OK; n++) {
        atomic_store(&until_failure, n);
        status = shoal_optim_create(&params, &optim);
        atomic_store(&until_failure, -1);
        cr_assert(status == SHOAL_ERR_NOMEM || status == SHOAL_OK, "allocation %ld: %d", n, status);
        cr_assert(status == SHOAL_OK || optim == NULL);
    }
    cr_assert(status == SHOAL_OK && n > 5, "%ld", n);
    shoal_optim_destroy(optim);

    struct shoal_threads *threads = NULL;
    for (n = 0, status = SHOAL_ERR_NOMEM; n < 100 && status != SHOAL_OK; n++) {
        atomic_store(&until_failure, n);
        status = shoal_threads_create(3, &threads);
        atomic_store(&until_failure, -1);
        cr_assert(status == SHOAL_ERR_NOMEM || status == SHOAL_OK);
        cr_assert(status == SHOAL_OK || threads == NULL);
    }
    cr_assert(status == SHOAL_OK && n > 3);
    shoal_threads_destroy(threads);
}
#endif

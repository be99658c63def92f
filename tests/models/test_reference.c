#include "tests/models/rig.h"
#include "tests/tolerance.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Whole models against PyTorch in float64: loss, gradients and 20 steps of AdamW.  The fixture
 * is written by tests/fixtures/make_reference.py, which describes its format.
 */

#define FIXTURE SHOAL_SOURCE_DIR "/tests/fixtures/reference.txt"

enum { STEPS = 20, B = 3, T = 24 };

/* ---- the same initial state as the script ---- */

static void fill_weights(struct rig *rig)
{
    for (int index = 0; index < rig->layout->n_tensors; index++) {
        const struct tensor *t = &rig->layout->tensors[index];
        float *w = rig->master[t->unit] + t->offset;
        float base = t->init == INIT_ONES ? 1.0f : 0.0f;

        for (int64_t i = 0; i < t->n_elements; i++) {
            int32_t k = (int32_t)(rig_hash((uint64_t)index, (uint64_t)i) >> 16) - 32768;

            w[i] = base + (float)k / 262144.0f;
        }
    }
}

static void fill_batch(struct rig *rig, int step)
{
    uint32_t vocab = (uint32_t)model_config(rig->model)->vocab;
    uint64_t stream = 1000 + (uint64_t)step % 2;

    for (uint64_t b = 0; b < B; b++) {
        for (uint64_t t = 0; t < T; t++) {
            uint64_t at = b * (T + 1) + t;

            rig->tokens[b * T + t] = (int32_t)(rig_hash(stream, at) % vocab);
            rig->targets[b * T + t] = (int32_t)(rig_hash(stream, at + 1) % vocab);
        }
    }
}

/* The embedding's gradient of a tied model has two parts. */
static void add_tied(struct rig *rig)
{
    if (model_config(rig->model)->tied)
        cr_assert_eq(op_accumulate(rig->ops, rig->layout->units[0].n_elements, rig->tied_grads,
                                   rig->grads[0]),
                     SHOAL_OK);
}

/* ---- AdamW as torch.optim.AdamW, scalars in double, elements in fp32 ---- */

struct moments {
    float *m[RIG_UNITS], *v[RIG_UNITS];
};

static void adamw_tensor(const struct tensor *t, const float *grads, float *weights, float *ms,
                         float *vs, int step)
{
    double lr = 1e-3;
    float b1 = 0.9f;
    float b2 = 0.95f;
    float keep = (float)(1.0 - lr * (t->decay ? 0.1 : 0.0));
    float scale = (float)(lr / (1.0 - pow(0.9, step)));
    float root = (float)sqrt(1.0 - pow(0.95, step));

    for (int64_t i = t->offset; i < t->offset + t->n_elements; i++) {
        float g = grads[i];

        ms[i] = b1 * ms[i] + (float)(1.0 - 0.9) * g;
        vs[i] = b2 * vs[i] + (float)(1.0 - 0.95) * g * g;
        weights[i] = weights[i] * keep - scale * ms[i] / (sqrtf(vs[i]) / root + 1e-8f);
    }
}

static void adamw(struct rig *rig, struct moments *moments, int step)
{
    for (int i = 0; i < rig->layout->n_tensors; i++) {
        const struct tensor *t = &rig->layout->tensors[i];
        int u = t->unit;

        adamw_tensor(t, rig->grads[u], rig->master[u], moments->m[u], moments->v[u], step);
    }
    rig_load(rig);
}

/* ---- reading and comparing ---- */

/* What a record of the fixture is compared with. */
struct tolerances {
    double sample; /* of a sample, relative to the tensor's root mean square */
    double norm;   /* of the L2 norm, relative */
    bool trained;  /* the values went through AdamW */
};

/*
 * The key part of a fused bias has no gradient in exact arithmetic (softmax ignores what all
 * keys share); AdamW blows its rounding noise up to steps of size lr.  It has no effect on
 * the loss, and is left out of what is compared after training.
 */
static bool holds_key_bias(const struct tensor *t)
{
    return t->role == ROLE_BIAS && t->n_splits == 3;
}

static bool is_key_bias(const struct tensor *t, int64_t element)
{
    return holds_key_bias(t) && element >= t->splits[0] && element < t->splits[0] + t->splits[1];
}

static double norm_of(const float *x, int64_t n)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static double sum_of(const float *x, int64_t n)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

static void compare_totals(const struct tensor *t, const float *x, double sum, double norm,
                           struct tolerances tolerance)
{
    double got_norm = norm_of(x, t->n_elements);
    double got_sum = sum_of(x, t->n_elements);
    /* the errors of the elements may all have one sign */
    double sum_scale = norm * sqrt((double)t->n_elements);

    cr_expect_float_eq(got_norm, norm, tolerance.norm * norm, "%s: norm %.9g, expected %.9g",
                       t->name, got_norm, norm);
    cr_expect_float_eq(got_sum, sum, tolerance.sample * sum_scale, "%s: sum %.9g, expected %.9g",
                       t->name, got_sum, sum);
}

/* The rest of a `grad` or `weight` line against the tensor's values. */
static void compare_tensor(FILE *file, const struct rig *rig, float *const *units,
                           struct tolerances tolerance)
{
    int index = -1;
    int n_samples = 0;
    char name[TENSOR_NAME_BYTES];
    double sum = 0.0;
    double norm = 0.0;

    cr_assert_eq(fscanf(file, "%d %95s %lf %lf %d", &index, name, &sum, &norm, &n_samples), 5);
    cr_assert(index >= 0 && index < rig->layout->n_tensors);

    const struct tensor *t = &rig->layout->tensors[index];
    const float *x = units[t->unit] + t->offset;
    double rms = norm / sqrt((double)t->n_elements);

    cr_assert_str_eq(t->name, name);
    if (!tolerance.trained || !holds_key_bias(t))
        compare_totals(t, x, sum, norm, tolerance);
    for (int i = 0; i < n_samples; i++) {
        long long element = -1;
        double want = 0.0;

        cr_assert_eq(fscanf(file, "%lld %lf", &element, &want), 2);
        if (!tolerance.trained || !is_key_bias(t, element))
            cr_expect_float_eq(x[element], want, tolerance.sample * rms,
                               "%s[%lld]: %.9g, expected %.9g, rms %.3g", name, element,
                               (double)x[element], want, rms);
    }
}

/* Skip to the records of a model. */
static FILE *open_fixture(const char *model)
{
    FILE *file = fopen(FIXTURE, "r");
    char line[4096];
    char wanted[64];

    cr_assert_not_null(file, "cannot open %s", FIXTURE);
    snprintf(wanted, sizeof wanted, "model %s\n", model);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strcmp(line, wanted) == 0)
            return file;
    }
    cr_assert_fail("%s has no model %s", FIXTURE, model);
    return NULL;
}

/* Train and compare at every record, in the order of the fixture. */
static void follow(FILE *file, struct rig *rig, struct moments *moments)
{
    char kind[16];
    int step = -1;
    int n_records = 0;

    while (fscanf(file, "%15s", kind) == 1 && strcmp(kind, "model") != 0) {
        n_records++;
        if (strcmp(kind, "loss") == 0) {
            double want = 0.0;

            if (step >= 0)
                adamw(rig, moments, step + 1);
            cr_assert_eq(fscanf(file, "%d %lf", &step, &want), 2);
            fill_batch(rig, step);
            double got = rig_backward(rig);
            add_tied(rig);
            cr_expect_float_eq(got, want, TOL_MODEL_LOSS * want,
                               "step %d: loss %.9g, expected %.9g", step, got, want);
        } else if (strcmp(kind, "grad") == 0) {
            compare_tensor(file, rig, rig->grads,
                           (struct tolerances){TOL_MODEL_GRAD, TOL_MODEL_GRAD, false});
        } else {
            if (step == STEPS - 1)
                adamw(rig, moments, ++step);
            compare_tensor(file, rig, rig->master,
                           (struct tolerances){TOL_MODEL_WEIGHT, TOL_MODEL_WEIGHT, true});
        }
    }
    cr_assert_eq(n_records, STEPS + 2 * rig->layout->n_tensors);
}

static void compare_with_pytorch(const char *name, struct model_config config)
{
    struct rig *rig = rig_create(&config, B, T, DTYPE_F32, RECOMPUTE_SELECTIVE, 1);
    struct moments moments = {0};
    FILE *file = open_fixture(name);

    for (int u = 0; u < rig->layout->n_units; u++) {
        size_t n = (size_t)rig->layout->units[u].n_elements;

        moments.m[u] = calloc(n, sizeof(float));
        moments.v[u] = calloc(n, sizeof(float));
        memset(rig->master[u], 0, n * sizeof(float));
    }
    fill_weights(rig);
    rig_load(rig);
    follow(file, rig, &moments);
    fclose(file);
    for (int u = 0; u < rig->layout->n_units; u++) {
        free(moments.m[u]);
        free(moments.v[u]);
    }
    rig_destroy(rig);
}

Test(model_reference, gpt2_like_losses_gradients_and_trajectory_match_pytorch_in_float64)
{
    compare_with_pytorch("gpt2-like", rig_gpt2_like());
}

Test(model_reference, llama_like_losses_gradients_and_trajectory_match_pytorch_in_float64)
{
    compare_with_pytorch("llama-like", rig_llama_like());
}

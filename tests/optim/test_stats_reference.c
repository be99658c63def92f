#include "tests/fixtures/blocks_torch.h"
#include "tests/optim/num.h"
#include "tests/optim/stats.h"

/*
 * Rules over statistics against their papers' formulas in double, over 50 steps, against numbers
 * worked out by hand, and against the authors' code under PyTorch.  The tolerance is a running error
 * analysis, see num.h; sums of a reference are exact and rounded once.
 */

enum { STEPS = 50, MAX = 1600 };

static const struct optim_hyper ordinary = {
    .lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .beta3 = 0.99, .eps = 1e-8, .weight_decay = 0.1};

/* A second moment of rank one, or of elements (cols == 0). */
struct factored {
    struct num row[MAX], col[MAX], element[MAX];
};

struct ref {
    int n, rows, cols;
    bool decay;
    int block[MAX], n_blocks; /* adam_mini */
    struct num g[MAX], u[MAX], p[MAX], m[MAX], v[MAX];
    struct factored squares, instability;
};

static struct num ema(struct num average, double beta, struct num x)
{
    return add(mul(average, scalar(beta)), mul(x, scalar(1.0 - beta)));
}

/* Mean of the squares of x[i] over the elements with key[i] == k, plus eps. */
static struct num mean_square(const struct num *x, int n, const int *key, int k, double eps)
{
    double sum = 0.0;
    double error = 0.0;
    int count = 0;

    for (int i = 0; i < n; i++) {
        if (key == NULL || key[i] == k) {
            sum += x[i].x * x[i].x;
            error += 2.0 * fabs(x[i].x) * x[i].e + x[i].e * x[i].e;
            count++;
        }
    }
    return rounded(sum / count + eps, error / count);
}

static void decay_weights(struct ref *r, struct num lr, double weight_decay)
{
    const struct num factor = add(scalar(1.0), minus(mul(lr, scalar(weight_decay))));

    for (int i = 0; i < r->n && r->decay; i++)
        r->p[i] = mul(r->p[i], factor);
}

static void adam_mini(struct ref *r, const struct optim_hyper *h, int64_t t)
{
    const double b1 = 1.0 - pow(h->beta1, (double)t);
    const double b2 = 1.0 - pow(h->beta2, (double)t);

    for (int b = 0; b < r->n_blocks; b++)
        r->v[b] = ema(r->v[b], h->beta2, mean_square(r->g, r->n, r->block, b, 0.0));
    decay_weights(r, scalar(h->lr), h->weight_decay);
    for (int i = 0; i < r->n; i++) {
        const struct num denom = mul(root(r->v[r->block[i]]), scalar(1.0 / sqrt(b2)));

        r->m[i] = ema(r->m[i], h->beta1, r->g[i]);
        const struct num u = divide(r->m[i], add(denom, scalar(h->eps)));
        r->p[i] = add(r->p[i], minus(mul(u, scalar(h->lr / b1))));
    }
}

/* Average x^2 into f, and multiply y with 1 / sqrt of what f then stands for. */
static void precondition(const struct ref *r, struct factored *f, const struct num *x, double beta,
                         double eps, struct num *y)
{
    static int row_of[MAX];
    static int col_of[MAX];
    struct num mean = {0};

    if (r->cols == 0) {
        for (int i = 0; i < r->n; i++) {
            f->element[i] = ema(f->element[i], beta, add(mul(x[i], x[i]), scalar(eps)));
            y[i] = divide(y[i], root(f->element[i]));
        }
        return;
    }
    for (int i = 0; i < r->n; i++) {
        row_of[i] = i / r->cols;
        col_of[i] = i % r->cols;
    }
    for (int k = 0; k < r->rows; k++) {
        f->row[k] = ema(f->row[k], beta, mean_square(x, r->n, row_of, k, eps));
        mean.x += f->row[k].x / r->rows;
        mean.e += f->row[k].e / r->rows;
    }
    for (int k = 0; k < r->cols; k++)
        f->col[k] = ema(f->col[k], beta, mean_square(x, r->n, col_of, k, eps));
    for (int i = 0; i < r->n; i++) {
        y[i] = mul(y[i], root(divide(mean, f->row[row_of[i]])));
        y[i] = divide(y[i], root(f->col[col_of[i]]));
    }
}

/* max(1, rms(u) / threshold). */
static struct num clip_of(const struct ref *r, const struct optim_hyper *h)
{
    const struct num rms = root(mean_square(r->u, r->n, NULL, 0, 0.0));
    const double threshold = h->clip_threshold > 0.0 ? h->clip_threshold : 1.0;
    struct num clip = divide(rms, scalar(threshold));

    clip.x = fmax(clip.x, 1.0);
    return clip;
}

static void adafactor(struct ref *r, const struct optim_hyper *h, int64_t t)
{
    const double beta2 = 1.0 - pow((double)t, -0.8);
    struct num lr = scalar(h->relative_step ? fmin(1e-2, 1.0 / sqrt((double)t)) : h->lr);

    if (h->scale_parameter) {
        struct num rms = root(mean_square(r->p, r->n, NULL, 0, 0.0));

        rms.x = fmax(rms.x, 1e-3);
        lr = mul(lr, rms);
    }
    memcpy(r->u, r->g, sizeof r->u);
    precondition(r, &r->squares, r->g, beta2, 1e-30, r->u);
    decay_weights(r, lr, h->weight_decay);
    const struct num size = divide(lr, clip_of(r, h));
    for (int i = 0; i < r->n; i++)
        r->p[i] = add(r->p[i], minus(mul(r->u[i], size)));
}

static void came(struct ref *r, const struct optim_hyper *h, int64_t t)
{
    static struct num d[MAX];
    static struct num w[MAX];
    const double beta3 = h->beta3 > 0.0 ? h->beta3 : 0.9999;

    (void)t;
    memcpy(r->u, r->g, sizeof r->u);
    precondition(r, &r->squares, r->g, h->beta2, 1e-30, r->u);
    const struct num clip = clip_of(r, h);
    for (int i = 0; i < r->n; i++) {
        r->u[i] = divide(r->u[i], clip);
        r->m[i] = ema(r->m[i], h->beta1, r->u[i]);
        d[i] = add(r->u[i], minus(r->m[i]));
        w[i] = r->m[i];
    }
    if (r->cols > 0)
        precondition(r, &r->instability, d, beta3, 1e-16, w);
    decay_weights(r, scalar(h->lr), h->weight_decay);
    for (int i = 0; i < r->n; i++)
        r->p[i] = add(r->p[i], minus(mul(w[i], scalar(h->lr))));
}

typedef void reference_fn(struct ref *r, const struct optim_hyper *h, int64_t t);

static reference_fn *reference_of(const char *rule)
{
    return strcmp(rule, "adam_mini") == 0 ? adam_mini
           : strcmp(rule, "came") == 0    ? came
                                          : adafactor;
}

/* Blocks by the roles, written a second time. */
static int block_of(const struct tensor *t, int i)
{
    const int cols = (int)t->shape[1];
    const int keys = (t->heads + t->kv_heads) * t->head_size;

    if (t->role == ROLE_BIAS)
        return i;
    if (t->role == ROLE_NORM)
        return 0;
    if (t->role != ROLE_QKV)
        return i / cols;
    if (i / cols < keys)
        return i / cols / t->head_size;
    return t->heads + t->kv_heads + i / cols - keys;
}

static void ref_init(struct ref *r, const struct tensor *tensor, const float *start)
{
    memset(r, 0, sizeof *r);
    r->n = (int)tensor->n_elements;
    r->rows = tensor->ndim == 2 ? (int)tensor->shape[0] : 0;
    r->cols = tensor->ndim == 2 ? (int)tensor->shape[1] : 0;
    r->decay = tensor->decay;
    cr_assert_leq(r->n, MAX);
    for (int i = 0; i < r->n; i++) {
        r->p[i].x = (double)start[i];
        r->block[i] = block_of(tensor, i);
        if (r->block[i] >= r->n_blocks)
            r->n_blocks = r->block[i] + 1;
    }
}

static void check_close(double got, struct num want, double factor, const char *what, int i)
{
    const double tolerance = factor * want.e;

    cr_assert_leq(fabs(got - want.x), tolerance, "%s[%d]: %.9g, expected %.9g within %.2g", what, i,
                  got, want.x, tolerance);
}

/* A bound that bounds nothing would pass everything. */
static void check_bounds_are_narrow(const char *rule, const struct ref *r, double lr)
{
    int narrow = 0;

    for (int i = 0; i < r->n; i++)
        narrow += r->p[i].e < 0.01 * lr;
    cr_assert_gt(narrow, r->n * 9 / 10, "%s: only %d of %d bounds are below lr / 100", rule, narrow,
                 r->n);
}

/* Several sizes, so that rows and columns are not alike. */
static void fill_grads(struct trained *t, int64_t step)
{
    const int64_t cols = t->stats.cols > 0 ? t->stats.cols : 1;

    rng_fill_normal(9, RNG_STREAM_SAMPLE, (uint64_t)step, 0, (size_t)t->n, 0.1f, t->grad);
    for (int64_t i = 0; i < t->n; i++)
        t->grad[i] *= (float)(1 + (i / cols) % 7) * (float)(1 + (i % cols) % 5);
}

static void follow(const char *rule, const struct tensor *tensor, const struct optim_hyper *hyper)
{
    static struct ref ref;
    const struct cut cut = {3, 2, 512, "scalar", true};
    struct trained t;

    trained_init(&t, rule, tensor, hyper);
    rng_fill_normal(9, RNG_STREAM_INIT, 0, 0, (size_t)t.n, 0.5f, t.master);
    ref_init(&ref, tensor, t.master);
    for (int64_t step = 1; step <= STEPS; step++) {
        fill_grads(&t, step);
        for (int i = 0; i < ref.n; i++)
            ref.g[i] = rounded(0.75 * (double)t.grad[i], 0.0);
        reference_of(rule)(&ref, hyper, step);
        train(&t, step, &cut, 0.75f);
    }
    for (int i = 0; i < ref.n; i++) {
        check_close((double)t.master[i], ref.p[i], TOL_RULE_ORDER, rule, i);
        if (t.stats.rule->n_states > 0)
            check_close((double)t.states[0][i], ref.m[i], TOL_RULE_ORDER, "exp_avg", i);
    }
    for (int64_t b = 0; strcmp(rule, "adam_mini") == 0 && b < t.stats.vector_elements[0]; b++)
        check_close((double)t.vectors[0][0][b], ref.v[b], TOL_RULE_ORDER, "block_avg_sq", (int)b);
    check_bounds_are_narrow(rule, &ref, hyper->lr);
    trained_fini(&t);
}

static void follow_all_shapes(const char *rule, const struct optim_hyper *hyper)
{
    const struct tensor tensors[] = {
        make_qkv(6, 2, 4, 37),
        make_tensor(ROLE_DOWN, 11, 67),
        make_tensor(ROLE_EMBEDDING, 300, 3),
        make_tensor(ROLE_NORM, 777, 0),
        make_tensor(ROLE_BIAS, 130, 0),
    };

    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        follow(rule, &tensors[i], hyper);
}

Test(stats_reference, adam_mini_follows_a_trajectory_in_double)
{
    follow_all_shapes("adam_mini", &ordinary);
}

Test(stats_reference, adafactor_follows_a_trajectory_in_double)
{
    struct optim_hyper hyper = ordinary;

    follow_all_shapes("adafactor", &hyper);
    hyper.scale_parameter = true;
    hyper.clip_threshold = 0.7;
    follow_all_shapes("adafactor", &hyper);
    hyper.relative_step = true;
    follow_all_shapes("adafactor", &hyper);
}

Test(stats_reference, came_follows_a_trajectory_in_double)
{
    struct optim_hyper hyper = ordinary;

    follow_all_shapes("came", &hyper);
    hyper.clip_threshold = 0.7;
    follow_all_shapes("came", &hyper);
}

/* ---- by hand ---- */

/* Three steps of lr = 1 from weights of 0 on `n` elements; returns minus the weights. */
static void three_steps(const char *rule, const struct tensor *tensor,
                        const struct optim_hyper *hyper, const float *grads, double *moved)
{
    struct trained t;

    trained_init(&t, rule, tensor, hyper);
    for (int64_t step = 1; step <= 3; step++) {
        memcpy(t.grad, grads + (step - 1) * t.n, (size_t)t.n * sizeof(float));
        train(&t, step, &uncut, 1.0f);
    }
    for (int64_t i = 0; i < t.n; i++)
        moved[i] = -(double)t.master[i];
    trained_fini(&t);
}

static void check_hand(double got, double want)
{
    cr_assert_leq(fabs(got - want), TOL_BLOCKS_BY_HAND * fabs(want), "%.9g, expected %.9g", got,
                  want);
}

/*
 * v: 6.25, 28.125, 14.0625, and with its correction 12.5, 37.5, 16.0714286.
 * m: 1.5, 3.75, 1.875 for 3, and with its correction 3, 5, 2.14285714; 4 has 4/3 of it.
 */
Test(stats_reference, adam_mini_takes_three_steps_as_by_hand)
{
    static const float grads[] = {3, 4, 6, 8, 0, 0};
    const struct optim_hyper hyper = {.lr = 1.0, .beta1 = 0.5, .beta2 = 0.5};
    const struct tensor tensor = make_tensor(ROLE_NORM, 2, 0);
    double moved[2];

    three_steps("adam_mini", &tensor, &hyper, grads, moved);
    const double want =
        3.0 / sqrt(12.5) + 5.0 / sqrt(37.5) + (1.875 / 0.875) / sqrt(14.0625 / 0.875);
    check_hand(moved[0], want);
    check_hand(moved[1], want * 4.0 / 3.0);
}

/*
 * Gradients a b^T have the second moment (a b^T)^2: u is 1 twice.  Then they double: with
 * beta2 = 1 - 3^-0.8 = 0.584756 u is 2 / sqrt(0.584756 + 4 * 0.415244) = 1.334600.
 */
Test(stats_reference, adafactor_takes_three_steps_as_by_hand)
{
    static const float grads[] = {2,  -6,  10, 10, -30, 50, 2,  -6,  10,
                                  10, -30, 50, 4,  -12, 20, 20, -60, 100};
    struct optim_hyper hyper = {.lr = 1.0, .clip_threshold = 2.0};
    const struct tensor tensor = make_tensor(ROLE_UP, 2, 3);
    double moved[6];

    three_steps("adafactor", &tensor, &hyper, grads, moved);
    for (int i = 0; i < 6; i++)
        check_hand(moved[i], i % 3 == 1 ? -3.3346000 : 3.3346000);
    hyper.clip_threshold = 1.0;
    three_steps("adafactor", &tensor, &hyper, grads, moved);
    for (int i = 0; i < 6; i++)
        check_hand(moved[i], i % 3 == 1 ? -3.0 : 3.0);
}

/*
 * u = 1.414 and 1.155 are clipped to 1, then 0.  m: 0.5, 0.75, 0.375.  d^2: 0.25, 0.0625, 0.140625;
 * their average 0.125, 0.09375, 0.1171875.
 */
Test(stats_reference, came_takes_three_steps_as_by_hand)
{
    static const float grads[] = {2, -6, 10, 10, -30, 50, 2, -6, 10, 10, -30, 50, 0, 0, 0, 0, 0, 0};
    const struct optim_hyper hyper = {.lr = 1.0, .beta1 = 0.5, .beta2 = 0.5, .beta3 = 0.5};
    const struct tensor tensor = make_tensor(ROLE_UP, 2, 3);
    double moved[6];

    three_steps("came", &tensor, &hyper, grads, moved);
    const double want = 0.5 / sqrt(0.125) + 0.75 / sqrt(0.09375) + 0.375 / sqrt(0.1171875);
    for (int i = 0; i < 6; i++)
        check_hand(moved[i], i % 3 == 1 ? -want : want);
}

/* ---- against PyTorch ---- */

static void check_torch(const char *rule, const struct tensor *tensor,
                        const struct optim_hyper *hyper, const uint32_t *want)
{
    static struct ref ref;
    struct trained t;

    trained_init(&t, rule, tensor, hyper);
    memcpy(t.master, blocks_start, (size_t)t.n * sizeof(float));
    ref_init(&ref, tensor, t.master);
    for (int64_t step = 1; step <= BLOCKS_STEPS; step++) {
        memcpy(t.grad, blocks_grads + (step - 1) * BLOCKS_ROWS * BLOCKS_COLS,
               (size_t)t.n * sizeof(float));
        for (int i = 0; i < ref.n; i++)
            ref.g[i] = (struct num){(double)t.grad[i], 0.0};
        reference_of(rule)(&ref, hyper, step);
        train(&t, step, &uncut, 1.0f);
    }
    /* Both sides round: twice the error of one. */
    for (int i = 0; i < ref.n; i++)
        check_close((double)t.master[i], (struct num){(double)float_of(want[i]), ref.p[i].e},
                    2 * TOL_RULE_ORDER, rule, i);
    check_bounds_are_narrow(rule, &ref, hyper->lr);
    trained_fini(&t);
}

static const struct optim_hyper as_torch = {.lr = BLOCKS_LR,
                                            .beta1 = BLOCKS_BETA1,
                                            .beta2 = BLOCKS_BETA2,
                                            .beta3 = BLOCKS_BETA3,
                                            .eps = BLOCKS_EPS,
                                            .weight_decay = BLOCKS_DECAY};

Test(stats_reference, adam_mini_agrees_with_its_authors_code)
{
    struct tensor tensor = make_qkv(BLOCKS_HEADS, BLOCKS_KV_HEADS, BLOCKS_HEAD_SIZE, BLOCKS_COLS);

    cr_assert_eq(tensor.shape[0], BLOCKS_ROWS);
    check_torch("adam_mini", &tensor, &as_torch, blocks_mini_qkv);
    tensor = make_tensor(ROLE_DOWN, BLOCKS_ROWS, BLOCKS_COLS);
    check_torch("adam_mini", &tensor, &as_torch, blocks_mini_rows);
    tensor = make_tensor(ROLE_NORM, BLOCKS_COLS, 0);
    check_torch("adam_mini", &tensor, &as_torch, blocks_mini_norm);
    tensor = make_tensor(ROLE_BIAS, BLOCKS_COLS, 0);
    check_torch("adam_mini", &tensor, &as_torch, blocks_mini_bias);
}

Test(stats_reference, adafactor_agrees_with_hugging_face)
{
    const struct tensor matrix = make_tensor(ROLE_DOWN, BLOCKS_ROWS, BLOCKS_COLS);
    struct tensor vector = make_tensor(ROLE_BIAS, BLOCKS_COLS, 0);
    struct optim_hyper hyper = as_torch;

    vector.decay = true;
    check_torch("adafactor", &matrix, &hyper, blocks_adafactor);
    check_torch("adafactor", &vector, &hyper, blocks_adafactor_vector);
    hyper.scale_parameter = true;
    hyper.clip_threshold = 0.5;
    check_torch("adafactor", &matrix, &hyper, blocks_adafactor_scaled);
    hyper.clip_threshold = 0.0;
    hyper.relative_step = true;
    check_torch("adafactor", &matrix, &hyper, blocks_adafactor_relative);
}

Test(stats_reference, came_agrees_with_its_authors_code)
{
    const struct tensor matrix = make_tensor(ROLE_DOWN, BLOCKS_ROWS, BLOCKS_COLS);
    struct tensor vector = make_tensor(ROLE_BIAS, BLOCKS_COLS, 0);

    vector.decay = true;
    check_torch("came", &matrix, &as_torch, blocks_came);
    check_torch("came", &vector, &as_torch, blocks_came_vector);
}

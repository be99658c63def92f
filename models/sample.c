#include "models/model.h"

#include "runtime/base/rng.h"

#include <math.h>

/*
 * Nucleus sampling (Holtzman et al. 2020): draw from the smallest set of most likely tokens whose
 * probability reaches top_p.  Sorting is a heapsort inside caller's scratch, because
 * qsort may allocate; ties go by token, so the order, and with it the draw, is unique.
 */

struct candidate {
    float logit;
    int32_t token;
};

_Static_assert(sizeof(struct candidate) == 8, "model_sample's scratch is V * 8 bytes");

/* a comes before b: more likely, or equally likely with the lower token. */
static bool before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/* Restore the heap below `root`: the last candidate in sorted order stands at its top. */
static void sift_down(struct candidate *c, int64_t root, int64_t n)
{
    struct candidate moving = c[root];

    for (int64_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        if (child + 1 < n && before(c[child], c[child + 1]))
            child++;
        if (!before(moving, c[child]))
            break;
        c[root] = c[child];
        root = child;
    }
    c[root] = moving;
}

static void sort_candidates(struct candidate *c, int64_t n)
{
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sift_down(c, i, n);
    for (int64_t end = n - 1; end > 0; end--) {
        struct candidate last = c[0];

        c[0] = c[end];
        c[end] = last;
        sift_down(c, 0, end);
    }
}

/* NaN counts as impossible, so that it never wins. */
static float clean(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

static int32_t most_likely(const float *logits, int64_t V)
{
    int64_t best = 0;

    for (int64_t i = 1; i < V; i++) {
        if (clean(logits[i]) > clean(logits[best]))
            best = i;
    }
    return (int32_t)best;
}

int32_t model_sample(const float *logits, int64_t V, double temperature, double top_p,
                     uint64_t seed, uint64_t index, void *scratch)
{
    struct candidate *c = scratch;
    int32_t top = most_likely(logits, V);
    double max = clean(logits[top]);
    double total = 0.0;
    double nucleus = 0.0;
    double sum = 0.0;
    int64_t n = 0;

    /* Without a finite maximum there is no distribution to draw from. */
    if (temperature <= 0.0 || !isfinite(max))
        return top;

    for (int64_t i = 0; i < V; i++) {
        c[i] = (struct candidate){.logit = clean(logits[i]), .token = (int32_t)i};
        total += exp(((double)c[i].logit - max) / temperature);
    }
    sort_candidates(c, V);
    while (n < V && (n == 0 || nucleus < top_p * total))
        nucleus += exp(((double)c[n++].logit - max) / temperature);

    double target = rng_uniform(seed, RNG_STREAM_SAMPLE, 0, index) * nucleus;

    for (int64_t i = 0; i < n - 1; i++) {
        sum += exp(((double)c[i].logit - max) / temperature);
        if (sum > target)
            return c[i].token;
    }
    return c[n - 1].token;
}

/*
 * Attention: cuDNN for what it takes, else our own kernels.  A shape's plan is made when its scratch
 * is asked for, so that nothing is built between the first step and the last.
 *
 * cuDNN's deterministic backward writes dS, 2 * B * H * T^2 bytes: over the limit it runs in several
 * calls, each over some of the batches, or over some of one batch's key/value heads and the query heads
 * that read them.  The cut depends on the shape and the limit alone.
 */
#include "models/ops/cuda/attention_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Older ones describe no devices, want another masking value, or have known faults. */
enum { OLDEST_CUDNN = 91002 };

/*
 * Up to this one the backward gives NaN where keys do not fill its last tile; NVIDIA's frontend 1.23
 * (node scaled_dot_product_flash_attention.h) then adds a padding mask, which our graph has not.
 */
enum { LAST_WITH_WHOLE_TILES = 91500, TILE = 128 };

/* ---- context ---- */

static shoal_status library_init(struct cuda_attention *a, cudaStream_t stream)
{
    const size_t version = cudnnGetVersion();

    if (version < OLDEST_CUDNN)
        return fail(SHOAL_ERR_UNAVAILABLE, "cuDNN: expected version %d or newer, found %zu",
                    OLDEST_CUDNN, version);
    SHOAL_TRY(cudnn_check(cudnnCreate(&a->handle), "create a handle"));
    shoal_status status = cudnn_check(cudnnSetStream(a->handle, stream), "set the stream");
    if (status == SHOAL_OK)
        status = cudnn_properties_of_handle(a->handle, &a->properties);
    if (status != SHOAL_OK) {
        cudnnDestroy(a->handle);
        a->handle = NULL;
    }
    return status;
}

/* The last failure, on one line. */
static void keep_reason(char *text, size_t n_bytes)
{
    snprintf(text, n_bytes, "%s", shoal_last_error());
    for (char *c = strchr(text, '\n'); c != NULL; c = strchr(c, '\n'))
        *c = ' ';
}

shoal_status cuda_attention_create(const struct cuda_ops *cuda,
                                   struct cuda_attention **attention_out)
{
    struct cuda_attention *a = calloc(1, sizeof *a);
    shoal_status status = SHOAL_OK;

    if (a == NULL)
        return fail(SHOAL_ERR_NOMEM, "attention: cannot reserve %zu bytes", sizeof *a);
    a->choice = cuda->options.attention;
    a->limit_bytes = cuda->options.attention_limit_bytes;
    a->capability = device_cuda_capability(cuda->device);
    a->shared_bytes = device_cuda_shared_bytes(cuda->device);
    if (a->choice != OPS_CUDA_ATTENTION_PLAIN)
        status = library_init(a, cuda->stream);
    if (status != SHOAL_OK && a->choice == OPS_CUDA_ATTENTION_CUDNN) {
        free(a);
        return status;
    }
    if (status != SHOAL_OK)
        keep_reason(a->without, sizeof a->without);
    *attention_out = a;
    return SHOAL_OK;
}

void cuda_attention_destroy(struct cuda_attention *attention)
{
    if (attention == NULL)
        return;
    for (int i = 0; i < attention->n_plans; i++) {
        cudnn_attention_destroy(attention->plans[i].forward);
        cudnn_attention_destroy(attention->plans[i].backward);
    }
    free(attention->plans);
    if (attention->handle != NULL) {
        cudnn_descriptor_destroy(attention->properties);
        cudnnDestroy(attention->handle);
    }
    free(attention);
}

void cuda_attention_describe(const struct cuda_attention *attention, char *text, size_t n_bytes)
{
    const size_t version = cudnnGetVersion();
    const size_t major = version / 10000, minor = version / 100 % 100, patch = version % 100;

    if (attention->handle != NULL)
        snprintf(text, n_bytes, "attention cuDNN %zu.%zu.%zu", major, minor, patch);
    else
        snprintf(text, n_bytes, "attention by own kernels%s%s%s",
                 attention->without[0] == '\0' ? "" : " (", attention->without,
                 attention->without[0] == '\0' ? "" : ")");
}

/* ---- plans ---- */

static bool same_shape(const struct attention_shape *a, const struct attention_shape *b)
{
    return a->B == b->B && a->T == b->T && a->H == b->H && a->K == b->K && a->D == b->D &&
           a->dtype == b->dtype;
}

struct attention_plan *attention_plan_find(const struct cuda_attention *a,
                                           const struct attention_shape *s)
{
    for (int i = 0; i < a->n_plans; i++)
        if (same_shape(&a->plans[i].s, s))
            return &a->plans[i];
    return NULL;
}

/* What cuDNN's engines take; the rest is not even asked for. */
static shoal_status check_taken(const struct cuda_attention *a, const struct attention_shape *s)
{
    const int largest = a->capability >= 90 ? 256 : 128;

    if (a->handle == NULL)
        return fail(SHOAL_ERR_UNAVAILABLE, "%s",
                    a->without[0] == '\0' ? "own kernels were asked for" : a->without);
    if (s->dtype != DTYPE_BF16)
        return fail(SHOAL_ERR_UNAVAILABLE, "cuDNN takes bf16, not %s", dtype_name(s->dtype));
    if (s->D % 8 != 0 || s->D > largest)
        return fail(SHOAL_ERR_UNAVAILABLE,
                    "cuDNN takes head sizes that are multiples of 8 up to %d, not %d", largest,
                    s->D);
    if (s->T < 2)
        return fail(SHOAL_ERR_UNAVAILABLE, "cuDNN takes two tokens or more");
    return SHOAL_OK;
}

static int64_t largest_divisor(int64_t n, int64_t at_most)
{
    for (int64_t d = at_most < n ? at_most : n; d > 1; d--)
        if (n % d == 0)
            return d;
    return 1;
}

static struct cudnn_attention_shape call_shape(const struct attention_shape *s, int64_t batches,
                                               int kv_heads)
{
    return (struct cudnn_attention_shape){.B = batches,
                                          .T = s->T,
                                          .H = s->H / s->K * kv_heads,
                                          .K = kv_heads,
                                          .D = s->D,
                                          .qkv_row = (int64_t)(s->H + 2 * s->K) * s->D,
                                          .y_row = (int64_t)s->H * s->D,
                                          .deterministic = true};
}

/* Cut the backward so that it stays under the limit: batches first, then heads of one batch. */
static void cut_backward(const struct cuda_attention *a, struct attention_plan *plan)
{
    const struct attention_shape *s = &plan->s;
    const struct cudnn_attention_shape one = call_shape(s, 1, 1);
    const int64_t groups = (int64_t)(a->limit_bytes / cudnn_attention_estimate_bytes(&one));

    plan->batches = largest_divisor(s->B, groups / s->K);
    plan->kv_heads =
        plan->batches > 1 || groups >= s->K ? s->K : (int)largest_divisor(s->K, groups);
}

static shoal_status backward_create(const struct cuda_attention *a, struct attention_plan *plan)
{
    cut_backward(a, plan);
    const struct attention_shape *s = &plan->s;
    const struct cudnn_attention_shape call = call_shape(s, plan->batches, plan->kv_heads);

    if (cudnnGetVersion() <= LAST_WITH_WHOLE_TILES && s->T % TILE != 0)
        return fail(SHOAL_ERR_UNAVAILABLE,
                    "cuDNN up to %d takes backwards over multiples of %d tokens, not %lld",
                    (int)LAST_WITH_WHOLE_TILES, (int)TILE, (long long)s->T);
    /* The statistics of a call's heads must start at 16 bytes, too. */
    if (plan->kv_heads < s->K && call.H * s->T % 4 != 0)
        return fail(SHOAL_ERR_UNAVAILABLE, "%lld tokens cannot be cut by heads", (long long)s->T);
    return cudnn_attention_create(&call, CUDNN_ATTENTION_BACKWARD, a->properties, a->limit_bytes,
                                  true, &plan->backward);
}

static void plan_init(const struct cuda_attention *a, const struct attention_shape *s,
                      struct attention_plan *plan)
{
    const struct cudnn_attention_shape whole = call_shape(s, s->B, s->K);
    shoal_status status = SHOAL_OK;

    *plan = (struct attention_plan){.s = *s, .batches = s->B, .kv_heads = s->K};
    status = check_taken(a, s);
    if (status == SHOAL_OK)
        status = cudnn_attention_create(&whole, CUDNN_ATTENTION_FORWARD, a->properties,
                                        a->limit_bytes, true, &plan->forward);
    if (status == SHOAL_OK)
        status = backward_create(a, plan);
    if (status == SHOAL_OK)
        return;
    keep_reason(plan->why, sizeof plan->why);
    if (a->choice == OPS_CUDA_ATTENTION_CUDNN)
        plan->refused = status;
}

/* The plan of a shape, made now if it is new; NULL without memory for it. */
static struct attention_plan *require(struct cuda_attention *a, const struct attention_shape *s)
{
    struct attention_plan *plan = attention_plan_find(a, s);

    if (plan != NULL)
        return plan;
    if (a->n_plans == a->capacity) {
        const int capacity = a->capacity == 0 ? 4 : 2 * a->capacity;
        struct attention_plan *plans = realloc(a->plans, (size_t)capacity * sizeof *plans);
        if (plans == NULL)
            return NULL;
        a->plans = plans;
        a->capacity = capacity;
    }
    plan_init(a, s, &a->plans[a->n_plans]);
    return &a->plans[a->n_plans++];
}

/* Own kernels run at least one pass. */
static bool fits(const struct cuda_attention *a, const struct attention_plan *plan)
{
    return plan->backward != NULL || cuda_attention_plain_shared_bytes(plan->s) <= a->shared_bytes;
}

shoal_status attention_plan_check(const struct cuda_attention *a, const struct attention_plan *plan)
{
    if (plan->refused != SHOAL_OK)
        return fail(plan->refused, "attention by cuDNN was asked for: %s", plan->why);
    if (fits(a, plan))
        return SHOAL_OK;
    fail(SHOAL_ERR_UNAVAILABLE,
         "attention: own kernels with head size %d need %zu bytes of shared memory, a block on "
         "this GPU has %zu",
         plan->s.D, cuda_attention_plain_shared_bytes(plan->s), a->shared_bytes);
    fail_why(SHOAL_ERR_UNAVAILABLE, "%s", plan->why);
    return fail_hint(SHOAL_ERR_UNAVAILABLE, "choose a smaller head size (model.hidden by "
                                            "model.heads), or what cuDNN takes");
}

shoal_status ops_cuda_attention_prepare(struct ops *ops, struct attention_shape s)
{
    const struct cuda_attention *a = cuda_of(ops)->attention;
    const struct attention_plan *plan = require(cuda_of(ops)->attention, &s);

    if (plan == NULL)
        return fail(SHOAL_ERR_NOMEM, "attention: no memory for a plan");
    return attention_plan_check(a, plan);
}

static size_t forward_bytes(const struct attention_plan *plan)
{
    return plan->forward == NULL ? 0 : cudnn_attention_scratch_bytes(plan->forward);
}

static size_t backward_bytes(const struct attention_plan *plan)
{
    return plan->backward == NULL ? cuda_attention_plain_backward_scratch_bytes(plan->s)
                                  : cudnn_attention_scratch_bytes(plan->backward);
}

static int backward_calls(const struct attention_plan *plan)
{
    return (int)(plan->s.B / plan->batches) * (plan->s.K / plan->kv_heads);
}

size_t ops_cuda_attention_scratch_bytes(const struct ops *ops, struct attention_shape s)
{
    const struct attention_plan *plan = require(cuda_of_const(ops)->attention, &s);
    size_t forward = 0, backward = 0;

    /* Without a plan the op itself refuses. */
    if (plan == NULL)
        return 0;
    forward = forward_bytes(plan);
    backward = backward_bytes(plan);
    return forward > backward ? forward : backward;
}

shoal_status ops_cuda_attention_cost(struct ops *ops, struct attention_shape s,
                                     struct ops_cuda_attention_cost *cost_out)
{
    const struct attention_plan *plan = require(cuda_of(ops)->attention, &s);
    const struct cudnn_attention_shape whole = call_shape(&s, s.B, s.K);

    if (plan == NULL)
        return fail(SHOAL_ERR_NOMEM, "attention: no memory for a plan");
    *cost_out = (struct ops_cuda_attention_cost){
        .cudnn_forward = plan->forward != NULL,
        .cudnn_backward = plan->backward != NULL,
        .forward_bytes = forward_bytes(plan),
        .backward_bytes = backward_bytes(plan),
        .backward_calls = plan->backward == NULL ? 1 : backward_calls(plan),
        .undivided_bytes = cudnn_attention_estimate_bytes(&whole)};
    return SHOAL_OK;
}

int cuda_attention_plan_count(const struct cuda_attention *attention)
{
    return attention->n_plans;
}

static void describe_pass(const struct cudnn_attention *pass, char *text, size_t n_bytes)
{
    if (pass == NULL)
        snprintf(text, n_bytes, "own kernels");
    else
        snprintf(text, n_bytes, "cuDNN engine %lld, %zu bytes",
                 (long long)cudnn_attention_plan(pass)->engine,
                 cudnn_attention_scratch_bytes(pass));
}

void cuda_attention_plan_describe(const struct cuda_attention *attention, int index, char *text,
                                  size_t n_bytes)
{
    const struct attention_plan *plan = &attention->plans[index];
    char forward[64], backward[64];

    describe_pass(plan->forward, forward, sizeof forward);
    describe_pass(plan->backward, backward, sizeof backward);
    snprintf(text, n_bytes,
             "attention B %lld T %lld H %d K %d D %d %s: forward %s; backward %s in %d calls%s%s%s",
             (long long)plan->s.B, (long long)plan->s.T, plan->s.H, plan->s.K, plan->s.D,
             dtype_name(plan->s.dtype), forward, backward, backward_calls(plan),
             plan->why[0] == '\0' ? "" : "; ", plan->why,
             fits(attention, plan) ? "" : "; too large for this GPU's shared memory");
}

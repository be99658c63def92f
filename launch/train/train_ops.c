#include "launch/train/train_internal.h"

#include <math.h>
#include <string.h>

/* The two operations that belong to no other folder: token windows, and the step's agreement. */

struct data_arg {
    const struct plan *plan;
    const struct data *data;
    const struct step_state *state;
    struct slot_ref tokens, targets, window;
    int64_t first; /* sequence of the step, before the step's own offset */
    int64_t B, T;
};

static shoal_status run_data(const struct op *op)
{
    const struct data_arg *arg = op->arg;
    int32_t *tokens = plan_ref(arg->plan, arg->tokens);
    int32_t *targets = plan_ref(arg->plan, arg->targets);
    int32_t *window = plan_ref(arg->plan, arg->window);

    for (int64_t i = 0; i < arg->B; i++) {
        data_train_sequence(arg->data, arg->state->first_sequence + (uint64_t)(arg->first + i),
                            window);
        memcpy(tokens + i * arg->T, window, (size_t)arg->T * sizeof *tokens);
        memcpy(targets + i * arg->T, window + 1, (size_t)arg->T * sizeof *targets);
    }
    return SHOAL_OK;
}

shoal_status train_op_data(struct schedule *sched, const struct build *build,
                           const struct build_env *env, int j)
{
    const struct policy *policy = &build->policy;
    size_t row = (size_t)j * (size_t)policy->B * (size_t)policy->T * sizeof(int32_t);
    struct op op = {.kind = OP_DATA, .lane = LANE_HOST, .unit = -1, .index = j, .run = run_data};
    struct data_arg *arg = NULL;
    void *memory = NULL;

    SHOAL_TRY(sched_alloc(sched, sizeof *arg, &memory));
    arg = memory;
    *arg = (struct data_arg){.plan = build->plan,
                             .data = env->data,
                             .state = env->state,
                             .tokens = slot_at(build->host_tokens.slot, row),
                             .targets = slot_at(build->host_targets.slot, row),
                             .window = build->window,
                             .first = policy_microbatch(policy, j) * policy->B,
                             .B = policy->B,
                             .T = policy->T};
    op.arg = arg;
    op.bytes = 2 * (uint64_t)(policy->B * policy->T) * sizeof(int32_t);
    op_uses(&op, arg->tokens, ACCESS_WRITE);
    op_uses(&op, arg->targets, ACCESS_WRITE);
    op_uses(&op, arg->window, ACCESS_WRITE);
    return sched_append(sched, &op);
}

struct norm_arg {
    const struct plan *plan;
    struct comm *comm;
    struct step_state *state;
    struct slot_ref row_loss;
    size_t n_rows;
    double n_targets; /* of the global batch */
    double grad_clip;
};

/* Loss, gradient norm and the wish to stop travel in one exact all-reduce. */
static shoal_status run_norm(const struct op *op)
{
    const struct norm_arg *arg = op->arg;
    struct step_state *state = arg->state;
    const double *row_loss = plan_ref(arg->plan, arg->row_loss);
    struct {
        struct exact_sum sums[2];
        int64_t stop_wanted;
    } message;

    for (size_t i = 0; i < arg->n_rows; i++)
        exact_sum_add(&state->sums[SUM_LOSS], row_loss[i]);
    memcpy(message.sums, state->sums, sizeof message.sums);
    message.stop_wanted = state->stop_wanted;
    SHOAL_TRY(comm_all_reduce_i64(arg->comm, (int64_t *)(void *)&message,
                                  sizeof message / sizeof(int64_t)));
    memcpy(state->sums, message.sums, sizeof message.sums);
    state->stop_wanted = message.stop_wanted;

    state->loss = exact_sum_value(&state->sums[SUM_LOSS]) / arg->n_targets;
    state->optim.grad_squares = exact_sum_value(&state->sums[SUM_SQUARES]);
    state->grad_norm = sqrt(state->optim.grad_squares);
    state->finite = isfinite(state->loss) && isfinite(state->grad_norm);
    /* torch.nn.utils.clip_grad_norm_: max_norm / (norm + 1e-6), at most 1. */
    double scale = arg->grad_clip > 0 ? arg->grad_clip / (state->grad_norm + 1e-6) : 1.0;
    state->optim.grad_scale = (float)(scale < 1.0 ? scale : 1.0);
    state->optim.skip = !state->finite;
    return SHOAL_OK;
}

shoal_status train_op_norm(struct schedule *sched, const struct build *build,
                           const struct build_env *env)
{
    const struct policy *policy = &build->policy;
    struct op op = {
        .kind = OP_NORM, .lane = LANE_COMM, .unit = -1, .index = -1, .host = true, .run = run_norm};
    struct norm_arg *arg = NULL;
    void *memory = NULL;

    SHOAL_TRY(sched_alloc(sched, sizeof *arg, &memory));
    arg = memory;
    *arg = (struct norm_arg){.plan = build->plan,
                             .comm = env->comm,
                             .state = env->state,
                             .row_loss = build->host_row_loss,
                             .n_rows = (size_t)(policy->A * policy->B * policy->T),
                             .n_targets = (double)policy->global * (double)policy->T,
                             .grad_clip = policy->grad_clip};
    op.arg = arg;
    op.bytes = 2 * sizeof(struct exact_sum);
    op_uses(&op, build->host_row_loss, ACCESS_READ);
    return sched_append(sched, &op);
}

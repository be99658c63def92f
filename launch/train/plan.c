#include "launch/train/train_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* `shoal plan`: the slots of the schedule, without a run. */

/* `taken` NULL: no device was opened. */
static shoal_status print_json(const struct build *build, const struct device_taken *taken,
                               int ranks_per_host, FILE *out)
{
    static const char *const spaces[SPACE_COUNT] = {[SPACE_PRIVATE] = "rank",
                                                    [SPACE_WINDOW] = "window",
                                                    [SPACE_SHARED] = "shared",
                                                    [SPACE_HOST] = "host"};
    json_t *root = json_object(), *rows = json_object();

    for (int row = 0; row < PLAN_ROW_COUNT; row++) {
        json_t *cells = json_object();
        for (int space = 0; space < SPACE_COUNT; space++)
            json_object_set_new(cells, spaces[space],
                                json_integer((json_int_t)plan_row_bytes(
                                    build->plan, (enum plan_row)row, (enum space)space)));
        json_object_set_new(rows, plan_row_name((enum plan_row)row), cells);
    }
    struct comm_memory window = train_memory_window(build, ranks_per_host);
    size_t own = plan_space_bytes(build->plan, SPACE_PRIVATE);
    size_t beside = plan_space_bytes(build->plan, SPACE_HOST);
    bool separate = build->policy.separate;
    size_t per_rank =
        own + (separate ? window.device_bytes : plan_space_bytes(build->plan, SPACE_WINDOW));
    size_t on_host = (size_t)ranks_per_host * (separate ? beside : own) + window.window_bytes;
    json_object_set_new(root, "bytes", rows);
    json_object_set_new(root, "ranks", json_integer(build->policy.n_ranks));
    json_object_set_new(root, "ranks_per_host", json_integer(ranks_per_host));
    json_object_set_new(root, "bytes_per_rank", json_integer((json_int_t)per_rank));
    json_object_set_new(root, "bytes_per_host", json_integer((json_int_t)on_host));
    if (taken != NULL)
        json_object_set_new(root, "device",
                            json_pack("{sIsIsIsI}", "total", (json_int_t)taken->total,
                                      "taken_before", (json_int_t)taken->bytes[TAKEN_BEFORE],
                                      "driver_and_libraries",
                                      (json_int_t)taken->bytes[TAKEN_BY_LIBRARIES], "left",
                                      (json_int_t)taken->left));
    int failed = json_dumpf(root, out, JSON_INDENT(2));
    json_decref(root);
    fprintf(out, "\n");
    return failed != 0 ? fail(SHOAL_ERR_IO, "plan: cannot write JSON") : SHOAL_OK;
}

static void print_choice(void *arg, enum op_class op_class, const char *line)
{
    if (op_class == OP_CLASS_ATTENTION)
        fprintf(arg, "%s\n", line);
}

/* What the table does not hold.  `taken` NULL: no device was opened. */
static void print_rest(const struct policy *policy, const struct device_taken *taken, FILE *out)
{
    fprintf(out, "Not in the table: the process itself and its libraries, measured when a run "
                 "starts.\n");
    if (!policy->separate)
        return;
    if (taken == NULL) {
        fprintf(out, "Nor what driver, libraries and transport take of the device: there is no GPU "
                     "here.  Scratch is that of the CPU's kernels.\n");
        return;
    }
    fprintf(out,
            "Nor the device's, so far without the transport and the libraries' kernels, which load "
            "when a run starts:\n");
    taken_print(taken, NULL, out);
}

shoal_status train_plan(const struct config *config, int ranks, int ranks_per_host, bool json,
                        FILE *out)
{
    struct model_config model_config;
    struct policy policy;
    struct model *model = NULL;
    struct build *build = NULL;
    struct pool *pool = NULL;
    struct ops *ops = NULL;
    struct optim_setup *optim = NULL;
    struct lr_params lr;
    struct device *device = NULL;
    struct device_taken taken = {0};
    bool cuda = train_device_is_cuda(config), here = strcmp(device_auto_name(), "cuda") == 0;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(setup_model_config(config, &model_config));
    SHOAL_TRY(setup_policy(config, &model_config, ranks, 0, &policy));
    setup_device_policy(config, cuda, cuda, &policy);
    if (ranks_per_host <= 0 || ranks_per_host > ranks)
        ranks_per_host = ranks;
    SHOAL_TRY_GOTO(model_create(&model_config, &model), end);
    SHOAL_TRY_GOTO(setup_optimizer(config, model_layout(model), &optim, &lr), end);
    SHOAL_TRY_GOTO(pool_create(config->run.threads > 0
                                   ? config->run.threads
                                   : setup_threads(config, NULL) / ranks_per_host,
                               -1, &pool),
                   end);
    if (cuda && here) {
        SHOAL_TRY_GOTO(device_open("cuda", 0, &device), end);
        SHOAL_TRY_GOTO(taken_note(device, TAKEN_BEFORE, &taken), end);
    }
    SHOAL_TRY_GOTO(train_device_ops(config, device, pool, &ops), end);
    SHOAL_TRY_GOTO(build_create(&policy, model, ops, optim, &build), end);
    if (device != NULL)
        SHOAL_TRY_GOTO(taken_note(device, TAKEN_BY_LIBRARIES, &taken), end);
    if (json) {
        status = print_json(build, device != NULL ? &taken : NULL, ranks_per_host, out);
        goto end;
    }
    fprintf(out,
            "%lld parameters, zero %d on %d ranks, %d per host; %d microbatches of %lld x %lld "
            "tokens per rank\n",
            (long long)model_layout(model)->n_parameters, policy.stage, ranks, ranks_per_host,
            policy.A, (long long)policy.B, (long long)policy.T);
    fprintf(out, "optimizer state: %.3f bytes per parameter, %s master weights\n\n",
            optim_state_bytes_per_parameter(optim), optim->master->name);
    train_memory_print_table(build, ranks_per_host, out);
    print_rest(&policy, device != NULL ? &taken : NULL, out);
    ops_describe_choices(ops, print_choice, out);

end:
    build_destroy(build);
    ops_destroy(ops);
    device_close(device);
    pool_destroy(pool);
    optim_setup_destroy(optim);
    model_destroy(model);
    return status;
}

/* From an operation graph to something that runs: heuristics, plan, variant pack. */
#include "models/ops/cuda/cudnn_graph.h"

#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

enum { CONFIGS = 8 };

static shoal_status heuristics_create(const struct cudnn_graph *g,
                                      cudnnBackendDescriptor_t properties,
                                      cudnnBackendDescriptor_t *heuristics_out)
{
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(ENGINEHEUR_OPERATION_GRAPH, BACKEND_DESCRIPTOR, 1, &g->graph),
        CUDNN_SET(ENGINEHEUR_MODE, HEUR_MODE, 1, &mode),
        CUDNN_SET(ENGINEHEUR_DEVICEPROP, BACKEND_DESCRIPTOR, 1, &properties),
    };

    return cudnn_descriptor_create(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "heuristics", attributes,
                                   COUNT(attributes), heuristics_out);
}

/* Unfinalized descriptors for the library to fill. */
static shoal_status configs_create(cudnnBackendDescriptor_t configs[CONFIGS])
{
    for (int i = 0; i < CONFIGS; i++)
        SHOAL_TRY(cudnn_check(
            cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &configs[i]),
            "engine configuration"));
    return SHOAL_OK;
}

static shoal_status configs_fill(cudnnBackendDescriptor_t heuristics,
                                 cudnnBackendDescriptor_t configs[CONFIGS], int *n_out)
{
    int64_t n = 0;

    SHOAL_TRY(
        cudnn_check(cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                             CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &n, configs),
                    "heuristics: get ENGINEHEUR_RESULTS"));
    *n_out = (int)(n < CONFIGS ? n : CONFIGS);
    return SHOAL_OK;
}

static shoal_status config_workspace(cudnnBackendDescriptor_t config, size_t *n_bytes_out)
{
    int64_t n_bytes = 0;

    SHOAL_TRY(cudnn_descriptor_get(
        config, "engine configuration",
        (struct cudnn_attribute)CUDNN_SET(ENGINECFG_WORKSPACE_SIZE, INT64, 1, NULL), &n_bytes));
    *n_bytes_out = (size_t)n_bytes;
    return SHOAL_OK;
}

/* The number of the engine behind a configuration, for reports. */
static shoal_status config_engine(cudnnBackendDescriptor_t config, int64_t *engine_out)
{
    cudnnBackendDescriptor_t engine = NULL;
    shoal_status status = cudnn_check(
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine), "engine");

    if (status != SHOAL_OK)
        return status;
    SHOAL_TRY_GOTO(cudnn_descriptor_get(config, "engine configuration",
                                        (struct cudnn_attribute)CUDNN_SET(
                                            ENGINECFG_ENGINE, BACKEND_DESCRIPTOR, 1, NULL),
                                        &engine),
                   end);
    status = cudnn_descriptor_get(
        engine, "engine", (struct cudnn_attribute)CUDNN_SET(ENGINE_GLOBAL_INDEX, INT64, 1, NULL),
        engine_out);
end:
    cudnn_descriptor_destroy(engine);
    return status;
}

static shoal_status plan_compile(cudnnBackendDescriptor_t config,
                                 cudnnBackendDescriptor_t properties,
                                 cudnnBackendDescriptor_t *plan_out, size_t *workspace_out)
{
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(EXECUTION_PLAN_ENGINE_CONFIG, BACKEND_DESCRIPTOR, 1, &config),
        CUDNN_SET(EXECUTION_PLAN_DEVICEPROP, BACKEND_DESCRIPTOR, 1, &properties),
    };
    cudnnBackendDescriptor_t plan = NULL;
    int64_t n_bytes = 0;

    SHOAL_TRY(cudnn_descriptor_create(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "execution plan",
                                      attributes, COUNT(attributes), &plan));
    shoal_status status = cudnn_descriptor_get(
        plan, "execution plan",
        (struct cudnn_attribute)CUDNN_SET(EXECUTION_PLAN_WORKSPACE_SIZE, INT64, 1, NULL), &n_bytes);
    if (status != SHOAL_OK) {
        cudnn_descriptor_destroy(plan);
        return status;
    }
    *plan_out = plan;
    *workspace_out = (size_t)n_bytes;
    return SHOAL_OK;
}

/* Try one configuration; on success the plan holds all but the configuration itself. */
static shoal_status plan_try(cudnnBackendDescriptor_t config, cudnnBackendDescriptor_t properties,
                             size_t limit_bytes, bool compile, struct cudnn_plan *plan)
{
    size_t n_bytes = 0;

    SHOAL_TRY(config_workspace(config, &n_bytes));
    SHOAL_TRY(config_engine(config, &plan->engine));
    if (n_bytes <= limit_bytes && compile)
        SHOAL_TRY(plan_compile(config, properties, &plan->plan, &n_bytes));
    if (n_bytes > limit_bytes) {
        cudnn_descriptor_destroy(plan->plan);
        plan->plan = NULL;
        return fail(SHOAL_ERR_UNAVAILABLE,
                    "cuDNN: engine %lld wants %zu bytes of workspace, at most %zu are allowed",
                    (long long)plan->engine, n_bytes, limit_bytes);
    }
    plan->workspace_bytes = n_bytes;
    return SHOAL_OK;
}

shoal_status cudnn_plan_init(const struct cudnn_graph *g, cudnnBackendDescriptor_t properties,
                             size_t limit_bytes, bool compile, struct cudnn_plan *plan_out)
{
    cudnnBackendDescriptor_t configs[CONFIGS] = {NULL};
    cudnnBackendDescriptor_t heuristics = NULL;
    struct cudnn_plan plan = {0};
    shoal_status status = heuristics_create(g, properties, &heuristics);

    if (status != SHOAL_OK)
        return status;
    SHOAL_TRY_GOTO(configs_create(configs), end);
    SHOAL_TRY_GOTO(configs_fill(heuristics, configs, &plan.n_configs), end);
    if (plan.n_configs == 0)
        status = cudnn_check(CUDNN_STATUS_NOT_SUPPORTED, "no engine takes the graph");
    for (int i = 0; i < plan.n_configs; i++) {
        status = plan_try(configs[i], properties, limit_bytes, compile, &plan);
        if (status == SHOAL_OK) {
            plan.config = configs[i];
            configs[i] = NULL;
            *plan_out = plan;
            break;
        }
    }
end:
    for (int i = 0; i < CONFIGS; i++)
        cudnn_descriptor_destroy(configs[i]);
    cudnn_descriptor_destroy(heuristics);
    return status;
}

void cudnn_plan_fini(struct cudnn_plan *plan)
{
    cudnn_descriptor_destroy(plan->plan);
    cudnn_descriptor_destroy(plan->config);
    memset(plan, 0, sizeof *plan);
}

shoal_status cudnn_plan_run(cudnnHandle_t handle, const struct cudnn_plan *plan, int n,
                            const int64_t *ids, void *const *pointers, void *workspace)
{
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(VARIANT_PACK_UNIQUE_IDS, INT64, n, ids),
        CUDNN_SET(VARIANT_PACK_DATA_POINTERS, VOID_PTR, n, pointers),
        CUDNN_SET(VARIANT_PACK_WORKSPACE, VOID_PTR, 1, &workspace),
    };
    cudnnBackendDescriptor_t pack = NULL;

    SHOAL_TRY(cudnn_descriptor_create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "variant pack",
                                      attributes, COUNT(attributes), &pack));
    shoal_status status = cudnn_check(cudnnBackendExecute(handle, plan->plan, pack), "execute");
    cudnn_descriptor_destroy(pack);
    return status;
}

shoal_status cudnn_properties_of_handle(cudnnHandle_t handle,
                                        cudnnBackendDescriptor_t *properties_out)
{
    const struct cudnn_attribute attributes[] = {CUDNN_SET(DEVICEPROP_HANDLE, HANDLE, 1, &handle)};

    return cudnn_descriptor_create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, "device properties",
                                   attributes, COUNT(attributes), properties_out);
}

shoal_status cudnn_properties_of_text(const char *json, cudnnBackendDescriptor_t *properties_out)
{
    const struct cudnn_attribute attributes[] = {
        CUDNN_SET(DEVICEPROP_JSON_REPRESENTATION, CHAR, (int64_t)strlen(json), json)};

    return cudnn_descriptor_create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, "device properties",
                                   attributes, COUNT(attributes), properties_out);
}

/* The yardstick: how long the library's algorithms take. */
#include "models/ops/cuda/cublas_internal.h"

#include "runtime/device/cuda.h"

enum { TIMED_RUNS = 5 };

static shoal_status time_once(struct cublas *cublas, struct cublas_plan *plan,
                              const cublasLtMatmulAlgo_t *algorithm, const struct cublas_data *data,
                              const cudaEvent_t events[2], cublasStatus_t *refusal,
                              double *seconds_out)
{
    float ms = 0.0f;

    SHOAL_TRY(cuda_check(cudaEventRecord(events[0], cublas->stream), "record an event"));
    SHOAL_TRY(cublas_run(cublas, plan, algorithm, data, refusal));
    SHOAL_TRY(cuda_check(cudaEventRecord(events[1], cublas->stream), "record an event"));
    SHOAL_TRY(cuda_check(cudaEventSynchronize(events[1]), "time a product"));
    SHOAL_TRY(cuda_check(cudaEventElapsedTime(&ms, events[0], events[1]), "read a time"));
    *seconds_out = ms * 1e-3;
    return SHOAL_OK;
}

/* The first run loads the kernel and does not count.  What is refused takes 1e30 seconds. */
static shoal_status time_algorithm(struct cublas *cublas, struct cublas_plan *plan,
                                   const cublasLtMatmulAlgo_t *algorithm,
                                   const struct cublas_data *data, const struct cublas_sweep *sweep,
                                   const cudaEvent_t events[2], double *best_out)
{
    cublasStatus_t refusal = CUBLAS_STATUS_SUCCESS;
    double best = 1e30;

    for (int i = 0; i <= TIMED_RUNS && refusal == CUBLAS_STATUS_SUCCESS; i++) {
        double seconds = 0.0;
        SHOAL_TRY(cuda_check(cudaMemsetAsync(sweep->p, i, sweep->n_bytes, cublas->stream),
                             "empty the caches"));
        SHOAL_TRY(time_once(cublas, plan, algorithm, data, events, &refusal, &seconds));
        if (i > 0 && seconds < best)
            best = seconds;
    }
    *best_out = best;
    return SHOAL_OK;
}

static shoal_status time_candidates(struct cublas *cublas, struct cublas_plan *plan,
                                    const struct cublas_data *data,
                                    const struct cublas_sweep *sweep, const cudaEvent_t events[2],
                                    struct cublas_timing *timing_out)
{
    struct cublas_timing timing = {.best_seconds = 1e30, .n_algorithms = plan->n_found};

    for (int i = 0; i < plan->n_found; i++) {
        double seconds = 0.0;
        SHOAL_TRY(
            time_algorithm(cublas, plan, &plan->found[i].algo, data, sweep, events, &seconds));
        if (i == plan->chosen)
            timing.chosen_seconds = seconds;
        if (seconds < timing.best_seconds)
            timing.best_seconds = seconds;
    }
    *timing_out = timing;
    return SHOAL_OK;
}

shoal_status cublas_time(struct cublas *cublas, const struct cublas_shape *shape,
                         const struct cublas_data *data, const struct cublas_sweep *sweep,
                         struct cublas_timing *timing_out)
{
    cudaEvent_t events[2] = {NULL, NULL};
    struct cublas_plan *plan = NULL;
    shoal_status status = SHOAL_OK;

    SHOAL_TRY(cublas_try(cublas, shape, data, &plan));
    SHOAL_TRY(cuda_check(cudaEventCreate(&events[0]), "create an event"));
    SHOAL_TRY_GOTO(cuda_check(cudaEventCreate(&events[1]), "create an event"), err_first);
    status = time_candidates(cublas, plan, data, sweep, events, timing_out);
    cudaEventDestroy(events[1]);
err_first:
    cudaEventDestroy(events[0]);
    return status;
}

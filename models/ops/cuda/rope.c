/* Rotary positions: the table of angles, made on the host as the cpu back end makes its own. */
#include "models/ops/cuda/cuda_internal.h"

#include <math.h>
#include <stdlib.h>

void cuda_rope_table_fini(struct cuda_ops *cuda)
{
    struct cuda_rope_table *table = &cuda->rope;

    if (table->cosines != NULL)
        cuda->device->ops->free(cuda->device, table->cosines, table->n_bytes);
    *table = (struct cuda_rope_table){0};
}

/* Angles in double, rounded once to fp32: the numbers of the cpu back end. */
static void fill(int64_t positions, int D, double theta, float *cosines, float *sines)
{
    const int half = D / 2;

    for (int i = 0; i < half; i++) {
        const double frequency = pow(theta, -2.0 * i / D);
        for (int64_t position = 0; position < positions; position++) {
            const double angle = (double)position * frequency;
            cosines[position * half + i] = (float)cos(angle);
            sines[position * half + i] = (float)sin(angle);
        }
    }
}

shoal_status ops_cuda_rope_prepare(struct ops *ops, int64_t T_max, int D, double theta)
{
    struct cuda_ops *cuda = cuda_of(ops);
    const size_t n = (size_t)T_max * (size_t)(D / 2);
    const size_t n_bytes = 2 * n * sizeof(float);
    float *angles = NULL;
    void *memory = NULL;

    if (cuda->rope.D == D && cuda->rope.theta == theta && cuda->rope.positions >= T_max)
        return SHOAL_OK;
    /* The old table may still be read by what was issued. */
    SHOAL_TRY(cuda_check(cudaStreamSynchronize(cuda->stream), "replace the rope table"));
    cuda_rope_table_fini(cuda);
    angles = malloc(n_bytes);
    if (angles == NULL)
        return fail(SHOAL_ERR_NOMEM, "rope table: cannot reserve %zu bytes", n_bytes);
    fill(T_max, D, theta, angles, angles + n);
    shoal_status status = cuda->device->ops->alloc(cuda->device, "rope table", n_bytes, &memory);
    if (status == SHOAL_OK)
        status = cuda->device->ops->copy(cuda->device, memory, angles, n_bytes);
    free(angles);
    if (status != SHOAL_OK) {
        if (memory != NULL)
            cuda->device->ops->free(cuda->device, memory, n_bytes);
        return status;
    }
    cuda->rope = (struct cuda_rope_table){
        .positions = T_max, .D = D, .theta = theta, .cosines = memory, .n_bytes = n_bytes};
    return SHOAL_OK;
}

shoal_status ops_cuda_rope(struct ops *ops, struct attention_shape s, double theta,
                           int64_t first_position, bool inverse, void *qkv)
{
    const struct cuda_ops *cuda = cuda_of(ops);
    const struct cuda_rope_table *table = &cuda->rope;

    if (table->D != s.D || table->theta != theta || table->positions < first_position + s.T)
        return fail(SHOAL_ERR_INTERNAL,
                    "rope: %lld positions of size %d, theta %g, wanted; the table has %lld of size "
                    "%d, theta %g",
                    (long long)(first_position + s.T), s.D, theta, (long long)table->positions,
                    table->D, table->theta);
    const float *sines = table->cosines + table->positions * (table->D / 2);
    return cuda_rope(cuda->stream, s, table->cosines, sines, first_position, inverse, qkv);
}

#include "optim/optim_internal.h"

#include "runtime/base/isa.h"

#include <assert.h>
#include <math.h>

/* Gradient elements that one tile of the pool reads. */
enum { TILE_QUANTA = 256 };

struct squares_job {
    optim_squares_fn *squares;
    const float *grad;
    size_t n_quanta;
    struct exact_sum *sum;
};

static int64_t count_nonfinite(const float *x, size_t n)
{
    int64_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += !isfinite(x[i]);
    return count;
}

/* Integer additions commute: tiles may arrive in any order. */
static void merge_atomically(struct exact_sum *sum, const struct exact_sum *part)
{
    for (int i = 0; i < EXACT_SUM_LIMBS; i++) {
        if (part->limbs[i] != 0)
            __atomic_fetch_add(&sum->limbs[i], part->limbs[i], __ATOMIC_RELAXED);
    }
    __atomic_fetch_add(&sum->nonfinite, part->nonfinite, __ATOMIC_RELAXED);
}

static void square_tile(void *arg, size_t tile, int thread)
{
    const struct squares_job *job = arg;
    const size_t first = tile * TILE_QUANTA;
    const size_t rest = job->n_quanta - first;
    const size_t count = rest < TILE_QUANTA ? rest : TILE_QUANTA;
    const float *grad = job->grad + first * QUANTUM;
    double sums[TILE_QUANTA];
    struct exact_sum part;

    (void)thread;
    exact_sum_clear(&part);
    job->squares(grad, count, sums);
    for (size_t q = 0; q < count; q++) {
        /* 256 squares of finite floats are far below the largest double. */
        if (isfinite(sums[q]))
            exact_sum_add(&part, sums[q]);
        else
            part.nonfinite += count_nonfinite(grad + q * QUANTUM, QUANTUM);
    }
    merge_atomically(job->sum, &part);
}

static optim_squares_fn *best_kernel(void)
{
    static optim_squares_fn *const kernels[] = {
        [ISA_SCALAR] = optim_squares_scalar,
        [ISA_AVX2] = optim_squares_avx2,
        [ISA_AVX512] = optim_squares_avx512,
    };

    return kernels[isa_best()];
}

void optim_sum_squares(struct pool *pool, const float *grad, size_t n, struct exact_sum *sum)
{
    struct squares_job job = {
        .squares = best_kernel(),
        .grad = grad,
        .n_quanta = n / QUANTUM,
        .sum = sum,
    };

    assert(n % QUANTUM == 0);
    pool_run(pool, (job.n_quanta + TILE_QUANTA - 1) / TILE_QUANTA, square_tile, &job);
}

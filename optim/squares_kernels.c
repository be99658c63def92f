#include "optim/optim_internal.h"

#include "runtime/base/isa.h"

/* The processor's own fetching keeps too few lines under way. */
enum { LANES = 16, AHEAD = 4 * QUANTUM };

void ISA_NAME(optim_squares)(const float *grad, size_t n_quanta, double *sums)
{
    for (size_t q = 0; q < n_quanta; q++) {
        double lanes[LANES] = {0};

        for (int i = 0; i < QUANTUM; i += LANES) {
            __builtin_prefetch(grad + i + AHEAD, 0, 3);
            for (int l = 0; l < LANES; l++) {
                const double x = (double)grad[i + l];

                lanes[l] += x * x;
            }
        }
        for (int width = LANES / 2; width > 0; width /= 2) {
            for (int l = 0; l < width; l++)
                lanes[l] += lanes[l + width];
        }
        sums[q] = lanes[0];
        grad += QUANTUM;
    }
}

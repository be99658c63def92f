#include "comm/comm_internal.h"
#include "runtime/base/isa.h"

/*
 * The reduction tree.  Up to FEW inputs are added in one pass over memory; more are
 * split by the tree, block by block, so that partial sums stay in the first-level cache.
 */
enum { FEW = 8, BLOCK = 1024 };

static int largest_power_below(int count)
{
    int power = 1;

    while (power * 2 < count)
        power *= 2;
    return power;
}

#define SUM(expr)                                                                                  \
    for (size_t i = 0; i < n; i++)                                                                 \
        out[i] = (expr);                                                                           \
    return

static void sum_few(const float *const *in, int count, size_t begin, size_t n, float *restrict out)
{
    const float *p[FEW];

    for (int k = 0; k < FEW; k++)
        p[k] = in[k < count ? k : 0] + begin;
    const float *a = p[0], *b = p[1], *c = p[2], *d = p[3];
    const float *e = p[4], *f = p[5], *g = p[6], *h = p[7];

    switch (count) {
    case 1:
        SUM(a[i]);
    case 2:
        SUM(a[i] + b[i]);
    case 3:
        SUM((a[i] + b[i]) + c[i]);
    case 4:
        SUM((a[i] + b[i]) + (c[i] + d[i]));
    case 5:
        SUM(((a[i] + b[i]) + (c[i] + d[i])) + e[i]);
    case 6:
        SUM(((a[i] + b[i]) + (c[i] + d[i])) + (e[i] + f[i]));
    case 7:
        SUM(((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + g[i]));
    default:
        SUM(((a[i] + b[i]) + (c[i] + d[i])) + ((e[i] + f[i]) + (g[i] + h[i])));
    }
}

static void sum_block(const float *const *in, int count, size_t begin, size_t n,
                      float *restrict out)
{
    if (count <= FEW) {
        sum_few(in, count, begin, n, out);
        return;
    }

    float right[BLOCK];
    int half = largest_power_below(count);

    sum_block(in, half, begin, n, out);
    sum_block(in + half, count - half, begin, n, right);
    for (size_t i = 0; i < n; i++)
        out[i] = out[i] + right[i];
}

void ISA_NAME(comm_tree_sum)(const float *const *in, int count, size_t begin, size_t n, float *out)
{
    for (size_t done = 0; done < n; done += BLOCK) {
        size_t rest = n - done;

        sum_block(in, count, begin + done, rest < BLOCK ? rest : BLOCK, out + begin + done);
    }
}

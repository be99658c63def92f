#include "comm/comm_internal.h"
#include "runtime/base/isa.h"

#include <criterion/criterion.h>

#include <string.h>

enum { MAX_COUNT = 40, N = 3001, BEGIN = 5 };

static float inputs[MAX_COUNT][N];
static const float *pointers[MAX_COUNT];

static void fill(void)
{
    uint64_t x = 1;

    for (int k = 0; k < MAX_COUNT; k++) {
        pointers[k] = inputs[k];
        for (int i = 0; i < N; i++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            float scale = (float)(1 << (x >> 60));
            inputs[k][i] = ((float)(x >> 40) - 0x1p23f) * scale;
        }
    }
}

static float reference(int begin, int count, int i)
{
    int half = 1;

    if (count == 1)
        return inputs[begin][i];
    while (half * 2 < count)
        half *= 2;
    return reference(begin, half, i) + reference(begin + half, count - half, i);
}

static void check_kernel(tree_sum_fn *kernel)
{
    static float out[N];

    fill();
    for (int count = 1; count <= MAX_COUNT; count++) {
        memset(out, 0, sizeof out);
        kernel(pointers, count, BEGIN, N - BEGIN - 1, out);
        for (int i = BEGIN; i < N - 1; i++) {
            float want = reference(0, count, i);

            cr_assert(memcmp(&out[i], &want, sizeof want) == 0, "%d inputs, element %d", count, i);
        }
        cr_assert(out[BEGIN - 1] == 0 && out[N - 1] == 0, "%d inputs: wrote outside", count);
    }
}

Test(tree_sum, scalar_kernel_follows_the_tree_for_every_count)
{
    check_kernel(comm_tree_sum_scalar);
}

Test(tree_sum, avx2_kernel_gives_the_same_bits)
{
    if (isa_best() < ISA_AVX2)
        cr_skip_test("no AVX2");
    check_kernel(comm_tree_sum_avx2);
}

Test(tree_sum, avx512_kernel_gives_the_same_bits)
{
    if (isa_best() < ISA_AVX512)
        cr_skip_test("no AVX-512");
    check_kernel(comm_tree_sum_avx512);
}

Test(tree_sum, order_matters_for_these_inputs)
{
    int differs = 0;

    fill();
    for (int i = 0; i < N; i++) {
        float linear = 0;

        for (int k = 0; k < 8; k++)
            linear += inputs[k][i];
        differs += linear != reference(0, 8, i);
    }
    cr_assert_gt(differs, N / 20, "the other tests could not see a wrong order");
}

Test(patience, counts_a_long_gap_of_the_own_process_once)
{
    struct patience patience;

    patience_start(&patience);
    patience.last -= 100; /* as if stopped for 100 s */
    cr_assert_lt(patience_spent(&patience), PATIENCE_GAP_S + 1e-9);
}

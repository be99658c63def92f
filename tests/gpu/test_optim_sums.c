#include "optim/cuda/update.h"
#include "optim/element_rules.h"
#include "optim/element_sums.h"
#include "runtime/base/exact_sum.h"
#include "tests/gpu/optim_rig.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * Rules over sums by the kernels against the CPU: integers of the sums, vectors, weights and states,
 * on matrices with rows of 30 to 479 elements, heads, single elements and tensors of a few.
 */

/* Every rule and option over sums; those of element-wise rules with all of their states. */
static const struct world_params CASES[] = {
    {.rule = "adam_mini"},
    {.rule = "adafactor"},
    {.rule = "adafactor", .scale_parameter = true},
    {.rule = "came"},
    {.rule = "adamw", .cautious = true},
    {.rule = "ademamix", .cautious = true},
    {.rule = "lion", .cautious = true},
    {.rule = "mars", .tensor_clip = true},
    {.rule = "mars", .tensor_clip = true, .cautious = true},
};

enum { N_CASES = sizeof CASES / sizeof CASES[0], N_MASTERS = 4, WHOLE = 0 };

static struct world_params with(int c, const char *state, const char *master)
{
    struct world_params params = CASES[c];

    params.state = state;
    params.master = master;
    return params;
}

/* Every codec with a third of the cases, every case with a third of the codecs. */
Test(gpu_optim_sums, gives_the_bytes_of_the_cpu_for_every_state_codec)
{
    gpu_require();
    for (int c = 0; c < N_CASES; c++)
        for (int s = c % 3; codec_name(s) != NULL; s += 3) {
            const bool has_states = strcmp(CASES[c].rule, "adafactor") != 0;
            struct world_params params = with(c, has_states ? codec_name(s) : "fp32",
                                              master_codec_name((c + s) % N_MASTERS));

            params.n_ranks = (c + s) / 3 % 3 + 1;
            params.chunk = s % 2 == 0 ? WHOLE : 7 * QUANTUM;
            optim_rig_check(&params, WITHOUT_CORNERS);
        }
}

Test(gpu_optim_sums, gives_the_bytes_of_the_cpu_for_every_master_codec)
{
    gpu_require();
    for (int c = 0; c < N_CASES; c++)
        for (int m = 0; master_codec_name(m) != NULL; m++) {
            struct world_params params = with(c, "fp32", master_codec_name(m));

            params.n_ranks = m + 1;
            optim_rig_check(&params, WITH_FINITE_CORNERS);
        }
}

Test(gpu_optim_sums, gives_the_bytes_of_the_cpu_where_rules_are_mixed)
{
    const struct world_params mixed = {.rule = "came",
                                       .state = "int8",
                                       .master = "split16",
                                       .n_ranks = 2,
                                       .add_group = "down,norm: rule=adamw"};

    gpu_require();
    optim_rig_check(&mixed, WITHOUT_CORNERS);
}

/* ---- parts of every length ---- */

/*
 * Sums of one part by the kernels and by their definition.  Lengths lie around everything that a
 * kernel takes at once: 16 threads 2 quanta, a block of threads 16 or 32, 64 rows.
 */
enum { PART_BEGIN = 3 * QUANTUM, PART_MOST = 97 * QUANTUM + 5, PART_LANES = 16, N_SUMS = 5 };

static const uint32_t PART_SIZES[] = {1,
                                      255,
                                      QUANTUM,
                                      QUANTUM + 1,
                                      2 * QUANTUM,
                                      3 * QUANTUM - 1,
                                      16 * QUANTUM,
                                      17 * QUANTUM + 16,
                                      31 * QUANTUM,
                                      32 * QUANTUM,
                                      33 * QUANTUM + 100,
                                      64 * QUANTUM + 1,
                                      PART_MOST};
static const uint32_t BLOCK_LENGTHS[] = {1, 15, 256, 257, 700, 768, 5000, 1 << 20};

enum {
    N_SIZES = sizeof PART_SIZES / sizeof PART_SIZES[0],
    N_LENGTHS = sizeof BLOCK_LENGTHS / sizeof BLOCK_LENGTHS[0]
};

/* Quanta of very different sizes, so that terms of one exact sum begin in different limbs. */
static void fill_gradient(float *grad, float *low)
{
    for (int i = 0; i < PART_MOST; i++) {
        const float size = ldexpf(1.0f, i / QUANTUM * 13 % 80 - 40);

        grad[i] = i % 7 == 3 ? 0.0f : (float)(i * 977 % 2003 - 1001) * size;
        low[i] = (float)(i * 31 % 509 - 254) * 0.01f;
    }
    low[40 * QUANTUM] = INFINITY;
    low[40 * QUANTUM + 1] = NAN;
    low[60 * QUANTUM] = 3e38f;
}

static double squares_of(const float *x, size_t n)
{
    double lanes[PART_LANES] = {0};

    for (size_t i = 0; i < n; i++)
        lanes[i % PART_LANES] += (double)x[i] * (double)x[i];
    for (int width = PART_LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    return lanes[0];
}

static void add_term(const struct update_part *part, uint64_t sum, double x, int64_t *limbs)
{
    const struct limb_term term = limb_term_of(x, part->scale);

    for (int k = 0; k < LIMBS; k++)
        limbs[sum + (uint64_t)k * part->n_sums] += term.limbs[k];
}

/* What `part` adds to its limbs, by element_sums.h and exact_sum.h. */
static void define_sum(const struct update_part *part, const float *x, int64_t *limbs)
{
    const uint64_t cols = part->cols;
    size_t run = 0;

    for (size_t i = 0; i < part->n; i += run) {
        const uint64_t element = part->begin + i, rest = cols - element % cols;

        run = QUANTUM - i % QUANTUM;
        run = run < part->n - i ? run : part->n - i;
        if (part->sum == SUM_TENSOR) {
            exact_sum_add((struct exact_sum *)(void *)limbs, squares_of(x + i, run));
        } else if (part->sum == SUM_BLOCKS) {
            run = run < rest ? run : rest;
            add_term(part, element / cols, squares_of(x + i, run), limbs);
        } else {
            run = 1;
            if (part->sum == SUM_ELEMENTS)
                limbs[0] += x[i] != 0.0f;
            else
                add_term(part, element % cols, (double)x[i] * (double)x[i], limbs);
        }
    }
}

/* Where limbs of sums lie behind one another, and how many there are. */
struct limb_places {
    size_t at[N_SUMS], n;
};

/* Blocks, columns, weights, gradients, how many; a bound on the squares is 2^120. */
static struct update_work sums_of_part(uint32_t n, uint32_t cols, struct limb_places *places)
{
    static const int32_t sums[] = {SUM_BLOCKS, SUM_COLUMNS, SUM_TENSOR, SUM_TENSOR, SUM_ELEMENTS};
    static const int32_t values[] = {VALUE_GRAD, VALUE_GRAD, VALUE_WEIGHT, VALUE_GRAD,
                                     VALUE_AGREES};
    const uint64_t n_sums[] = {(PART_BEGIN + n + cols - 1) / cols, cols, 0, 0, 0};
    struct update_work work = {.n_parts = N_SUMS, .grad_scale = 1};

    places->n = 0;
    for (int i = 0; i < N_SUMS; i++) {
        const size_t n_limbs = sums[i] == SUM_TENSOR     ? EXACT_SUM_LIMBS + 1
                               : sums[i] == SUM_ELEMENTS ? 1
                                                         : LIMBS * n_sums[i];

        work.parts[i] = (struct update_part){
            .n = n,
            .begin = PART_BEGIN,
            .rule = RULE_LION, /* u has the gradient's sign */
            .decay = 1,
            .f = {[SCALAR_BETA1] = 0.9f, [SCALAR_ONE_MINUS_BETA1] = 0.1f, [SCALAR_STEP_SIZE] = 1},
            .rank1 = -1,
            .n_states = 1,
            .cols = cols,
            .n_blocks = 1,
            .blocks = {{.length = cols}},
            .sum = sums[i],
            .value = values[i],
            .n_sums = n_sums[i],
            .scale = ldexp(1.0, 40 - 120)};
        places->at[i] = places->n;
        places->n += n_limbs;
    }
    return work;
}

struct part_memory {
    float *grad, *low; /* on the host, and then on the device */
    float *device_grad, *device_low, *device_state;
};

static float *on_device(const float *x, size_t n_bytes)
{
    void *p = NULL;

    EXPECT_CUDA(cudaMalloc(&p, n_bytes));
    EXPECT_CUDA(cudaMemcpy(p, x, n_bytes, cudaMemcpyHostToDevice));
    return p;
}

static void check_part(const struct part_memory *memory, uint32_t n, uint32_t cols)
{
    struct limb_places places;
    struct update_work work = sums_of_part(n, cols, &places);
    const size_t n_bytes = places.n * sizeof(int64_t);
    int64_t *want = calloc(places.n, sizeof *want), *got = calloc(places.n, sizeof *got);
    void *limbs = on_device((const float *)(const void *)want, n_bytes);

    for (int i = 0; i < N_SUMS; i++) {
        struct update_part *part = &work.parts[i];

        define_sum(part, part->value == VALUE_WEIGHT ? memory->low : memory->grad,
                   want + places.at[i]);
        part->grad = memory->device_grad;
        part->low = memory->device_low;
        part->codes[0] = memory->device_state;
        part->limbs = (int64_t *)limbs + places.at[i];
    }
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaMemcpy(got, limbs, n_bytes, cudaMemcpyDeviceToHost));
    for (int i = 0; i < N_SUMS; i++)
        for (size_t k = places.at[i]; k < (i + 1 < N_SUMS ? places.at[i + 1] : places.n); k++)
            cr_assert_eq(got[k], want[k],
                         "%u elements, blocks of %u: sum %d, limb %zu: %lld, "
                         "expected %lld",
                         n, cols, i, k - places.at[i], (long long)got[k], (long long)want[k]);
    EXPECT_CUDA(cudaFree(limbs));
    free(want);
    free(got);
}

Test(gpu_optim_sums, are_their_definition_for_parts_and_blocks_of_every_length)
{
    static float grad[PART_MOST], low[PART_MOST], state[PART_MOST];
    struct part_memory memory = {.grad = grad, .low = low};

    gpu_require();
    fill_gradient(grad, low);
    memory.device_grad = on_device(grad, sizeof grad);
    memory.device_low = on_device(low, sizeof low);
    memory.device_state = on_device(state, sizeof state);
    for (int s = 0; s < N_SIZES; s++)
        for (int l = 0; l < N_LENGTHS; l++)
            check_part(&memory, PART_SIZES[s], BLOCK_LENGTHS[l]);
    EXPECT_CUDA(cudaFree(memory.device_grad));
    EXPECT_CUDA(cudaFree(memory.device_low));
    EXPECT_CUDA(cudaFree(memory.device_state));
}

Test(gpu_optim_sums, refuses_work_that_is_not_whole)
{
    static const float zeros[QUANTUM];
    float *memory = NULL;

    gpu_require();
    memory = on_device(zeros, sizeof zeros);

    const struct update_part good = {.grad = memory,
                                     .low = memory + 8,
                                     .n = 5,
                                     .rank1 = -1,
                                     .n_states = 1,
                                     .codes = {memory + 16},
                                     .rule = RULE_ADAM_MINI,
                                     .vectors = {[MINI_DENOMINATOR] = memory + 24},
                                     .cols = 5,
                                     .n_blocks = 1,
                                     .blocks = {{.length = 5}},
                                     .sum = SUM_BLOCKS,
                                     .value = VALUE_GRAD,
                                     .n_sums = 1,
                                     .scale = 1.0,
                                     .limbs = (int64_t *)(void *)(memory + 32)};
    struct update_work work = {.n_parts = 1, .grad_scale = 1, .parts = {good}};

    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_OK, "%s", shoal_last_error());
    work.parts[0].n = 0;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].begin = QUANTUM / 2; /* inside a quantum */
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].limbs = NULL;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].sum = SUM_ELEMENTS; /* of what does not agree */
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].n_blocks = 0;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].sum = SUM_COLUMNS;
    work.parts[0].cols = 0;
    cr_assert_eq(cuda_update_sums(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0] = good;
    work.parts[0].vectors[MINI_DENOMINATOR] = NULL;
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL);
    work.parts[0].rule = RULE_CAME;
    work.parts[0].vectors[FACTORED_STEP] = work.parts[0].vectors[FACTORED_ROW_FACTOR] =
        work.parts[0].vectors[FACTORED_COL_FACTOR] = memory;
    cr_assert_eq(cuda_update(NULL, &work), SHOAL_ERR_INTERNAL); /* without the residual's factors */
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_CUDA(cudaFree(memory));
}

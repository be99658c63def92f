#include "optim/stats_internal.h"

#include "runtime/base/isa.h"

#include <math.h>
#include <string.h>

static const double LIMB_BASE = (double)((int64_t)1 << LIMB_BITS);

double stats_scale(double sum)
{
    int exponent = 0;

    if (sum == 0.0)
        return 1.0;
    frexp(sum, &exponent); /* sum < 2^exponent <= 2 sum */
    return ldexp(1.0, LIMB_BITS - 3 - exponent);
}

double stats_grad_scale(const struct optim_stats_step *step)
{
    const double factor = (double)step->grad_scale;

    return stats_scale(step->grad_squares * (factor * factor));
}

static int64_t take_carry(int64_t *limb)
{
    const int64_t digit = *limb & (((int64_t)1 << LIMB_BITS) - 1);
    const int64_t carry = (*limb - digit) / ((int64_t)1 << LIMB_BITS);

    *limb = digit;
    return carry;
}

double stats_sum(int64_t *limbs, int64_t count, double scale)
{
    limbs[count] += take_carry(&limbs[2 * count]);
    limbs[0] += take_carry(&limbs[count]);
    return ((double)limbs[0] +
            ((double)limbs[count] + (double)limbs[2 * count] / LIMB_BASE) / LIMB_BASE) /
           scale;
}

float stats_mean(double sum, int64_t count, double eps)
{
    const double mean = sum / (double)count + eps;

    return (float)(mean < 0x1p126 ? mean : 0x1p126); /* NaN, too */
}

const struct optim_stats_rule *optim_stats_of(const struct optim_rule *rule,
                                              const struct optim_hyper *hyper, int rank1)
{
    if (rule->stats != NULL)
        return rule->stats;
    return hyper->cautious || stats_clips(rule, hyper) || rank1 >= 0 ? &optim_elements_stats : NULL;
}

shoal_status optim_stats_init(const struct optim_rule *rule, const struct optim_hyper *hyper,
                              const struct tensor *tensor, int rank1, struct optim_stats *stats_out)
{
    const struct optim_stats_rule *how = optim_stats_of(rule, hyper, rank1);

    if (how == NULL)
        return fail(SHOAL_ERR_INTERNAL, "optimizer %s: it has no statistics", rule->name);
    if (hyper->cautious &&
        (rule->stats != NULL || rule->decay_in_gradient || rule->compat || rule->average != NULL))
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer %s: it cannot be cautious; expected an element-wise rule with "
                    "decoupled weight decay that averages no weights and follows no other software",
                    rule->name);
    if (tensor->n_elements < 1 || tensor->n_elements > STATS_MAX_ELEMENTS)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer %s: tensor %s has %lld elements, expected 1 to %lld", rule->name,
                    tensor->name, (long long)tensor->n_elements, (long long)STATS_MAX_ELEMENTS);

    struct optim_stats stats = {
        .rule = rule, .how = how, .n_elements = tensor->n_elements, .rank1 = rank1};

    optim_stats_use(&stats, isa_name(isa_best()));
    SHOAL_TRY(how->init(hyper, tensor, &stats));
    *stats_out = stats;
    return SHOAL_OK;
}

int64_t optim_stats_limbs(const struct optim_stats *stats)
{
    int64_t most = 0;

    for (int pass = 0; pass < STATS_MAX_PASSES; pass++)
        most = stats->n_limbs[pass] > most ? stats->n_limbs[pass] : most;
    return most;
}

bool optim_stats_use(struct optim_stats *stats, const char *isa)
{
    for (enum isa form = ISA_SCALAR; form <= isa_best(); form++) {
        if (strcmp(isa_name(form), isa) == 0) {
            stats->kernels = stats->how->kernels[form];
            stats->element_kernel = optim_kernel_for(stats->rule, isa);
            return true;
        }
    }
    return false;
}

/* Tiles are anchored at the tensor: only its end may cut a quantum. */
static bool is_tile(const struct optim_stats *stats, const struct optim_extent *tile, int64_t first)
{
    const int64_t n = (int64_t)tile->n;

    return first >= 0 && first % QUANTUM == 0 && n <= STATS_TILE_ELEMENTS &&
           first + n <= stats->n_elements && (n % QUANTUM == 0 || first + n == stats->n_elements);
}

void optim_stats_accumulate(const struct optim_stats *stats, const struct optim_stats_step *step,
                            int pass, const struct optim_extent *tile, int64_t first,
                            const float *const *vectors, int64_t *limbs)
{
    assert(is_tile(stats, tile, first) && stats->n_limbs[pass] > 0);
    stats->kernels->accumulate(stats, step, pass, tile, first, vectors, limbs);
}

int64_t optim_stats_finish_items(const struct optim_stats *stats, int pass, int stage)
{
    return stats->n_limbs[pass] > 0 ? stats->how->finish_items(stats, pass, stage) : 0;
}

void optim_stats_finish_part(const struct optim_finish *finish, int stage, int64_t begin,
                             int64_t end)
{
    finish->stats->how->finish(finish, stage, begin, end);
}

void optim_stats_finish(const struct optim_finish *finish)
{
    for (int stage = 0; stage < STATS_FINISH_STAGES; stage++) {
        const int64_t n = optim_stats_finish_items(finish->stats, finish->pass, stage);

        if (n > 0)
            optim_stats_finish_part(finish, stage, 0, n);
    }
}

void optim_stats_apply(const struct optim_stats *stats, const struct optim_stats_step *step,
                       const struct optim_extent *tile, int64_t first, const float *const *vectors)
{
    assert(is_tile(stats, tile, first));
    stats->kernels->apply(stats, step, tile, first, vectors);
}

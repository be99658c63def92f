#include "optim/stats_internal.h"

/*
 * Blocks of Adam-mini (Zhang et al. 2024, arXiv 2406.16793, algorithm 3 and principle 1: a block is
 * the smallest dense part of the Hessian), by role: query and key one per head, where a key head
 * serves a group of queries; value, output and feed-forward one per output neuron; embedding,
 * position and head one per token; a norm is one block; biases are left to AdamW.
 */

static shoal_status add_part(const struct tensor *tensor, struct optim_stats *stats, int64_t rows,
                             int64_t rows_per_block)
{
    struct optim_part *part = &stats->parts[stats->n_parts];
    const struct optim_part *before = stats->n_parts > 0 ? part - 1 : NULL;

    if (rows < 1 || rows_per_block < 1 || rows % rows_per_block != 0)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer adam_mini: tensor %s, part %d: %lld rows are no whole number of "
                    "blocks of %lld rows",
                    tensor->name, stats->n_parts, (long long)rows, (long long)rows_per_block);
    if (rows_per_block > STATS_MAX_BLOCK / stats->cols)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer adam_mini: tensor %s has a block of %lld elements, at most %d can "
                    "be summed",
                    tensor->name, (long long)(rows_per_block * stats->cols), (int)STATS_MAX_BLOCK);

    part->begin = before != NULL ? before->end : 0;
    part->end = part->begin + rows * stats->cols;
    part->block_elements = rows_per_block * stats->cols;
    part->first_block = before != NULL ? stats_blocks(stats) : 0;
    stats->n_parts++;
    return SHOAL_OK;
}

static shoal_status check_qkv(const struct tensor *t)
{
    if (t->n_splits != 3 || t->splits[0] + t->splits[1] + t->splits[2] != t->shape[0] ||
        t->splits[0] != (int64_t)t->heads * t->head_size ||
        t->splits[1] != (int64_t)t->kv_heads * t->head_size)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer adam_mini: tensor %s: expected rows of %d query heads and %d key "
                    "heads of %d rows, then values; found %d parts of %lld, %lld and %lld in %lld",
                    t->name, t->heads, t->kv_heads, t->head_size, t->n_splits,
                    (long long)t->splits[0], (long long)t->splits[1], (long long)t->splits[2],
                    (long long)t->shape[0]);
    return SHOAL_OK;
}

int64_t stats_blocks(const struct optim_stats *stats)
{
    const struct optim_part *last = &stats->parts[stats->n_parts - 1];

    return last->first_block + (last->end - last->begin) / last->block_elements;
}

shoal_status stats_partition(const struct tensor *tensor, struct optim_stats *stats)
{
    const int64_t cols = tensor->ndim > 0 ? tensor->shape[tensor->ndim - 1] : 1;

    if (tensor->role == ROLE_BIAS)
        return SHOAL_OK;

    if (tensor->role == ROLE_NORM) {
        stats->rows = 1;
        stats->cols = tensor->n_elements;
        return add_part(tensor, stats, 1, 1);
    }
    if (tensor->ndim < 2)
        return fail(SHOAL_ERR_CONFIG,
                    "optimizer adam_mini: tensor %s is a %s with %d dimension, expected rows",
                    tensor->name, role_name(tensor->role), tensor->ndim);
    stats->cols = cols;
    stats->rows = tensor->n_elements / cols;
    if (tensor->role != ROLE_QKV)
        return add_part(tensor, stats, stats->rows, 1);

    SHOAL_TRY(check_qkv(tensor));
    SHOAL_TRY(add_part(tensor, stats, tensor->splits[0], tensor->head_size));
    SHOAL_TRY(add_part(tensor, stats, tensor->splits[1], tensor->head_size));
    return add_part(tensor, stats, tensor->splits[2], 1);
}

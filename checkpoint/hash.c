#include "checkpoint/checkpoint_internal.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/*
 * One number for the whole state.  The order is by name, not by how the state was cut: kinds
 * sorted, tensors sorted by name, items in order.  Only payload enters the hash.
 */

/* The blocks of one (tensor, kind) in the items' order. */
static shoal_status hash_shards(struct ckpt *ckpt, size_t first, size_t n, XXH3_state_t *state)
{
    for (size_t i = first; i < first + n; i++) {
        uint32_t n_blocks = shard_blocks(ckpt_shard_bytes(&ckpt->space, &ckpt->shards[i]));

        for (uint32_t b = 0; b < n_blocks;) {
            struct block blocks[READ_SLOTS];
            size_t count = 0;

            while (count < READ_SLOTS && b < n_blocks)
                blocks[count++] = (struct block){.shard = (uint32_t)i, .index = b++};
            SHOAL_TRY(ckpt_blocks_load(ckpt, blocks, count));
            for (size_t k = 0; k < count; k++)
                XXH3_128bits_update(state, ckpt->buffer + k * CKPT_BLOCK_BYTES,
                                    ckpt_block_bytes(ckpt, &blocks[k]));
        }
    }
    return SHOAL_OK;
}

static shoal_status hash_kind(struct ckpt *ckpt, int kind, XXH3_state_t *state)
{
    for (size_t i = 0; i < ckpt->n_tensors; i++) {
        size_t n;
        size_t first = ckpt_shards_find(ckpt->shards, ckpt->n_shards, (uint32_t)ckpt->by_name[i],
                                        (uint32_t)kind, &n);

        SHOAL_TRY(hash_shards(ckpt, first, n, state));
    }
    return SHOAL_OK;
}

/* The next kind in strcmp order after `last` (NULL: the first), or -1. */
static int next_kind(const struct ckpt *ckpt, const char *last)
{
    int best = -1;

    for (size_t i = 0; i < ckpt->n_kinds; i++)
        if ((last == NULL || strcmp(ckpt->kinds[i], last) > 0) &&
            (best < 0 || strcmp(ckpt->kinds[i], ckpt->kinds[best]) < 0))
            best = (int)i;
    return best;
}

static shoal_status hash_all(struct ckpt *ckpt, const char *only_kind, XXH3_state_t *state)
{
    if (only_kind != NULL) {
        int kind = ckpt_find_kind(ckpt, only_kind);

        if (kind < 0)
            return fail(SHOAL_ERR_DATA, "checkpoint %s: has no state %s", ckpt->path, only_kind);
        return hash_kind(ckpt, kind, state);
    }
    for (int k = next_kind(ckpt, NULL); k >= 0; k = next_kind(ckpt, ckpt->kinds[k]))
        SHOAL_TRY(hash_kind(ckpt, k, state));
    return SHOAL_OK;
}

shoal_status ckpt_hash(struct ckpt *ckpt, const char *only_kind, char hex_out[33])
{
    static const char digits[] = "0123456789abcdef";
    XXH3_state_t *state = XXH3_createState();
    XXH128_canonical_t canonical;

    if (state == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint %s: no memory to hash it", ckpt->path);
    XXH3_128bits_reset(state);

    shoal_status status = hash_all(ckpt, only_kind, state);

    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    SHOAL_TRY(status);
    for (int i = 0; i < 16; i++) {
        hex_out[2 * i] = digits[canonical.digest[i] >> 4];
        hex_out[2 * i + 1] = digits[canonical.digest[i] & 15];
    }
    hex_out[32] = '\0';
    return SHOAL_OK;
}

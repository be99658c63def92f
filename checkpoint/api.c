#include "checkpoint/checkpoint_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The installed header's view of a checkpoint. */

struct shoal_checkpoint {
    struct ckpt *ckpt;
};

shoal_status shoal_checkpoint_open(const char *path, struct shoal_checkpoint **checkpoint_out)
{
    if (path == NULL || checkpoint_out == NULL)
        return fail(SHOAL_ERR_USAGE, "shoal_checkpoint_open: path or result is NULL");

    struct shoal_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);

    if (checkpoint == NULL)
        return fail(SHOAL_ERR_NOMEM, "checkpoint %s: no memory", path);

    shoal_status status = ckpt_open(path, &checkpoint->ckpt);

    if (status != SHOAL_OK) {
        free(checkpoint);
        return status;
    }
    *checkpoint_out = checkpoint;
    return SHOAL_OK;
}

void shoal_checkpoint_close(struct shoal_checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    ckpt_close(checkpoint->ckpt);
    free(checkpoint);
}

int64_t shoal_checkpoint_step(const struct shoal_checkpoint *checkpoint)
{
    return ckpt_meta(checkpoint->ckpt)->step;
}

int shoal_checkpoint_tensor_count(const struct shoal_checkpoint *checkpoint)
{
    return ckpt_tensor_count(checkpoint->ckpt);
}

static shoal_status check_index(const struct ckpt *ckpt, int index)
{
    int n = ckpt_tensor_count(ckpt);

    if (index < 0 || index >= n)
        return fail(SHOAL_ERR_USAGE, "checkpoint %s: tensor %d, it has %d", ckpt_path(ckpt), index,
                    n);
    return SHOAL_OK;
}

shoal_status shoal_checkpoint_tensor_info(const struct shoal_checkpoint *checkpoint, int index,
                                          struct shoal_tensor_info *info_out)
{
    SHOAL_TRY(check_index(checkpoint->ckpt, index));

    const struct tensor *t = ckpt_tensor(checkpoint->ckpt, index);
    struct shoal_tensor_info info = {.name = t->name, .ndim = t->ndim, .n_elements = t->n_elements};

    memcpy(info.shape, t->shape, sizeof info.shape);
    *info_out = info;
    return SHOAL_OK;
}

shoal_status shoal_checkpoint_read(struct shoal_checkpoint *checkpoint, int index, const char *kind,
                                   int64_t begin, int64_t n, float *out)
{
    struct ckpt *ckpt = checkpoint->ckpt;

    if (kind == NULL || (out == NULL && n > 0))
        return fail(SHOAL_ERR_USAGE, "shoal_checkpoint_read: kind or result is NULL");
    SHOAL_TRY(check_index(ckpt, index));

    const struct tensor *t = ckpt_tensor(ckpt, index);
    int kind_index = ckpt_find_kind(ckpt, kind);
    struct ckpt_items items;

    if (kind_index < 0)
        return fail(SHOAL_ERR_USAGE, "checkpoint %s: has no state %s", ckpt_path(ckpt), kind);
    if (!ckpt_find_items(ckpt, t->name, kind, &items))
        return fail(SHOAL_ERR_USAGE, "checkpoint %s: has no %s of %s", ckpt_path(ckpt), kind,
                    t->name);
    if (items.type != CKPT_F32)
        return fail(SHOAL_ERR_USAGE, "checkpoint %s: %s of %s is stored as %s, not as fp32",
                    ckpt_path(ckpt), kind, t->name, ckpt_type_name(items.type));
    if (begin < 0 || n < 0 || begin > items.n_items || n > items.n_items - begin)
        return fail(SHOAL_ERR_USAGE,
                    "checkpoint %s: %" PRId64 " elements from %" PRId64
                    " of %s, which has %" PRId64,
                    ckpt_path(ckpt), n, begin, t->name, items.n_items);
    return ckpt_read_range(ckpt, index, kind_index, begin, begin + n, out);
}

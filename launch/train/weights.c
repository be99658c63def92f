#include "launch/train/train_internal.h"

#include <string.h>

/*
 * Master weights as fp32, whatever they rest as and wherever: how they are initialized, saved and
 * loaded.  Checkpoints always hold them in fp32, so that any master codec opens any checkpoint.
 */

enum { PART = 32 * 1024 }; /* elements that are converted at a time; see average.c */

/* A tensor's elements [begin, begin + n), at most PART, one way or the other. */
static shoal_status move_part(const struct trainer *trainer, int t, int64_t begin, size_t n,
                              float *x, bool to_memory)
{
    const struct build *build = trainer->build;
    const struct tensor *tensor = &build->layout->tensors[t];
    const struct master_codec *codec = build->setup->master;
    const struct device_ops *ops = trainer->device->ops;
    const int64_t at = tensor->offset + begin - build_owned(build, tensor->unit).begin;
    const size_t low_bytes = (size_t)codec->bits / 8;
    char *low = plan_ref(build->plan, build->master[tensor->unit]);
    bf16_t *hi = NULL;
    bf16_t hi_copy[PART];
    _Alignas(64) char low_copy[PART * sizeof(float)];

    if (low != NULL)
        low += (size_t)at * low_bytes;
    if (codec->bits == 32)
        return to_memory ? ops->copy(trainer->device, low, x, n * sizeof *x)
                         : ops->copy(trainer->device, x, low, n * sizeof *x);
    hi = (bf16_t *)plan_ref(build->plan, build_own_param(build, tensor->unit)) + at;
    if (to_memory) {
        codec->encode(x, n, master_key(trainer->config->run.seed, 0, (uint64_t)t), (uint64_t)begin,
                      hi_copy, low_copy);
        SHOAL_TRY(ops->copy(trainer->device, hi, hi_copy, n * sizeof *hi));
        return low == NULL ? SHOAL_OK : ops->copy(trainer->device, low, low_copy, n * low_bytes);
    }
    SHOAL_TRY(ops->copy(trainer->device, hi_copy, hi, n * sizeof *hi));
    if (low != NULL)
        SHOAL_TRY(ops->copy(trainer->device, low_copy, low, n * low_bytes));
    codec->decode(hi_copy, low_copy, n, x);
    return SHOAL_OK;
}

shoal_status weights_move(const struct trainer *trainer, int tensor, int64_t begin, size_t n,
                          float *x, bool to_memory)
{
    const bool whole = trainer->build->setup->master->bits == 32;
    const size_t length = whole ? n : PART;

    for (size_t at = 0; at < n; at += length) {
        const size_t part = n - at < length ? n - at : length;
        SHOAL_TRY(move_part(trainer, tensor, begin + (int64_t)at, part, x + at, to_memory));
    }
    return SHOAL_OK;
}

shoal_status weights_store_range(const struct trainer *trainer, int unit, struct shard range,
                                 float *x)
{
    const struct layout *layout = trainer->build->layout;
    const struct unit *u = &layout->units[unit];

    for (int t = u->first_tensor; t < u->first_tensor + u->n_tensors; t++) {
        const struct tensor *tensor = &layout->tensors[t];
        const struct shard part = layout_tensor_part(tensor, range);

        if (part.begin < part.end)
            SHOAL_TRY(weights_move(trainer, t, part.begin, (size_t)(part.end - part.begin),
                                   x + (tensor->offset + part.begin - range.begin), true));
    }
    return SHOAL_OK;
}

/*
 * A piece's addresses are of a memory that does not exist: item i of the view is at VIEW_BASE +
 * 4 i, and only view_copy reaches it.
 */
static const uintptr_t VIEW_BASE = (uintptr_t)1 << 32;

static shoal_status view_copy(void *arg, void *dst, const void *src, size_t n_bytes, bool to_memory)
{
    const struct weights_view *view = arg;
    const uintptr_t address = to_memory ? (uintptr_t)dst : (uintptr_t)src;
    const int64_t item = (int64_t)((address - VIEW_BASE) / sizeof(float));
    float x[PART];

    for (size_t done = 0; done < n_bytes;) {
        const size_t left = n_bytes - done;
        const size_t part = left < sizeof x ? left : sizeof x;
        const int64_t begin = view->begin + item + (int64_t)(done / sizeof(float));

        if (to_memory)
            memcpy(x, (const char *)src + done, part);
        if (view->average)
            SHOAL_TRY(average_read(view->trainer, view->tensor, begin, part / sizeof(float), x));
        else
            SHOAL_TRY(weights_move(view->trainer, view->tensor, begin, part / sizeof(float), x,
                                   to_memory));
        if (!to_memory)
            memcpy((char *)dst + done, x, part);
        done += part;
    }
    return SHOAL_OK;
}

void weights_view_piece(struct weights_view *view, struct ckpt_piece *piece)
{
    piece->data = (void *)VIEW_BASE;
    piece->copy = view_copy;
    piece->copy_arg = view;
}

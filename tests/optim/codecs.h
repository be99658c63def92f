#pragma once

/* What the tests of codecs share. */

#include "optim/codec.h"
#include "tests/optim/rules.h"

#include <stdlib.h>

static inline const struct optim_codec *find_codec(const char *name)
{
    const struct optim_codec *codec = NULL;

    cr_assert_eq(codec_find(name, &codec), SHOAL_OK, "%s", shoal_last_error());
    return codec;
}

static inline const struct master_codec *find_master(const char *name)
{
    const struct master_codec *codec = NULL;

    cr_assert_eq(master_codec_find(name, &codec), SHOAL_OK, "%s", shoal_last_error());
    return codec;
}

/*
 * Distance of the inputs of a sweep over all 2^32 floats: every one with `tests/run --long`,
 * otherwise some 2^22 of them (the stride is prime).
 */
static inline uint64_t sweep_stride(void)
{
    return getenv("SHOAL_LONG") != NULL ? 1 : 1021;
}

#include "optim/codec_internal.h"
#include "optim/codec_map.h"

#include "runtime/base/rng.h"
#include "runtime/config/config.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

static void fp32_decode(const void *codes, const void *scales, size_t n, float *x)
{
    (void)scales;
    memcpy(x, codes, n * sizeof *x);
}

static void fp32_encode(const float *x, size_t n, void *codes, void *scales)
{
    (void)scales;
    memcpy(codes, x, n * sizeof *x);
}

static void master_fp32_decode(const bf16_t *hi, const void *low, size_t n, float *x)
{
    (void)hi;
    memcpy(x, low, n * sizeof *x);
}

/* A codec with the forms of its kernels. */
struct codec_entry {
    struct optim_codec codec;
    codec_decode_fn *decode[2][3];
    codec_encode_fn *encode[2][3];
    codec_decode_fn *decode_scaled[3];
    codec_encode_scaled_fn *encode_scaled[3];
};

struct master_entry {
    struct master_codec codec;
    master_decode_fn *decode[3];
    master_encode_fn *encode[3];
};

static struct codec_entry CODECS[] = {
    {
        .codec = {.name = "fp32", .bits = 32},
        .decode = {{fp32_decode, fp32_decode, fp32_decode},
                   {fp32_decode, fp32_decode, fp32_decode}},
        .encode = {{fp32_encode, fp32_encode, fp32_encode},
                   {fp32_encode, fp32_encode, fp32_encode}},
    },
    {
        .codec = {.name = "bf16", .bits = 16},
        .decode = {CODEC_FORMS(codec_bf16_decode), CODEC_FORMS(codec_bf16_decode)},
        .encode = {CODEC_FORMS(codec_bf16_encode), CODEC_FORMS(codec_bf16_encode)},
    },
    {
        .codec = {.name = "int8", .bits = 8, .block = 32, .scale_bytes = 4},
        .decode = {CODEC_FORMS(codec_int8_decode_signed), CODEC_FORMS(codec_int8_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_int8_encode_signed), CODEC_FORMS(codec_int8_encode_unsigned)},
    },
    {
        .codec = {.name = "int4", .bits = 4, .block = 128, .scale_bytes = 4, .coarse = true},
        .decode = {CODEC_FORMS(codec_int4_decode_signed), CODEC_FORMS(codec_int4_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_int4_encode_signed), CODEC_FORMS(codec_int4_encode_unsigned)},
    },
    {
        .codec = {.name = "bnb8", .bits = 8, .block = 256, .scale_bytes = 4},
        .decode = {CODEC_FORMS(codec_bnb8_decode_signed), CODEC_FORMS(codec_bnb8_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_bnb8_encode_signed), CODEC_FORMS(codec_bnb8_encode_unsigned)},
    },
    {
        .codec = {.name = "fp8", .bits = 8, .block = 256, .scale_bytes = 4},
        .decode = {CODEC_FORMS(codec_fp8_decode), CODEC_FORMS(codec_fp8_decode)},
        .encode = {CODEC_FORMS(codec_fp8_encode), CODEC_FORMS(codec_fp8_encode)},
    },
    {
        .codec = {.name = "ao8", .bits = 8, .block = 256, .scale_bytes = 4},
        .decode = {CODEC_FORMS(codec_ao8_decode_signed), CODEC_FORMS(codec_ao8_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_ao8_encode_signed), CODEC_FORMS(codec_ao8_encode_unsigned)},
    },
    {
        .codec = {.name = "ao4", .bits = 4, .block = 128, .scale_bytes = 4, .coarse = true},
        .decode = {CODEC_FORMS(codec_ao4_decode_signed), CODEC_FORMS(codec_ao4_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_ao4_encode_signed), CODEC_FORMS(codec_ao4_encode_unsigned)},
    },
    {
        .codec = {.name = "lpmm4", .bits = 4, .block = 128, .scale_bytes = 4, .coarse = true},
        .decode = {CODEC_FORMS(codec_lpmm4_decode_signed),
                   CODEC_FORMS(codec_lpmm4_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_lpmm4_encode_signed),
                   CODEC_FORMS(codec_lpmm4_encode_unsigned)},
    },
    {
        .codec = {.name = "lpmm4_rank1", .bits = 4, .block = 128, .scale_bytes = 4, .coarse = true},
        .decode = {CODEC_FORMS(codec_lpmm4_decode_signed),
                   CODEC_FORMS(codec_lpmm4_decode_unsigned)},
        .encode = {CODEC_FORMS(codec_lpmm4_encode_signed),
                   CODEC_FORMS(codec_lpmm4_encode_unsigned)},
        .decode_scaled = CODEC_FORMS(codec_lpmm4_decode_scaled),
        .encode_scaled = CODEC_FORMS(codec_lpmm4_encode_scaled),
    },
};

static struct master_entry MASTERS[] = {
    {
        .codec = {.name = "fp32", .bits = 32},
        .decode = {master_fp32_decode, master_fp32_decode, master_fp32_decode},
        .encode = CODEC_FORMS(master_fp32_encode),
    },
    {
        .codec = {.name = "split16", .bits = 16},
        .decode = CODEC_FORMS(master_split16_decode),
        .encode = CODEC_FORMS(master_split16_encode),
    },
    {
        .codec = {.name = "ecc8", .bits = 8},
        .decode = CODEC_FORMS(master_ecc8_decode),
        .encode = CODEC_FORMS(master_ecc8_encode),
    },
    {
        .codec = {.name = "bf16sr", .bits = 0},
        .decode = CODEC_FORMS(master_bf16sr_decode),
        .encode = CODEC_FORMS(master_bf16sr_encode),
    },
};

enum {
    N_CODECS = sizeof CODECS / sizeof CODECS[0],
    N_MASTERS = sizeof MASTERS / sizeof MASTERS[0],
};

static void prepare(void)
{
    const enum isa isa = isa_best();

    codec_maps_prepare();
    for (int i = 0; i < N_CODECS; i++) {
        for (int sign = 0; sign < 2; sign++) {
            CODECS[i].codec.decode[sign] = CODECS[i].decode[sign][isa];
            CODECS[i].codec.encode[sign] = CODECS[i].encode[sign][isa];
        }
        CODECS[i].codec.decode_scaled = CODECS[i].decode_scaled[isa];
        CODECS[i].codec.encode_scaled = CODECS[i].encode_scaled[isa];
    }
    for (int i = 0; i < N_MASTERS; i++) {
        MASTERS[i].codec.decode = MASTERS[i].decode[isa];
        MASTERS[i].codec.encode = MASTERS[i].encode[isa];
    }
}

static void prepare_once(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, prepare);
}

const char *codec_name(int i)
{
    return i >= 0 && i < N_CODECS ? CODECS[i].codec.name : NULL;
}

const char *master_codec_name(int i)
{
    return i >= 0 && i < N_MASTERS ? MASTERS[i].codec.name : NULL;
}

shoal_status optim_fail_unknown(const char *what, const char *name, const char *(*name_of)(int))
{
    char names[256] = "";
    char near[32];

    for (int i = 0; name_of(i) != NULL; i++) {
        const size_t n_bytes = strlen(names);

        snprintf(names + n_bytes, sizeof names - n_bytes, "%s%s", i > 0 ? " " : "", name_of(i));
    }
    fail(SHOAL_ERR_CONFIG, "%s \"%s\": expected one of %s", what, name, names);
    if (nearest_word(name, names, near, sizeof near) != NULL)
        fail_hint(SHOAL_ERR_CONFIG, "did you mean \"%s\"?", near);
    return SHOAL_ERR_CONFIG;
}

shoal_status codec_find(const char *name, const struct optim_codec **codec_out)
{
    prepare_once();
    for (int i = 0; i < N_CODECS; i++) {
        if (strcmp(CODECS[i].codec.name, name) == 0) {
            *codec_out = &CODECS[i].codec;
            return SHOAL_OK;
        }
    }
    return optim_fail_unknown("state codec", name, codec_name);
}

shoal_status master_codec_find(const char *name, const struct master_codec **codec_out)
{
    prepare_once();
    for (int i = 0; i < N_MASTERS; i++) {
        if (strcmp(MASTERS[i].codec.name, name) == 0) {
            *codec_out = &MASTERS[i].codec;
            return SHOAL_OK;
        }
    }
    return optim_fail_unknown("master codec", name, master_codec_name);
}

size_t codec_code_bytes(const struct optim_codec *codec, size_t n)
{
    return (n * (size_t)codec->bits + 7) / 8;
}

size_t codec_scale_bytes(const struct optim_codec *codec, size_t n)
{
    const size_t block = (size_t)codec->block;

    return block == 0 ? 0 : (n + block - 1) / block * (size_t)codec->scale_bytes;
}

/* The public part is the first member of an entry. */
static const struct codec_entry *entry_of(const struct optim_codec *codec)
{
    return (const struct codec_entry *)codec;
}

static const struct master_entry *master_entry_of(const struct master_codec *codec)
{
    return (const struct master_entry *)codec;
}

codec_decode_fn *codec_decode_for(const struct optim_codec *codec, enum codec_sign sign,
                                  enum isa isa)
{
    return isa <= isa_best() ? entry_of(codec)->decode[sign][isa] : NULL;
}

codec_encode_fn *codec_encode_for(const struct optim_codec *codec, enum codec_sign sign,
                                  enum isa isa)
{
    return isa <= isa_best() ? entry_of(codec)->encode[sign][isa] : NULL;
}

codec_decode_fn *codec_decode_scaled_for(const struct optim_codec *codec, enum isa isa)
{
    return isa <= isa_best() ? entry_of(codec)->decode_scaled[isa] : NULL;
}

codec_encode_scaled_fn *codec_encode_scaled_for(const struct optim_codec *codec, enum isa isa)
{
    return isa <= isa_best() ? entry_of(codec)->encode_scaled[isa] : NULL;
}

master_decode_fn *master_decode_for(const struct master_codec *codec, enum isa isa)
{
    return isa <= isa_best() ? master_entry_of(codec)->decode[isa] : NULL;
}

master_encode_fn *master_encode_for(const struct master_codec *codec, enum isa isa)
{
    return isa <= isa_best() ? master_entry_of(codec)->encode[isa] : NULL;
}

uint64_t master_key(uint64_t seed, int64_t step, uint64_t tensor)
{
    uint32_t words[4];

    rng_block(seed, RNG_STREAM_ROUNDING, (uint64_t)step, tensor, words);
    return (uint64_t)words[1] << 32 | words[0];
}

#pragma once

#include "optim/codec.h"

/* SHOAL_ERR_CONFIG with all names of a table and the nearest; name_of gives NULL behind the last. */
shoal_status optim_fail_unknown(const char *what, const char *name, const char *(*name_of)(int i));

/* The forms of a kernel, in the order of enum isa. */
#define CODEC_FORMS(name)                                                                          \
    {                                                                                              \
        name##_scalar, name##_avx2, name##_avx512                                                  \
    }

#define CODEC_DECLARE(type, name) type name##_scalar, name##_avx2, name##_avx512

CODEC_DECLARE(codec_decode_fn, codec_bf16_decode);
CODEC_DECLARE(codec_encode_fn, codec_bf16_encode);
CODEC_DECLARE(codec_decode_fn, codec_int8_decode_signed);
CODEC_DECLARE(codec_decode_fn, codec_int8_decode_unsigned);
CODEC_DECLARE(codec_encode_fn, codec_int8_encode_signed);
CODEC_DECLARE(codec_encode_fn, codec_int8_encode_unsigned);
CODEC_DECLARE(codec_decode_fn, codec_int4_decode_signed);
CODEC_DECLARE(codec_decode_fn, codec_int4_decode_unsigned);
CODEC_DECLARE(codec_encode_fn, codec_int4_encode_signed);
CODEC_DECLARE(codec_encode_fn, codec_int4_encode_unsigned);
CODEC_DECLARE(codec_decode_fn, codec_fp8_decode);
CODEC_DECLARE(codec_encode_fn, codec_fp8_encode);
CODEC_DECLARE(codec_decode_fn, codec_bnb8_decode_signed);
CODEC_DECLARE(codec_encode_fn, codec_bnb8_encode_signed);
CODEC_DECLARE(codec_decode_fn, codec_bnb8_decode_unsigned);
CODEC_DECLARE(codec_encode_fn, codec_bnb8_encode_unsigned);
CODEC_DECLARE(codec_decode_fn, codec_ao8_decode_signed);
CODEC_DECLARE(codec_encode_fn, codec_ao8_encode_signed);
CODEC_DECLARE(codec_decode_fn, codec_ao8_decode_unsigned);
CODEC_DECLARE(codec_encode_fn, codec_ao8_encode_unsigned);
CODEC_DECLARE(codec_decode_fn, codec_ao4_decode_signed);
CODEC_DECLARE(codec_encode_fn, codec_ao4_encode_signed);
CODEC_DECLARE(codec_decode_fn, codec_ao4_decode_unsigned);
CODEC_DECLARE(codec_encode_fn, codec_ao4_encode_unsigned);
CODEC_DECLARE(codec_decode_fn, codec_lpmm4_decode_signed);
CODEC_DECLARE(codec_encode_fn, codec_lpmm4_encode_signed);
CODEC_DECLARE(codec_decode_fn, codec_lpmm4_decode_unsigned);
CODEC_DECLARE(codec_encode_fn, codec_lpmm4_encode_unsigned);
CODEC_DECLARE(codec_decode_fn, codec_lpmm4_decode_scaled);
CODEC_DECLARE(codec_encode_scaled_fn, codec_lpmm4_encode_scaled);

CODEC_DECLARE(master_encode_fn, master_fp32_encode);
CODEC_DECLARE(master_decode_fn, master_split16_decode);
CODEC_DECLARE(master_encode_fn, master_split16_encode);
CODEC_DECLARE(master_decode_fn, master_ecc8_decode);
CODEC_DECLARE(master_encode_fn, master_ecc8_encode);
CODEC_DECLARE(master_decode_fn, master_bf16sr_decode);
CODEC_DECLARE(master_encode_fn, master_bf16sr_encode);

#include "runtime/data/data_internal.h"

#include <inttypes.h>
#include <string.h>

/*
 * Token files, little-endian.
 *
 * nanoGPT: uint16 ids from the first byte to the last.
 *
 * llm.c: a header of 256 int32, then the ids without a gap to the end of the file.
 *
 *     byte 0   magic    20240520        20240801
 *     byte 4   version  1               7
 *     byte 8   number of tokens (< 2^31)
 *     byte 12  zeros to byte 1024
 *     ids      uint16                   uint32
 *
 * Neither marks where documents end: their end token is the business of whoever wrote them.
 */

static int32_t header_word(const unsigned char *content, size_t index)
{
    int32_t word;

    memcpy(&word, content + 4 * index, sizeof word);
    return word;
}

bool data_has_llmc_magic(const unsigned char *head, size_t n_bytes)
{
    return n_bytes >= 8 &&
           ((header_word(head, 0) == LLMC_MAGIC_U16 && header_word(head, 1) == LLMC_VERSION_U16) ||
            (header_word(head, 0) == LLMC_MAGIC_U32 && header_word(head, 1) == LLMC_VERSION_U32));
}

static shoal_status parse_nanogpt(const char *shown, const unsigned char *content, size_t n_bytes,
                                  struct data_token_file *file_out)
{
    if (data_has_llmc_magic(content, n_bytes)) {
        fail(SHOAL_ERR_DATA,
             "%s: begins with the header of an llm.c file, expected bare uint16 "
             "tokens",
             shown);
        return fail_hint(SHOAL_ERR_DATA, "set data.format=llmc or auto");
    }
    if (n_bytes % 2 != 0) {
        fail(SHOAL_ERR_DATA, "%s: %zu bytes, expected an even number (uint16 tokens)", shown,
             n_bytes);
        return fail_hint(SHOAL_ERR_DATA, "the file is truncated or not a token file; for text set "
                                         "data.format=text");
    }
    *file_out = (struct data_token_file){.token_bytes = 2, .n_tokens = n_bytes / 2};
    return SHOAL_OK;
}

static shoal_status parse_llmc(const char *shown, const unsigned char *content, size_t n_bytes,
                               struct data_token_file *file_out)
{
    if (n_bytes < LLMC_HEADER_BYTES)
        return fail(SHOAL_ERR_DATA, "%s: %zu bytes, expected a header of %d", shown, n_bytes,
                    LLMC_HEADER_BYTES);

    int32_t magic = header_word(content, 0);
    int32_t version = header_word(content, 1);
    int32_t n_tokens = header_word(content, 2);
    if (magic != LLMC_MAGIC_U16 && magic != LLMC_MAGIC_U32) {
        fail(SHOAL_ERR_DATA, "%s: magic %" PRId32 " at byte 0, expected %d (uint16) or %d (uint32)",
             shown, magic, LLMC_MAGIC_U16, LLMC_MAGIC_U32);
        return fail_hint(SHOAL_ERR_DATA, "for bare uint16 tokens set data.format=nanogpt");
    }
    int32_t expected = magic == LLMC_MAGIC_U16 ? LLMC_VERSION_U16 : LLMC_VERSION_U32;
    if (version != expected)
        return fail(SHOAL_ERR_DATA,
                    "%s: version %" PRId32 " at byte 4, expected %" PRId32 " with magic %" PRId32,
                    shown, version, expected, magic);

    size_t token_bytes = magic == LLMC_MAGIC_U16 ? 2 : 4;
    size_t n_payload = n_bytes - LLMC_HEADER_BYTES;
    if (n_tokens <= 0 || (uint64_t)n_tokens * token_bytes != n_payload) {
        fail(SHOAL_ERR_DATA, "%s: header says %" PRId32 " tokens at byte 8, file holds %zu", shown,
             n_tokens, n_payload / token_bytes);
        fail_why(SHOAL_ERR_DATA, "%zu bytes follow the header, tokens have %zu bytes", n_payload,
                 token_bytes);
        return fail_hint(SHOAL_ERR_DATA, "the file is truncated: write or copy it again");
    }
    *file_out = (struct data_token_file){
        .header_bytes = LLMC_HEADER_BYTES,
        .token_bytes = token_bytes,
        .n_tokens = (uint64_t)n_tokens,
    };
    return SHOAL_OK;
}

shoal_status data_token_file_parse(const char *path, enum data_format format,
                                   const unsigned char *content, size_t n_bytes,
                                   struct data_token_file *file_out)
{
    char shown[DATA_SHOWN_BYTES];

    data_shown(path, shown);
    if (format == DATA_LLMC)
        return parse_llmc(shown, content, n_bytes, file_out);
    return parse_nanogpt(shown, content, n_bytes, file_out);
}

/* Written so that compilers vectorize them. */
static uint32_t max_u16(const uint16_t *ids, size_t n)
{
    uint16_t max = 0;

    for (size_t i = 0; i < n; i++)
        max = ids[i] > max ? ids[i] : max;
    return max;
}

static uint32_t max_u32(const uint32_t *ids, size_t n)
{
    uint32_t max = 0;

    for (size_t i = 0; i < n; i++)
        max = ids[i] > max ? ids[i] : max;
    return max;
}

static uint32_t token_at(const unsigned char *ids, size_t token_bytes, size_t i)
{
    return token_bytes == 2 ? ((const uint16_t *)(const void *)ids)[i]
                            : ((const uint32_t *)(const void *)ids)[i];
}

static shoal_status fail_token(const char *path, const unsigned char *ids,
                               const struct data_token_file *file, const struct data_params *params,
                               uint64_t limit, uint32_t max)
{
    char shown[DATA_SHOWN_BYTES];
    size_t i = 0;

    while (token_at(ids, file->token_bytes, i) < limit)
        i++;
    fail(SHOAL_ERR_DATA,
         "%s: token %zu (byte offset %zu) is %" PRIu32 ", expected below %" PRIu64 " (%s)",
         data_shown(path, shown), i, file->header_bytes + i * file->token_bytes,
         token_at(ids, file->token_bytes, i), limit,
         limit == (uint64_t)params->vocab ? "model.vocab" : "data.tokenizer: bytes");
    fail_why(SHOAL_ERR_DATA, "the largest id in the file is %" PRIu32, max);
    if (data_is_byte_tokenizer(params) && max >= BYTE_TOKENIZER_VOCAB)
        return fail_hint(SHOAL_ERR_DATA,
                         "the ids are another tokenizer's: set data.tokenizer=none and "
                         "model.vocab=%" PRIu64 " or more",
                         (uint64_t)max + 1);
    return fail_hint(SHOAL_ERR_DATA,
                     "set model.vocab=%" PRIu64 " or more, if the file was made by "
                     "the model's tokenizer",
                     (uint64_t)max + 1);
}

shoal_status data_token_file_check(const char *path, const unsigned char *content,
                                   const struct data_token_file *file,
                                   const struct data_params *params, uint32_t *max_out)
{
    const unsigned char *ids = content + file->header_bytes;
    size_t n = (size_t)file->n_tokens;
    uint64_t limit = (uint64_t)params->vocab;
    uint32_t max = file->token_bytes == 2 ? max_u16((const uint16_t *)(const void *)ids, n)
                                          : max_u32((const uint32_t *)(const void *)ids, n);

    if (data_is_byte_tokenizer(params) && limit > BYTE_TOKENIZER_VOCAB)
        limit = BYTE_TOKENIZER_VOCAB;
    if (max >= limit)
        return fail_token(path, ids, file, params, limit, max);
    *max_out = max;
    return SHOAL_OK;
}

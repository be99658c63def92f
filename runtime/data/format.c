#include "runtime/data/data_internal.h"

#include <string.h>
#include <xxhash.h>

const char *data_format_name(enum data_format format)
{
    switch (format) {
    case DATA_AUTO:
        return "auto";
    case DATA_TEXT:
        return "text";
    case DATA_JSONL:
        return "jsonl";
    case DATA_NANOGPT:
        return "nanogpt";
    case DATA_LLMC:
        return "llmc";
    }
    return "unknown";
}

enum data_format data_format_named(const char *name)
{
    for (int format = DATA_AUTO; format <= DATA_LLMC; format++)
        if (strcmp(name, data_format_name((enum data_format)format)) == 0)
            return (enum data_format)format;
    return DATA_AUTO;
}

static bool has_suffix(const char *path, const char *suffix)
{
    size_t n = strlen(path);
    size_t n_suffix = strlen(suffix);

    return n > n_suffix && strcasecmp(path + n - n_suffix, suffix) == 0;
}

/* What a file is that cannot be text, or NULL. */
static const char *binary_kind(const unsigned char *head, size_t n_bytes)
{
    static const struct {
        unsigned char bytes[4];
        size_t n;
        const char *name;
    } magics[] = {
        {{0x1f, 0x8b}, 2, "gzip"},
        {{0x28, 0xb5, 0x2f, 0xfd}, 4, "zstd"},
        {{'P', 'A', 'R', '1'}, 4, "Parquet"},
        {{'P', 'K', 3, 4}, 4, "zip"},
        {{0xfd, '7', 'z', 'X'}, 4, "xz"},
        {{0x89, 'H', 'D', 'F'}, 4, "HDF5"},
        {{0x93, 'N', 'U', 'M'}, 4, "NumPy"},
    };

    for (size_t i = 0; i < sizeof magics / sizeof magics[0]; i++)
        if (n_bytes >= magics[i].n && memcmp(head, magics[i].bytes, magics[i].n) == 0)
            return magics[i].name;
    return memchr(head, '\0', n_bytes) != NULL ? "binary" : NULL;
}

/* The magic decides first (it is 4 bytes that no text begins with), then the name. */
shoal_status data_format_detect(const char *path, const unsigned char *head, size_t n_bytes,
                                enum data_format *format_out)
{
    char shown[DATA_SHOWN_BYTES];

    if (n_bytes > DATA_HEAD_BYTES)
        n_bytes = DATA_HEAD_BYTES;
    if (data_has_llmc_magic(head, n_bytes)) {
        *format_out = DATA_LLMC;
        return SHOAL_OK;
    }
    if (has_suffix(path, ".bin")) {
        *format_out = DATA_NANOGPT;
        return SHOAL_OK;
    }
    if (has_suffix(path, ".jsonl") || has_suffix(path, ".ndjson") ||
        (has_suffix(path, ".json") && n_bytes > 0 && head[0] == '{')) {
        *format_out = DATA_JSONL;
        return SHOAL_OK;
    }

    const char *kind = binary_kind(head, n_bytes);
    if (kind != NULL) {
        fail(SHOAL_ERR_DATA, "%s: looks like a %s file, expected text, JSONL or tokens",
             data_shown(path, shown), kind);
        return fail_hint(SHOAL_ERR_DATA,
                         "unpack it, leave it out with a glob such as dir/*.txt, or set "
                         "data.format=text to train on its bytes as they are");
    }
    *format_out = DATA_TEXT;
    return SHOAL_OK;
}

/*
 * Files up to 16 blocks are hashed whole, larger ones in 16 blocks spread evenly from the first
 * byte to the last: another corpus is told apart without reading all of it.
 */
uint64_t data_fingerprint(uint64_t before, const char *path, const unsigned char *content,
                          size_t n_bytes)
{
    enum { BLOCK_BYTES = 4096, N_BLOCKS = 16 };
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    uint64_t size = n_bytes;
    XXH64_hash_t hash = XXH3_64bits_withSeed(name, strlen(name), before);

    hash = XXH3_64bits_withSeed(&size, sizeof size, hash);
    if (n_bytes <= BLOCK_BYTES * N_BLOCKS)
        return XXH3_64bits_withSeed(content, n_bytes, hash);

    size_t last = n_bytes - BLOCK_BYTES;
    for (size_t i = 0; i < N_BLOCKS - 1; i++)
        hash = XXH3_64bits_withSeed(content + last / (N_BLOCKS - 1) * i, BLOCK_BYTES, hash);
    return XXH3_64bits_withSeed(content + last, BLOCK_BYTES, hash);
}

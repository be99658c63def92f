#pragma once

#include "runtime/data/data.h"

#include <sys/types.h>

/*
 * Three stages, each knowing only the one before: sources (which files, in which order), stream
 * (their tokens behind one index), splits and windows (data.c).
 */

/* ---- sources.c ---- */

struct data_source {
    char *path;
    uint64_t n_bytes; /* when the list was made */
    dev_t device;
    ino_t inode;
    bool is_named; /* written out by the user; not found by a pattern or in a directory */
};

struct data_sources {
    struct data_source *items;
    size_t n, capacity;
};

/*
 * Append the files of `item` (file, directory or glob), sorted by path; `key` names the config key
 * in errors.  No file at all is SHOAL_ERR_NOINPUT.
 */
shoal_status data_sources_add(struct data_sources *sources, const char *key, const char *item);

/*
 * Take out of `train` the files that are in `val`, too, when a pattern brought them in; a file that
 * the user named in both is SHOAL_ERR_CONFIG.
 */
shoal_status data_sources_hold_out(struct data_sources *train, const struct data_sources *val);

void data_sources_fini(struct data_sources *sources);

/* ---- format.c ---- */

enum { DATA_HEAD_BYTES = 4096 }; /* what detection looks at */

/* The format of a file by its first bytes and its name; DATA if it looks like no format of ours. */
shoal_status data_format_detect(const char *path, const unsigned char *head, size_t n_bytes,
                                enum data_format *format_out);

/* Hash of one file's name, size and sampled content, chained to `before`. */
uint64_t data_fingerprint(uint64_t before, const char *path, const unsigned char *content,
                          size_t n_bytes);

/* ---- stream.c ---- */

struct data_segment {
    uint64_t first_token;         /* index in the stream */
    const unsigned char *content; /* bytes of text, or token ids */
};

struct data_mapping {
    void *base;
    size_t n_bytes;
};

/*
 * Tokens of many files behind one index.  Small files lie packed in one allocation (a mapping
 * each would run into vm.max_map_count and cost a page each), large ones are mapped.
 */
struct data_stream {
    enum data_format format;
    size_t token_bytes; /* 1: text, an end token follows each segment; 2, 4: stored ids */
    uint64_t n_files, n_bytes, n_tokens;
    uint32_t max_token;
    uint64_t fingerprint;

    struct data_segment *segments; /* n_segments, then one whose first_token is n_tokens */
    size_t n_segments, segments_capacity;

    unsigned char *packed;
    size_t packed_used, packed_capacity;
    struct data_mapping *mappings;
    size_t n_mappings, mappings_capacity;
};

void data_stream_close(struct data_stream *stream);

/* tokens[0 .. n-1] = stream tokens begin .. begin+n-1, which must exist. */
void data_stream_read(const struct data_stream *stream, uint64_t begin, size_t n, int32_t *tokens);

/* For the decoders: n bytes of packed memory (capacity was reserved), and a new segment. */
unsigned char *data_stream_pack(struct data_stream *stream, size_t n_bytes);
shoal_status data_stream_append(struct data_stream *stream, const unsigned char *content,
                                uint64_t n_tokens);

/* ---- load.c ---- */

/* Load and check all `sources`; `key` names the config key in errors. */
shoal_status data_stream_open(const struct data_sources *sources, const char *key,
                              const struct data_params *params, struct data_stream *stream_out);

/* ---- jsonl.c ---- */

/* Append a document for each line of `content` that is not blank. */
shoal_status data_jsonl_decode(const char *path, const char *content, size_t n_bytes,
                               struct data_stream *stream);

/* ---- tokens.c ---- */

enum {
    LLMC_HEADER_BYTES = 1024,
    LLMC_MAGIC_U16 = 20240520,
    LLMC_VERSION_U16 = 1,
    LLMC_MAGIC_U32 = 20240801,
    LLMC_VERSION_U32 = 7,
};

/* Where the ids lie in a token file, after the header was checked. */
struct data_token_file {
    size_t header_bytes, token_bytes;
    uint64_t n_tokens;
};

bool data_has_llmc_magic(const unsigned char *head, size_t n_bytes);
shoal_status data_token_file_parse(const char *path, enum data_format format,
                                   const unsigned char *content, size_t n_bytes,
                                   struct data_token_file *file_out);

/* Check every id against the vocabulary; the largest goes to *max_out. */
shoal_status data_token_file_check(const char *path, const unsigned char *content,
                                   const struct data_token_file *file,
                                   const struct data_params *params, uint32_t *max_out);

/* ---- data.c ---- */

/* A copy of `path` for a message: printable, and cut in front if long.  Returns `out`. */
enum { DATA_SHOWN_BYTES = 256 };
const char *data_shown(const char *path, char out[DATA_SHOWN_BYTES]);

/* Whether the ids are bytes of text (tokenizer "bytes"), not those of an unknown tokenizer. */
bool data_is_byte_tokenizer(const struct data_params *params);
bool data_val_is_percent(const struct data_params *params);

/* All that data.train names, held-out windows included. */
const struct data_stream *data_train_stream(const struct data *data);

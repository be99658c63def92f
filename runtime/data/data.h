#pragma once

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Data: text or token files to windows of tokens.
 *
 * A corpus is one long stream of tokens (documents joined, an end token after each), cut into
 * windows of seq_len + 1 tokens at a stride of seq_len: N tokens make (N - 1) / seq_len windows,
 * neighbours share one token, every token but the first is a target once.  Windows are visited in
 * the order of a random-access permutation that is a pure function of (seed, epoch, index): there
 * is no shuffle buffer, and resuming is O(1).  Which windows a step uses depends on the step alone,
 * never on the number of ranks.
 *
 * Formats: text (byte tokenizer: token = byte, 256 ends a document), JSONL {"text": ...}, nanoGPT
 * .bin (uint16, no header), llm.c .bin (20240520/1 uint16, 20240801/7 uint32).  Large files are
 * memory-mapped, small ones are read into one block, JSONL is decoded into memory when opened.
 * Files must not change while they are open.
 *
 * Read-only after data_open, hence thread-safe.  Local (every rank opens the same files).
 */
struct data;

enum data_format { DATA_AUTO, DATA_TEXT, DATA_JSONL, DATA_NANOGPT, DATA_LLMC };
enum data_split { DATA_TRAIN, DATA_VAL };
enum { BYTE_TOKENIZER_VOCAB = 257, BYTE_TOKENIZER_END = 256 };

struct data_params {
    const char *const *train; /* files, directories or globs; ** stands for any directories */
    size_t n_train;
    /*
     * "0.5%": that part of the windows, at least one, is held out from the end of the stream, and
     * training windows are cut from the tokens before them.  Or a path or glob, whose files are
     * left out of the globs and directories of `train`.  Or "none" (NULL).
     */
    const char *val;
    enum data_format format;
    const char *tokenizer; /* "bytes" (NULL), or "none" for token files of another tokenizer */
    int64_t seq_len;
    int64_t vocab; /* every token id is checked against it when the data is opened */
    uint64_t seed;
};

/*
 * Open and check everything.  Errors name the file and byte offset: missing (NOINPUT), empty,
 * truncated or bad header, token id >= vocab, stream shorter than one window (DATA).
 */
shoal_status data_open(const struct data_params *params, struct data **data_out);
void data_close(struct data *data);

/* What the data is; for the banner, checkpoints and `data show`. */
struct data_info {
    enum data_format format;
    uint64_t n_files, n_documents, n_bytes; /* of both splits; a token file is one document */
    uint64_t n_tokens[2];                   /* per split */
    uint64_t n_windows[2];                  /* per split */
    uint64_t fingerprint; /* XXH3-64 of base names, sizes, sampled content, in stream order */
};
struct data_info data_info(const struct data *data);
const char *data_format_name(enum data_format format);

/* The format called `name` (auto, text, jsonl, nanogpt, llmc); DATA_AUTO for any other word. */
enum data_format data_format_named(const char *name);

/*
 * The seq_len + 1 tokens of the i-th training sequence of the run (i = 0, 1, ...; epoch
 * i / n_windows): tokens[0 .. T-1] are inputs, tokens[1 .. T] targets.
 */
void data_train_sequence(const struct data *data, uint64_t i, int32_t *tokens);

/* The i-th window of a split in file order, i < n_windows[split]. */
void data_window(const struct data *data, enum data_split split, uint64_t i, int32_t *tokens);

/*
 * Where the windows of an epoch begin, in tokens: 0 in the first epoch, then anything below seq_len, so
 * that a token does not meet the same neighbours at the same position again.
 */
uint64_t data_epoch_shift(const struct data *data, uint64_t epoch);

/* The bijection behind the order: position of `index` < n in the permutation of (seed, epoch). */
uint64_t data_permute(uint64_t seed, uint64_t epoch, uint64_t index, uint64_t n);

/*
 * Text of a token for people, NUL-terminated: the byte, escaped if it does not print, "<end>", or
 * "#ID" of an unknown tokenizer.  Returns the bytes written (< 8).
 */
size_t data_token_text(const struct data *data, int32_t token, char out[8]);

/*
 * Write the stream of `params` (train part, all of it) as an llm.c token file at `path`, through
 * a temporary name, fsync and rename; *n_tokens_out receives the count.
 */
shoal_status data_prepare(const struct data_params *params, const char *path,
                          uint64_t *n_tokens_out);

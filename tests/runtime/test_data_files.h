#pragma once

#include "runtime/data/data.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files of one data test, in a directory of its own that the test runs in. */

static char test_directory[64];

static inline void enter_directory(void)
{
    snprintf(test_directory, sizeof test_directory, "/tmp/shoal-test-data-XXXXXX");
    cr_assert_not_null(mkdtemp(test_directory));
    cr_assert_eq(chdir(test_directory), 0);
}

static inline int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static inline void leave_directory(void)
{
    cr_assert_eq(chdir("/"), 0);
    nftw(test_directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void write_bytes(const char *path, const void *bytes, size_t n_bytes)
{
    FILE *file = fopen(path, "wb");

    cr_assert_not_null(file, "%s", path);
    cr_assert_eq(fwrite(bytes, 1, n_bytes, file), n_bytes);
    cr_assert_eq(fclose(file), 0);
}

static inline void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

/* An llm.c file with the header as given, right or wrong. */
static inline void write_llmc(const char *path, int32_t magic, int32_t version, int32_t n_tokens,
                              const void *ids, size_t n_bytes)
{
    int32_t header[256] = {magic, version, n_tokens};
    FILE *file = fopen(path, "wb");

    cr_assert_not_null(file, "%s", path);
    cr_assert_eq(fwrite(header, 1, sizeof header, file), sizeof header);
    cr_assert_eq(fwrite(ids, 1, n_bytes, file), n_bytes);
    cr_assert_eq(fclose(file), 0);
}

/* Windows of T tokens from one path or glob, nothing held out, byte tokenizer. */
static inline struct data_params params_of(const char *const *train, int64_t T)
{
    return (struct data_params){
        .train = train,
        .n_train = 1,
        .val = "none",
        .tokenizer = "bytes",
        .seq_len = T,
        .vocab = BYTE_TOKENIZER_VOCAB,
        .seed = 1,
    };
}

static inline struct data *open_or_fail(const struct data_params *params)
{
    struct data *data = NULL;

    cr_assert_eq(data_open(params, &data), SHOAL_OK, "%s", shoal_last_error());
    return data;
}

static inline struct data_info info_of(const struct data_params *params)
{
    struct data *data = open_or_fail(params);
    struct data_info info = data_info(data);

    data_close(data);
    return info;
}

/* All tokens that the windows of a split cover, in order; *n_out of them; the caller frees. */
static inline int32_t *covered_tokens(const struct data *data, enum data_split split, size_t T,
                                      size_t *n_out)
{
    size_t n_windows = (size_t)data_info(data).n_windows[split];
    int32_t *tokens = malloc((n_windows * T + 1) * sizeof *tokens);

    cr_assert_not_null(tokens);
    for (size_t i = 0; i < n_windows; i++)
        data_window(data, split, i, tokens + i * T);
    *n_out = n_windows > 0 ? n_windows * T + 1 : 0;
    return tokens;
}

/* The covered tokens are those of `text`, where '|' stands for the end of a document. */
static inline void assert_stream_is(const struct data *data, const char *text)
{
    size_t n;
    int32_t *tokens = covered_tokens(data, DATA_TRAIN, 1, &n);

    cr_assert_eq(n, strlen(text), "%zu tokens, expected %zu", n, strlen(text));
    for (size_t i = 0; i < n; i++) {
        int32_t expected = text[i] == '|' ? BYTE_TOKENIZER_END : (unsigned char)text[i];

        cr_assert_eq(tokens[i], expected, "token %zu is %d, expected %d", i, tokens[i], expected);
    }
    free(tokens);
}

/* Opening one path fails with `code`, and the message holds every one of the NULL-ended texts. */
static inline void assert_fails(const struct data_params *params, shoal_status code,
                                const char *const *texts)
{
    struct data *data = (struct data *)params;

    cr_assert_eq(data_open(params, &data), code, "expected %d: %s", code, shoal_last_error());
    cr_assert_eq((const void *)data, (const void *)params, "the output was touched");
    for (; *texts != NULL; texts++)
        cr_assert_not_null(strstr(shoal_last_error(), *texts), "no \"%s\" in: %s", *texts,
                           shoal_last_error());
}

#define ASSERT_FAILS(params, code, ...)                                                            \
    assert_fails(params, code, (const char *const[]){__VA_ARGS__, NULL})

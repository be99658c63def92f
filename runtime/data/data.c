#include "runtime/base/rng.h"
#include "runtime/data/data_internal.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* A run of tokens [begin, begin + n_tokens) of a stream, and the windows that are cut from it. */
struct split {
    const struct data_stream *stream;
    uint64_t begin, n_tokens, n_windows;
};

struct data {
    struct data_stream streams[2]; /* the second is empty unless data.val names files */
    struct split splits[2];
    size_t seq_len;
    uint64_t seed;
    bool is_byte_tokenizer;
    struct data_info info;
};

const char *data_shown(const char *path, char out[DATA_SHOWN_BYTES])
{
    size_t n = strlen(path);
    size_t n_cut = n < DATA_SHOWN_BYTES ? 0 : n - (DATA_SHOWN_BYTES - 4);

    snprintf(out, DATA_SHOWN_BYTES, "%s%s", n_cut > 0 ? "..." : "", path + n_cut);
    for (char *c = out; *c != '\0'; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
    return out;
}

bool data_is_byte_tokenizer(const struct data_params *params)
{
    return params->tokenizer == NULL || strcmp(params->tokenizer, "bytes") == 0;
}

bool data_val_is_percent(const struct data_params *params)
{
    return params->val != NULL && params->val[0] != '\0' &&
           params->val[strlen(params->val) - 1] == '%';
}

static bool val_is_none(const struct data_params *params)
{
    return params->val == NULL || strcmp(params->val, "none") == 0;
}

static shoal_status check_params(const struct data_params *params)
{
    char shown[DATA_SHOWN_BYTES];

    if (params->n_train == 0) {
        fail(SHOAL_ERR_CONFIG, "data.train: is empty, expected at least one path or glob");
        return fail_hint(SHOAL_ERR_CONFIG, "set data.train=FILE");
    }
    if (params->seq_len < 1 || params->seq_len > INT32_MAX)
        return fail(SHOAL_ERR_CONFIG, "data.seq_len: %" PRId64 ", expected 1 to %d",
                    params->seq_len, INT32_MAX);
    if (params->vocab < 1 || params->vocab > (int64_t)INT32_MAX + 1)
        return fail(SHOAL_ERR_CONFIG, "model.vocab: %" PRId64 ", expected 1 to %" PRId64,
                    params->vocab, (int64_t)INT32_MAX + 1);
    if (!data_is_byte_tokenizer(params) && strcmp(params->tokenizer, "none") != 0) {
        fail(SHOAL_ERR_CONFIG, "data.tokenizer: %s, expected bytes or none",
             data_shown(params->tokenizer, shown));
        return fail_hint(SHOAL_ERR_CONFIG, "for another tokenizer write token files with its own "
                                           "program (nanoGPT or llm.c format) and set none");
    }
    return SHOAL_OK;
}

/*
 * A percentage as a fraction of integers, so that the number of held-out windows does not hang on
 * rounding or on the locale.
 */
static shoal_status parse_percent(const char *text, uint64_t *numerator_out,
                                  uint64_t *denominator_out)
{
    char shown[DATA_SHOWN_BYTES];
    uint64_t digits = 0;
    uint64_t scale = 1;
    int n_digits = 0;
    bool has_point = false;
    const char *c = text;

    for (; isdigit((unsigned char)*c) || (*c == '.' && !has_point); c++) {
        if (*c == '.') {
            has_point = true;
            continue;
        }
        digits = digits * 10 + (uint64_t)(*c - '0');
        scale = has_point ? scale * 10 : scale;
        if (++n_digits > 12)
            break;
    }
    if (strcmp(c, "%") != 0 || digits == 0 || digits >= 100 * scale) {
        fail(SHOAL_ERR_CONFIG, "data.val: %s, expected a percentage above 0%% and below 100%%",
             data_shown(text, shown));
        return fail_hint(SHOAL_ERR_CONFIG, "set data.val=0.5%%, a path, or none");
    }
    *numerator_out = digits;
    *denominator_out = 100 * scale;
    return SHOAL_OK;
}

static shoal_status fail_short(const char *key, uint64_t n_tokens, uint64_t needed,
                               const char *what)
{
    fail(SHOAL_ERR_DATA, "%s: %" PRIu64 " tokens, expected at least %" PRIu64 " (%s)", key,
         n_tokens, needed, what);
    return fail_hint(SHOAL_ERR_DATA, "add data or lower data.seq_len");
}

static shoal_status split_init(struct split *split, const char *key,
                               const struct data_stream *stream, uint64_t begin, uint64_t n_tokens,
                               uint64_t T)
{
    if (n_tokens < T + 1)
        return fail_short(key, n_tokens, T + 1, "one window of data.seq_len + 1");
    *split = (struct split){
        .stream = stream,
        .begin = begin,
        .n_tokens = n_tokens,
        .n_windows = (n_tokens - 1) / T,
    };
    return SHOAL_OK;
}

/*
 * Hold out the last windows of the training stream: v of its W windows, v * T + 1 tokens counted
 * from its end.  Training windows are cut from the tokens before them, so no token is in both.
 */
static shoal_status hold_out(struct data *data, const char *percent)
{
    const struct data_stream *stream = &data->streams[DATA_TRAIN];
    uint64_t T = data->seq_len;
    uint64_t N = stream->n_tokens;
    uint64_t W = (N - 1) / T;
    uint64_t numerator;
    uint64_t denominator;

    SHOAL_TRY(parse_percent(percent, &numerator, &denominator));
    uint64_t v = (uint64_t)((unsigned __int128)W * numerator / denominator);
    v = v > 0 ? v : 1;

    uint64_t n_val = v * T + 1;
    if (N < n_val + T + 1) {
        fail_short("data.train", N, n_val + T + 1,
                   "one window of data.seq_len + 1 beside the held-out ones");
        return fail_hint(SHOAL_ERR_DATA, "add data, lower data.seq_len, or set data.val=none");
    }
    SHOAL_TRY(split_init(&data->splits[DATA_TRAIN], "data.train", stream, 0, N - n_val, T));
    return split_init(&data->splits[DATA_VAL], "data.val", stream, N - n_val, n_val, T);
}

static shoal_status open_streams(struct data *data, const struct data_params *params)
{
    bool has_val_files = !val_is_none(params) && !data_val_is_percent(params);
    struct data_sources train = {0};
    struct data_sources val = {0};
    shoal_status status = SHOAL_OK;

    for (size_t i = 0; i < params->n_train; i++)
        SHOAL_TRY_GOTO(data_sources_add(&train, "data.train", params->train[i]), done);
    if (has_val_files) {
        SHOAL_TRY_GOTO(data_sources_add(&val, "data.val", params->val), done);
        SHOAL_TRY_GOTO(data_sources_hold_out(&train, &val), done);
    }
    SHOAL_TRY_GOTO(data_stream_open(&train, "data.train", params, &data->streams[DATA_TRAIN]),
                   done);
    if (has_val_files)
        SHOAL_TRY_GOTO(data_stream_open(&val, "data.val", params, &data->streams[DATA_VAL]), done);
done:
    data_sources_fini(&train);
    data_sources_fini(&val);
    return status;
}

static shoal_status make_splits(struct data *data, const struct data_params *params)
{
    const struct data_stream *streams = data->streams;

    if (data_val_is_percent(params))
        return hold_out(data, params->val);
    SHOAL_TRY(split_init(&data->splits[DATA_TRAIN], "data.train", &streams[DATA_TRAIN], 0,
                         streams[DATA_TRAIN].n_tokens, data->seq_len));
    if (streams[DATA_VAL].n_segments == 0)
        return SHOAL_OK;
    return split_init(&data->splits[DATA_VAL], "data.val", &streams[DATA_VAL], 0,
                      streams[DATA_VAL].n_tokens, data->seq_len);
}

static struct data_info make_info(const struct data *data)
{
    const struct data_stream *train = &data->streams[DATA_TRAIN];
    const struct data_stream *val = &data->streams[DATA_VAL];
    const uint64_t fingerprints[2] = {train->fingerprint, val->fingerprint};
    struct data_info info = {
        .format = train->format,
        .n_files = train->n_files + val->n_files,
        .n_documents = train->n_segments + val->n_segments,
        .n_bytes = train->n_bytes + val->n_bytes,
        .fingerprint = XXH3_64bits(fingerprints, sizeof fingerprints),
    };

    for (int i = 0; i < 2; i++) {
        info.n_tokens[i] = data->splits[i].n_tokens;
        info.n_windows[i] = data->splits[i].n_windows;
    }
    return info;
}

shoal_status data_open(const struct data_params *params, struct data **data_out)
{
    shoal_status status;

    SHOAL_TRY(check_params(params));
    struct data *data = calloc(1, sizeof *data);
    if (data == NULL)
        return fail(SHOAL_ERR_NOMEM, "data: cannot reserve %zu bytes", sizeof *data);
    data->seq_len = (size_t)params->seq_len;
    data->seed = params->seed;
    data->is_byte_tokenizer = data_is_byte_tokenizer(params);
    SHOAL_TRY_GOTO(open_streams(data, params), err_close);
    SHOAL_TRY_GOTO(make_splits(data, params), err_close);
    data->info = make_info(data);
    *data_out = data;
    return SHOAL_OK;

err_close:
    data_close(data);
    return status;
}

void data_close(struct data *data)
{
    if (data == NULL)
        return;
    data_stream_close(&data->streams[DATA_TRAIN]);
    data_stream_close(&data->streams[DATA_VAL]);
    free(data);
}

const struct data_stream *data_train_stream(const struct data *data)
{
    return &data->streams[DATA_TRAIN];
}

struct data_info data_info(const struct data *data)
{
    return data->info;
}

void data_window(const struct data *data, enum data_split split, uint64_t i, int32_t *tokens)
{
    const struct split *from = &data->splits[split];

    assert(i < from->n_windows);
    data_stream_read(from->stream, from->begin + i * data->seq_len, data->seq_len + 1, tokens);
}

uint64_t data_epoch_shift(const struct data *data, uint64_t epoch)
{
    uint32_t bits[4];

    if (epoch == 0)
        return 0;
    rng_block(data->seed, RNG_STREAM_SHIFT, epoch, 0, bits);
    return bits[0] % data->seq_len;
}

void data_train_sequence(const struct data *data, uint64_t i, int32_t *tokens)
{
    const struct split *from = &data->splits[DATA_TRAIN];
    uint64_t n = from->n_windows, epoch = i / n;
    uint64_t window = data_permute(data->seed, epoch, i % n, n);
    uint64_t begin = data_epoch_shift(data, epoch) + window * data->seq_len;
    uint64_t last = (n - 1) * data->seq_len;

    data_stream_read(from->stream, from->begin + (begin < last ? begin : last), data->seq_len + 1,
                     tokens);
}

size_t data_token_text(const struct data *data, int32_t token, char out[8])
{
    int n;

    if (!data->is_byte_tokenizer)
        n = snprintf(out, 8, token < 1000000 ? "#%d" : "#...", token);
    else if (token == BYTE_TOKENIZER_END)
        n = snprintf(out, 8, "<end>");
    else if (token < 0 || token > 255)
        n = snprintf(out, 8, "<?>");
    else if (token == '\n')
        n = snprintf(out, 8, "\\n");
    else if (token == '\t')
        n = snprintf(out, 8, "\\t");
    else if (token == '\\')
        n = snprintf(out, 8, "\\\\");
    else if (token >= ' ' && token <= '~')
        n = snprintf(out, 8, "%c", token);
    else
        n = snprintf(out, 8, "\\x%02x", (unsigned)token);
    return n < 8 ? (size_t)n : 7;
}

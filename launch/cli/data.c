/* shoal data: look at training data and prepare token files. */
#include "runtime/data/data.h"
#include "launch/cli/cli_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The parameters that a config means; `train` holds the pointers, valid as long as the config. */
static struct data_params params_of(const struct config *config, const char *train[CONFIG_LIST])
{
    for (int i = 0; i < config->data.train.n; i++)
        train[i] = config->data.train.items[i];
    return (struct data_params){
        .train = train,
        .n_train = (size_t)config->data.train.n,
        .val = config->data.val,
        .format = data_format_named(config->data.format),
        .tokenizer = config->data.tokenizer,
        .seq_len = config->data.seq_len,
        .vocab = config->model.vocab > 0 ? config->model.vocab : INT32_MAX,
        .seed = config->run.seed,
    };
}

/* ---- show ---- */

static void print_info(const struct data *data)
{
    struct data_info info = data_info(data);
    char size[32];

    bytes_text(info.n_bytes, size);
    printf("format       %s, %" PRIu64 " files, %" PRIu64 " documents, %s\n",
           data_format_name(info.format), info.n_files, info.n_documents, size);
    printf("train        %" PRIu64 " tokens, %" PRIu64 " windows\n", info.n_tokens[DATA_TRAIN],
           info.n_windows[DATA_TRAIN]);
    printf("val          %" PRIu64 " tokens, %" PRIu64 " windows\n", info.n_tokens[DATA_VAL],
           info.n_windows[DATA_VAL]);
    printf("fingerprint  %016" PRIx64 "\n", info.fingerprint);
}

static void print_window(const struct data *data, const int32_t *tokens, int64_t n, bool ids)
{
    for (int64_t t = 0; t < n; t++) {
        char text[8];

        if (ids)
            printf("%s%" PRId32, t > 0 ? " " : "", tokens[t]);
        else
            printf("%.*s", (int)data_token_text(data, tokens[t], text), text);
    }
    putchar('\n');
}

/* Training windows come in the order of training, validation windows in file order. */
static shoal_status print_windows(const struct data *data, int64_t seq_len, bool val,
                                  uint64_t first, uint64_t n, bool ids)
{
    uint64_t n_val = data_info(data).n_windows[DATA_VAL];
    int32_t *tokens = calloc((size_t)seq_len + 1, sizeof *tokens);

    if (tokens == NULL)
        return fail(SHOAL_ERR_NOMEM, "data show: cannot reserve a window of %" PRId64 " tokens",
                    seq_len + 1);
    for (uint64_t i = first; i < first + n && (!val || i < n_val); i++) {
        if (val)
            data_window(data, DATA_VAL, i, tokens);
        else
            data_train_sequence(data, i, tokens);
        printf("\n%s %" PRIu64 "\n", val ? "val" : "train", i);
        print_window(data, tokens, seq_len + 1, ids);
    }
    free(tokens);
    return SHOAL_OK;
}

static shoal_status run_show(const struct command_line *line)
{
    const char *train[CONFIG_LIST];
    const char *split = option_text(line, "split");
    int64_t n_windows = 2;
    int64_t first = 0;
    struct config *config;
    struct data *data;
    bool val = split != NULL && strcmp(split, "val") == 0;

    SHOAL_TRY(option_int(line, "windows", 0, 1 << 20, &n_windows));
    SHOAL_TRY(option_int(line, "first", 0, INT64_MAX / 2, &first));
    if (split != NULL && !val && strcmp(split, "train") != 0)
        return fail_usage(line->command, "option --split: expected train or val, found \"%.80s\"",
                          split);
    SHOAL_TRY(config_from_line(line, NULL, &config));
    const struct data_params params = params_of(config, train);
    shoal_status status = data_open(&params, &data);
    if (status == SHOAL_OK) {
        print_info(data);
        status = print_windows(data, params.seq_len, val, (uint64_t)first, (uint64_t)n_windows,
                               option_is_set(line, "tokens"));
        data_close(data);
    }
    free(config);
    return status;
}

static const struct option show_options[] = {
    {"windows", 'n', "N", "number of windows (2)"},
    {"first", 0, "I", "number of the first one (0)"},
    {"split", 0, "NAME", "train or val (train)"},
    {"tokens", 0, NULL, "token ids instead of text"},
    {.name = NULL},
};

static const struct command command_show = {
    .path = "data show",
    .purpose = "Show the windows that training would see, in its order.",
    .arguments = "[CONFIG] [KEY=VALUE...]",
    .examples = {"shoal data show run.yaml --windows 3",
                 "shoal data show data.train=corpus.txt data.seq_len=64 --tokens"},
    .options = show_options,
    .max_args = -1,
    .run = run_show,
};

/* ---- prepare ---- */

static shoal_status run_prepare(const struct command_line *line)
{
    const char *out = option_text(line, "out");
    const char *format = option_text(line, "format");
    const char *tokenizer = option_text(line, "tokenizer");
    uint64_t n_tokens = 0;

    if (out == NULL)
        return fail_usage(line->command, "expected --out FILE");
    const struct data_params params = {
        .train = line->args,
        .n_train = (size_t)line->n_args,
        .val = "none",
        .format = format != NULL ? data_format_named(format) : DATA_AUTO,
        .tokenizer = tokenizer != NULL ? tokenizer : "bytes",
        .seq_len = 1,
        .vocab = INT32_MAX,
    };
    if (format != NULL && strcmp(format, "auto") != 0 && params.format == DATA_AUTO)
        return fail_usage(line->command,
                          "option --format: expected auto, text, jsonl, nanogpt or llmc, found "
                          "\"%.80s\"",
                          format);
    SHOAL_TRY(data_prepare(&params, out, &n_tokens));
    printf("%s: %" PRIu64 " tokens\n", out, n_tokens);
    return SHOAL_OK;
}

static const struct option prepare_options[] = {
    {"out", 'o', "FILE", "the token file to write"},
    {"format", 0, "NAME", "format of the inputs: auto, text, jsonl, nanogpt, llmc (auto)"},
    {"tokenizer", 0, "NAME", "bytes, or none for token files (bytes)"},
    {.name = NULL},
};

static const struct command command_prepare = {
    .path = "data prepare",
    .purpose = "Write files of text or tokens as one token file (llm.c format).",
    .arguments = "IN...",
    .examples = {"shoal data prepare 'books/*.txt' --out books.bin",
                 "shoal data prepare web.jsonl --format jsonl --out web.bin"},
    .options = prepare_options,
    .min_args = 1,
    .max_args = -1,
    .run = run_prepare,
};

static const struct command *const commands[] = {&command_prepare, &command_show, NULL};

const struct command command_data = {
    .path = "data",
    .purpose = "Look at training data and prepare token files.",
    .commands = commands,
};

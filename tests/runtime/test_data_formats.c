#include "test_data_files.h"

TestSuite(data_formats, .init = enter_directory, .fini = leave_directory);

static enum data_format format_of(const char *path, int64_t vocab)
{
    const char *train[] = {path};
    struct data_params params = params_of(train, 1);

    params.vocab = vocab;
    params.tokenizer = vocab == BYTE_TOKENIZER_VOCAB ? "bytes" : "none";
    struct data *data = open_or_fail(&params);
    enum data_format format = data_info(data).format;
    data_close(data);
    return format;
}

Test(data_formats, are_detected_by_magic_then_name)
{
    const uint16_t narrow[] = {7, 8, 9};
    const uint32_t wide[] = {7, 8, 70000};

    write_text("a.txt", "text");
    write_text("README", "text");
    write_text("a.json", "[1]");
    write_text("a.jsonl", "{\"text\": \"x\"}\n");
    write_text("a.NDJSON", "{\"text\": \"x\"}\n");
    write_text("b.json", "{\"text\": \"x\"}\n");
    write_bytes("a.bin", narrow, sizeof narrow);
    write_llmc("b.bin", 20240520, 1, 3, narrow, sizeof narrow);
    write_llmc("c.dat", 20240801, 7, 3, wide, sizeof wide);

    cr_assert_eq(format_of("a.txt", 257), DATA_TEXT);
    cr_assert_eq(format_of("README", 257), DATA_TEXT);
    cr_assert_eq(format_of("a.json", 257), DATA_TEXT);
    cr_assert_eq(format_of("a.jsonl", 257), DATA_JSONL);
    cr_assert_eq(format_of("a.NDJSON", 257), DATA_JSONL);
    cr_assert_eq(format_of("b.json", 257), DATA_JSONL);
    cr_assert_eq(format_of("a.bin", 10), DATA_NANOGPT);
    cr_assert_eq(format_of("b.bin", 10), DATA_LLMC);
    cr_assert_eq(format_of("c.dat", 70001), DATA_LLMC);
}

Test(data_formats, have_the_names_of_the_config_key)
{
    cr_assert_str_eq(data_format_name(DATA_AUTO), "auto");
    cr_assert_str_eq(data_format_name(DATA_TEXT), "text");
    cr_assert_str_eq(data_format_name(DATA_JSONL), "jsonl");
    cr_assert_str_eq(data_format_name(DATA_NANOGPT), "nanogpt");
    cr_assert_str_eq(data_format_name(DATA_LLMC), "llmc");
}

Test(data_formats, text_may_hold_any_byte_when_asked_for)
{
    const char *train[] = {"a.raw"};
    struct data_params params = params_of(train, 1);
    unsigned char bytes[512];
    size_t n;

    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)i;
    write_bytes("a.raw", bytes, sizeof bytes);
    params.format = DATA_TEXT;
    struct data *data = open_or_fail(&params);
    int32_t *tokens = covered_tokens(data, DATA_TRAIN, 1, &n);
    cr_assert_eq(n, sizeof bytes + 1);
    for (size_t i = 0; i < sizeof bytes; i++)
        cr_assert_eq(tokens[i], bytes[i]);
    free(tokens);
    data_close(data);
}

Test(data_formats, jsonl_decodes_to_the_text_it_stands_for)
{
    static const char source[] =
        "\xef\xbb\xbf"
        "{\"text\": \"plain\"}\n"
        "\n"
        "  \t\r\n"
        "{\"id\": 123456789012345678901234567890, \"text\": \"q\\\"\\\\\\n\\t\\/\"}\r\n"
        "{\"text\": \"\\u00e9 \\ud83d\\ude00 \xc3\xa9\", \"meta\": {\"a\": [1]}}\n"
        "{\"text\": \"\"}\n"
        "{\"text\": \"nul\\u0000nul\"}";
    static const char wanted[] = "plain|q\"\\\n\t/|\xc3\xa9 \xf0\x9f\x98\x80 \xc3\xa9|nul\0nul|";
    const char *train[] = {"a.jsonl"};
    struct data_params params = params_of(train, 1);
    size_t n;

    write_bytes("a.jsonl", source, sizeof source - 1);
    struct data *data = open_or_fail(&params);
    cr_assert_eq(data_info(data).n_documents, 4);
    int32_t *tokens = covered_tokens(data, DATA_TRAIN, 1, &n);
    cr_assert_eq(n, sizeof wanted - 1);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(tokens[i], wanted[i] == '|' ? BYTE_TOKENIZER_END : (unsigned char)wanted[i],
                     "token %zu", i);
    free(tokens);
    data_close(data);
}

Test(data_formats, jsonl_of_many_files_equals_text_of_many_files)
{
    const char *train[] = {"t/*.txt", "j/*.jsonl"};
    struct data_params params = params_of(train, 3);
    size_t n_text;
    size_t n_jsonl;

    cr_assert_eq(mkdir("t", 0777), 0);
    cr_assert_eq(mkdir("j", 0777), 0);
    for (int i = 0; i < 40; i++) {
        char path[32];
        char text[64];
        char line[128];

        snprintf(path, sizeof path, "t/%02d.txt", i);
        snprintf(text, sizeof text, "document %*d", i % 17, i);
        write_text(path, text);
        snprintf(path, sizeof path, "j/%02d.jsonl", i);
        snprintf(line, sizeof line, "{\"text\": \"%s\"}\n", text);
        write_text(path, line);
    }
    struct data *text = open_or_fail(&params);
    params.train = train + 1;
    struct data *jsonl = open_or_fail(&params);
    int32_t *a = covered_tokens(text, DATA_TRAIN, 3, &n_text);
    int32_t *b = covered_tokens(jsonl, DATA_TRAIN, 3, &n_jsonl);
    cr_assert_eq(n_text, n_jsonl);
    cr_assert_arr_eq(a, b, n_text * sizeof *a);
    free(a);
    free(b);
    data_close(text);
    data_close(jsonl);
}

Test(data_formats, token_files_of_all_kinds_hold_the_same_ids)
{
    enum { N = 5000, T = 7 };
    static uint16_t narrow[N];
    static uint32_t wide[N];
    const char *train[] = {"a.bin", "b.bin", "c.bin"};
    struct data_params params = params_of(train, T);

    for (size_t i = 0; i < N; i++)
        wide[i] = narrow[i] = (uint16_t)(i * 40503 % 65536);
    write_bytes("a.bin", narrow, sizeof narrow);
    write_llmc("b.bin", 20240520, 1, N, narrow, sizeof narrow);
    write_llmc("c.bin", 20240801, 7, N, wide, sizeof wide);
    params.tokenizer = "none";
    params.vocab = 65536;
    for (; params.train < train + 3; params.train++) {
        struct data *data = open_or_fail(&params);
        size_t n;
        int32_t *tokens = covered_tokens(data, DATA_TRAIN, T, &n);

        cr_assert_eq(data_info(data).n_tokens[DATA_TRAIN], N);
        cr_assert_eq(n, (N - 1) / T * T + 1);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(tokens[i], narrow[i]);
        free(tokens);
        data_close(data);
    }
}

Test(data_formats, token_files_join_without_an_end_token_of_ours)
{
    const uint16_t first[] = {1, 2, 3};
    const uint16_t second[] = {4, 5};
    const char *train[] = {"*.bin"};
    struct data_params params = params_of(train, 1);
    size_t n;

    write_bytes("a.bin", first, sizeof first);
    write_bytes("b.bin", second, sizeof second);
    params.tokenizer = "none";
    struct data *data = open_or_fail(&params);
    int32_t *tokens = covered_tokens(data, DATA_TRAIN, 1, &n);
    cr_assert_eq(n, 5);
    for (int32_t i = 0; i < 5; i++)
        cr_assert_eq(tokens[i], i + 1);
    free(tokens);
    data_close(data);
}

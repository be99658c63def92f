#include "test_data_files.h"

TestSuite(data_errors, .init = enter_directory, .fini = leave_directory);

static const char *train[1];
static struct data_params params;

static struct data_params *reading(const char *path)
{
    train[0] = path;
    params = params_of(train, 1);
    return &params;
}

static struct data_params *reading_tokens(const char *path, enum data_format format, int64_t vocab)
{
    reading(path);
    params.format = format;
    params.tokenizer = "none";
    params.vocab = vocab;
    return &params;
}

Test(data_errors, name_a_missing_or_unusable_path)
{
    cr_assert_eq(mkdir("bare", 0777), 0);
    cr_assert_eq(mkdir("bare/.hidden", 0777), 0);
    cr_assert_eq(mkfifo("pipe", 0666), 0);
    write_text("file", "text");

    ASSERT_FAILS(reading("no.txt"), SHOAL_ERR_NOINPUT, "data.train", "no.txt",
                 "No such file or directory");
    ASSERT_FAILS(reading("file/below"), SHOAL_ERR_NOINPUT, "file/below", "Not a directory");
    ASSERT_FAILS(reading("no*.txt"), SHOAL_ERR_NOINPUT, "no file matches no*.txt");
    ASSERT_FAILS(reading("no/**/*.txt"), SHOAL_ERR_NOINPUT, "cannot open no:");
    ASSERT_FAILS(reading("bare/**/*.txt"), SHOAL_ERR_NOINPUT, "no file matches");
    ASSERT_FAILS(reading("bare"), SHOAL_ERR_NOINPUT, "no file below bare");
    ASSERT_FAILS(reading("pipe"), SHOAL_ERR_NOINPUT, "pipe is neither a regular file");

    reading("file")->val = "gone.txt";
    ASSERT_FAILS(&params, SHOAL_ERR_NOINPUT, "data.val", "gone.txt");
}

Test(data_errors, show_a_path_that_cannot_be_printed_or_is_too_long)
{
    char path[600];

    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    ASSERT_FAILS(reading("a\nb"), SHOAL_ERR_NOINPUT, "cannot open a?b:");
    ASSERT_FAILS(reading(path), SHOAL_ERR_NOINPUT, "...xxx", "too long");
}

Test(data_errors, refuse_unreadable_files)
{
    if (geteuid() == 0) {
        /* Root reads everything: give the right up, but not the directory. */
        cr_assert_eq(chmod(".", 0777), 0);
        write_text("secret", "text");
        cr_assert_eq(chmod("secret", 0), 0);
        cr_assert_eq(seteuid(65534), 0);
    } else {
        write_text("secret", "text");
        cr_assert_eq(chmod("secret", 0), 0);
    }
    ASSERT_FAILS(reading("secret"), SHOAL_ERR_NOINPUT, "secret", "Permission denied");
    cr_assert_eq(seteuid(getuid()), 0);
}

Test(data_errors, refuse_empty_files_and_corpora)
{
    write_text("empty.txt", "");
    write_text("empty.bin", "");
    write_text("blank.jsonl", "\n  \n");
    cr_assert_eq(mkdir("d", 0777), 0);
    write_text("d/a", "");
    write_text("d/b", "");

    ASSERT_FAILS(reading("empty.txt"), SHOAL_ERR_DATA, "empty.txt: the file is empty");
    ASSERT_FAILS(reading("blank.jsonl"), SHOAL_ERR_DATA, "blank.jsonl", "no text in 4 bytes");
    ASSERT_FAILS(reading("d"), SHOAL_ERR_DATA, "no text in 2 file(s)");
    ASSERT_FAILS(reading_tokens("*.bin", DATA_NANOGPT, 10), SHOAL_ERR_DATA,
                 "empty.bin: the file is empty");
}

Test(data_errors, say_how_many_tokens_a_window_needs)
{
    write_text("a.txt", "0123456789");

    reading("a.txt")->seq_len = 11;
    ASSERT_FAILS(&params, SHOAL_ERR_DATA, "data.train: 11 tokens, expected at least 12",
                 "data.seq_len");
    params.seq_len = 5;
    params.val = "0.5%";
    ASSERT_FAILS(&params, SHOAL_ERR_DATA, "11 tokens, expected at least 12", "data.val=none");
    params.seq_len = 1;
    params.val = "80%";
    cr_assert_eq(info_of(&params).n_windows[DATA_TRAIN], 1);

    write_text("v.txt", "v");
    params.seq_len = 4;
    params.val = "v.txt";
    ASSERT_FAILS(&params, SHOAL_ERR_DATA, "data.val: 2 tokens, expected at least 5");
}

Test(data_errors, refuse_wrong_parameters)
{
    static const char *const percents[] = {
        "0%", "100%", "-1%", "x%", "%", "1e2%", "nan%", "0.5 %", "1.2.3%", "99999999999999999999%"};
    struct data *data;

    write_text("a.txt", "text");
    reading("a.txt")->n_train = 0;
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "data.train: is empty");
    reading("a.txt")->seq_len = 0;
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "data.seq_len: 0");
    reading("a.txt")->vocab = 0;
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "model.vocab: 0");
    reading("a.txt")->vocab = 256;
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "model.vocab: 256", "set model.vocab=257");
    reading("a.txt")->tokenizer = "gpt2";
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "data.tokenizer: gpt2, expected bytes or none");
    reading("a.txt")->tokenizer = "none";
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "data.tokenizer: none", "data.tokenizer=bytes");
    for (size_t i = 0; i < sizeof percents / sizeof percents[0]; i++) {
        reading("a.txt")->val = percents[i];
        ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "data.val: ", percents[i], "percentage");
    }

    /* Absent texts have the defaults of the config. */
    reading("a.txt")->val = NULL;
    params.tokenizer = NULL;
    data = open_or_fail(&params);
    cr_assert_eq(data_info(data).n_windows[DATA_VAL], 0);
    data_close(data);
    data_close(NULL);
}

Test(data_errors, refuse_a_file_that_is_named_for_training_and_validation)
{
    write_text("a.txt", "text");
    reading("a.txt")->val = "./a.txt";
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "data.val", "a.txt is in data.train, too",
                 "data.val=0.5%");
    reading("*.txt")->val = "a.txt";
    ASSERT_FAILS(&params, SHOAL_ERR_CONFIG, "every file of it is in data.val");
}

Test(data_errors, refuse_a_mixture_of_formats)
{
    write_text("a.txt", "text");
    write_text("b.jsonl", "{\"text\": \"x\"}\n");
    ASSERT_FAILS(reading("*"), SHOAL_ERR_DATA, "b.jsonl is jsonl, the files before it are text",
                 "dir/*.txt");
}

Test(data_errors, recognize_files_that_are_not_text)
{
    write_bytes("a.gz", "\x1f\x8b\x08\x00", 4);
    write_bytes("b", "some\0bytes", 10);
    ASSERT_FAILS(reading("a.gz"), SHOAL_ERR_DATA, "a.gz: looks like a gzip file", "data.format");
    ASSERT_FAILS(reading("b"), SHOAL_ERR_DATA, "b: looks like a binary file");
}

Test(data_errors, name_the_line_and_byte_of_bad_jsonl)
{
    write_text("a.jsonl", "{\"text\": \"good\"}\n{\"text\": \"good\"} x\n");
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "a.jsonl:2: byte 35 of the file",
                 "end of file expected");
    write_text("a.jsonl", "\n\n{\"text\": \"open\n");
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "a.jsonl:3: ", "bad JSON");
    write_text("a.jsonl", "{\"text\": 1, \"id\": 2}\n");
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "a.jsonl:1: byte 0", "no string \"text\"",
                 "the object has: text, id");
    write_text("a.jsonl", "{\"text\": \"x\"}\n[\"text\"]\n");
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "a.jsonl:2: byte 14", "no string \"text\"");
    write_text("a.jsonl", "{\"text\": \"x\", \"text\": \"y\"}\n");
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "duplicate");
    write_bytes("a.jsonl", "{\"text\": \"\xff\xfe\"}\n", 14);
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "a.jsonl:1: byte ", "UTF-8");
    write_bytes("a.jsonl", "\x01\x02\x00\xff\n", 5);
    ASSERT_FAILS(reading("a.jsonl"), SHOAL_ERR_DATA, "a.jsonl:1: byte ", "bad JSON");
    for (const char *c = shoal_last_error(); *c != '\0'; c++)
        cr_assert(*c == '\n' || (unsigned char)*c >= ' ', "the message quotes binary input");
}

Test(data_errors, find_truncated_and_foreign_token_files)
{
    const uint16_t ids[] = {1, 2, 3};

    write_bytes("odd.bin", ids, 5);
    ASSERT_FAILS(reading_tokens("odd.bin", DATA_AUTO, 10), SHOAL_ERR_DATA,
                 "odd.bin: 5 bytes, expected an even number");
    write_llmc("a.bin", 20240520, 1, 3, ids, 4);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 10), SHOAL_ERR_DATA,
                 "a.bin: header says 3 tokens at byte 8, file holds 2", "truncated");
    write_llmc("a.bin", 20240520, 1, 3, ids, 5);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 10), SHOAL_ERR_DATA, "file holds 2",
                 "5 bytes follow");
    write_llmc("a.bin", 20240520, 1, 2, ids, 6);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 10), SHOAL_ERR_DATA, "header says 2");
    write_llmc("a.bin", 20240520, 1, -3, ids, 6);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 10), SHOAL_ERR_DATA, "header says -3");
    write_llmc("a.bin", 20240520, 1, 0, ids, 0);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 10), SHOAL_ERR_DATA, "header says 0");
    write_llmc("a.bin", 20240520, 7, 3, ids, 6);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_LLMC, 10), SHOAL_ERR_DATA, "version 7 at byte 4",
                 "expected 1");
    write_llmc("a.bin", 20240521, 1, 3, ids, 6);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_LLMC, 10), SHOAL_ERR_DATA, "magic 20240521 at byte 0",
                 "20240520");
    write_bytes("a.bin", ids, 6);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_LLMC, 10), SHOAL_ERR_DATA,
                 "6 bytes, expected a header of 1024");
    write_llmc("a.bin", 20240520, 1, 3, ids, 6);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_NANOGPT, 65536), SHOAL_ERR_DATA,
                 "begins with the header of an llm.c file", "data.format=llmc");

    const uint32_t wide[] = {1, 2};
    write_llmc("a.bin", 20240520, 1, 3, ids, 6);
    write_llmc("b.bin", 20240801, 7, 2, wide, 8);
    ASSERT_FAILS(reading_tokens("?.bin", DATA_AUTO, 10), SHOAL_ERR_DATA,
                 "b.bin: tokens of 4 bytes, the files before it have tokens of 2");
}

Test(data_errors, name_the_token_that_is_outside_the_vocabulary)
{
    enum { N = 100000 };
    static uint16_t narrow[N];
    static uint32_t wide[N];

    narrow[77777] = 300;
    narrow[99999] = 50256;
    write_bytes("a.bin", narrow, sizeof narrow);
    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 300), SHOAL_ERR_DATA,
                 "a.bin: token 77777 (byte offset 155554) is 300, expected below 300 (model.vocab)",
                 "largest id in the file is 50256", "set model.vocab=50257");
    cr_assert_eq(info_of(reading_tokens("a.bin", DATA_AUTO, 50257)).n_tokens[DATA_TRAIN], N);

    ASSERT_FAILS(reading_tokens("a.bin", DATA_AUTO, 50256), SHOAL_ERR_DATA,
                 "token 99999 (byte offset 199998) is 50256, expected below 50256");

    reading("a.bin")->vocab = 50304;
    ASSERT_FAILS(&params, SHOAL_ERR_DATA, "expected below 257 (data.tokenizer: bytes)",
                 "data.tokenizer=none", "model.vocab=50257");

    wide[12345] = UINT32_MAX;
    write_llmc("b.bin", 20240801, 7, N, wide, sizeof wide);
    ASSERT_FAILS(reading_tokens("b.bin", DATA_AUTO, (int64_t)INT32_MAX + 1), SHOAL_ERR_DATA,
                 "b.bin: token 12345 (byte offset 50404) is 4294967295");
}

#include "test_data_files.h"

#include <pthread.h>

TestSuite(data, .init = enter_directory, .fini = leave_directory);

/* `n` letters that differ from their neighbours' at every stride below 26. */
static char *letters(size_t n)
{
    char *text = malloc(n + 1);

    cr_assert_not_null(text);
    for (size_t i = 0; i < n; i++)
        text[i] = (char)('a' + (i * i / 3 + i) % 26);
    text[n] = '\0';
    return text;
}

Test(data, windows_tile_the_stream_and_share_one_token_with_the_next)
{
    const char *train[] = {"a.txt"};

    for (size_t n_text = 1; n_text < 60; n_text += 7)
        for (size_t T = 1; T <= n_text; T++) {
            struct data_params params = params_of(train, (int64_t)T);
            char *text = letters(n_text);
            size_t N = n_text + 1;
            size_t n;

            write_text("a.txt", text);
            struct data *data = open_or_fail(&params);
            struct data_info info = data_info(data);
            cr_assert_eq(info.n_tokens[DATA_TRAIN], N);
            cr_assert_eq(info.n_windows[DATA_TRAIN], (N - 1) / T);

            int32_t *tokens = covered_tokens(data, DATA_TRAIN, T, &n);
            cr_assert_eq(n, (N - 1) / T * T + 1);
            for (size_t i = 0; i < n; i++)
                cr_assert_eq(tokens[i], i < n_text ? text[i] : BYTE_TOKENIZER_END);
            for (size_t i = 0; i < info.n_windows[DATA_TRAIN]; i++) {
                int32_t window[61];

                data_window(data, DATA_TRAIN, i, window);
                cr_assert_arr_eq(window, tokens + i * T, (T + 1) * sizeof *window);
            }
            free(tokens);
            free(text);
            data_close(data);
        }
}

Test(data, joins_documents_in_order_of_name_with_an_end_after_each)
{
    const char *train[] = {"."};
    struct data_params params = params_of(train, 1);

    write_text("b.txt", "two");
    write_text("a.txt", "one");
    write_text("empty.txt", "");
    write_text(".hidden", "no");
    cr_assert_eq(mkdir("c", 0777), 0);
    write_text("c/d.txt", "three");

    struct data *data = open_or_fail(&params);
    assert_stream_is(data, "one|two|three|");
    cr_assert_eq(data_info(data).n_files, 3);
    cr_assert_eq(data_info(data).n_documents, 3);
    cr_assert_eq(data_info(data).n_bytes, 11);
    data_close(data);
}

Test(data, expands_globs_and_recursive_globs)
{
    const char *train[] = {"t/*.txt", "t/**/*.c", "t/**/x/*"};
    struct data_params params = params_of(train, 1);
    struct data *data;

    cr_assert_eq(mkdir("t", 0777), 0);
    cr_assert_eq(mkdir("t/x", 0777), 0);
    cr_assert_eq(mkdir("t/x/y", 0777), 0);
    cr_assert_eq(mkdir("t/.git", 0777), 0);
    write_text("t/.git/z.c", "hidden");
    write_text("t/2.txt", "2");
    write_text("t/1.txt", "1");
    write_text("t/x/3.txt", "3");
    write_text("t/x/y/k.c", "k");
    write_text("t/l.c", "l");

    data = open_or_fail(&params);
    assert_stream_is(data, "1|2|");
    data_close(data);

    params.train = train + 1;
    data = open_or_fail(&params);
    assert_stream_is(data, "l|k|");
    data_close(data);

    params.train = train + 2;
    data = open_or_fail(&params);
    assert_stream_is(data, "3|");
    data_close(data);

    params.train = train;
    params.n_train = 3;
    data = open_or_fail(&params);
    assert_stream_is(data, "1|2|l|k|3|");
    data_close(data);
}

Test(data, takes_a_name_with_wildcards_at_its_word_and_follows_links_to_files)
{
    const char *train[] = {"a[1].txt", "d"};
    struct data_params params = params_of(train, 1);

    write_text("a[1].txt", "literal");
    write_text("a1.txt", "pattern");
    cr_assert_eq(mkdir("d", 0777), 0);
    cr_assert_eq(symlink("../a1.txt", "d/link"), 0);
    cr_assert_eq(symlink("..", "d/loop"), 0);
    params.n_train = 2;

    struct data *data = open_or_fail(&params);
    assert_stream_is(data, "literal|pattern|");
    data_close(data);
}

Test(data, holds_out_the_last_windows_and_no_token_is_in_both)
{
    static const struct {
        const char *percent;
        size_t n_text, T, n_val_windows;
    } cases[] = {
        {"0.5%", 25, 5, 1},  {"0.5%", 2000, 5, 2}, {"0.5%", 1999, 5, 1},     {"10%", 2000, 4, 50},
        {"50%", 100, 3, 16}, {"33.3%", 91, 9, 3},  {"0.000001%", 100, 1, 1},
    };
    const char *train[] = {"a.txt"};

    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        size_t T = cases[c].T;
        size_t N = cases[c].n_text + 1;
        size_t n_val = cases[c].n_val_windows * T + 1;
        struct data_params params = params_of(train, (int64_t)T);
        char *text = letters(cases[c].n_text);
        size_t n;

        write_text("a.txt", text);
        params.val = cases[c].percent;
        struct data *data = open_or_fail(&params);
        struct data_info info = data_info(data);
        cr_assert_eq(info.n_windows[DATA_VAL], cases[c].n_val_windows, "case %zu: %lu", c,
                     info.n_windows[DATA_VAL]);
        cr_assert_eq(info.n_tokens[DATA_VAL], n_val);
        cr_assert_eq(info.n_tokens[DATA_TRAIN], N - n_val);
        cr_assert_eq(info.n_windows[DATA_TRAIN], (N - n_val - 1) / T);

        int32_t *tokens = covered_tokens(data, DATA_VAL, T, &n);
        for (size_t i = 0; i + 1 < n; i++)
            cr_assert_eq(tokens[i], text[N - n_val + i]);
        cr_assert_eq(tokens[n - 1], BYTE_TOKENIZER_END);
        free(tokens);
        tokens = covered_tokens(data, DATA_TRAIN, T, &n);
        cr_assert_leq(n, N - n_val);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(tokens[i], text[i]);
        free(tokens);
        free(text);
        data_close(data);
    }
}

Test(data, leaves_validation_files_out_of_a_training_pattern)
{
    const char *train[] = {"*.txt"};
    struct data_params params = params_of(train, 1);

    write_text("a.txt", "train");
    write_text("v.txt", "valid");
    write_text("z.txt", "more");
    params.val = "./v.txt";

    struct data *data = open_or_fail(&params);
    assert_stream_is(data, "train|more|");
    cr_assert_eq(data_info(data).n_tokens[DATA_VAL], 6);
    int32_t tokens[2];
    data_window(data, DATA_VAL, 0, tokens);
    cr_assert_eq(tokens[0], 'v');
    data_close(data);
}

Test(data, an_epoch_visits_every_training_window_once_in_the_permuted_order)
{
    const char *train[] = {"a.txt"};
    struct data_params params = params_of(train, 4);
    char *text = letters(400);
    int32_t got[5];
    int32_t want[5];

    write_text("a.txt", text);
    params.val = "5%";
    params.seed = 77;
    struct data *data = open_or_fail(&params);
    uint64_t n = data_info(data).n_windows[DATA_TRAIN];
    cr_assert_eq(data_epoch_shift(data, 0), 0);
    for (uint64_t i = 0; i < 6 * n; i++) {
        uint64_t shift = data_epoch_shift(data, i / n), last = (n - 1) * 4;
        uint64_t begin = shift + 4 * data_permute(77, i / n, i % n, n);
        cr_assert_lt(shift, 4);
        begin = begin < last ? begin : last;
        for (int t = 0; t < 5; t++)
            want[t] = text[begin + (uint64_t)t];
        data_train_sequence(data, i, got);
        cr_assert_arr_eq(got, want, sizeof got);
    }
    free(text);
    data_close(data);
}

Test(data, small_files_share_memory_and_large_ones_are_mapped)
{
    enum { LARGE = (1 << 20) + 12345, T = 1000 };
    const char *train[] = {"t"};
    struct data_params params = params_of(train, T);
    char *text = letters(LARGE);
    size_t n;

    cr_assert_eq(mkdir("t", 0777), 0);
    write_text("t/a", "small");
    write_text("t/b", text);
    write_text("t/c", "tail");
    struct data *data = open_or_fail(&params);
    int32_t *tokens = covered_tokens(data, DATA_TRAIN, T, &n);
    cr_assert_eq(tokens[5], BYTE_TOKENIZER_END);
    for (size_t i = 6; i < n && i < 6 + LARGE; i++)
        cr_assert_eq(tokens[i], text[i - 6], "token %zu", i);
    free(tokens);
    free(text);
    data_close(data);
}

static int count_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    int n = 0;

    cr_assert_not_null(maps);
    for (int c = fgetc(maps); c != EOF; c = fgetc(maps))
        n += c == '\n';
    fclose(maps);
    return n;
}

Test(data, thousands_of_files_need_no_mapping_each_and_no_open_descriptor)
{
    enum { N_FILES = 3000 };
    const char *train[] = {"t/**"};
    struct data_params params = params_of(train, 1);

    cr_assert_eq(mkdir("t", 0777), 0);
    for (int i = 0; i < N_FILES; i++) {
        char path[32];
        char text[32];

        snprintf(path, sizeof path, "t/%04d", i);
        snprintf(text, sizeof text, "%d", i);
        write_text(path, text);
    }
    int n_before = count_mappings();
    struct data *data = open_or_fail(&params);
    cr_assert_lt(count_mappings(), n_before + N_FILES / 10);
    cr_assert_eq(data_info(data).n_documents, N_FILES);

    /* Documents 0-9, 10-99, 100-999, 1000- have 1, 2, 3, 4 digits and an end each. */
    uint64_t begin = 10 * 2 + 90 * 3 + 900 * 4 + (2345 - 1000) * 5;
    for (uint64_t i = 0; i < 4; i++) {
        int32_t tokens[2];

        data_window(data, DATA_TRAIN, begin + i, tokens);
        cr_assert_eq(tokens[0], "2345"[i]);
    }
    data_close(data);
}

static const struct data *shared;
static int32_t expected[512][9];

static void *read_all(void *arg)
{
    uintptr_t n_wrong = 0;

    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t k = (i * 131 + (uintptr_t)arg) % 512;
        int32_t tokens[9];

        data_train_sequence(shared, k, tokens);
        n_wrong += memcmp(tokens, expected[k], sizeof tokens) != 0;
    }
    return (void *)n_wrong;
}

Test(data, threads_read_the_same_windows)
{
    const char *train[] = {"a.txt"};
    struct data_params params = params_of(train, 8);
    char *text = letters(900);
    pthread_t threads[4];

    write_text("a.txt", text);
    struct data *data = open_or_fail(&params);
    for (uint64_t i = 0; i < 512; i++)
        data_train_sequence(data, i, expected[i]);
    shared = data;
    for (uintptr_t i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, read_all, (void *)(i * 37)), 0);
    for (int i = 0; i < 4; i++) {
        void *n_wrong;

        cr_assert_eq(pthread_join(threads[i], &n_wrong), 0);
        cr_assert_null(n_wrong);
    }
    free(text);
    data_close(data);
}

static uint64_t fingerprint_of(const char *a, const char *b)
{
    const char *train[] = {a, b};
    struct data_params params = params_of(train, 1);

    params.n_train = b != NULL ? 2 : 1;
    struct data *data = open_or_fail(&params);
    uint64_t fingerprint = data_info(data).fingerprint;
    data_close(data);
    return fingerprint;
}

Test(data, fingerprint_follows_names_sizes_content_and_order_but_not_the_directory)
{
    enum { LARGE = 3 << 20 };
    char *text = letters(LARGE);

    cr_assert_eq(mkdir("x", 0777), 0);
    cr_assert_eq(mkdir("y", 0777), 0);
    write_text("x/a", "first");
    write_text("x/b", "second");
    write_text("y/a", "first");
    write_text("y/b", "second");
    uint64_t base = fingerprint_of("x", NULL);
    cr_assert_eq(base, UINT64_C(0x9c87d1b022533238), "checkpoints hold fingerprints: %lx", base);
    cr_assert_eq(fingerprint_of("y", NULL), base);
    cr_assert_eq(fingerprint_of("x/a", "x/b"), base);
    cr_assert_neq(fingerprint_of("x/b", "x/a"), base);

    write_text("y/b", "Second");
    cr_assert_neq(fingerprint_of("y", NULL), base);
    write_text("y/b", "second");
    cr_assert_eq(rename("y/b", "y/c"), 0);
    cr_assert_neq(fingerprint_of("y", NULL), base);

    write_text("x/large", text);
    uint64_t large = fingerprint_of("x/large", NULL);
    text[LARGE - 1] = '.';
    write_text("x/large", text);
    cr_assert_neq(fingerprint_of("x/large", NULL), large);
    free(text);
}

Test(data, token_text_escapes_what_does_not_print)
{
    static const struct {
        int32_t token;
        const char *text;
    } bytes[] = {{'A', "A"},     {' ', " "},   {'\n', "\\n"},  {'\t', "\\t"},
                 {'\\', "\\\\"}, {0, "\\x00"}, {127, "\\x7f"}, {0xc3, "\\xc3"},
                 {256, "<end>"}, {257, "<?>"}, {-1, "<?>"},    {INT32_MAX, "<?>"}};
    static const struct {
        int32_t token;
        const char *text;
    } ids[] = {{0, "#0"}, {50256, "#50256"}, {128000, "#128000"}, {1000000, "#..."}};
    const char *train[] = {"a.txt"};
    const uint16_t tokens[] = {1, 2, 3, 4};
    struct data_params params = params_of(train, 1);
    char out[8];

    write_text("a.txt", "text");
    struct data *data = open_or_fail(&params);
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        cr_assert_eq(data_token_text(data, bytes[i].token, out), strlen(bytes[i].text));
        cr_assert_str_eq(out, bytes[i].text);
    }
    data_close(data);

    train[0] = "a.bin";
    params.tokenizer = "none";
    write_bytes("a.bin", tokens, sizeof tokens);
    data = open_or_fail(&params);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        cr_assert_eq(data_token_text(data, ids[i].token, out), strlen(ids[i].text));
        cr_assert_str_eq(out, ids[i].text);
    }
    data_close(data);
}

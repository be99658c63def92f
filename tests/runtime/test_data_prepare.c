#include "test_data_files.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

TestSuite(data_prepare, .init = enter_directory, .fini = leave_directory);

static int count_entries(const char *path)
{
    DIR *directory = opendir(path);
    int n = 0;

    cr_assert_not_null(directory);
    for (const struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory))
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(directory);
    return n;
}

/* Prepare params into `out`, and compare every window of a split of 5% with the source's. */
static void assert_same_after_prepare(struct data_params *params, const char *out)
{
    const char *prepared[] = {out};
    struct data_params again = *params;
    uint64_t n_tokens = 0;

    params->val = again.val = "5%";
    again.train = prepared;
    again.n_train = 1;
    again.format = DATA_AUTO;
    cr_assert_eq(data_prepare(params, out, &n_tokens), SHOAL_OK, "%s", shoal_last_error());

    struct data *a = open_or_fail(params);
    struct data *b = open_or_fail(&again);
    struct data_info info = data_info(a);
    cr_assert_eq(data_info(b).format, DATA_LLMC);
    cr_assert_eq(info.n_tokens[0] + info.n_tokens[1], n_tokens);
    for (int split = DATA_TRAIN; split <= DATA_VAL; split++) {
        cr_assert_eq(data_info(b).n_windows[split], info.n_windows[split]);
        for (uint64_t i = 0; i < info.n_windows[split]; i++) {
            int32_t x[17];
            int32_t y[17];

            data_window(a, (enum data_split)split, i, x);
            data_window(b, (enum data_split)split, i, y);
            cr_assert_arr_eq(x, y, sizeof x);
        }
    }
    data_close(a);
    data_close(b);
}

Test(data_prepare, keeps_the_stream_of_every_format)
{
    const char *train[] = {"t", "a.jsonl", "a.bin", "w.bin"};
    struct data_params params = params_of(train, 16);
    static uint16_t narrow[30000];
    static uint32_t wide[30000];

    cr_assert_eq(mkdir("t", 0777), 0);
    for (int i = 0; i < 50; i++) {
        char path[16];
        char text[600];

        snprintf(path, sizeof path, "t/%02d", i);
        snprintf(text, sizeof text, "%*d", 10 * i + 1, i);
        write_text(path, text);
    }
    write_text("a.jsonl", "{\"text\": \"once upon a time there was a window of tokens\"}\n"
                          "{\"text\": \"and another one that was not held out at all\"}\n");
    for (size_t i = 0; i < 30000; i++) {
        narrow[i] = (uint16_t)(i * 7);
        wide[i] = (uint32_t)(i * 40009);
    }
    write_bytes("a.bin", narrow, sizeof narrow);
    write_llmc("w.bin", 20240801, 7, 30000, wide, sizeof wide);

    assert_same_after_prepare(&params, "t.out");
    params.train++;
    assert_same_after_prepare(&params, "j.out");
    params.train++;
    params.tokenizer = "none";
    params.vocab = INT32_MAX;
    assert_same_after_prepare(&params, "a.out");
    params.train++;
    assert_same_after_prepare(&params, "w.out");
    cr_assert_eq(count_entries("."), 8);
}

Test(data_prepare, writes_the_header_that_llm_c_reads)
{
    static const int32_t narrow_header[4] = {20240520, 1, 5, 0};
    static const int32_t wide_header[4] = {20240801, 7, 2, 0};
    const uint32_t wide[] = {1, 65536};
    const char *train[] = {"a.txt"};
    struct data_params params = params_of(train, 1);
    unsigned char bytes[1100];
    uint64_t n_tokens;

    write_text("a.txt", "text");
    write_llmc("w.bin", 20240801, 7, 2, wide, sizeof wide);
    cr_assert_eq(data_prepare(&params, "out.bin", &n_tokens), SHOAL_OK);
    cr_assert_eq(n_tokens, 5);
    FILE *file = fopen("out.bin", "rb");
    cr_assert_eq(fread(bytes, 1, sizeof bytes, file), 1024 + 5 * 2);
    fclose(file);
    cr_assert_arr_eq(bytes, narrow_header, sizeof narrow_header);
    cr_assert_arr_eq(bytes + 1024, "t\0e\0x\0t\0\0\1", 10);

    train[0] = "w.bin";
    params.tokenizer = "none";
    params.vocab = 65537;
    cr_assert_eq(data_prepare(&params, "out.bin", &n_tokens), SHOAL_OK);
    file = fopen("out.bin", "rb");
    cr_assert_eq(fread(bytes, 1, sizeof bytes, file), 1024 + 2 * 4);
    fclose(file);
    cr_assert_arr_eq(bytes, wide_header, sizeof wide_header);
    cr_assert_arr_eq(bytes + 1024, wide, sizeof wide);
}

Test(data_prepare, leaves_out_validation_files_but_not_a_percentage)
{
    const char *train[] = {"*.txt"};
    struct data_params params = params_of(train, 1000);
    uint64_t n_tokens;

    write_text("a.txt", "train");
    write_text("v.txt", "valid");
    params.val = "v.txt";
    cr_assert_eq(data_prepare(&params, "a.bin", &n_tokens), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(n_tokens, 6);
    params.val = "10%";
    cr_assert_eq(data_prepare(&params, "b.bin", &n_tokens), SHOAL_OK, "%s", shoal_last_error());
    cr_assert_eq(n_tokens, 12);
}

static void write_corpus(size_t n_bytes)
{
    char *text = malloc(n_bytes + 1);

    cr_assert_not_null(text);
    memset(text, 'x', n_bytes);
    text[n_bytes] = '\0';
    write_text("a.txt", text);
    free(text);
}

Test(data_prepare, a_full_disk_leaves_the_old_file_and_nothing_else)
{
    const char *train[] = {"a.txt"};
    struct data_params params = params_of(train, 1);
    struct rlimit limit = {100000, 100000};
    char old[4] = "";
    uint64_t n_tokens = 42;

    write_corpus(500000);
    cr_assert_eq(mkdir("out", 0777), 0);
    write_text("out/a.bin", "old");
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);

    cr_assert_eq(data_prepare(&params, "out/a.bin", &n_tokens), SHOAL_ERR_IO, "%s",
                 shoal_last_error());
    cr_assert_eq(n_tokens, 42);
    cr_assert_not_null(strstr(shoal_last_error(), "out/a.bin: wrote 100000 of 1001026 bytes"), "%s",
                       shoal_last_error());
    cr_assert_not_null(strstr(shoal_last_error(), "free 1001026 bytes"));
    cr_assert_eq(count_entries("out"), 1);
    FILE *file = fopen("out/a.bin", "rb");
    cr_assert_eq(fread(old, 1, sizeof old, file), 3);
    cr_assert_str_eq(old, "old");
    fclose(file);
}

Test(data_prepare, a_full_file_system_is_an_io_error)
{
    const char *train[] = {"a.txt"};
    struct data_params params = params_of(train, 1);
    uint64_t n_tokens;

    cr_assert_eq(mkdir("disk", 0777), 0);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "disk", "tmpfs", 0, "size=128k") != 0)
        cr_skip_test("a small tmpfs cannot be mounted here");
    write_corpus(500000);
    cr_assert_eq(data_prepare(&params, "disk/a.bin", &n_tokens), SHOAL_ERR_IO, "%s",
                 shoal_last_error());
    cr_assert_not_null(strstr(shoal_last_error(), "No space left on device"), "%s",
                       shoal_last_error());
    cr_assert_eq(count_entries("disk"), 0);
    cr_assert_eq(umount("disk"), 0);
}

Test(data_prepare, says_when_the_output_cannot_be_created)
{
    const char *train[] = {"a.txt"};
    struct data_params params = params_of(train, 1);
    uint64_t n_tokens;

    write_text("a.txt", "text");
    cr_assert_eq(mkdir("directory", 0777), 0);
    cr_assert_eq(data_prepare(&params, "no/such/a.bin", &n_tokens), SHOAL_ERR_CANTCREATE);
    cr_assert_not_null(strstr(shoal_last_error(), "no/such/a.bin: cannot create: No such file"));
    cr_assert_eq(data_prepare(&params, "directory", &n_tokens), SHOAL_ERR_CANTCREATE);
    cr_assert_eq(count_entries("."), 2);
    train[0] = "gone.txt";
    cr_assert_eq(data_prepare(&params, "a.bin", &n_tokens), SHOAL_ERR_NOINPUT);
}

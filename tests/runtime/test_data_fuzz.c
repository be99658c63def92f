#include "test_data_files.h"

#include "runtime/base/clock.h"
#include "runtime/base/rng.h"

/*
 * Random damage to valid files.  Whatever comes in, data_open returns: with windows whose tokens
 * are all below the vocabulary, or with an error of the input's kind that names file or key.
 */

TestSuite(data_fuzz, .init = enter_directory, .fini = leave_directory);

enum { N_ROUNDS = 3000, MAX_BYTES = 4096 };

struct dice {
    uint64_t seed, count;
};

static uint32_t roll(struct dice *dice, size_t n)
{
    uint32_t bits[4];

    rng_block(dice->seed, 99, 0, dice->count++, bits);
    return bits[0] % (uint32_t)n;
}

/* One to four of: flip a bit, set a byte, cut the end, repeat a part, remove a part. */
static size_t damage(struct dice *dice, unsigned char *bytes, size_t n, size_t n_front)
{
    for (uint32_t left = 1 + roll(dice, 4); left > 0 && n > 8; left--) {
        size_t at = roll(dice, roll(dice, 2) == 0 && n > n_front ? n_front : n);
        size_t length = 1 + roll(dice, n - at < 64 ? n - at : 64);

        switch (roll(dice, 6)) {
        case 0:
            bytes[at] ^= (unsigned char)(1u << roll(dice, 8));
            break;
        case 1:
            bytes[at] = (unsigned char)roll(dice, 256);
            break;
        case 2:
            bytes[at] = (unsigned char)"{}[]\",:\\u\n0"[roll(dice, 11)];
            break;
        case 3:
            n = at + 1;
            break;
        case 4:
            if (n + length <= MAX_BYTES) {
                memmove(bytes + at + length, bytes + at, n - at);
                n += length;
            }
            break;
        default:
            memmove(bytes + at, bytes + at + length, n - at - length);
            n -= length;
        }
    }
    return n;
}

static bool open_and_read(const struct data_params *params, const char *name)
{
    static int32_t tokens[9];
    struct data *data = NULL;
    shoal_status status = data_open(params, &data);

    if (status != SHOAL_OK) {
        cr_assert(status == SHOAL_ERR_DATA || status == SHOAL_ERR_CONFIG, "%d: %s", status,
                  shoal_last_error());
        cr_assert(strstr(shoal_last_error(), name) != NULL ||
                      strstr(shoal_last_error(), "data.") != NULL,
                  "%s", shoal_last_error());
        return false;
    }
    struct data_info info = data_info(data);
    for (uint64_t i = 0; i < info.n_windows[DATA_TRAIN]; i++) {
        data_train_sequence(data, i, tokens);
        for (size_t k = 0; k < 9; k++)
            cr_assert(tokens[k] >= 0 && tokens[k] < params->vocab);
    }
    data_close(data);
    return true;
}

static void fuzz(const char *name, struct data_params *params, const unsigned char *good,
                 size_t n_good, size_t n_front)
{
    static unsigned char bytes[MAX_BYTES];
    struct dice dice = {.seed = n_good};
    int n_opened = 0;
    double start = clock_seconds();

    write_bytes(name, good, n_good);
    cr_assert(open_and_read(params, name), "%s", shoal_last_error());
    for (int round = 0; round < N_ROUNDS; round++) {
        memcpy(bytes, good, n_good);
        write_bytes(name, bytes, damage(&dice, bytes, n_good, n_front));
        n_opened += open_and_read(params, name);
    }
    /* The damage must be neither invisible nor always fatal, or nothing was tested. */
    cr_assert(n_opened > N_ROUNDS / 100 && n_opened < N_ROUNDS * 99 / 100, "%d of %d opened",
              n_opened, N_ROUNDS);
    cr_assert_lt(clock_seconds() - start, 60.0);
}

Test(data_fuzz, damaged_token_headers_never_read_outside_the_file)
{
    const char *train[] = {"a.bin"};
    struct data_params params = params_of(train, 8);
    unsigned char good[1024 + 400] = {0};
    int32_t header[3] = {20240520, 1, 200};

    params.tokenizer = "none";
    params.vocab = 1000;
    memcpy(good, header, sizeof header);
    fuzz("a.bin", &params, good, sizeof good, 12);

    params.format = DATA_LLMC;
    fuzz("a.bin", &params, good, sizeof good, 12);

    header[0] = 20240801;
    header[1] = 7;
    header[2] = 100;
    memcpy(good, header, sizeof header);
    fuzz("a.bin", &params, good, sizeof good, 12);
}

Test(data_fuzz, damaged_jsonl_is_refused_or_read_whole)
{
    static const char good[] =
        "{\"text\": \"The first document, with \\\"quotes\\\" and \\u00e9\\ud83d\\ude00.\"}\n"
        "{\"id\": 17, \"text\": \"The second: \xc3\xa9\xe2\x82\xac.\", \"score\": 1.5e-3}\n"
        "\n"
        "{\"meta\": {\"a\": [1, 2, {\"b\": null}]}, \"text\": \"Third\\nline.\"}\r\n"
        "{\"text\": \"Last, without a newline\"}";
    const char *train[] = {"a.jsonl"};
    struct data_params params = params_of(train, 8);

    fuzz("a.jsonl", &params, (const unsigned char *)good, sizeof good - 1, 80);
}

Test(data_fuzz, deep_nesting_is_an_error_not_a_crash)
{
    enum { DEPTH = 100000 };
    const char *train[] = {"a.jsonl"};
    struct data_params params = params_of(train, 1);
    char *line = malloc(DEPTH + 1);

    cr_assert_not_null(line);
    memset(line, '[', DEPTH);
    write_bytes("a.jsonl", line, DEPTH);
    ASSERT_FAILS(&params, SHOAL_ERR_DATA, "a.jsonl:1: ", "depth");
    free(line);
}

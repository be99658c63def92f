#include "tests/train/rig.h"

#include "tests/world/run.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char log_text[RIG_LOG_BYTES];
static double last_seconds;
static const char *shoal_path = SHOAL_BUILD_DIR "/bin/shoal";

const char *const rig_gpt[] = {"model.norm=layernorm", "model.position=learned", "model.mlp=gelu",
                               "model.tied=true", NULL};
const char *const rig_llama[] = {"model.norm=rmsnorm", "model.position=rope", "model.mlp=swiglu",
                                 "model.tied=false",   "model.kv_heads=2",    NULL};

static const char tiny[] =
    "model: {preset: \"\", layers: 2, hidden: 32, heads: 4, ffn: 96, vocab: 257}\n"
    "data: {seq_len: 32, val: 5%}\n"
    "batch: {micro: 2, global: 16}\n"
    "optimizer: {lr: 3e-3, warmup_steps: 2}\n"
    "steps: 4\n"
    "log: {every: 1}\n"
    "eval: {every: 0, sample_every: 0}\n"
    "checkpoint: {every: 0}\n"
    "run: {bind: false}\n";

/* Words in a random but fixed order: text with something to learn. */
static void write_text(const char *path)
{
    static const char *const words[] = {"the ",  "school ", "of ",   "fish ", "turns ",   "as ",
                                        "one, ", "and ",    "then ", "it ",   "rests.\n", "sea "};
    FILE *out = fopen(path, "w");
    unsigned state = 1;

    cr_assert_not_null(out);
    for (int i = 0; i < 6000; i++) {
        state = state * 1664525u + 1013904223u;
        fputs(words[(state >> 16) % 12], out);
    }
    fclose(out);
}

const char *rig_directory(void)
{
    static char directory[64];
    char path[128];

    snprintf(directory, sizeof directory, "/tmp/shoal-test-XXXXXX");
    cr_assert_not_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/data.txt", directory);
    write_text(path);
    snprintf(path, sizeof path, "%s/tiny.yaml", directory);
    FILE *out = fopen(path, "w");
    cr_assert_not_null(out);
    fputs(tiny, out);
    fclose(out);
    return directory;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info;
    (void)kind;
    (void)walk;
    return remove(path);
}

void rig_cleanup(const char *directory)
{
    nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *const *rig_words(const char *const *a, const char *const *b)
{
    static const char *all[64];
    size_t n = 0;

    for (; *a != NULL; a++)
        all[n++] = *a;
    for (; b != NULL && *b != NULL; b++)
        all[n++] = *b;
    all[n] = NULL;
    return all;
}

int rig_train(const char *directory, const char *name, int ranks, const char *const *words)
{
    const char *argv[96];
    char count[16], config[160], out[160], data[160];
    int n = 0;

    snprintf(count, sizeof count, "%d", ranks);
    snprintf(config, sizeof config, "%s/tiny.yaml", directory);
    snprintf(out, sizeof out, "run.out=%s/%s", directory, name);
    snprintf(data, sizeof data, "data.train=%s/data.txt", directory);
    if (ranks > 0) {
        argv[n++] = "mpirun";
        argv[n++] = "-n";
        argv[n++] = count;
    }
    argv[n++] = shoal_path;
    argv[n++] = "train";
    argv[n++] = config;
    argv[n++] = out;
    argv[n++] = data;
    for (; words != NULL && *words != NULL; words++)
        argv[n++] = *words;
    argv[n] = NULL;
    return run_command(argv, 120, log_text, sizeof log_text, &last_seconds);
}

void rig_use(const char *program)
{
    shoal_path = program;
}

int rig_shoal(const char *const *words)
{
    const char *argv[64] = {shoal_path};
    int n = 1;

    for (; *words != NULL; words++)
        argv[n++] = *words;
    argv[n] = NULL;
    return run_command(argv, 120, log_text, sizeof log_text, &last_seconds);
}

const char *rig_log(void)
{
    return log_text;
}

double rig_seconds(void)
{
    return last_seconds;
}

void rig_lines(const char *label, char out[RIG_SERIES_BYTES])
{
    char text[RIG_LOG_BYTES], *save = NULL;
    size_t n = 0;

    snprintf(text, sizeof text, "%s", log_text);
    out[0] = '\0';
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        char *seconds = strstr(line, " windows,");
        if (strncmp(line, label, strlen(label)) != 0)
            continue;
        if (seconds != NULL)
            *seconds = '\0';
        n += (size_t)snprintf(out + n, RIG_SERIES_BYTES - n, "%s\n", line);
        cr_assert_lt(n, RIG_SERIES_BYTES);
    }
    cr_assert_gt(n, 0, "no %s in\n%s", label, log_text);
}

/* The text of a JSON number: what follows "key": up to a comma or brace. */
static void field(const char *line, const char *key, char *out, size_t n_bytes)
{
    char quoted[32];

    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *p = strstr(line, quoted);
    cr_assert_not_null(p, "no %s in %s", key, line);
    p += strlen(quoted);
    p += strspn(p, " ");
    snprintf(out, n_bytes, "%.*s", (int)strcspn(p, ",}"), p);
}

void rig_series(const char *directory, const char *name, char out[RIG_SERIES_BYTES])
{
    char path[200], line[4096];
    size_t n = 0;

    out[0] = '\0';
    snprintf(path, sizeof path, "%s/%s/metrics.jsonl", directory, name);
    FILE *in = fopen(path, "r");
    cr_assert_not_null(in, "%s is missing\n%s", path, log_text);
    while (fgets(line, sizeof line, in) != NULL) {
        char step[32], loss[64], norm[64];
        field(line, "step", step, sizeof step);
        field(line, "loss", loss, sizeof loss);
        field(line, "grad_norm", norm, sizeof norm);
        n += (size_t)snprintf(out + n, RIG_SERIES_BYTES - n, "%s %s %s\n", step, loss, norm);
        cr_assert_lt(n, RIG_SERIES_BYTES);
    }
    fclose(in);
}

void rig_hash(const char *directory, const char *name, char out[64])
{
    char path[200], output[4096];
    const char *argv[] = {shoal_path, "ckpt", "show", "--hash", path, NULL};

    snprintf(path, sizeof path, "%s/%s", directory, name);
    int rc = run_command(argv, 60, output, sizeof output, NULL);
    cr_assert_eq(rc, 0, "ckpt show --hash %s: exit %d\n%s", path, rc, output);
    snprintf(out, 64, "%.*s", (int)strcspn(output, "\n"), output);
    cr_assert_geq(strlen(out), 32);
}

bool rig_is_long(void)
{
    return getenv("SHOAL_LONG") != NULL;
}

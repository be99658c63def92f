#include "runtime/metrics/metrics.h"

#include <criterion/criterion.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];
static char text[1 << 20];

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk)
{
    (void)info;
    (void)type;
    (void)walk;
    return remove(path);
}

static void setup(void)
{
    strcpy(dir, "/tmp/shoal_metrics_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void teardown(void)
{
    nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(metrics, .init = setup, .fini = teardown);

static const char *path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static const char *content(const char *name)
{
    FILE *file = fopen(path_of(name), "r");

    cr_assert_not_null(file, "%s", name);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

static void put(const char *name, const char *bytes)
{
    FILE *file = fopen(path_of(name), "w");

    cr_assert_not_null(file);
    fputs(bytes, file);
    fclose(file);
}

static struct metrics *open_at(int64_t step)
{
    struct metrics *metrics = NULL;

    cr_assert_eq(metrics_open(dir, step, &metrics), SHOAL_OK, "%s", shoal_last_error());
    return metrics;
}

/* The rest of a line after its time, which differs from run to run. */
static const char *after_time(const char *line)
{
    cr_assert_eq(strncmp(line, "{\"t\": ", 6), 0, "%s", line);
    return strchr(line, ',');
}

static void log_step(struct metrics *metrics, int64_t step)
{
    metrics_begin(metrics, step);
    metrics_number(metrics, "loss", 1.0 / (double)step);
    cr_assert_eq(metrics_end(metrics), SHOAL_OK);
}

Test(metrics, a_line_is_one_json_object)
{
    struct metrics *metrics = open_at(0);

    metrics_begin(metrics, 12);
    metrics_number(metrics, "loss", 0.1);
    metrics_number(metrics, "bad", NAN);
    metrics_number(metrics, "worse", -INFINITY);
    metrics_integer(metrics, "tokens", INT64_C(1) << 60);
    metrics_text(metrics, "note", "a \"b\" \\ \n \x01 \xc3\xa9");
    cr_assert_eq(metrics_end(metrics), SHOAL_OK);
    metrics_close(metrics);
    cr_assert_str_eq(after_time(content("metrics.jsonl")),
                     ", \"step\": 12, \"loss\": 0.1, \"bad\": null, \"worse\": null, \"tokens\": "
                     "1152921504606846976, \"note\": \"a \\\"b\\\" \\\\ \\u000a \\u0001 "
                     "\xc3\xa9\"}\n");
    cr_assert_str_eq(content("events.jsonl"), "");
}

Test(metrics, numbers_keep_every_bit)
{
    static const double values[] = {0.1, 1.0 / 3, 5.5511151231257827e-17, 1e300, 4.9e-324, -0.0};
    struct metrics *metrics = open_at(0);

    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        metrics_begin(metrics, 1);
        metrics_number(metrics, "x", values[i]);
        cr_assert_eq(metrics_end(metrics), SHOAL_OK);
    }
    metrics_close(metrics);
    const char *line = content("metrics.jsonl");
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        double read = strtod(strstr(line, "\"x\": ") + 5, NULL);

        cr_assert_eq(memcmp(&read, &values[i], sizeof read), 0, "%s", line);
        line = strchr(line, '\n') + 1;
    }
}

Test(metrics, bytes_that_are_not_utf8_become_replacement_characters)
{
    struct metrics *metrics = open_at(0);

    metrics_begin(metrics, 1);
    metrics_text(metrics, "sample", "a\xff\xc3(\xe2\x82 \xed\xa0\x80 \xf0\x9f\x90\x9f \xc0\x80");
    cr_assert_eq(metrics_end_event(metrics), SHOAL_OK);
    metrics_close(metrics);
    cr_assert_str_eq(after_time(content("events.jsonl")),
                     ", \"step\": 1, \"sample\": \"a\\ufffd\\ufffd(\\ufffd\\ufffd "
                     "\\ufffd\\ufffd\\ufffd \xf0\x9f\x90\x9f \\ufffd\\ufffd\"}\n");
}

Test(metrics, a_resume_cuts_off_the_steps_it_will_do_again)
{
    struct metrics *metrics = open_at(0);

    for (int64_t step = 1; step <= 5; step++)
        log_step(metrics, step);
    metrics_begin(metrics, 5);
    metrics_text(metrics, "kind", "eval");
    cr_assert_eq(metrics_end_event(metrics), SHOAL_OK);
    metrics_close(metrics);

    metrics = open_at(3);
    cr_assert_null(strstr(content("metrics.jsonl"), "\"step\": 4"));
    cr_assert_not_null(strstr(text, "\"step\": 3"));
    cr_assert_str_eq(content("events.jsonl"), "");
    log_step(metrics, 4);
    metrics_close(metrics);
    int n_lines = 0;
    for (const char *line = content("metrics.jsonl"); *line != '\0'; n_lines++)
        line = strchr(line, '\n') + 1;
    cr_assert_eq(n_lines, 4);
    cr_assert_eq(access(path_of("metrics.jsonl.tmp"), F_OK), -1);
}

Test(metrics, a_torn_last_line_is_cut_off_and_foreign_lines_stay)
{
    put("metrics.jsonl", "{\"step\": 1}\nnot json\n{\"step\": 2.5}\n\n{\"step\": 9}\n{\"step\": 2");
    metrics_close(open_at(4));
    cr_assert_str_eq(content("metrics.jsonl"), "{\"step\": 1}\nnot json\n{\"step\": 2.5}\n\n");
}

Test(metrics, a_file_that_needs_no_cut_is_not_rewritten)
{
    struct stat before;
    struct stat after;

    put("metrics.jsonl", "{\"step\": 1}\n");
    cr_assert_eq(stat(path_of("metrics.jsonl"), &before), 0);
    metrics_close(open_at(1));
    cr_assert_eq(stat(path_of("metrics.jsonl"), &after), 0);
    cr_assert_eq(before.st_ino, after.st_ino);
}

Test(metrics, a_line_that_is_too_long_is_refused_and_the_next_one_is_whole)
{
    struct metrics *metrics = open_at(0);
    char *huge = malloc(70000);

    memset(huge, 'x', 69999);
    huge[69999] = '\0';
    metrics_begin(metrics, 1);
    metrics_text(metrics, "huge", huge);
    metrics_integer(metrics, "more", 1);
    cr_assert_eq(metrics_end(metrics), SHOAL_ERR_INTERNAL);
    cr_assert_str_eq(content("metrics.jsonl"), "");
    log_step(metrics, 2);
    metrics_close(metrics);
    cr_assert_str_eq(after_time(content("metrics.jsonl")), ", \"step\": 2, \"loss\": 0.5}\n");
    free(huge);
}

Test(metrics, a_full_disk_leaves_whole_lines)
{
    struct metrics *metrics = open_at(0);
    struct rlimit limit = {100, RLIM_INFINITY};

    log_step(metrics, 1);
    size_t n = strlen(content("metrics.jsonl"));
    limit.rlim_cur = (rlim_t)n + 10; /* the next line fits in part */
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    metrics_begin(metrics, 2);
    shoal_status status = metrics_end(metrics);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    cr_assert_eq(status, SHOAL_ERR_IO);
    cr_assert_not_null(strstr(shoal_last_error(), "metrics.jsonl: cannot append"));
    cr_assert_eq(strlen(content("metrics.jsonl")), n);
    log_step(metrics, 2);
    cr_assert_not_null(strstr(content("metrics.jsonl"), "\"step\": 2"));
    metrics_close(metrics);
}

Test(metrics, a_full_disk_while_cutting_keeps_the_old_lines)
{
    static const char lines[] = "{\"step\": 1}\n{\"step\": 2}\n{\"step\": 9}\n";
    struct metrics *metrics = NULL;
    struct rlimit limit = {15, RLIM_INFINITY}; /* of 26 bytes that stay */

    put("metrics.jsonl", lines);
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    shoal_status status = metrics_open(dir, 2, &metrics);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    cr_assert_eq(status, SHOAL_ERR_IO);
    cr_assert_not_null(strstr(shoal_last_error(), "metrics.jsonl.tmp: cannot write: File too"),
                       "%s", shoal_last_error());
    cr_assert_str_eq(content("metrics.jsonl"), lines);
    cr_assert_neq(access(path_of("metrics.jsonl.tmp"), F_OK), 0);
}

Test(metrics, a_directory_that_cannot_be_made_is_named)
{
    struct metrics *metrics = NULL;

    cr_assert_eq(metrics_open("/proc/nowhere", 0, &metrics), SHOAL_ERR_CANTCREATE);
    cr_assert_not_null(strstr(shoal_last_error(), "/proc/nowhere"));
    cr_assert_null(metrics);
    put("file", "");
    cr_assert_eq(metrics_open(path_of("file"), 0, &metrics), SHOAL_ERR_CANTCREATE);
    metrics_close(NULL);
}

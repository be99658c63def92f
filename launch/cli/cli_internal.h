#pragma once

#include "runtime/base/log.h"
#include "runtime/base/status.h"
#include "runtime/config/config.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/*
 * The command line: a table of commands, each with a table of options, from which parsing,
 * `--help` and docs/cli.md are made.  Private to launch/cli/; the public face is shoal_main().
 *
 * Results that were asked for go to stdout, everything else to stderr through the log.
 */

struct command_line;
typedef shoal_status command_fn(const struct command_line *line);

/* An option; tables end with a row whose name is NULL. */
struct option {
    const char *name;  /* "steps": written --steps N or --steps=N */
    char letter;       /* short form, or 0 */
    const char *value; /* "N": takes a value; NULL: a flag */
    const char *help;
};

enum { COMMAND_MAX_OPTIONS = 16 };

/* A command does something (`run`) or holds further commands (`commands`). */
struct command {
    const char *path;      /* "ckpt show" */
    const char *purpose;   /* one line */
    const char *arguments; /* "CONFIG [KEY=VALUE...]"; NULL: none */
    const char *notes;     /* a paragraph more, or NULL */
    const char *examples[2];
    const struct option *options;
    int min_args, max_args; /* max_args -1: any number */
    command_fn *run;
    const struct command *const *commands; /* ends with NULL */
};

/* A parsed line; texts point into argv. */
struct command_line {
    const struct command *command;
    const char *values[COMMAND_MAX_OPTIONS]; /* by row of the options; NULL: not given */
    const char *const *args;
    int n_args;
    bool help;
    enum log_level level;
};

/* The top of the table: shoal itself. */
extern const struct command command_shoal;

extern const struct command command_train, command_sample, command_plan, command_ckpt, command_data,
    command_config, command_bench, command_version, command_help;

/* "show" of "ckpt show". */
const char *command_name(const struct command *command);

/* ---- options.c: reading the line ---- */

/* What every command takes: --help, --quiet, --verbose. */
const struct option *common_options(void);

/*
 * Follow the words of argv down the command table and sort the rest into options and arguments;
 * argv is reordered.  SHOAL_ERR_USAGE with the nearest match.
 */
shoal_status command_line_parse(int argc, char **argv, struct command_line *line_out);

/* The option's value ("" for a flag), or NULL when it was not given. */
const char *option_text(const struct command_line *line, const char *name);
bool option_is_set(const struct command_line *line, const char *name);

/* The option's number, *value_out untouched when it was not given. */
shoal_status option_int(const struct command_line *line, const char *name, int64_t min, int64_t max,
                        int64_t *value_out);
shoal_status option_real(const struct command_line *line, const char *name, double min, double max,
                         double *value_out);

/* Record a usage error of this command, with a pointer to its --help. */
shoal_status fail_usage(const struct command *command, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- help.c ---- */

void help_print(const struct command *command, FILE *out);

/* Find the command that `words` name; SHOAL_ERR_USAGE with the nearest match. */
shoal_status command_find(const struct command *from, const char *const *words, int n_words,
                          const struct command **command_out);

/* Record "unknown command" with the nearest match. */
shoal_status fail_unknown_command(const struct command *group, const char *word);

/* ---- shared.c ---- */

/*
 * Load the config that a line names: its first argument is the file unless it holds '=', the
 * others are KEY=VALUE, and `extra` (ends with NULL, or NULL) comes last.  Caller frees.
 */
shoal_status config_from_line(const struct command_line *line, const char *const *extra,
                              struct config **config_out);

/* Print a JSON value on stdout and release it; NULL means that memory ran out. */
shoal_status print_json(json_t *value);

/* "1.2 GiB" into out. */
void bytes_text(uint64_t n_bytes, char out[32]);

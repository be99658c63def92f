/* Reading the command line through the tables. */
#include "launch/cli/cli_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const struct option common[] = {
    {"help", 'h', NULL, "print this help"},
    {"quiet", 'q', NULL, "only errors on stderr"},
    {"verbose", 'v', NULL, "more lines on stderr"},
    {.name = NULL},
};

const struct option *common_options(void)
{
    return common;
}

const char *command_name(const struct command *command)
{
    const char *space = strrchr(command->path, ' ');

    return space != NULL ? space + 1 : command->path;
}

shoal_status fail_usage(const struct command *command, const char *fmt, ...)
{
    char sentence[512];
    bool top = command == &command_shoal;
    va_list args;

    va_start(args, fmt);
    vsnprintf(sentence, sizeof sentence, fmt, args);
    va_end(args);
    fail(SHOAL_ERR_USAGE, "shoal%s%s: %s", top ? "" : " ", top ? "" : command->path, sentence);
    return fail_hint(SHOAL_ERR_USAGE, "`shoal%s%s --help` shows how to call it", top ? "" : " ",
                     top ? "" : command->path);
}

/* ---- finding options ---- */

static bool has_name(const struct option *option, const char *name, size_t n)
{
    return strlen(option->name) == n && strncmp(option->name, name, n) == 0;
}

/* The row that `--name` or `-letter` means, in the command's options or the common ones. */
static const struct option *find_option(const struct command *command, const char *word,
                                        size_t n_name)
{
    const struct option *const tables[] = {command->options, common};
    bool is_letter = word[1] != '-';

    for (size_t t = 0; t < 2; t++)
        for (const struct option *o = tables[t]; o != NULL && o->name != NULL; o++)
            if (is_letter ? o->letter == word[1] : has_name(o, word + 2, n_name))
                return o;
    return NULL;
}

static shoal_status fail_unknown_option(const struct command *command, const char *word,
                                        size_t n_word)
{
    const struct option *const tables[] = {command->options, common};
    char name[64];
    char names[1024];
    char near[64];
    size_t n = 0;

    names[0] = '\0';
    for (size_t t = 0; t < 2; t++)
        for (const struct option *o = tables[t]; o != NULL && o->name != NULL; o++)
            n += (size_t)snprintf(names + n, sizeof names - n, "%s ", o->name);
    fail_usage(command, "unknown option %.*s", (int)n_word, word);
    snprintf(name, sizeof name, "%.*s", (int)n_word, word);
    if (nearest_word(name + strspn(name, "-"), names, near, sizeof near) != NULL)
        fail_hint(SHOAL_ERR_USAGE, "did you mean --%s?", near);
    return SHOAL_ERR_USAGE;
}

/* ---- reading ---- */

static shoal_status set_option(struct command_line *line, const struct option *option,
                               const char *value)
{
    const struct command *command = line->command;

    if (option >= common && option < common + sizeof common / sizeof common[0]) {
        if (option->letter == 'h')
            line->help = true;
        else
            line->level = option->letter == 'q' ? LOG_QUIET : LOG_VERBOSE;
        return SHOAL_OK;
    }
    size_t row = (size_t)(option - command->options);
    assert(row < COMMAND_MAX_OPTIONS);
    if (line->values[row] != NULL)
        return fail_usage(command, "option --%s is given twice", option->name);
    line->values[row] = value;
    return SHOAL_OK;
}

/* One option at argv[*i]; *i moves past its value. */
static shoal_status read_option(struct command_line *line, int argc, char **argv, int *i)
{
    const char *word = argv[*i];
    bool is_letter = word[1] != '-';
    size_t n_word = is_letter ? 2 : strcspn(word, "=");
    const char *value = word[n_word] == '\0' ? NULL : word + n_word + !is_letter;
    const struct option *option = find_option(line->command, word, n_word - 2);

    if (option == NULL)
        return fail_unknown_option(line->command, word, n_word);
    if (option->value == NULL) {
        if (value != NULL)
            return fail_usage(line->command, "option --%s takes no value", option->name);
        return set_option(line, option, "");
    }
    if (value == NULL) {
        if (*i + 1 >= argc)
            return fail_usage(line->command, "option --%s needs a value: --%s %s", option->name,
                              option->name, option->value);
        value = argv[++*i];
    }
    return set_option(line, option, value);
}

/* Options may stand between arguments, which are moved to the front of argv. */
static shoal_status read_words(struct command_line *line, int argc, char **argv)
{
    bool only_args = false;
    int n_args = 0;

    for (int i = 0; i < argc; i++) {
        if (!only_args && strcmp(argv[i], "--") == 0)
            only_args = true;
        else if (!only_args && argv[i][0] == '-' && argv[i][1] != '\0')
            SHOAL_TRY(read_option(line, argc, argv, &i));
        else
            argv[n_args++] = argv[i];
    }
    line->args = (const char *const *)argv;
    line->n_args = n_args;
    return SHOAL_OK;
}

static shoal_status check_arguments(const struct command_line *line)
{
    const struct command *command = line->command;

    if (command->run == NULL && line->n_args == 0)
        return fail_usage(command, "expected a command");
    if (command->run == NULL)
        return fail_unknown_command(command, line->args[0]);
    if (line->n_args < command->min_args)
        return fail_usage(command, "expected %s", command->arguments);
    if (command->max_args >= 0 && line->n_args > command->max_args)
        return fail_usage(command, "unexpected argument \"%.200s\"", line->args[command->max_args]);
    return SHOAL_OK;
}

shoal_status command_line_parse(int argc, char **argv, struct command_line *line_out)
{
    struct command_line line = {.command = &command_shoal, .level = LOG_NORMAL};
    int i = argc > 0 ? 1 : 0;

    for (; i < argc && line.command->commands != NULL; i++) {
        const char *word = argv[i];

        if (strcmp(word, "--version") == 0)
            line.command = &command_version;
        else if (word[0] == '-')
            SHOAL_TRY(read_option(&line, argc, argv, &i));
        else
            SHOAL_TRY(command_find(line.command, &word, 1, &line.command));
    }
    SHOAL_TRY(read_words(&line, argc - i, argv + i));
    if (!line.help)
        SHOAL_TRY(check_arguments(&line));
    *line_out = line;
    return SHOAL_OK;
}

/* ---- what was read ---- */

const char *option_text(const struct command_line *line, const char *name)
{
    const struct option *options = line->command->options;

    for (size_t row = 0; options[row].name != NULL; row++)
        if (strcmp(options[row].name, name) == 0)
            return line->values[row];
    assert(false && "an option that is not in the command's table");
    return NULL;
}

bool option_is_set(const struct command_line *line, const char *name)
{
    return option_text(line, name) != NULL;
}

shoal_status option_int(const struct command_line *line, const char *name, int64_t min, int64_t max,
                        int64_t *value_out)
{
    const char *text = option_text(line, name);
    char *end;

    if (text == NULL)
        return SHOAL_OK;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < min || value > max)
        return fail_usage(line->command,
                          "option --%s: expected an integer in %lld .. %lld, found \"%.80s\"", name,
                          (long long)min, (long long)max, text);
    *value_out = value;
    return SHOAL_OK;
}

shoal_status option_real(const struct command_line *line, const char *name, double min, double max,
                         double *value_out)
{
    const char *text = option_text(line, name);
    char *end;

    if (text == NULL)
        return SHOAL_OK;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= min && value <= max))
        return fail_usage(line->command,
                          "option --%s: expected a number in %g .. %g, found \"%.80s\"", name, min,
                          max, text);
    *value_out = value;
    return SHOAL_OK;
}

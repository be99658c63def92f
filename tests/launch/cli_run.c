#include "cli_run.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_WORDS = 32 };

static void split(char *words, char *argv[MAX_WORDS])
{
    int n = 0;

    argv[n++] = (char *)"shoal";
    while (*words != '\0') {
        char end = *words == '\'' ? '\'' : ' ';

        words += end == '\'';
        cr_assert_lt(n, MAX_WORDS - 1);
        argv[n++] = words;
        words += strcspn(words, end == '\'' ? "'" : " ");
        if (*words != '\0')
            *words++ = '\0';
        words += strspn(words, " ");
    }
    argv[n] = NULL;
}

/* A pipe could fill up while nobody reads, so the child writes to files. */
static void read_back(FILE *file, char *out, size_t n_bytes)
{
    rewind(file);
    out[fread(out, 1, n_bytes - 1, file)] = '\0';
    fclose(file);
}

const struct run *shoal_run(const char *dir, const char *words)
{
    static struct run run;
    char *argv[MAX_WORDS];
    char *copy = strdup(words);
    FILE *out = tmpfile();
    FILE *err = tmpfile();
    int state;

    cr_assert(copy != NULL && out != NULL && err != NULL);
    split(copy, argv);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fileno(out), STDOUT_FILENO);
        dup2(fileno(err), STDERR_FILENO);
        if (chdir(dir != NULL ? dir : "/tmp") == 0)
            execv(SHOAL_BUILD_DIR "/bin/shoal", argv);
        _exit(127);
    }
    cr_assert_gt(pid, 0);
    cr_assert_eq(waitpid(pid, &state, 0), pid);
    run.exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    read_back(out, run.out, sizeof run.out);
    read_back(err, run.err, sizeof run.err);
    free(copy);
    return &run;
}

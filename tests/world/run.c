#include "tests/world/run.h"

#include "runtime/base/clock.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOT_STARTED = -1000 };

/* Read what the program prints until it closes its end; false when time is up. */
static int collect(int fd, double deadline, char *output, size_t n_bytes)
{
    char rest[4096];
    size_t n = 0;

    output[0] = '\0';
    for (;;) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};
        double left = deadline - clock_seconds();

        if (left <= 0)
            return 0;
        if (poll(&entry, 1, (int)(left * 1e3) + 1) == 0)
            continue;
        char *to = n + 1 < n_bytes ? output + n : rest;
        ssize_t got = read(fd, to, n + 1 < n_bytes ? n_bytes - 1 - n : sizeof rest);

        if (got <= 0)
            return 1;
        if (to != rest)
            n += (size_t)got;
        output[n] = '\0';
    }
}

int run_command(const char *const argv[], double timeout_s, char *output, size_t n_bytes,
                double *seconds_out)
{
    double begin = clock_seconds();
    int out[2], code = 0;

    if (pipe(out) != 0)
        return NOT_STARTED;
    pid_t pid = fork();
    if (pid < 0) {
        close(out[0]);
        close(out[1]);
        return NOT_STARTED;
    }
    if (pid == 0) {
        setpgid(0, 0);
        /* In sanitizer builds: the network libraries under MPI leak, which is not our doing. */
        setenv("ASAN_OPTIONS", "detect_leaks=0", 0);
        dup2(out[1], STDOUT_FILENO);
        dup2(out[1], STDERR_FILENO);
        close(out[0]);
        close(out[1]);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    setpgid(pid, pid);
    close(out[1]);
    if (!collect(out[0], begin + timeout_s, output, n_bytes))
        kill(-pid, SIGKILL);
    close(out[0]);
    waitpid(pid, &code, 0);
    if (seconds_out != NULL)
        *seconds_out = clock_seconds() - begin;
    return WIFEXITED(code) ? WEXITSTATUS(code) : -WTERMSIG(code);
}

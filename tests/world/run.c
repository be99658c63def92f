#include "tests/world/run.h"

#include "runtime/base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { NOT_STARTED = -1000, LOOK_MS = 50 };

/* In the environment of what is started, and so of all that this starts in turn. */
#define MARK "SHOAL_TEST_RUN"

/* Longer between two looks at the clock: this process did not run, and that time does not count. */
#define GAP_S 0.5

struct watch {
    double begin, last, stopped;
};

static struct {
    struct watch watch;
    char mark[64], command[512], report[32768];
} run;

static double watch_seconds(struct watch *watch)
{
    double now = clock_seconds();

    if (now - watch->last > GAP_S)
        watch->stopped += now - watch->last - GAP_S;
    watch->last = now;
    return now - watch->begin - watch->stopped;
}

static struct watch watch_begin(void)
{
    double now = clock_seconds();

    return (struct watch){.begin = now, .last = now};
}

/* Read what the program prints until it closes its end; false when time is up. */
static int collect(int fd, double timeout_s, char *output, size_t n_bytes)
{
    char rest[4096];
    size_t n = 0;

    output[0] = '\0';
    while (watch_seconds(&run.watch) < timeout_s) {
        struct pollfd entry = {.fd = fd, .events = POLLIN};

        if (poll(&entry, 1, LOOK_MS) <= 0)
            continue;
        char *to = n + 1 < n_bytes ? output + n : rest;
        ssize_t got = read(fd, to, n + 1 < n_bytes ? n_bytes - 1 - n : sizeof rest);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 1;
        if (to != rest)
            n += (size_t)got;
        output[n] = '\0';
    }
    return 0;
}

/* It has closed its output, but need not end for that. */
static int wait_for(pid_t pid, double timeout_s)
{
    const struct timespec nap = {.tv_nsec = 1000 * 1000};
    int code = 0;

    while (waitpid(pid, &code, WNOHANG) != pid) {
        if (watch_seconds(&run.watch) >= timeout_s)
            kill(-pid, SIGKILL);
        nanosleep(&nap, NULL);
    }
    return WIFEXITED(code) ? WEXITSTATUS(code) : -WTERMSIG(code);
}

static void describe_command(const char *const argv[])
{
    size_t n = 0;

    run.command[0] = '\0';
    for (int i = 0; argv[i] != NULL && n < sizeof run.command; i++)
        n += (size_t)snprintf(run.command + n, sizeof run.command - n, "%s%s", i > 0 ? " " : "",
                              argv[i]);
}

static void write_report(int code, double seconds, double timeout_s, const char *output)
{
    char end[64];

    if (code == NOT_STARTED)
        snprintf(end, sizeof end, "could not be started");
    else if (code < 0)
        snprintf(end, sizeof end, "ended by signal %d (%s)", -code, strsignal(-code));
    else
        snprintf(end, sizeof end, "exit %d", code);
    snprintf(run.report, sizeof run.report,
             "%s\n%s after %.2f s (limit %g s, stopped for %.2f s), %s%s", run.command, end,
             seconds, timeout_s, run.watch.stopped,
             output[0] != '\0' ? "it printed:\n" : "it printed nothing", output);
}

static pid_t start(const char *const argv[], const int out[2])
{
    pid_t pid = fork();

    if (pid == 0) {
        setpgid(0, 0);
        setenv(MARK, run.mark, 1);
        /* In sanitizer builds: the network libraries under MPI leak, which is not our doing. */
        setenv("ASAN_OPTIONS", "detect_leaks=0", 0);
        dup2(out[1], STDOUT_FILENO);
        dup2(out[1], STDERR_FILENO);
        close(out[0]);
        close(out[1]);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    if (pid > 0)
        setpgid(pid, pid);
    return pid;
}

int run_command(const char *const argv[], double timeout_s, char *output, size_t n_bytes,
                double *seconds_out)
{
    static int n_runs;
    int out[2], code = NOT_STARTED;

    snprintf(run.mark, sizeof run.mark, "%d.%d", (int)getpid(), ++n_runs);
    describe_command(argv);
    run.watch = watch_begin();
    output[0] = '\0';
    if (pipe(out) == 0) {
        pid_t pid = start(argv, out);

        close(out[1]);
        if (pid > 0 && !collect(out[0], timeout_s, output, n_bytes))
            kill(-pid, SIGKILL);
        close(out[0]);
        if (pid > 0)
            code = wait_for(pid, timeout_s);
    }
    double seconds = watch_seconds(&run.watch);

    write_report(code, seconds, timeout_s, output);
    if (seconds_out != NULL)
        *seconds_out = seconds;
    return code;
}

const char *run_report(void)
{
    return run.report;
}

double run_seconds_of_fault(void)
{
    const char *line = strstr(run.report, "fault at ");
    double begin = run.watch.begin;

    if (line != NULL)
        (void)sscanf(line, "fault at %lf", &begin);
    return run.watch.last - begin - run.watch.stopped;
}

/* ---- what it left ---- */

static int is_marked(const char *pid)
{
    static char environment[1 << 17];
    char path[300], want[sizeof MARK + sizeof run.mark];

    snprintf(path, sizeof path, "/proc/%s/environ", pid);
    FILE *file = fopen(path, "r");

    if (file == NULL)
        return 0;
    size_t n = fread(environment, 1, sizeof environment - 1, file);

    fclose(file);
    environment[n] = '\0';
    snprintf(want, sizeof want, "%s=%s", MARK, run.mark);
    for (size_t i = 0; i < n; i += strlen(environment + i) + 1)
        if (strcmp(environment + i, want) == 0)
            return 1;
    return 0;
}

/* Zombies have no environment. */
static int count_marked(void)
{
    DIR *proc = opendir("/proc");
    int n = 0;

    if (proc == NULL)
        return -1;
    for (struct dirent *entry; (entry = readdir(proc)) != NULL;)
        n += entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && is_marked(entry->d_name);
    closedir(proc);
    return n;
}

int run_survivors(void)
{
    const struct timespec nap = {.tv_nsec = 20 * 1000 * 1000};
    struct watch watch = watch_begin();
    int n = count_marked();

    while (n != 0 && watch_seconds(&watch) < 5.0) {
        nanosleep(&nap, NULL);
        n = count_marked();
    }
    return n;
}

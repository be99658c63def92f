#include "comm/comm.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * Worker: steps of collectives in which something goes wrong on rank VICTIM at step 3.
 * In mode "unseen" there is no witness.  Usage: comm_faults MODE RANKS_PER_HOST TIMEOUT_S.  Prints when that was and what it learns, and
 * returns the status's exit code, as the trainer does.
 */
enum { VICTIM = 1, BAD_STEP = 3, STEPS = 6 };

static bool has_no_witness;

int __real_socketpair(int domain, int type, int protocol, int ends[2]);
int __wrap_socketpair(int domain, int type, int protocol, int ends[2]);

int __wrap_socketpair(int domain, int type, int protocol, int ends[2])
{
    return has_no_witness ? -1 : __real_socketpair(domain, type, protocol, ends);
}

static void sleep_seconds(double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds};

    t.tv_nsec = (long)((seconds - (double)t.tv_sec) * 1e9);
    nanosleep(&t, NULL);
}

/* One line in one write, so that the ranks' lines do not mix. */
static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *fmt, ...)
{
    char line[2048];
    va_list args;

    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    (void)!write(STDERR_FILENO, line, n < (int)sizeof line ? (size_t)n : sizeof line - 1);
}

/* A child stops a process for a while, as a debugger or a batch system would. */
static void stop_soon(pid_t pid, double seconds)
{
    if (fork() == 0) {
        sleep_seconds(0.1);
        kill(pid, SIGSTOP);
        sleep_seconds(seconds);
        kill(pid, SIGCONT);
        _exit(0);
    }
    sleep_seconds(0.3);
}

/* The launcher itself; the parent of a rank is its process on this machine. */
static pid_t launcher(void)
{
    char path[64];
    int pid = 0;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)getppid());
    FILE *file = fopen(path, "r");

    if (file == NULL || fscanf(file, "%*d %*s %*c %d", &pid) != 1 || pid <= 1)
        say("no launcher\n");
    if (file != NULL)
        fclose(file);
    return pid > 1 ? pid : getpid();
}

/* The only child of a rank is its witness. */
static void stop_children(void)
{
    char path[64];
    int child;

    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *file = fopen(path, "r");

    while (file != NULL && fscanf(file, "%d", &child) == 1)
        kill(child, SIGSTOP);
    if (file != NULL)
        fclose(file);
}

/* What happens at BAD_STEP, on every rank. */
static shoal_status misbehave(struct comm *comm, const char *mode)
{
    bool is_victim = comm_rank(comm) == VICTIM;

    if (is_victim && strncmp(mode, "last", 4) != 0)
        say("fault at %.6f\n", clock_seconds());
    if (strcmp(mode, "freeze") == 0)
        stop_soon(getpid(), 3.0);
    if (strcmp(mode, "late") == 0 && !is_victim)
        sleep_seconds(60);
    if (strcmp(mode, "witness") == 0)
        stop_children();
    if (!is_victim)
        return SHOAL_OK;
    if (strcmp(mode, "kill") == 0 || strcmp(mode, "unseen") == 0)
        raise(SIGKILL);
    if (strcmp(mode, "stop") == 0)
        raise(SIGSTOP);
    if (strcmp(mode, "pause") == 0)
        stop_soon(getpid(), 0.8);
    /* They take what is printed, and orders to end the run, only later, and then at once. */
    if (strcmp(mode, "deaf") == 0)
        stop_soon(getppid(), 0.6);
    if (strcmp(mode, "deaf-launcher") == 0)
        stop_soon(launcher(), 0.6);
    if (strcmp(mode, "hang") == 0)
        sleep_seconds(60);
    if (strcmp(mode, "mismatch") == 0)
        return comm_barrier(comm);
    if (strcmp(mode, "fail") == 0 || strcmp(mode, "late") == 0 || strncmp(mode, "deaf", 4) == 0)
        return fail(SHOAL_ERR_IO, "disk is full");
    for (int i = 0; strcmp(mode, "slow") == 0 && i < 15; i++) {
        sleep_seconds(0.2);
        comm_note(comm, BAD_STEP, "writing a long file");
    }
    return SHOAL_OK;
}

static shoal_status run_steps(struct comm *comm, const char *mode)
{
    for (int step = 1; step <= STEPS; step++) {
        int64_t sum = 1;

        comm_note(comm, step, "forward block.2");
        sleep_seconds(0.06); /* more than a heartbeat */
        if (step == BAD_STEP)
            SHOAL_TRY(misbehave(comm, mode));
        SHOAL_TRY(comm_all_reduce_i64(comm, &sum, 1));
        if (sum != comm_size(comm))
            return fail(SHOAL_ERR_INTERNAL, "step %d: %lld ranks counted", step, (long long)sum);
    }
    return SHOAL_OK;
}

/* After the last call but that of comm_close. */
static shoal_status misbehave_at_the_end(struct comm *comm, const char *mode)
{
    bool is_victim = comm_rank(comm) == VICTIM;
    shoal_status status = SHOAL_OK;

    if (is_victim && strncmp(mode, "last", 4) == 0)
        say("fault at %.6f\n", clock_seconds());
    if (is_victim && strcmp(mode, "last-stop") == 0)
        raise(SIGSTOP);
    if (is_victim && (strcmp(mode, "last") == 0 || strcmp(mode, "last-agreed") == 0))
        status = fail(SHOAL_ERR_IO, "disk is full");
    return strcmp(mode, "last-agreed") == 0 ? comm_agree(comm, status) : status;
}

int main(int argc, char **argv)
{
    struct comm_params params = {.heartbeat_s = 0.05};
    struct comm *comm;

    if (argc != 4)
        return 64;
    has_no_witness = strcmp(argv[1], "unseen") == 0;
    params.ranks_per_host = atoi(argv[2]);
    params.timeout_s = atof(argv[3]);
    /* As on a second machine of a quiet run: what counts must be told all the same. */
    log_init(1, LOG_QUIET);
    shoal_status status = comm_open(&params, &comm);
    if (status != SHOAL_OK) {
        log_failure(shoal_exit_code(status));
        return 1;
    }
    int rank = comm_rank(comm);

    log_init(rank, LOG_NORMAL);
    status = run_steps(comm, argv[1]);
    if (status == SHOAL_OK)
        status = misbehave_at_the_end(comm, argv[1]);
    say("learned by %d: %d %s\n", rank, (int)status, status != SHOAL_OK ? shoal_last_error() : "");
    status = comm_close(comm, status);
    if (strcmp(argv[1], "last") == 0)
        say("ended by %d: %d %s\n", rank, (int)status,
            status != SHOAL_OK ? shoal_last_error() : "");
    if (status != SHOAL_OK && rank == 0)
        log_failure(shoal_exit_code(status));
    return shoal_exit_code(status);
}
